"""Defects measured in other libraries, each as a test of ours."""

from __future__ import annotations

import copy
import math
import pickle

import geoopt
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from riemann_unlearn import geometry as g
from riemann_unlearn.geometry import Lorentz, tangent

F64 = torch.float64


def sphere(r: float, n: int = 64, dim: int = 16, dtype: torch.dtype = torch.float32) -> Tensor:
    """Tangent vectors of length r."""
    v = torch.randn(n, dim, generator=torch.Generator().manual_seed(0), dtype=F64)
    return (normalize(v, dim=-1) * r).to(dtype)


@pytest.mark.parametrize("k", [0.5, 1.0, 5.0])
def test_half_aperture_at_any_curvature_and_call(k: float) -> None:
    """geoopt main is off by 1/k in the sine, and NaN in the gradient near the origin from the second call."""
    manifold = Lorentz(k)
    v = sphere(1.5)
    want = math.asin(0.2 / math.sinh(1.5 / math.sqrt(k)))
    for _ in range(3):
        x = manifold.expmap0(pad(v, (1, 0))).requires_grad_()
        assert torch.allclose(manifold.half_aperture(x), torch.tensor(want), rtol=1e-6)
        near = manifold.expmap0(pad(v * 1e-8, (1, 0))).requires_grad_()
        slope = torch.autograd.grad(manifold.half_aperture(near).sum(), near)[0]
        assert torch.equal(slope, torch.zeros_like(slope))


def test_small_distances_have_a_gradient() -> None:
    """MERU's clamp gives gradient 0 below √(2u)·cosh r, and 0.09 for a point to itself at r = 6."""
    for r in (0.5, 3.0, 6.0, 10.0):
        v = sphere(r)
        x = g.expmap0(v, 1.0)
        y = (x * (1 + 3e-7)).requires_grad_()
        d = g.dist(x, y, 1.0)
        assert (d > 0).all()
        assert (torch.autograd.grad(d.sum(), y)[0].norm(dim=-1) > 0).all()
        assert g.dist(x, x, 1.0).tolist() == [0.0] * 64


def test_the_maps_at_the_origin_are_neither_capped_nor_cut() -> None:
    """MERU's exp_map0 stops at r = 11.09 and its log_map0 returns 0 below 1e-4."""
    for r in (1e-20, 1e-6, 12.0, 40.0, 80.0):
        v = sphere(r)
        assert torch.allclose(g.dist0(g.expmap0(v, 1.0), 1.0), torch.tensor(r), rtol=1e-6)
        assert torch.allclose(g.logmap0(g.expmap0(v, 1.0), 1.0), v, rtol=1e-6)


def test_the_angle_of_a_point_to_itself_is_quiet() -> None:
    """MERU's oxy_angle(x, x) is π/2 with gradients of thousands; an additive epsilon leaves a floor."""
    x = g.expmap0(sphere(2.0), 1.0).requires_grad_()
    angle = g.exterior_angle(x, x.detach().clone(), 1.0)
    assert angle.tolist() == [0.0] * 64
    assert torch.autograd.grad(angle.sum(), x)[0].abs().max() == 0
    assert tangent.exterior_angle(sphere(1.0), 2 * sphere(1.0), 1.0).max() == 0.0


def test_curvature_enters_every_distance() -> None:
    """HyperCore's dist lacks √k and its cdist ignores k."""
    v = sphere(1.3, n=6)
    for k in (0.25, 4.0):
        manifold = Lorentz(k)
        x = manifold.expmap0(pad(v, (1, 0)))
        assert torch.allclose(manifold.dist(manifold.origin(17), x), torch.tensor(1.3), rtol=1e-6)
        assert torch.allclose(manifold.cdist(manifold.origin(1, 17), x), torch.tensor(1.3), rtol=1e-6)


def test_checks_work_in_float64() -> None:
    """geoopt compares with a float32 tensor on the CPU."""
    manifold = Lorentz(torch.tensor(2.0, dtype=F64))
    x = manifold.random_normal(5, 4)
    assert x.dtype == F64
    assert manifold.check_vector_on_tangent(x, manifold.proju(x, torch.randn_like(x)))


def test_the_logarithm_of_a_point_at_itself_maps_and_has_a_derivative() -> None:
    manifold = Lorentz(1.5)
    x = manifold.expmap0(pad(sphere(1.0, n=5, dim=3), (1, 0)))
    mapped = torch.func.vmap(torch.func.jacrev(manifold.logmap, argnums=1))(x, x)
    assert mapped.isfinite().all()
    assert manifold.logmap(x, x).abs().max() == 0


@pytest.mark.parametrize("r", [1.0, 6.0, 8.0, 10.0])
def test_transport_keeps_lengths_far_out(r: float) -> None:
    """geoopt's collapses from r = 6 in float32."""
    manifold = Lorentz()
    x, y = (manifold.expmap0(pad(v, (1, 0))) for v in (sphere(r), sphere(r).flip(0)))
    u = manifold.proju(x, pad(sphere(1.0), (1, 0)))
    lengths = manifold.norm(x, u), manifold.norm(y, manifold.transp(x, y, u))
    resolution = torch.finfo(torch.float32).eps * math.cosh(r)
    assert torch.allclose(*lengths, rtol=8 * resolution, atol=8 * resolution)


@pytest.mark.parametrize("dim", [2, 3, 16])
def test_the_poincare_ball_in_any_dimension(dim: int) -> None:
    """geoopt's lorentz_to_poincare breaks beyond two dimensions."""
    v = sphere(1.5, dim=dim, dtype=F64)
    ball = geoopt.PoincareBall(c=torch.tensor(1.0, dtype=F64))
    b = g.to_poincare(g.expmap0(v, 1.0), 1.0)
    assert torch.allclose(b, ball.expmap0(v / 2))  # its metric at the origin is 4 times ours
    assert torch.allclose(g.from_poincare(b, 1.0), g.expmap0(v, 1.0))


def test_the_norm_takes_a_point_as_geoopts_other_manifolds_do() -> None:
    manifold = Lorentz()
    u = pad(sphere(2.0), (1, 0))
    assert torch.equal(manifold.norm(u), manifold.norm(manifold.origin(64, 17), u))


def test_the_manifold_is_copied_saved_and_pickled() -> None:
    manifold = Lorentz(2.5, learnable=True)
    for other in (copy.deepcopy(manifold), pickle.loads(pickle.dumps(manifold))):
        assert isinstance(other, Lorentz)
        assert other.k.item() == 2.5
        assert other.k.requires_grad
    fresh = Lorentz(1.0)
    fresh.load_state_dict(manifold.state_dict())
    assert fresh.c.item() == pytest.approx(0.4)
    point = geoopt.ManifoldParameter(manifold.random_normal(3, 4).detach(), manifold=manifold)
    assert torch.equal(copy.deepcopy(point), point)


def test_it_is_a_factor_of_a_product_and_scales() -> None:
    product = geoopt.ProductManifold((Lorentz(), 4), (geoopt.Euclidean(1), 3))
    x = product.projx(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)))
    assert product.check_point_on_manifold(x)
    assert product.dist(x, x).max() < 1e-6
    scaled = geoopt.Scaled(Lorentz(), 2.0)
    y = Lorentz().random_normal(5, 4)
    assert torch.allclose(scaled.dist(y[:1], y), 2 * Lorentz().dist(y[:1], y))


def test_geodesics_of_unit_speed() -> None:
    manifold = Lorentz(2.0)
    x = manifold.expmap0(pad(sphere(1.0, n=3, dim=4), (1, 0)))
    u = manifold.proju(x, torch.randn(3, 5, generator=torch.Generator().manual_seed(0)))
    u = u / manifold.norm(u, keepdim=True)
    t = torch.tensor([0.0, 0.5, 2.0]).view(3, 1, 1)
    walked = manifold.dist(x, manifold.geodesic_unit(t, x, u))
    assert torch.allclose(walked, t[..., 0].expand(3, 3), atol=2e-6)
    y, moved = manifold.retr_transp(x, u, u)
    assert manifold.check_vector_on_tangent(y, moved)


@pytest.mark.parametrize("r", [0.0, 0.5])
def test_geoopts_sampler_stays_on_the_manifold(r: float) -> None:
    manifold = Lorentz()
    torch.manual_seed(0)
    x = geoopt.ManifoldParameter(manifold.expmap0(pad(sphere(r, n=4, dim=3), (1, 0))), manifold=manifold)
    sampler = geoopt.samplers.RHMC([x], epsilon=1e-3, n_steps=3)
    for _ in range(5):
        sampler.step(lambda: -manifold.dist0(x).square().sum())
    assert manifold.check_point_on_manifold(x)
