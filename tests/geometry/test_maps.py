"""Exponential, logarithm and transport: the laws they are defined by."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from riemann_unlearn import geometry as g

F64 = torch.float64
CURVATURES = st.sampled_from((1e-3, 0.3, 1.0, 1e3))
VECTORS = st.lists(st.floats(-3, 3), min_size=3, max_size=3)
laws = settings(max_examples=60, deadline=None, derandomize=True)


def unit(values: list[float], c: float) -> Tensor:
    """A vector in units of the curvature radius."""
    return torch.tensor(values, dtype=F64) / math.sqrt(c)


def inner(x: Tensor, u: Tensor, v: Tensor, c: float) -> Tensor:
    """The metric at x, with the time components that tangency gives."""
    time = torch.sqrt(1 / torch.tensor(c, dtype=F64) + (x * x).sum())
    return (u * v).sum() - (x * u).sum() * (x * v).sum() / time**2


@laws
@given(VECTORS, VECTORS, CURVATURES)
def test_log_inverts_exp_and_has_the_length_of_the_distance(a: list[float], b: list[float], c: float) -> None:
    x, y = g.expmap0(unit(a, c), c), g.expmap0(unit(b, c), c)
    u = g.logmap(x, y, c)
    scale = float(x.abs().max() + y.abs().max()) + 1 / math.sqrt(c)
    assert torch.allclose(g.expmap(x, u, c), y, rtol=1e-8, atol=1e-9 * scale)
    assert torch.isclose(inner(x, u, u, c).clamp(min=0).sqrt(), g.dist(x, y, c), rtol=1e-6, atol=1e-7 * scale)


@laws
@given(VECTORS, VECTORS, CURVATURES)
def test_exp_inverts_log(a: list[float], b: list[float], c: float) -> None:
    x, u = g.expmap0(unit(a, c), c), unit(b, c)
    y = g.expmap(x, u, c)
    if g.dist(x, y, c) * math.sqrt(c) < 6:
        scale = float(x.abs().max() + y.abs().max()) + 1 / math.sqrt(c)
        assert torch.allclose(g.logmap(x, y, c), u, rtol=1e-7, atol=1e-8 * scale)


@laws
@given(VECTORS, VECTORS, VECTORS, VECTORS, CURVATURES)
def test_transport_keeps_inner_products_and_comes_back(
    a: list[float], b: list[float], p: list[float], q: list[float], c: float
) -> None:
    x, y = g.expmap0(unit(a, c), c), g.expmap0(unit(b, c), c)
    u, v = unit(p, c), unit(q, c)
    there = [g.parallel_transport(x, y, w, c) for w in (u, v)]
    size = float(sum(w.norm() for w in (u, v, *there))) ** 2
    assert torch.isclose(inner(y, *there, c), inner(x, u, v, c), rtol=0, atol=1e-10 * size + 1e-300)
    back = g.parallel_transport(y, x, there[0], c)
    assert torch.allclose(back, u, rtol=0, atol=1e-9 * float(there[0].norm() + u.norm()) + 1e-300)


@laws
@given(VECTORS, VECTORS, st.floats(0.1, 2.0))
def test_distance_is_invariant_under_translation_along_a_geodesic(
    a: list[float], b: list[float], t: float
) -> None:
    """A boost along the first axis is an isometry of the ambient space."""
    x, y = g.expmap0(unit(a, 1.0), 1.0), g.expmap0(unit(b, 1.0), 1.0)
    boost = torch.eye(4, dtype=F64)
    boost[:2, :2] = torch.tensor([[math.cosh(t), math.sinh(t)], [math.sinh(t), math.cosh(t)]], dtype=F64)
    moved = [g.from_ambient(boost @ g.to_ambient(p, 1.0)) for p in (x, y)]
    assert torch.isclose(g.dist(*moved, 1.0), g.dist(x, y, 1.0), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("x", [[0.0, 0.0], [0.6, -0.8]])
def test_log_and_exp_are_differentiable_where_they_vanish(x: list[float]) -> None:
    point = torch.tensor(x, dtype=F64)
    log = torch.autograd.functional.jacobian(lambda y: g.logmap(point, y, 0.7), point)
    exp = torch.autograd.functional.jacobian(lambda u: g.expmap(point, u, 0.7), torch.zeros(2, dtype=F64))
    assert torch.allclose(exp, torch.eye(2, dtype=F64))
    assert torch.allclose(log, torch.eye(2, dtype=F64))
    assert g.logmap(point, point, 0.7).tolist() == [0.0, 0.0]


def test_gradients_match_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y, u = (torch.randn(3, 3, dtype=F64, generator=generator, requires_grad=True) for _ in range(3))
    c = torch.tensor(0.7, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(g.expmap, (x, u, c))
    assert torch.autograd.gradcheck(g.logmap, (x, y, c))
    assert torch.autograd.gradcheck(g.parallel_transport, (x, y, u, c))


def test_shapes_broadcast_and_half_precision_gives_float32() -> None:
    x, y = torch.randn(4, 1, 3), torch.randn(5, 3).bfloat16()
    assert g.logmap(x, y, 1.0).shape == (4, 5, 3)
    assert g.parallel_transport(x, y, y, 1.0).shape == (4, 5, 3)
    for value in (g.expmap(y, y, 1.0), g.logmap(y, y, 1.0), g.expmap0(y, 1.0), g.logmap0(y, 1.0)):
        assert value.dtype == torch.float32
