"""The accuracy that the documentation promises, against mpmath, with the stored inputs taken as exact."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import mpmath as mp
import pytest
import torch

from riemann_unlearn import geometry as g
from riemann_unlearn.diagnostics import audit
from riemann_unlearn.diagnostics import reference as ref

F32, F64 = torch.float32, torch.float64
RADII = (1e-12, 1e-6, 1e-3, 0.1, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 80.0)


def up_to(limit: float) -> tuple[float, ...]:
    return tuple(r for r in RADII if r <= limit)


@pytest.mark.parametrize("c", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(
    ("operations", "limit"),
    [
        (("dist", "exterior_angle", "half_aperture", "dist0"), 40.0),
        (("expmap0", "logmap0"), 80.0),
        (("logmap",), 20.0),
        (("expmap", "transp"), 10.0),
    ],
)
def test_float32_values_within_two_units_and_gradients_within_four(
    operations: tuple[str, ...], limit: float, c: float
) -> None:
    for record in audit(g, radii=up_to(limit), operations=operations, c=c, seed=1).records:
        assert record.ulps <= 2, record
        assert (record.gradient_error or 0.0) <= 4, record


@pytest.mark.parametrize("c", [1e-3, 1.0, 1e3])
def test_float32_tangent_values_within_two_units_and_gradients_within_four(c: float) -> None:
    for record in audit(g.tangent, radii=up_to(40.0), c=c, seed=1).records:
        assert record.ulps <= 2, record
        assert (record.gradient_error or 0.0) <= 4, record


@pytest.mark.parametrize("c", [1e-3, 1.0, 1e3])
def test_float64_bars(c: float) -> None:
    for record in audit(g, dtype=F64, radii=up_to(40.0), operations=["dist"], c=c, seed=1).records:
        assert record.ulps <= 16, record
        assert (record.gradient_error or 0.0) <= 32, record
    for record in audit(g, dtype=F64, radii=up_to(10.0), operations=["exterior_angle"], c=c).records:
        # On the ray the angle is what rounding the points has made of 0: no digit of it is known, and the
        # unit is what half a unit in the last place of the coordinates makes of it.
        assert (record.error if record.regime == "ray" else record.ulps) <= 16, record
        assert (record.gradient_error or 0.0) <= 32, record
    for record in audit(g, dtype=F64, radii=RADII, operations=["expmap0"], c=c).records:
        assert record.ulps <= 4 * (1 + record.radius), record
        assert (record.gradient_error or 0.0) <= 256, record


@pytest.mark.parametrize("r", [1e-3, 1.0, 6.0, 20.0, 40.0])
@pytest.mark.parametrize("near", [0.0, 1e-5, 1e-2, 1.0])
@pytest.mark.parametrize("family", [g, g.tangent])
def test_float32_cdist_with_its_fix_up_is_the_exact_distance(family: object, r: float, near: float) -> None:
    """The elementwise distance in float64 is exact here; see above."""
    generator = torch.Generator().manual_seed(0)
    v = torch.nn.functional.normalize(torch.randn(12, 33, generator=generator), dim=-1)
    v = r * torch.cat([v, v + near * torch.randn(12, 33, generator=generator) / 6])
    if family is g:
        v = g.expmap0(v, 1.0)
    a, wide = v.clone().requires_grad_(), v.double().requires_grad_()
    d = family.cdist(a, v, 1.0, fix_near="all")  # type: ignore[attr-defined]
    want = family.dist(wide[:, None], v.double()[None], 1.0)  # type: ignore[attr-defined]
    eps = torch.finfo(F32).eps
    assert ((d.double() - want).abs() <= 2 * eps * want).all()
    weights = torch.randn(24, 24, generator=generator)
    got = torch.autograd.grad((d * weights).sum(), a)[0].double()
    exact = torch.autograd.grad((want * weights).sum(), wide)[0]
    # A row's gradient is a sum over 24 pairs, each rounded in proportion to its size.
    one = torch.func.grad(lambda x, y: family.dist(x, y, 1.0))  # type: ignore[attr-defined]
    each = torch.func.vmap(torch.func.vmap(one, (None, 0)), (0, None))(wide.detach(), v.double())
    sizes = (weights.abs()[..., None] * each.abs()).amax(-1).sum(-1)
    assert ((got - exact).abs().amax(-1) <= 4 * eps * sizes).all()


def near_pairs(
    r: float, step: float, tangent_of_slope: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Points at radius r that are ``step`` of curvature radii apart, ``tangent_of_slope`` to the ray."""
    generator = torch.Generator().manual_seed(seed)
    u, e = torch.nn.functional.normalize(torch.randn(2, 3, dtype=F64, generator=generator), dim=-1)
    e = torch.nn.functional.normalize(e - e.dot(u) * u, dim=0)
    size = math.hypot(1.0, tangent_of_slope)
    out, across = step / size, step * tangent_of_slope / size / math.sinh(r)
    return g.expmap0(r * u, 1.0), g.expmap0((r + out) * (math.cos(across) * u + math.sin(across) * e), 1.0)


@pytest.mark.parametrize("r", [0.1, 1.0, 3.0, 6.0, 10.0])
@pytest.mark.parametrize("step", [1e-3, 1e-5, 1e-7, 1e-9])
def test_float64_near_pairs_have_their_digits_in_any_direction(r: float, step: float) -> None:
    """Also along the ray, where rounding of the coordinates is all that the points have across it.

    In units in the last place of the exact result of the stored points: 16 on values, 32 on gradients. The
    angle has no digits to lose beside its own axis, where the points hardly differ in direction.
    """
    for seed, slope in enumerate((0.0, 1e-9, 1e-6, 1e-4, 1e-2, 0.3, 3.0, 1e3)):
        x, y = near_pairs(r, step, slope, seed)
        cases = (("dist", ref.dist), ("exterior_angle", ref.exterior_angle))
        for name, exact in cases if slope >= 1e-4 else cases[:1]:
            leaves = [x.clone().requires_grad_(), y.clone().requires_grad_()]
            value = getattr(g, name)(*leaves, 1.0)
            gradients = torch.autograd.grad(value, leaves)
            with mp.workdps(110):

                def whole(points: Sequence[list[mp.mpf]], exact: Callable[..., Any] = exact) -> mp.mpf:
                    return exact(*points, mp.mpf(1))[0]

                stored = [[mp.mpf(t) for t in p.tolist()] for p in (x, y)]
                want, slopes = whole(stored), ref.exact_gradient(whole, stored)
                eps = torch.finfo(F64).eps
                assert abs(mp.mpf(value.item()) - want) <= 16 * eps * abs(want), (name, slope)
                for got, right in zip(gradients, slopes, strict=True):
                    error = max(abs(mp.mpf(a) - b) for a, b in zip(got.tolist(), right, strict=True))
                    assert error <= 32 * eps * max(map(abs, right)), (name, slope)
