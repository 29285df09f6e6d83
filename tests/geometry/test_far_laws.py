"""Laws of the tangent family at every radius, also where no point could be stored."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from riemann_unlearn.geometry import tangent

DTYPES = (torch.float32, torch.float64)
laws = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def vectors(draw: st.DrawFn, count: int) -> tuple[Tensor, ...]:
    """Vectors of 1 to 512 numbers with radii, for c = 1, of 1e-12 to 1e6."""
    dtype, dim = draw(st.sampled_from(DTYPES)), draw(st.sampled_from((1, 2, 3, 16, 512)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    found = []
    for _ in range(count):
        v = torch.randn(dim, dtype=torch.float64, generator=generator)
        radius = math.exp(draw(st.floats(math.log(1e-12), math.log(1e6))))
        found.append((radius * v / v.norm()).to(dtype))
    if count > 1 and draw(
        st.booleans()
    ):  # on one ray, or opposite: where the triangle inequality is an equality
        found[-1] = draw(st.sampled_from((-0.5, 0.5, 2.0))) * found[0]
    return tuple(found)


def slack(*values: Tensor) -> float:
    """What rounding vectors and values may change a sum of lengths by."""
    return 8 * torch.finfo(values[0].dtype).eps * float(sum(v.norm() for v in values))


CURVATURES = st.sampled_from((2.0**-10, 1e-3, 0.5, 1.0, 1e3, 2.0**10))


@laws
@given(vectors(3), CURVATURES)
def test_distance_is_a_metric(v: tuple[Tensor, ...], c: float) -> None:
    x, y, z = v
    assert tangent.dist(x, x, c) == 0
    eps = torch.finfo(x.dtype).eps
    assert torch.isclose(tangent.dist(x, y, c), tangent.dist(y, x, c), rtol=4 * eps, atol=0)
    sides = [tangent.dist(*pair, c) for pair in ((x, z), (x, y), (y, z))]
    assert all(side >= 0 for side in sides)
    assert sides[0] <= sides[1] + sides[2] + slack(x, y, z)


@laws
@given(vectors(2), st.integers(-8, 8))
def test_a_change_of_unit_changes_lengths_and_nothing_else(v: tuple[Tensor, ...], power: int) -> None:
    """d(s·x, s·y; c/s²) = s·d(x, y; c); with s a power of two, to the bit."""
    x, y = v
    s = 2.0**power
    assert tangent.dist(s * x, s * y, 1 / s**2) == s * tangent.dist(x, y, 1.0)
    assert tangent.half_aperture(s * x, 1 / s**2) == tangent.half_aperture(x, 1.0)
    assert tangent.exterior_angle(s * x, s * y, 1 / s**2) == tangent.exterior_angle(x, y, 1.0)


@laws
@given(vectors(2), CURVATURES)
def test_permutations_and_reflections_are_isometries(v: tuple[Tensor, ...], c: float) -> None:
    """Of coordinates: these move no digit of a vector, so distances keep theirs but for the order of sums."""
    x, y = v
    mirror = torch.ones_like(x)
    mirror[::2] = -1
    moved = [(mirror * w).flip(0) for w in (x, y)]
    d = tangent.dist(x, y, c)
    assert torch.isclose(tangent.dist(*moved, c), d, rtol=8 * torch.finfo(x.dtype).eps, atol=slack(x, y) / 64)


@laws
@given(vectors(1), CURVATURES, st.floats(1e-12, 1e6))
def test_cones_at_any_radius(v: tuple[Tensor, ...], c: float, further: float) -> None:
    """A cone narrows outward, holds its ray, and the origin is behind it."""
    (x,) = v
    out = x * (1 + further)
    assert tangent.half_aperture(out, c) <= tangent.half_aperture(x, c)
    assert 0 <= tangent.half_aperture(x, c) <= math.pi / 2 * (1 + 1e-7)
    doubled = 2 * x  # exact, so on the ray
    assert tangent.exterior_angle(x, doubled, c) == 0
    assert tangent.exterior_angle(doubled, x, c).item() == pytest.approx(math.pi)
    assert tangent.exterior_angle(x, torch.zeros_like(x), c).item() == pytest.approx(math.pi)
