from __future__ import annotations

import geoopt
import pytest
import torch

import riemann_unlearn as ru
from riemann_unlearn.optim import (
    GradientSurgery,
    RiemannianAdam,
    RiemannianSGD,
    clip_grad_norm_,
    curvature_group,
    project_conflicting,
    riemannian_inner,
)
from tests.optim.problems import constraint_error, lorentz_points

DOUBLE = {"dtype": torch.float64}


def mixed() -> list[torch.nn.Parameter]:
    """Parameters on several manifolds and on none."""
    torch.manual_seed(0)
    one = torch.tensor(1.5, **DOUBLE)
    manifold = ru.Lorentz(k=one)
    product = geoopt.ProductManifold((geoopt.Sphere(), 3), (geoopt.PoincareBall(one), 2))
    return [
        geoopt.ManifoldParameter(lorentz_points(manifold, 4, 3, 0), manifold),
        geoopt.ManifoldParameter(product.random(3, 5, **DOUBLE)),
        torch.nn.Parameter(torch.randn(2, 3, **DOUBLE)),
    ]


def gradients(params: list[torch.nn.Parameter], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator, **DOUBLE) for p in params]


def test_inner_is_the_manifolds() -> None:
    params = mixed()
    g, h = gradients(params, 1), gradients(params, 2)
    expected = (g[2] * h[2]).sum()
    for p, a, b in zip(params[:2], g, h, strict=False):
        point = p.detach()
        first, second = (p.manifold.egrad2rgrad(point, each.clone()) for each in (a, b))
        expected = expected + p.manifold.inner(point, first, second).sum()
    torch.testing.assert_close(riemannian_inner(params, g, h), expected)
    assert riemannian_inner(params, [None] * 3, h) == 0


@pytest.mark.parametrize("seed", range(6))
def test_what_is_left_does_not_conflict(seed: int) -> None:
    params = mixed()
    g, h = gradients(params, seed), gradients(params, seed + 10)
    before = riemannian_inner(params, g, h)
    left = project_conflicting(params, g, h)
    after = riemannian_inner(params, left, h)
    if before >= 0:
        assert all(torch.equal(a, b) for a, b in zip(left, g, strict=True))
    else:
        size = (riemannian_inner(params, g, g) * riemannian_inner(params, h, h)).sqrt()
        assert abs(after) <= 1e-12 * size
        # The rest is a descent direction still: by Pythagoras, it lowers the first loss.
        assert riemannian_inner(params, left, g) >= 0


def test_exact_far_out_in_float32() -> None:
    manifold = ru.Lorentz()
    p = geoopt.ManifoldParameter(lorentz_points(manifold, 3, 4, 0, radius=9.0), manifold)
    target = lorentz_points(manifold, 3, 4, 1)
    (g,) = torch.autograd.grad(manifold.dist(p, target).sum(), p)
    # The gradient of a distance has length 1 at every point.
    assert riemannian_inner([p], [g], [g]).item() == pytest.approx(3, rel=1e-5)


def test_a_missing_gradient_counts_as_zero() -> None:
    w = torch.zeros(2)
    assert project_conflicting([w], [torch.ones(2)], [None])[0].tolist() == [1, 1]
    assert project_conflicting([w], [None], [torch.ones(2)])[0].tolist() == [0, 0]
    assert project_conflicting([w], [None], [None]) == [None]


def test_surgery_lowers_one_loss_and_does_not_raise_the_other() -> None:
    one = torch.tensor(1.0, **DOUBLE)
    manifold = ru.Lorentz(one)
    p = geoopt.ManifoldParameter(lorentz_points(manifold, 1, 3, 0), manifold)
    lure, home = lorentz_points(manifold, 1, 3, 1), lorentz_points(manifold, 1, 3, 2)
    surgery = GradientSurgery(RiemannianSGD([p, torch.nn.Parameter(torch.ones(1))], lr=1e-4))

    def losses() -> tuple[torch.Tensor, torch.Tensor]:
        return -manifold.dist(p, lure).sum(), manifold.dist(p, home).sum()

    for _ in range(20):
        forget, retain = losses()
        surgery.step(forget, retain)
        assert losses()[1] <= retain
    assert surgery.params[1].grad is None


def test_clipping_by_the_riemannian_norm() -> None:
    params = mixed()
    for p, g in zip(params, gradients(params, 0), strict=True):
        p.grad = g
    size = clip_grad_norm_(params, 0.5)
    now = [p.grad for p in params]
    assert size > 0.5
    assert riemannian_inner(params, now, now).sqrt().item() == pytest.approx(0.5)
    before = [g.clone() for g in now]
    clip_grad_norm_(params, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True))


class TestCurvature:
    @pytest.mark.parametrize("kind", [RiemannianAdam, RiemannianSGD])
    def test_points_and_momenta_follow(self, kind: type) -> None:
        manifold = ru.Lorentz(k=1.0, learnable=True)
        p = geoopt.ManifoldParameter(lorentz_points(manifold, 6, 4, 0), manifold)
        target = lorentz_points(manifold, 6, 4, 1)[:, 1:].detach()
        options = {} if kind is RiemannianAdam else {"momentum": 0.9}
        optimizer = kind([{"params": [p]}, curvature_group(manifold, lr=0.05)], lr=0.01, **options)
        for _ in range(30):
            optimizer.zero_grad()
            y = torch.cat([torch.zeros(6, 1), target], -1)
            (manifold.dist(p, manifold.projx(y)) - 3).square().sum().backward()
            optimizer.step()
            k = manifold.k.item()
            assert constraint_error(p, k) <= 2
            (momenta,) = [s for n, s in optimizer.state[p].items() if s.shape == p.shape]
            inner = manifold.inner(p, p.detach(), momenta).abs()
            assert (inner <= 1e-6 * p.detach().norm(dim=-1) * momenta.norm(dim=-1)).all()
        assert k != 1

    def test_k_stays_within_its_clamp(self) -> None:
        manifold = ru.Lorentz(k=2.0, learnable=True)
        p = geoopt.ManifoldParameter(lorentz_points(manifold, 2, 3, 0), manifold)
        optimizer = RiemannianAdam([p], lr=0.01)
        optimizer.add_param_group(curvature_group(manifold, lr=1.0, clamp=(0.5, 1.5)))
        for sign, bound in ((1, 1.0), (-1, 3.0)):
            for _ in range(60):
                optimizer.zero_grad()
                (sign * manifold.k).backward()
                optimizer.step()
            assert manifold.k.item() == bound

    def test_what_cannot_be_is_refused(self) -> None:
        with pytest.raises(ValueError, match="learnable"):
            curvature_group(ru.Lorentz(), lr=0.1)
        with pytest.raises(ValueError, match="clamp"):
            curvature_group(ru.Lorentz(learnable=True), lr=0.1, clamp=(2.0, 3.0))
