from __future__ import annotations

import math

import geoopt
import pytest
import torch

from riemann_unlearn.geometry import expmap0, from_ambient, logmap0, tangent, to_ambient


@pytest.mark.parametrize("c", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("r", [0.0, 1e-12, 0.1, 3.0, 20.0, 80.0])
def test_log_inverts_exp(c: float, r: float) -> None:
    v = torch.tensor([[0.6, -0.8]], dtype=torch.float64) * r / math.sqrt(c)
    assert torch.allclose(logmap0(expmap0(v, c), c), v, rtol=1e-12, atol=0)


@pytest.mark.parametrize("k", [0.3, 1.0, 4.0])
def test_points_are_geoopts(k: float) -> None:
    manifold = geoopt.Lorentz(k=k).double()
    v = torch.randn(10, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    points = to_ambient(expmap0(v, 1 / k), 1 / k)
    assert torch.allclose((points[:, 1:] ** 2).sum(-1) - points[:, 0] ** 2, torch.tensor(-k).double())
    ambient_v = torch.nn.functional.pad(v, (1, 0))
    assert torch.allclose(manifold.expmap0(ambient_v), points)
    want = tangent.dist(v[:5], v[5:], 1 / k)
    assert torch.allclose(manifold.dist(points[:5], points[5:]), want, rtol=1e-6)
    assert torch.equal(from_ambient(points), points[:, 1:])


@pytest.mark.parametrize("function", [expmap0, logmap0])
def test_the_origin_stays_with_a_finite_gradient(function: object) -> None:
    v = torch.zeros(3, requires_grad=True)
    c = torch.tensor(2.0, requires_grad=True)
    value = function(v, c)  # type: ignore[operator]
    assert value.tolist() == [0.0, 0.0, 0.0]
    jacobian, by_curvature = torch.autograd.grad(value.sum(), (v, c))
    assert jacobian.tolist() == [1.0, 1.0, 1.0]
    assert by_curvature.item() == 0.0


def test_gradients_match_differences() -> None:
    v = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    c = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    for function in (expmap0, logmap0, to_ambient):
        assert torch.autograd.gradcheck(function, (v, c))
