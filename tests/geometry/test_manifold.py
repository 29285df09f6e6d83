"""The drop-in manifold: geoopt's results where geoopt is right, and the places where it is not."""

from __future__ import annotations

import geoopt
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from riemann_unlearn.geometry import Lorentz, tangent

F64 = torch.float64


def at_radius(manifold: Lorentz, r: float, n: int = 64, dim: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    v = normalize(torch.randn(n, dim, generator=generator), dim=-1) * r
    return manifold.expmap0(pad(v, (1, 0)))


@pytest.fixture(params=[0.5, 1.0, 5.0])
def case(request: pytest.FixtureRequest) -> tuple[Lorentz, geoopt.Lorentz, dict[str, tuple[Tensor, ...]]]:
    ours, theirs = Lorentz(request.param).double(), geoopt.Lorentz(request.param).double()
    torch.manual_seed(0)
    x, y = (ours.expmap0(pad(torch.randn(6, 4, dtype=F64) / 2, (1, 0))) for _ in range(2))
    u, v = (ours.proju(x, torch.randn(6, 5, dtype=F64) / 9) for _ in range(2))
    u0 = pad(torch.randn(6, 4, dtype=F64), (1, 0))
    methods: dict[str, tuple[Tensor, ...]] = {
        "dist": (x, y),
        "dist0": (x,),
        "expmap": (x, u),
        "retr": (x, u),
        "expmap0": (u0,),
        "logmap": (x, y),
        "logmap0": (x,),
        "logmap0back": (x,),
        "transp": (x, y, u),
        "transp0": (y, u0),
        "transp0back": (x, u),
        "transp_follow_expmap": (x, u, v),
        "inner": (x, u, v),
        "inner0": (x,),
        "norm": (u,),
        "projx": (x + 0.1,),
        "proju": (x, y),
        "egrad2rgrad": (x, y),
    }
    return ours, theirs, methods


def test_every_method_agrees_with_geoopt_near_the_origin(case: tuple) -> None:  # type: ignore[type-arg]
    ours, theirs, methods = case
    for name, arguments in methods.items():
        got = getattr(ours, name)(*(a.clone() for a in arguments))
        want = getattr(theirs, name)(*(a.clone() for a in arguments))
        assert got.shape == want.shape, name
        assert got.dtype == want.dtype, name
        assert torch.allclose(got, want, atol=1e-6), name


def test_any_axis_can_hold_the_components(case: tuple) -> None:  # type: ignore[type-arg]
    ours, _, methods = case
    for name in ("dist", "dist0", "expmap", "logmap", "transp", "inner", "norm", "projx", "proju"):
        want = getattr(ours, name)(*methods[name])
        got = getattr(ours, name)(*(a.T for a in methods[name]), dim=0)
        assert torch.equal(got.T if got.ndim == 2 else got, want), name
    x, y = methods["dist"]
    assert ours.dist(x, y, keepdim=True).shape == (6, 1)
    assert ours.inner(x, y, keepdim=True).shape == (6, 1)
    assert ours.dist(x.T, y.T, keepdim=True, dim=0).shape == (1, 6)


def test_cones_and_pairwise_distances_are_those_of_the_tangent_vectors(case: tuple) -> None:  # type: ignore[type-arg]
    ours, _, methods = case
    x, y = methods["dist"]
    v1, v2 = (ours.logmap0(p)[..., 1:] for p in (x, y))
    c = 1 / ours.k.item()
    assert torch.allclose(ours.half_aperture(x), tangent.half_aperture(v1, c))
    assert torch.allclose(ours.exterior_angle(x, y), tangent.exterior_angle(v1, v2, c))
    assert torch.allclose(ours.cdist(x, y), ours.dist(x[:, None], y[None]))
    assert ours.cdist(x, x, fix_near="diagonal").diagonal().tolist() == [0.0] * 6


@pytest.mark.parametrize("k", [1.0, 5.0])
@pytest.mark.parametrize("r", [0.0, 4.0, 10.0, 20.0])
def test_projected_points_and_tangents_pass_the_manifolds_own_check(k: float, r: float) -> None:
    manifold = Lorentz(k)
    x = manifold.projx(at_radius(manifold, r) * 1.001)
    assert manifold.check_point_on_manifold(x)
    u = manifold.proju(x, torch.randn_like(x))
    assert manifold.check_vector_on_tangent(x, u)
    assert not manifold.check_vector_on_tangent(x, torch.eye(17)[0].expand_as(x))
    assert not manifold.check_point_on_manifold(-x)
    off = x + torch.tensor([0.1] + [0.0] * 16) * x[..., :1]
    assert manifold.check_point_on_manifold(off, explain=True)[0] is False


@pytest.mark.parametrize("r", [0.0, 3.0, 8.0, 10.0])
def test_float32_points_far_out(r: float) -> None:
    manifold = Lorentz(1.0)
    x, y = at_radius(manifold, r).requires_grad_(), at_radius(manifold, r, seed=1)
    zero = manifold.dist(x, x.detach().clone())
    assert zero.tolist() == [0.0] * 64
    assert torch.autograd.grad(zero.sum(), x)[0].abs().max() == 0
    u = manifold.proju(x.detach(), torch.randn_like(y) * 0.1)
    far = manifold.transp(x.detach(), y, u)
    exact = Lorentz(1.0).double().transp(*(t.detach().double() for t in (x, y, u)))
    assert torch.allclose(far.double(), exact, rtol=1e-5, atol=1e-5 * exact.abs().max().item())


def test_the_euclidean_gradient_is_left_alone() -> None:
    manifold = Lorentz(1.0)
    x, gradient = at_radius(manifold, 2.0), torch.ones(64, 17)
    manifold.egrad2rgrad(x, gradient)
    assert torch.equal(gradient, torch.ones(64, 17))


@pytest.mark.parametrize(("lr", "r"), [(1e-2, 8.0), (1.0, 8.0), (1e-1, 2.0)])
def test_geoopts_riemannian_adam_stays_finite_and_on_the_manifold(lr: float, r: float) -> None:
    manifold = Lorentz(1.0)
    start, goal = at_radius(manifold, r), at_radius(manifold, 1.0, seed=1)
    points = geoopt.ManifoldParameter(start.clone(), manifold=manifold)
    optimizer = geoopt.optim.RiemannianAdam([points], lr=lr, stabilize=1)
    for _ in range(60):
        optimizer.zero_grad()
        loss = manifold.dist(points, goal).sum()
        loss.backward()
        optimizer.step()
    assert points.isfinite().all()
    assert manifold.check_point_on_manifold(points)
    assert manifold.dist(points, goal).mean() < manifold.dist(start, goal).mean()


def test_curvature_is_learnable_and_checked() -> None:
    manifold = Lorentz(2.0, learnable=True)
    x, y = at_radius(manifold, 1.0).detach(), at_radius(manifold, 1.0, seed=1).detach()
    manifold.dist(x, y).sum().backward()
    assert manifold.k.grad is not None
    assert manifold.k.grad.isfinite()
    assert manifold.k.grad != 0
    with pytest.raises(ValueError, match="k must be positive"):
        Lorentz(-1.0)


def test_random_points_honour_their_spread() -> None:
    manifold = Lorentz(1.0)
    torch.manual_seed(0)
    for std in (0.1, 1.0):
        points = manifold.random_normal(4000, 3, std=std)
        assert isinstance(points, geoopt.ManifoldTensor)
        v = manifold.logmap0(points.detach())[..., 1:]
        assert v.norm(dim=-1).square().mean().sqrt().item() == pytest.approx(std, rel=0.05)
    assert manifold.check_point_on_manifold(manifold.origin(2, 3))


def test_the_norm_of_what_is_no_vector_is_no_number() -> None:
    u = torch.tensor([[0.0, 1.0, torch.nan], [0.0, torch.inf, 1.0], [0.0, 3.0, 4.0]])
    assert Lorentz().norm(u).isnan().tolist() == [True, True, False]


def test_the_norm_of_nothing_is_nothing() -> None:
    u = torch.zeros(3, requires_grad=True)
    size = Lorentz(1.0).norm(u)
    assert size.item() == 0.0
    assert torch.autograd.grad(size, u)[0].tolist() == [0.0, 0.0, 0.0]
