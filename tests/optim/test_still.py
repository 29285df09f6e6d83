"""What must not move does not, to the bit; and a resumed run is the run, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import geoopt
import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

import riemann_unlearn as ru
from riemann_unlearn import _jit
from riemann_unlearn.optim import RiemannianAdam, RiemannianAdamW, RiemannianSGD
from tests.optim.problems import lorentz_points

Make = Callable[..., torch.optim.Optimizer]
OPTIMIZERS: dict[str, tuple[Make, dict[str, Any]]] = {
    "Adam": (RiemannianAdam, {}),
    "Adam stabilize": (RiemannianAdam, {"stabilize": 1}),
    "Adam amsgrad": (RiemannianAdam, {"amsgrad": True, "weight_decay": 0.1}),
    "Adam lazy": (RiemannianAdam, {"lazy": True}),
    "Adam one by one": (RiemannianAdam, {"foreach": False}),
    "AdamW": (RiemannianAdamW, {"weight_decay": 0.1}),
    "AdamW stabilize": (RiemannianAdamW, {"weight_decay": 0.1, "stabilize": 1}),
    "SGD": (RiemannianSGD, {}),
    "SGD momentum": (RiemannianSGD, {"momentum": 0.9}),
    "SGD nesterov": (RiemannianSGD, {"momentum": 0.9, "nesterov": True}),
    "SGD stabilize": (RiemannianSGD, {"momentum": 0.9, "stabilize": 1, "weight_decay": 0.1}),
}
every = pytest.mark.parametrize("name", OPTIMIZERS)


class Model(torch.nn.Module):
    """Points far out on a Lorentz manifold, on a sphere and in a ball, and a matrix."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        lorentz, generator = ru.Lorentz(torch.tensor(1.3, dtype=dtype)), torch.Generator().manual_seed(0)
        far = torch.cat([lorentz_points(lorentz, 6, 5, seed, radius=r) for seed, r in ((0, 10.0), (1, 2.0))])
        self.far = geoopt.ManifoldParameter(far.to(dtype), lorentz)
        self.more = geoopt.ManifoldParameter(lorentz_points(lorentz, 3, 5, 2, radius=6.0).to(dtype), lorentz)
        v = torch.randn(4, 3, dtype=dtype, generator=generator)
        self.sphere = geoopt.ManifoldParameter(geoopt.Sphere().projx(v), geoopt.Sphere())
        ball = geoopt.PoincareBall(torch.tensor(0.7, dtype=dtype))
        self.ball = geoopt.ManifoldParameter(ball.projx(v / 3), ball)
        self.matrix = torch.nn.Parameter(v)

    def forward(self) -> Tensor:
        weights = torch.arange(1, 7).to(self.matrix) / 7
        terms = [self.far * weights, self.more * weights, self.sphere * weights[:3], self.ball, self.matrix]
        return torch.stack(
            [(term * term.detach().sign()).sum() + term.square().mean() for term in terms]
        ).sum()


def groups(model: Model, name: str) -> list[dict[str, Any]]:
    """Where weight decay has no origin to lead to there is none."""
    decayed = [p for key, p in model.named_parameters() if key != "sphere"]
    alone: dict[str, Any] = {"params": [model.sphere]}
    if OPTIMIZERS[name][0] is RiemannianAdamW:
        alone["weight_decay"] = 0.0
    return [{"params": decayed}, alone]


def make(model: Model, name: str, lr: float | Tensor) -> torch.optim.Optimizer:
    optimizer, options = OPTIMIZERS[name]
    return optimizer(groups(model, name), lr=lr, **options)


def train(model: Model, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model().backward()
        optimizer.step()


def bits(model: Model) -> dict[str, Tensor]:
    whole = {torch.float32: torch.int32, torch.float64: torch.int64}
    return {
        key: p.detach().as_subclass(Tensor).clone().view(whole[p.dtype])
        for key, p in model.named_parameters()
    }


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert {key: int((a[key] != b[key]).sum()) for key in a} == dict.fromkeys(a, 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("make", [RiemannianAdam, RiemannianAdamW, RiemannianSGD])
def test_a_step_leaves_gradients_as_they_were(make: Make, dtype: torch.dtype) -> None:
    """geoopt's own conversion of gradients turns the sign of their time in place."""
    manifold = geoopt.Lorentz()
    generator = torch.Generator().manual_seed(0)
    points = manifold.projx(torch.randn(3, 5, generator=generator)).to(dtype)
    parameter = geoopt.ManifoldParameter(points, manifold=manifold)
    parameter.grad = torch.randn(3, 5, generator=generator).to(dtype)
    before = parameter.grad.clone()
    make([parameter], lr=0.1).step()
    assert torch.equal(parameter.grad, before)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every
def test_at_a_learning_rate_of_0_not_a_bit_moves(
    name: str, dtype: torch.dtype, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(_jit, "INSTALLED", False)
    model = Model(dtype)
    with torch.no_grad():  # signs of zeros are bits too
        model.far[0, 2], model.far[1, 3] = -0.0, 0.0
    before = bits(model)
    for lr in (0.0, torch.tensor(0.0)):
        train(model, make(model, name, lr), 3)
        assert_same(bits(model), before)


@every
def test_momenta_are_accumulated_at_a_learning_rate_of_0(name: str) -> None:
    """So that a warm-up may begin there."""
    model = Model(torch.float64)
    optimizer = make(model, name, 0.0)
    train(model, optimizer, 2)
    for p in (model.far, model.sphere):
        for key in ("exp_avg", "momentum_buffer"):
            if key in optimizer.state[p]:
                momenta = optimizer.state[p][key]
                assert momenta.any()
                assert p.manifold.check_vector_on_tangent(p.detach(), momenta)


@every
def test_decay_by_a_millionth_moves_a_point_by_a_millionth(name: str) -> None:
    if OPTIMIZERS[name][0] is not RiemannianAdamW:
        return
    model = Model(torch.float32)
    before = model.far.manifold.dist0(model.far.double()).detach()
    optimizer = RiemannianAdamW([model.far], lr=1e-6, weight_decay=1.0)
    for _ in range(10):
        model.far.grad = torch.zeros_like(model.far)
        optimizer.step()
    after = model.far.manifold.dist0(model.far.double()).detach()
    torch.testing.assert_close(after, before * (1 - 1e-6) ** 10, rtol=3e-6, atol=0)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("way", ["state_dict", "distributed", "distributed, stepped before"])
@every
def test_a_resumed_run_is_the_run(name: str, way: str, tmp_path: Path) -> None:
    whole = Model(torch.float32)
    optimizer = make(whole, name, 1e-2)
    train(whole, optimizer, 3)
    half = Model(torch.float32)
    resumed = make(half, name, 1e-2)
    if way == "state_dict":
        torch.save((whole.state_dict(), optimizer.state_dict()), tmp_path / "checkpoint.pt")
        model_state, optimizer_state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        half.load_state_dict(model_state)
        resumed.load_state_dict(optimizer_state)
    else:
        saved: dict[str, Any] = dict(
            zip(("model", "optimizer"), get_state_dict(whole, optimizer), strict=True)
        )
        save(saved, checkpoint_id=tmp_path / "checkpoint")
        if way != "distributed":
            train(half, resumed, 1)
        held: dict[str, Any] = dict(zip(("model", "optimizer"), get_state_dict(half, resumed), strict=True))
        load(held, checkpoint_id=tmp_path / "checkpoint")
        set_state_dict(half, resumed, model_state_dict=held["model"], optim_state_dict=held["optimizer"])
    assert_same(bits(half), bits(whole))
    for each, own in ((whole, optimizer), (half, resumed)):
        train(each, own, 3)
    assert_same(bits(half), bits(whole))


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
@pytest.mark.parametrize("manifold", [ru.Lorentz(learnable=True), geoopt.Lorentz(learnable=True)])
def test_a_curvature_that_nothing_bounds_is_refused_before_points_are_lost(
    manifold: geoopt.Lorentz, name: str
) -> None:
    points = geoopt.ManifoldParameter(manifold.origin(2, 4).detach().clone(), manifold)
    optimizer = OPTIMIZERS[name][0]([points, manifold.k], lr=1.5, weight_decay=0.0)
    (3 * manifold.k + 0 * points.sum()).backward()
    with pytest.raises(ValueError, match=r"k from 1 to -.* must be positive .*curvature_group"):
        optimizer.step()
    assert manifold.k.item() == 1.0
    assert points.isfinite().all()


def test_a_curvature_that_another_optimizer_has_led_out_of_range_is_refused_when_used() -> None:
    manifold = ru.Lorentz(learnable=True)
    optimizer = torch.optim.SGD([manifold.k], lr=2.0)
    manifold.k.sum().backward()
    optimizer.step()
    x = torch.tensor([[1.0, 0.0]])
    for method in (manifold.dist0, manifold.projx, manifold.expmap0):
        with pytest.raises(ValueError, match=r"k has become -1.0, and must be positive"):
            method(x)


@pytest.mark.parametrize("k", [0.0, -1.0, float("nan"), torch.tensor(-2.0), torch.tensor(float("nan"))])
def test_a_curvature_out_of_range_is_refused_at_construction(k: float | Tensor) -> None:
    with pytest.raises(ValueError, match="k must be positive"):
        ru.Lorentz(k)
