from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geoopt
import pytest
import torch
from torch import Tensor

import riemann_unlearn as ru
from riemann_unlearn.optim import RiemannianAdam, RiemannianAdamW, RiemannianSGD
from tests.optim.problems import attraction, constraint_error, lorentz_points, run

DOUBLE = {"dtype": torch.float64}


def lorentz_problem(manifold: geoopt.Lorentz, count: int = 5) -> Any:
    return attraction(
        manifold,
        [lorentz_points(manifold, count, 4, 0), lorentz_points(manifold, 2, 4, 1)],
        [lorentz_points(manifold, count, 4, 2), lorentz_points(manifold, 2, 4, 3)],
    )


def other_problem(name: str) -> Any:
    """A few points on a manifold that goes through its own maps."""
    torch.manual_seed(0)
    if name == "stiefel":
        manifold: geoopt.Manifold = geoopt.EuclideanStiefel()
        start = manifold.random(3, 4, 2, **DOUBLE)
        target = manifold.random(3, 4, 2, **DOUBLE)
        p = geoopt.ManifoldParameter(start)
        return [p], lambda: (p - target).square().sum()
    if name == "product":
        manifold = geoopt.ProductManifold(
            (geoopt.Sphere(), 3), (geoopt.PoincareBall(torch.tensor(1.0, **DOUBLE)), 2)
        )
        p = geoopt.ManifoldParameter(manifold.random(4, 5, **DOUBLE))
        target = manifold.random(4, 5, **DOUBLE)
        return [p], lambda: manifold.dist(p, target).square().sum()
    manifold = {
        "poincare": geoopt.PoincareBall(c=torch.tensor(0.7, **DOUBLE)),
        "poincare_exact": geoopt.PoincareBallExact(c=torch.tensor(0.7, **DOUBLE)),
        "sphere": geoopt.Sphere(),
        "vectors": geoopt.Euclidean(ndim=1),
        "scaled": geoopt.Scaled(geoopt.Sphere(), 2.0),
    }[name]
    starts = [manifold.random(3, 4, **DOUBLE), manifold.random(2, 4, **DOUBLE)]
    targets = [manifold.random(3, 4, **DOUBLE), manifold.random(2, 4, **DOUBLE)]
    return attraction(manifold, [s.as_subclass(Tensor) for s in starts], targets)


OTHERS = ["poincare", "poincare_exact", "sphere", "vectors", "scaled", "stiefel", "product"]


def twins(make: Callable[[], Any]) -> tuple[Any, Any]:
    return make(), make()


class TestEuclidean:
    """On Euclidean parameters everything is torch's, to the bit."""

    OPTIONS = (
        {},
        {"amsgrad": True},
        {"maximize": True},
        {"weight_decay": 0.1},
        {"foreach": True},
        {"lr": 1e-1},
    )

    @staticmethod
    def problem() -> Any:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 2))
        flat = geoopt.ManifoldParameter(torch.randn(3), manifold=geoopt.Euclidean())
        data = torch.randn(16, 5)
        return [*model.parameters(), flat], lambda: model(data).square().sum() + (flat - 2).square().sum()

    @pytest.mark.parametrize("options", OPTIONS)
    @pytest.mark.parametrize(
        "pair", [(RiemannianAdam, torch.optim.Adam), (RiemannianAdamW, torch.optim.AdamW)]
    )
    def test_is_torchs_to_the_bit(self, pair: Any, options: dict[str, Any]) -> None:
        (ours, our_loss), (theirs, their_loss) = twins(self.problem)
        run(pair[0](ours, **options), our_loss, 5)
        run(pair[1](theirs, fused=not options.get("foreach"), **options), their_loss, 5)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

    @pytest.mark.parametrize(
        "options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"maximize": True}]
    )
    def test_sgd_too(self, options: dict[str, Any]) -> None:
        (ours, our_loss), (theirs, their_loss) = twins(self.problem)
        run(RiemannianSGD(ours, lr=1e-2, **options), our_loss, 5)
        run(torch.optim.SGD(theirs, lr=1e-2, fused=True, **options), their_loss, 5)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

    def test_complex_parameters(self) -> None:
        ours, theirs = (torch.nn.Parameter(torch.tensor([1 + 2j, 3 - 1j])) for _ in range(2))
        run(RiemannianAdam([ours]), lambda: (ours - 1).abs().square().sum(), 3)
        run(torch.optim.Adam([theirs], foreach=False), lambda: (theirs - 1).abs().square().sum(), 3)
        assert torch.equal(ours, theirs)

    def test_refuses_sparse_gradients(self) -> None:
        table = torch.nn.Embedding(4, 2, sparse=True)
        table(torch.tensor([1])).sum().backward()
        with pytest.raises(RuntimeError, match="SparseAdam"):
            RiemannianAdam(table.parameters()).step()


class TestAgainstGeoopt:
    """The same update to rounding, the same state."""

    OPTIONS = ({}, {"amsgrad": True}, {"weight_decay": 0.1}, {"stabilize": 3})

    @pytest.mark.parametrize("options", OPTIONS)
    def test_same_trajectory_on_lorentz(self, options: dict[str, Any]) -> None:
        manifold = geoopt.Lorentz(k=torch.tensor(1.7, **DOUBLE))
        (ours, our_loss), (theirs, their_loss) = twins(lambda: lorentz_problem(manifold))
        run(RiemannianAdam(ours, lr=0.05, **options), our_loss, 20)
        run(geoopt.optim.RiemannianAdam(theirs, lr=0.05, **options), their_loss, 20)
        # geoopt's own formulas lose some digits of float64 here; ours agree with what is left.
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.data, b.data, rtol=1e-11, atol=1e-11)

    @pytest.mark.parametrize("options", OPTIONS)
    @pytest.mark.parametrize("name", OTHERS)
    def test_same_trajectory_elsewhere(self, name: str, options: dict[str, Any]) -> None:
        (ours, our_loss), (theirs, their_loss) = twins(lambda: other_problem(name))
        run(RiemannianAdam(ours, lr=0.05, **options), our_loss, 10)
        run(geoopt.optim.RiemannianAdam(theirs, lr=0.05, **options), their_loss, 10)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.data, b.data, rtol=1e-13, atol=1e-13)

    @pytest.mark.parametrize("name", ["lorentz", *OTHERS])
    def test_sgd_without_momentum(self, name: str) -> None:
        manifold = geoopt.Lorentz(k=torch.tensor(1.7, **DOUBLE))
        make = (lambda: lorentz_problem(manifold)) if name == "lorentz" else (lambda: other_problem(name))
        (ours, our_loss), (theirs, their_loss) = twins(make)
        run(RiemannianSGD(ours, lr=0.01), our_loss, 10)
        run(geoopt.optim.RiemannianSGD(theirs, lr=0.01), their_loss, 10)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.data, b.data, rtol=1e-11, atol=1e-11)

    @pytest.mark.parametrize("amsgrad", [False, True])
    @pytest.mark.parametrize("name", ["lorentz", "poincare", "stiefel", "product"])
    def test_states_are_exchanged(self, name: str, amsgrad: bool) -> None:
        manifold = geoopt.Lorentz(k=torch.tensor(1.7, **DOUBLE))
        make = (lambda: lorentz_problem(manifold)) if name == "lorentz" else (lambda: other_problem(name))
        kinds = (RiemannianAdam, geoopt.optim.RiemannianAdam)
        for second in kinds:
            ends = []
            for first in kinds:
                params, loss = make()
                optimizer = first(params, lr=0.05, amsgrad=amsgrad)
                run(optimizer, loss, 5)
                following = second(params, lr=0.05, amsgrad=amsgrad)
                following.load_state_dict(copy.deepcopy(optimizer.state_dict()))
                run(following, loss, 5)
                ends.append(torch.cat([p.detach().flatten() for p in params]))
            torch.testing.assert_close(ends[1], ends[0], rtol=1e-10, atol=1e-10)

    def test_one_second_moment_a_point(self) -> None:
        params, loss = lorentz_problem(ru.Lorentz())
        optimizer = RiemannianAdam(params, amsgrad=True)
        run(optimizer, loss, 1)
        state = optimizer.state[params[0]]
        assert state["exp_avg"].shape == params[0].shape
        assert state["exp_avg_sq"].shape == state["max_exp_avg_sq"].shape == (5, 1)

    @pytest.mark.parametrize("lazy", ["sparse", "lazy"])
    @pytest.mark.parametrize("kind", ["lorentz", "poincare"])
    def test_rows_of_a_table(self, kind: str, lazy: str) -> None:
        manifold: Any = (
            ru.Lorentz(k=torch.tensor(1.0, **DOUBLE)) if kind == "lorentz" else geoopt.PoincareBall()
        )
        start = lorentz_points(ru.Lorentz(k=torch.tensor(1.0, **DOUBLE)), 6, 3, 0)
        start = start if kind == "lorentz" else start[:, 1:] / (1 + start[:, :1])
        ours, theirs = (geoopt.ManifoldParameter(start.clone(), manifold) for _ in range(2))
        optimizer = RiemannianAdam([ours], lr=0.1, lazy=lazy == "lazy")
        reference = geoopt.optim.SparseRiemannianAdam([theirs], lr=0.1)
        for step in range(6):
            rows = torch.tensor([step % 2, 3])
            gradient = torch.randn(2, start.shape[1], generator=torch.Generator().manual_seed(step), **DOUBLE)
            sparse = torch.sparse_coo_tensor(rows[None], gradient, start.shape, check_invariants=True)
            theirs.grad = sparse
            ours.grad = sparse.clone() if lazy == "sparse" else sparse.to_dense()
            optimizer.step()
            reference.step()
        torch.testing.assert_close(ours.data, theirs.data, rtol=1e-11, atol=1e-11)
        assert torch.equal(ours[2], start[2])

    def test_a_sparse_gradient_needs_a_table(self) -> None:
        manifold = ru.Lorentz()
        p = geoopt.ManifoldParameter(manifold.origin(2, 2, 3))
        p.grad = torch.ones(2, 2, 3).to_sparse()
        with pytest.raises(RuntimeError, match="table of points"):
            RiemannianAdam([p]).step()


class TestOptions:
    def test_batched_is_one_by_one(self) -> None:
        manifold = ru.Lorentz(k=torch.tensor(0.5, **DOUBLE))
        (ours, our_loss), (theirs, their_loss) = twins(lambda: lorentz_problem(manifold))
        run(RiemannianAdam(ours, lr=0.1), our_loss, 10)
        run(RiemannianAdam(theirs, lr=0.1, foreach=False), their_loss, 10)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.data, b.data, rtol=1e-13, atol=1e-13)

    def test_a_parameter_that_joins_later_counts_its_own_steps(self) -> None:
        manifold = ru.Lorentz(k=torch.tensor(1.0, **DOUBLE))
        (both, both_loss), (alone, alone_loss) = twins(lambda: lorentz_problem(manifold))
        late, late_alone = RiemannianAdam(both, lr=0.1), RiemannianAdam(alone[1:], lr=0.1)
        for step in range(6):
            late.zero_grad(), late_alone.zero_grad()
            both_loss().backward(), alone_loss().backward()
            if step < 3:
                both[1].grad = None
            else:
                late_alone.step()
            late.step()
        torch.testing.assert_close(both[1].data, alone[1].data, rtol=1e-13, atol=1e-13)

    @pytest.mark.parametrize("name", ["lorentz", "poincare", "product"])
    def test_capturable_changes_nothing(self, name: str) -> None:
        manifold = ru.Lorentz(k=torch.tensor(1.0, **DOUBLE))
        make = (lambda: lorentz_problem(manifold)) if name == "lorentz" else (lambda: other_problem(name))
        (ours, our_loss), (theirs, their_loss) = twins(make)
        run(RiemannianAdam(ours, lr=torch.tensor(0.1), capturable=True), our_loss, 5)
        run(RiemannianAdam(theirs, lr=torch.tensor(0.1)), their_loss, 5)
        for a, b in zip(ours, theirs, strict=True):
            # The step count is float32 on the device, and so is its bias correction.
            torch.testing.assert_close(a.data, b.data, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("kind", [RiemannianAdam, RiemannianSGD])
    @pytest.mark.parametrize("name", ["lorentz", "sphere"])
    def test_maximize_is_minimizing_the_negative(self, kind: Any, name: str) -> None:
        manifold = ru.Lorentz(k=torch.tensor(1.0, **DOUBLE))
        make = (lambda: lorentz_problem(manifold)) if name == "lorentz" else (lambda: other_problem(name))
        (ours, our_loss), (theirs, their_loss) = twins(make)
        run(kind(ours, lr=0.01, maximize=True), our_loss, 5)
        run(kind(theirs, lr=0.01), lambda: -their_loss(), 5)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

    @pytest.mark.parametrize("kind", [RiemannianAdam, RiemannianSGD])
    @pytest.mark.parametrize("name", ["lorentz", "sphere", "poincare_exact"])
    def test_a_step_is_no_longer_than_its_cap(self, kind: Any, name: str) -> None:
        manifold = ru.Lorentz(k=torch.tensor(2.0, **DOUBLE))
        params, loss = lorentz_problem(manifold) if name == "lorentz" else other_problem(name)
        before = [p.detach().clone() for p in params]
        run(kind(params, lr=10.0, max_step=0.25, retraction=False), loss, 1)
        for old, p in zip(before, params, strict=True):
            moved = p.manifold.dist(old, p.detach())
            torch.testing.assert_close(moved, torch.full_like(moved, 0.25), rtol=1e-6, atol=1e-6)

    def test_the_exponential_map_can_be_chosen(self) -> None:
        (ours, our_loss), (theirs, their_loss) = twins(lambda: other_problem("poincare"))
        run(RiemannianAdam(ours, lr=0.1, retraction=False), our_loss, 3)
        for p in theirs:
            p.manifold = geoopt.PoincareBallExact(c=torch.tensor(0.7, **DOUBLE))
        run(geoopt.optim.RiemannianAdam(theirs, lr=0.1), their_loss, 3)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.data, b.data, rtol=1e-13, atol=1e-13)

    def test_the_gradient_is_left_alone(self) -> None:
        for name in ("lorentz", "poincare"):
            params, loss = lorentz_problem(geoopt.Lorentz(k=torch.tensor(1.0, **DOUBLE)))
            params, loss = (params, loss) if name == "lorentz" else other_problem(name)
            loss().backward()
            before = params[0].grad.clone()
            RiemannianAdam(params, weight_decay=0.1).step()
            RiemannianSGD(params, weight_decay=0.1).step()
            assert torch.equal(params[0].grad, before)

    def test_a_closure_is_evaluated_with_gradients(self) -> None:
        params, loss = lorentz_problem(ru.Lorentz())
        optimizer = RiemannianAdam(params)

        def closure() -> float:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value.item()

        assert optimizer.step(closure) == pytest.approx(loss().item(), rel=0.05)
        assert optimizer.state[params[0]]["step"] == 1

    @pytest.mark.parametrize("order", ["strided", "vector", "empty"])
    def test_shapes(self, order: str) -> None:
        manifold = ru.Lorentz(k=torch.tensor(1.0, **DOUBLE))
        points = lorentz_points(manifold, 6, 3, 0)
        start = {"strided": points.T.contiguous().T, "vector": points[0], "empty": points[:0]}[order]
        p = geoopt.ManifoldParameter(start.clone(memory_format=torch.preserve_format), manifold)
        q = geoopt.ManifoldParameter(points.clone(), manifold)
        target = lorentz_points(manifold, 1, 3, 5)[0]
        for each in (p, q):
            run(RiemannianAdam([each], lr=0.1), lambda each=each: manifold.dist(each, target).sum(), 3)
        expected = {"strided": q, "vector": q[0], "empty": q[:0]}[order]
        torch.testing.assert_close(p.data, expected.data, rtol=1e-13, atol=1e-13)

    def test_half_precision_goes_through_the_manifolds_own_maps(self) -> None:
        manifold = ru.Lorentz()
        p = geoopt.ManifoldParameter(lorentz_points(manifold, 4, 3, 0).bfloat16().float(), manifold)
        p.data = p.data.bfloat16()
        target = lorentz_points(manifold, 4, 3, 1)
        before = manifold.dist(p.float(), target).sum()
        run(RiemannianAdam([p], lr=0.1), lambda: manifold.dist(p.float(), target).sum(), 10)
        assert manifold.dist(p.float(), target).sum() < before

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"lr": -1.0}, ValueError, "lr must not be negative"),
            ({"lr": torch.ones(2)}, ValueError, "one number"),
            ({"betas": (0.9, 1.0)}, ValueError, "betas"),
            ({"eps": -1e-8}, ValueError, "eps"),
            ({"weight_decay": -0.1}, ValueError, "weight_decay"),
            ({"max_step": 0.0}, ValueError, "max_step"),
            ({"stabilize": 0}, ValueError, "stabilize"),
            ({"differentiable": True}, RuntimeError, "differentiated"),
            ({"foreach": True, "fused": True}, RuntimeError, "foreach and fused"),
        ],
    )
    def test_what_cannot_be_is_refused(self, options: Any, error: Any, message: str) -> None:
        with pytest.raises(error, match=message):
            RiemannianAdam([torch.nn.Parameter(torch.ones(2))], **options)

    @pytest.mark.parametrize("options", [{"momentum": -1.0}, {"nesterov": True}])
    def test_sgd_refuses_too(self, options: Any) -> None:
        with pytest.raises(ValueError, match="momentum"):
            RiemannianSGD([torch.nn.Parameter(torch.ones(2))], **options)

    @pytest.mark.parametrize("kind", [RiemannianAdam, RiemannianSGD])
    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"lr": -1.0}, ValueError),
            ({"max_step": 0.0}, ValueError),
            ({"differentiable": True}, RuntimeError),
        ],
    )
    def test_a_groups_own_options_are_checked_too(self, kind: Any, options: Any, error: Any) -> None:
        p = torch.nn.Parameter(torch.ones(2))
        with pytest.raises(error):
            kind([{"params": [p], **options}], lr=0.1)
        optimizer = kind([p], lr=0.1)
        state = optimizer.state_dict()
        state["param_groups"][0].update(options)
        with pytest.raises(error):
            optimizer.load_state_dict(state)

    @pytest.mark.parametrize("kind", [RiemannianAdam, RiemannianSGD])
    def test_groups_step_by_their_own_options(self, kind: Any) -> None:
        manifold = ru.Lorentz(k=torch.tensor(1.0, **DOUBLE))
        (ours, our_loss), (theirs, their_loss) = twins(lambda: lorentz_problem(manifold))
        own = {"lr": 1e-3, "weight_decay": 0.1, "max_step": 1e-3, "maximize": True}
        run(kind([{"params": ours[:1]}, {"params": ours[1:], **own}], lr=0.01), our_loss, 3)
        apart = kind(theirs[:1], lr=0.01), kind(theirs[1:], **own)
        for _ in range(3):
            for optimizer in apart:
                optimizer.zero_grad()
            their_loss().backward()
            for optimizer in apart:
                optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

    def test_lazy_needs_one_space_for_all_points(self) -> None:
        manifold = geoopt.PoincareBall(c=torch.tensor([[1.0], [2.0]]))
        p = geoopt.ManifoldParameter(torch.full((2, 2), 0.1), manifold)
        p.grad = torch.ones(2, 2)
        RiemannianAdam([p]).step()
        with pytest.raises(ValueError, match="lazy"):
            RiemannianAdam([p], lazy=True).step()


class TestWithTorch:
    """What torch builds around optimizers."""

    def test_resumed_is_uninterrupted_to_the_bit(self) -> None:
        def make() -> Any:
            torch.manual_seed(0)
            layer = torch.nn.Linear(3, 4)
            points, loss = lorentz_problem(ru.Lorentz(k=1.5))
            ball = geoopt.ManifoldParameter(torch.full((2, 3), 0.1), geoopt.PoincareBall())
            params = [*layer.parameters(), *points, ball]
            data = torch.randn(8, 3)
            return params, lambda: loss() + layer(data).square().sum() + (ball - 0.3).square().sum()

        for kind, options in ((RiemannianAdam, {"amsgrad": True}), (RiemannianSGD, {"momentum": 0.9})):
            (whole, whole_loss), (half, half_loss) = twins(make)
            run(kind(whole, lr=1e-2, **options), whole_loss, 10)
            first = kind(half, lr=1e-2, **options)
            run(first, half_loss, 5)
            buffer = io.BytesIO()
            torch.save(first.state_dict(), buffer)
            buffer.seek(0)
            second = kind(half, lr=1e-2, **options)
            second.load_state_dict(torch.load(buffer, weights_only=True))
            run(second, half_loss, 5)
            assert all(torch.equal(a, b) for a, b in zip(whole, half, strict=True))

    def test_gradient_scaler_skips_what_overflowed(self) -> None:
        manifold = ru.Lorentz()
        (ours, our_loss), (theirs, their_loss) = twins(lambda: lorentz_problem(manifold))
        optimizer = RiemannianAdam(ours, lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(4):
            optimizer.zero_grad()
            scaler.scale(our_loss()).backward()
            if step == 2:
                ours[0].grad[0, 0] = math.inf
            scaler.step(optimizer)
            scaler.update()
        run(RiemannianAdam(theirs, lr=0.1), their_loss, 3)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.data, b.data)

    def test_schedulers(self) -> None:
        params, loss = lorentz_problem(ru.Lorentz())
        optimizer = RiemannianAdam(params, lr=0.1)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        run(optimizer, loss, 1)
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] == 0.05

    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_data_parallel(self, tmp_path: Path) -> None:
        """Gradients are views of DDP's buckets, and are left as they are."""
        distributed = torch.distributed
        manifold = ru.Lorentz()
        start, target = lorentz_points(manifold, 4, 3, 0), lorentz_points(manifold, 4, 3, 1)

        class Model(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.points = geoopt.ManifoldParameter(start.clone(), manifold)
                self.scale = torch.nn.Parameter(torch.ones(()))

            def forward(self) -> Tensor:
                return (manifold.dist(self.points, target) * self.scale).square().sum()

        alone, wrapped = Model(), Model()
        distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        try:
            parallel = torch.nn.parallel.DistributedDataParallel(wrapped, gradient_as_bucket_view=True)
            run(RiemannianAdam(parallel.parameters(), lr=0.1), parallel, 3)
        finally:
            distributed.destroy_process_group()
        run(RiemannianAdam(alone.parameters(), lr=0.1), alone, 3)
        assert torch.equal(alone.points, wrapped.points)

    def test_compile_leaves_the_step_the_same(self) -> None:
        (ours, our_loss), (theirs, their_loss) = twins(lambda: lorentz_problem(ru.Lorentz()))
        optimizer = RiemannianAdam(ours, lr=0.1)
        compiled = torch.compile(optimizer.step, backend="eager")
        for _ in range(3):
            optimizer.zero_grad()
            our_loss().backward()
            compiled()
        run(RiemannianAdam(theirs, lr=0.1), their_loss, 3)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.data, b.data)


class TestWeightDecay:
    def test_adamw_shortens_the_distance_from_the_origin(self) -> None:
        for manifold in (
            ru.Lorentz(k=torch.tensor(2.0, **DOUBLE)),
            geoopt.PoincareBall(),
            geoopt.Euclidean(ndim=1),
        ):
            v = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), **DOUBLE)
            start = v if isinstance(manifold, geoopt.Euclidean) else manifold.expmap0(v)
            p = geoopt.ManifoldParameter(start, manifold=manifold)
            origin = manifold.origin(4, 3, **DOUBLE)
            before = manifold.dist(origin, p.detach())
            p.grad = torch.zeros_like(p)
            RiemannianAdamW([p], lr=0.1, weight_decay=0.5).step()
            torch.testing.assert_close(manifold.dist(origin, p.detach()), 0.95 * before, rtol=1e-7, atol=1e-9)

    def test_momentum_keeps_its_length_and_is_tangent(self) -> None:
        manifold = ru.Lorentz(k=torch.tensor(2.0, **DOUBLE))
        points = lorentz_points(manifold, 5, 4, 0)
        momenta = manifold.proju(
            points, torch.randn(5, 5, generator=torch.Generator().manual_seed(0), **DOUBLE)
        )
        kept, moved = points.clone(), momenta.clone()
        ru.optim.lorentz.decay_rows(kept, moved, 2.0, 0.3)
        torch.testing.assert_close(moved, manifold.transp(points, kept, momenta))
        nowhere = manifold.origin(1, 5, **DOUBLE).as_subclass(Tensor).clone()
        ru.optim.lorentz.decay_rows(nowhere, torch.ones(1, 5, **DOUBLE), 2.0, 0.3)
        torch.testing.assert_close(nowhere, manifold.origin(1, 5, **DOUBLE).as_subclass(Tensor))

    def test_needs_an_origin(self) -> None:
        p = geoopt.ManifoldParameter(geoopt.Sphere().random(3))
        RiemannianAdamW([p], weight_decay=0.0)
        with pytest.raises(ValueError, match="no origin"):
            RiemannianAdamW([p])


class TestStability:
    """float32 where geoopt's is NaN after two steps."""

    @pytest.mark.parametrize(("lr", "sign"), [(1e-2, 1), (1e-1, 1), (1.0, 1), (1.0, -1)])
    def test_a_thousand_steps_from_radius_8(self, lr: float, sign: int) -> None:
        manifold = ru.Lorentz()
        target = lorentz_points(manifold, 8, 16, 1)
        params, loss = attraction(manifold, [lorentz_points(manifold, 8, 16, 0, radius=8.0)], [target])
        run(RiemannianAdam(params, lr=lr), lambda: sign * loss(), 1000)
        points = params[0].detach()
        assert torch.isfinite(points).all()
        assert (points[:, 0] >= 1).all()
        # One rounding each of time and of 16 coordinates and their sum, all doubled by the squares.
        assert constraint_error(points, 1.0) <= 2 * 16 / 2
        if sign > 0 and lr == 1e-1:
            assert manifold.dist(points, target).max() < 0.1

    def test_ten_thousand_steps_stay_on_the_sheet(self) -> None:
        generator = torch.Generator().manual_seed(0)
        manifold = ru.Lorentz(k=2.0)
        p = geoopt.ManifoldParameter(lorentz_points(manifold, 4, 8, 0), manifold)
        optimizer = RiemannianAdam([p], lr=0.1)
        for _ in range(10_000):
            p.grad = torch.randn(4, 9, generator=generator)
            optimizer.step()
        assert constraint_error(p, 2.0) <= 8
        assert (p[:, 0] >= 2**0.5).all()
        inner = manifold.inner(p, p.detach(), optimizer.state[p]["exp_avg"]).abs()
        size = p.detach().norm(dim=-1) * optimizer.state[p]["exp_avg"].norm(dim=-1)
        assert (inner <= 100 * torch.finfo(torch.float32).eps * size).all()

    def test_gradients_whose_squares_overflow_leave_a_point_finite(self) -> None:
        manifold = ru.Lorentz()
        p = geoopt.ManifoldParameter(lorentz_points(manifold, 2, 4, 0), manifold)
        p.grad = torch.full((2, 5), 1e30)
        optimizer = RiemannianAdam([p])
        optimizer.step()
        assert torch.isfinite(p).all()

    def test_geoopts_is_not_finite(self) -> None:
        """The peer's defect, so that the tests above keep meaning something."""
        manifold = geoopt.Lorentz()
        target = lorentz_points(manifold, 8, 16, 1)
        starts = [lorentz_points(manifold, 8, 16, 0, radius=8.0)]
        params = [torch.nn.Parameter(starts[0])]
        params[0] = geoopt.ManifoldParameter(manifold.origin(8, 17), manifold)
        params[0].data = starts[0]
        run(
            geoopt.optim.RiemannianAdam(params, lr=1e-2),
            lambda: ru.Lorentz().dist(params[0], target).square().sum(),
            5,
        )
        assert not torch.isfinite(params[0]).all()
