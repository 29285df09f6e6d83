from __future__ import annotations

import math

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from riemann_unlearn.geometry import tangent
from tests.geometry import exact

RADII = (0.0, 1e-30, 1e-12, 1e-3, 0.3, 1.0, 3.0, 8.0, 15.0, 40.0, 80.0, 300.0)
ANGLES = (0.0, 1e-9, 1e-4, 0.1, 1.0, 3.0, math.pi)
CURVATURES = (1e-3, 1.0, 7.0, 1e3)


def pair(r1: float, r2: float, angle: float, c: float, dtype: torch.dtype) -> list[torch.Tensor]:
    """Two tangent vectors of radii r1, r2 (in units of the curvature radius) at an angle."""
    root = math.sqrt(c)
    v1 = torch.tensor([0.6 * r1, 0.8 * r1, 0.0], dtype=torch.float64) / root
    u2 = torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64) * math.cos(angle)
    u2 = u2 + torch.tensor([-0.8, 0.6, 0.0], dtype=torch.float64) * math.sin(angle)
    return [v1.to(dtype), (u2 * r2 / root).to(dtype)]


def conditioning(function: object, v1: torch.Tensor, v2: torch.Tensor, c: float, eps: float) -> mp.mpf:
    """How far the exact value moves when each coordinate of the inputs moves by one rounding."""
    base = function(v1.tolist(), v2.tolist(), c)  # type: ignore[operator]
    moved = mp.mpf(0)
    for which in (0, 1):
        for axis in (0, 1):  # the plane the vectors lie in
            inputs = [v1.tolist(), v2.tolist()]
            inputs[which][axis] += max(abs(x) for x in inputs[which]) * eps
            moved = max(moved, abs(function(*inputs, c) - base))  # type: ignore[operator]
    return moved


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("c", CURVATURES)
def test_distance_is_as_accurate_as_its_inputs(dtype: torch.dtype, c: float) -> None:
    eps = torch.finfo(dtype).eps
    for i, r1 in enumerate(RADII):
        for r2 in RADII[i % 2 :: 2]:
            for angle in ANGLES[(i + 1) % 2 :: 2]:
                v1, v2 = pair(r1, r2, angle, c, dtype)
                want = exact.dist(v1.tolist(), v2.tolist(), c)
                bar = 8 * (eps * abs(want) + conditioning(exact.dist, v1, v2, c, eps))
                got = tangent.dist(v1, v2, c).item()
                assert abs(got - want) <= bar, (r1, r2, angle, got, float(want))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("c", [0.1, 7.0])
def test_exterior_angle_is_as_accurate_as_its_inputs(dtype: torch.dtype, c: float) -> None:
    eps = torch.finfo(dtype).eps
    radii = (1e-3, 0.3, 3.0, 8.0, 15.0, 40.0)
    for r1 in radii:
        for r2 in radii:
            for angle in (1e-4, 0.1, math.pi / 2, 3.0):
                v1, v2 = pair(r1, r2, angle, c, dtype)
                want = exact.exterior_angle(v1.tolist(), v2.tolist(), c)
                bar = 8 * (4 * eps + conditioning(exact.exterior_angle, v1, v2, c, eps))
                got = tangent.exterior_angle(v1, v2, c).item()
                assert abs(got - want) <= bar, (r1, r2, angle, got, float(want))


@pytest.mark.parametrize("c", CURVATURES)
def test_half_aperture_matches_its_definition(c: float) -> None:
    for r in (*RADII, 0.198, 0.199, 0.2, 0.25):
        v = torch.tensor([0.6 * r, 0.8 * r], dtype=torch.float64) / math.sqrt(c)
        want = exact.half_aperture(v.tolist(), c)
        assert tangent.half_aperture(v, c).item() == pytest.approx(float(want), rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("function", [tangent.dist, tangent.exterior_angle])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_finite_everywhere(function: object, dtype: torch.dtype) -> None:
    for r1 in RADII:
        for r2 in RADII:
            for angle in ANGLES:
                v1, v2 = (v.requires_grad_() for v in pair(r1, r2, angle, 1.0, dtype))
                c = torch.tensor(1.0, dtype=dtype, requires_grad=True)
                value = function(v1, v2, c)  # type: ignore[operator]
                assert value.isfinite(), (r1, r2, angle)
                for gradient in torch.autograd.grad(value, (v1, v2, c)):
                    assert gradient.isfinite().all(), (r1, r2, angle, gradient)


def test_pairwise_and_aperture_gradients_are_finite() -> None:
    v = torch.stack([pair(r, 1.0, 0.0, 1.0, torch.float32)[0] for r in RADII]).requires_grad_()
    c = torch.tensor(1.0, requires_grad=True)
    for value in (tangent.cdist(v, v, c), tangent.half_aperture(v, c), tangent.dist0(v, c)):
        assert value.isfinite().all()
        gradients = torch.autograd.grad(value.sum(), (v, c), allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("r", RADII)
def test_a_point_is_at_distance_exactly_zero_from_itself(r: float) -> None:
    v = torch.randn(64, generator=torch.Generator().manual_seed(0))
    v = (v / v.norm() * r).requires_grad_()
    value = tangent.dist(v, v.detach(), 1.0)
    assert value.item() == 0.0
    assert torch.autograd.grad(value, v)[0].tolist() == [0.0] * 64


@pytest.mark.parametrize("c", [0.1, 1.0, 7.0])
def test_gradients_match_differences_of_the_exact_value(c: float) -> None:
    cases = [(0.5, 1.0, 1.0), (3.0, 2.0, 0.1), (12.0, 9.0, 2.0), (25.0, 24.0, 1.0), (0.0, 1.0, 1.0)]
    for r1, r2, angle in cases:
        for function, reference in (
            (tangent.dist, exact.dist),
            (tangent.exterior_angle, exact.exterior_angle),
        ):
            if r1 == 0 and function is tangent.exterior_angle:
                continue
            inputs = [v.requires_grad_() for v in pair(r1, r2, angle, c, torch.float64)]
            found = torch.autograd.grad(function(*inputs, c), inputs)
            for which in (0, 1):
                for axis in range(3):
                    with mp.workdps(200):
                        step, sides = mp.mpf(10) ** -30, []
                        for sign in (1, -1):
                            shifted = [[mp.mpf(x) for x in v.tolist()] for v in inputs]
                            shifted[which][axis] += sign * step
                            sides.append(reference(*shifted, c))
                        want = float((sides[0] - sides[1]) / (2 * step))
                    got = found[which][axis].item()
                    assert got == pytest.approx(want, rel=1e-9, abs=1e-12), (function, r1, r2, angle)


def test_curvature_gradient_matches_double_precision_differences() -> None:
    v1, v2 = pair(2.0, 1.5, 0.7, 1.0, torch.float64)
    c = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    for function in (tangent.dist, tangent.exterior_angle):
        assert torch.autograd.gradcheck(lambda k, f=function: f(v1, v2, k), (c,))
    assert torch.autograd.gradcheck(lambda k: tangent.half_aperture(v1, k), (c,))
    assert torch.autograd.gradcheck(lambda k: tangent.cdist(v1[None], v2[None], k), (c,))


def test_cdist_agrees_with_dist_within_what_it_promises() -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 1.0, 3.0, 10.0, 60.0):
        v1 = torch.randn(20, 8, generator=generator) * scale / math.sqrt(8)
        v2 = torch.randn(30, 8, generator=generator) * scale / math.sqrt(8)
        exactly = tangent.dist(v1[:, None], v2[None], 0.7)
        assert torch.allclose(tangent.cdist(v1, v2, 0.7), exactly, rtol=1e-4, atol=1e-5)
    promised = {1.0: 6e-4, 3.0: 6e-3, 6.0: 0.15}
    for r, error in promised.items():
        v = torch.nn.functional.normalize(torch.randn(50, 64, generator=generator), dim=-1) * r
        assert tangent.cdist(v, v, 1.0).diagonal().max().item() <= 2 * error


def test_cdist_takes_leading_dimensions_and_empty_batches() -> None:
    v1, v2 = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    assert tangent.cdist(v1, v2, 1.0).shape == (2, 3, 5)
    assert tangent.cdist(v1[:, :0], v2, 1.0).shape == (2, 0, 5)
    assert tangent.dist(v1[:, :0], v1[:, :0], 1.0).shape == (2, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    v1, v2 = torch.randn(4, 8).to(dtype), torch.randn(4, 8).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for function in (tangent.dist, tangent.cdist, tangent.exterior_angle):
            got = function(v1, v2, 1.0)
            assert got.dtype == torch.float32
            assert torch.equal(got, function(v1.float(), v2.float(), 1.0))


def test_bad_arguments_are_refused() -> None:
    v = torch.ones(2)
    with pytest.raises(ValueError, match="must be positive, got -1"):
        tangent.dist(v, v, -1.0)
    with pytest.raises(TypeError, match="floating-point"):
        tangent.dist(v.long(), v.long(), 1.0)


vectors = st.lists(st.floats(-60, 60, width=32), min_size=3, max_size=3)
curvatures = st.sampled_from(CURVATURES)
laws = settings(max_examples=60, deadline=None, derandomize=True)


def as_tensor(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@laws
@given(vectors, vectors, vectors, curvatures)
def test_metric_axioms(a: list[float], b: list[float], e: list[float], c: float) -> None:
    x, y, z = map(as_tensor, (a, b, e))
    xy, yz, xz = (tangent.dist(*p, c) for p in ((x, y), (y, z), (x, z)))
    assert xy >= 0
    assert torch.isclose(xy, tangent.dist(y, x, c), rtol=1e-12)
    size = max(tangent.dist0(v, c).item() for v in (x, y, z))
    assert xz <= xy + yz + 1e-9 * (1 + size)


@laws
@given(vectors, vectors, curvatures)
def test_scaling_in_the_curvature(a: list[float], b: list[float], c: float) -> None:
    """Distances of curvature -c are those of curvature -1, in units of 1/√c."""
    x, y = as_tensor(a), as_tensor(b)
    unit = tangent.dist(math.sqrt(c) * x, math.sqrt(c) * y, 1.0) / math.sqrt(c)
    assert torch.isclose(tangent.dist(x, y, c), unit, rtol=1e-9, atol=1e-9)


@laws
@given(vectors, vectors, st.floats(-3, 3), curvatures)
def test_rotations_are_isometries(a: list[float], b: list[float], angle: float, c: float) -> None:
    x, y = as_tensor(a), as_tensor(b)
    cos, sin = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=torch.float64)
    want, got = tangent.dist(x, y, c), tangent.dist(turn @ x, turn @ y, c)
    # Rounding the rotated coordinates moves a point by 1e-16 sinh r; compare where that is small.
    if math.sqrt(c) * max(x.norm(), y.norm()) < 15:
        assert torch.isclose(want, got, rtol=1e-9, atol=1e-7)


@laws
@given(vectors, st.floats(1.001, 5), curvatures)
def test_cones_along_a_ray(a: list[float], further: float, c: float) -> None:
    x = as_tensor(a)
    if not 1e-3 < math.sqrt(c) * x.norm() < 5:  # beyond, rounding 'further * x' turns the ray
        return
    out, inward = tangent.exterior_angle(x, further * x, c), tangent.exterior_angle(further * x, x, c)
    assert out <= 1e-6
    assert inward >= math.pi - 1e-6
    assert tangent.half_aperture(further * x, c) <= tangent.half_aperture(x, c)
