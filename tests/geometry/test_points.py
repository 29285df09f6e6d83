"""Points in space components: the distance and the angles against mpmath, and the degenerate places."""

from __future__ import annotations

import math

import mpmath as mp
import pytest
import torch

from riemann_unlearn import geometry as g
from riemann_unlearn.geometry import tangent

F32, F64 = torch.float32, torch.float64


def exact_dist(x: torch.Tensor, y: torch.Tensor, c: float) -> mp.mpf:
    """acosh(-c<x,y>)/√c of the coordinates as they are stored."""
    with mp.workdps(120):
        a, b = [mp.mpf(t) for t in x.tolist()], [mp.mpf(t) for t in y.tolist()]
        k = mp.mpf(c)
        times = [mp.sqrt(1 / k + mp.fsum(t * t for t in p)) for p in (a, b)]
        inner = times[0] * times[1] - mp.fsum(s * t for s, t in zip(a, b, strict=True))
        return mp.acosh(max(k * inner, mp.mpf(1))) / mp.sqrt(k)


def points(r: float, c: float, dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    """A point at radius r, and others: near it, on its ray, across, anywhere."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.nn.functional.normalize(torch.randn(7, dtype=F64, generator=generator), dim=0)
    noise = torch.randn(7, dtype=F64, generator=generator)
    x = g.expmap0(u * r / math.sqrt(c), c)
    others = [x * (1 + 1e-6 * noise), x * 1.3, 2 * x, -0.5 * x, x.norm() * noise, x + 1e-3 * noise]
    return [p.to(dtype) for p in (x, *others)]


@pytest.mark.parametrize(("dtype", "units"), [(F32, 1.0), (F64, 64.0)])
@pytest.mark.parametrize("c", [1e-3, 0.5, 1.0, 1e3])
def test_distance_of_points_takes_the_coordinates_as_exact(
    dtype: torch.dtype, units: float, c: float
) -> None:
    eps = torch.finfo(dtype).eps
    for r in (1e-12, 1e-3, 0.5, 3.0, 10.0, 20.0) if dtype is F32 else (1e-12, 0.5, 3.0):
        x, *others = points(r, c, dtype, seed=int(r))
        for number, y in enumerate(others):
            want = exact_dist(x, y, c)
            got = g.dist(x, y, c).item()
            assert abs(got - want) <= units * eps * want, (r, number, got, float(want))


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("r", [0.0, 1e-30, 1e-12, 1.0, 20.0, 80.0])
def test_a_point_is_at_distance_zero_from_itself(dtype: torch.dtype, r: float) -> None:
    x = g.expmap0(torch.tensor([0.6 * r, -0.8 * r], dtype=dtype), 1.0).requires_grad_()
    d = g.dist(x, x.detach().clone(), 1.0)
    assert d.item() == 0.0
    assert torch.autograd.grad(d, x)[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [F32, F64])
def test_values_and_gradients_are_finite(dtype: torch.dtype) -> None:
    radii = (0.0, 1e-30, 1e-12, 0.3, 8.0, 40.0, 80.0)
    c = torch.tensor(0.5, dtype=dtype, requires_grad=True)
    for r1 in radii:
        for r2 in radii:
            for direction in ([1.0, 0.0], [1.0, 1e-9], [0.6, 0.8], [-1.0, 0.0]):
                x = g.expmap0(torch.tensor([r1, 0.0], dtype=dtype), 1.0).requires_grad_()
                y = g.expmap0(torch.tensor(direction, dtype=dtype) * r2, 1.0).requires_grad_()
                for function in (g.dist, g.exterior_angle):
                    value = function(x, y, c)
                    assert value.isfinite(), (function, r1, r2, direction)
                    for gradient in torch.autograd.grad(value, (x, y, c)):
                        assert gradient.isfinite().all(), (function, r1, r2, direction, gradient)


def test_the_gradient_at_the_origin_points_away_from_the_other_point() -> None:
    y = torch.tensor([0.6, 0.8], dtype=F64)
    for function in (g.dist, tangent.dist):
        x = torch.zeros(2, dtype=F64, requires_grad=True)
        for d in (function(x, y, 2.0), function(y, x, 2.0)):
            assert torch.allclose(torch.autograd.grad(d, x)[0], -y)
    rows = torch.zeros(1, 2, requires_grad=True)
    d = tangent.cdist(rows, y[None].float(), 2.0)
    assert torch.allclose(torch.autograd.grad(d.sum(), rows)[0], -y[None].float())


@pytest.mark.parametrize("c", [1e-3, 0.5, 1.0, 1e3])
def test_points_agree_with_tangent_vectors(c: float) -> None:
    generator = torch.Generator().manual_seed(0)
    v1, v2 = (torch.randn(40, 6, dtype=F64, generator=generator) / math.sqrt(c) for _ in range(2))
    x, y = g.expmap0(v1, c), g.expmap0(v2, c)
    for name in ("dist", "exterior_angle"):
        want = getattr(tangent, name)(v1, v2, c)
        assert torch.allclose(getattr(g, name)(x, y, c), want, rtol=1e-12)
    for name in ("dist0", "half_aperture"):
        assert torch.allclose(getattr(g, name)(x, c), getattr(tangent, name)(v1, c), rtol=1e-12)
    assert torch.allclose(g.cdist(x, y, c), tangent.cdist(v1, v2, c), rtol=1e-10)


def test_gradients_match_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(4, 3, dtype=F64, generator=generator, requires_grad=True) for _ in range(2))
    c = torch.tensor(0.7, dtype=F64, requires_grad=True)
    for function in (g.dist, g.cdist, g.exterior_angle, tangent.dist, tangent.exterior_angle):
        assert torch.autograd.gradcheck(function, (x, y, c))
        assert torch.autograd.gradgradcheck(function, (x, y, c))
    for unary in (g.dist0, g.half_aperture):
        assert torch.autograd.gradcheck(unary, (x, c))


def test_functions_map_and_compile() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(4, 3, generator=generator) for _ in range(2))
    for function in (g.dist, g.exterior_angle, tangent.dist, tangent.exterior_angle):
        want = function(x, y, 0.7)
        assert torch.equal(torch.func.vmap(lambda a, b, f=function: f(a, b, 0.7))(x, y), want)
        slopes = torch.func.vmap(torch.func.grad(lambda a, b, f=function: f(a, b, 0.7)))(x, y)
        assert slopes.isfinite().all()
        _, forward = torch.func.jvp(lambda a, f=function: f(a, y, 0.7), (x,), (torch.ones_like(x),))
        assert torch.allclose(forward, slopes.sum(-1), rtol=1e-5)
        compiled = torch.compile(function, fullgraph=True, backend="eager")
        assert torch.allclose(compiled(x, y, 0.7), want)


def test_arcosh_is_exact_near_one() -> None:
    for t in (1e-30, 1e-12, 1e-3, 1.0, 1e6, 1e30):
        want = float(mp.acosh(1 + mp.mpf(t))) if t > 1e-9 else math.sqrt(2 * t) * (1 - t / 12)
        assert g.arcosh1p(torch.tensor(t, dtype=F64)).item() == pytest.approx(want, rel=1e-15)
    z = torch.tensor([0.5, 1.0, 2.0, math.nan], requires_grad=True)
    value = g.arcosh(z)
    assert value[:2].tolist() == [0.0, 0.0]
    assert value[2].item() == pytest.approx(math.acosh(2.0), rel=1e-7)
    assert value[3].isnan()  # not hidden
    slopes = torch.autograd.grad(value[:3].sum(), z)[0]
    assert slopes[:2].tolist() == [0.0, 0.0]
    assert slopes[2].item() == pytest.approx(1 / math.sqrt(3), rel=1e-6)
