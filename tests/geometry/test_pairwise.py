"""Pairwise distances: what the fix-up of near pairs promises."""

from __future__ import annotations

import math

import pytest
import torch

from riemann_unlearn import geometry as g
from riemann_unlearn.geometry import tangent


def crowd(r: float, near: float) -> torch.Tensor:
    """Rows at about radius r, in clusters ``near`` wide."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(6, 32, generator=generator), dim=-1) * r
    noise = torch.randn(24, 32, generator=generator) / math.sqrt(32)
    return centres.repeat(4, 1) + near * noise


@pytest.mark.parametrize("r", [0.1, 1.0, 3.0, 6.0, 20.0])
@pytest.mark.parametrize("near", [0.0, 1e-4, 1e-2])
def test_all_near_pairs_are_mended(r: float, near: float) -> None:
    v = crowd(r, near)
    exactly = tangent.dist(v[:, None], v[None], 1.0)
    got = tangent.cdist(v, v, 1.0, fix_near="all")
    assert torch.allclose(got, exactly, rtol=64 * torch.finfo(torch.float32).eps, atol=0)
    x = g.expmap0(v, 1.0)
    got, exactly = g.cdist(x, x, 1.0, fix_near="all"), g.dist(x[:, None], x[None], 1.0)
    assert torch.allclose(got, exactly, rtol=64 * torch.finfo(torch.float32).eps, atol=0)


def test_the_diagonal_is_mended_with_its_gradient() -> None:
    v = crowd(6.0, 0.0)
    a, b = v.clone().requires_grad_(), (1.1 * v).requires_grad_()
    diagonal = tangent.cdist(a, b, 1.0, fix_near="diagonal").diagonal()
    assert torch.equal(diagonal, tangent.dist(a, b, 1.0))
    got = torch.autograd.grad(diagonal.sum(), (a, b))
    want = torch.autograd.grad(tangent.dist(a, b, 1.0).sum(), (a, b))
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


@pytest.mark.parametrize("mode", ["none", "diagonal", "all"])
def test_leading_dimensions_and_far_rows(mode: str) -> None:
    v = torch.stack([crowd(r, 0.1) for r in (0.0, 5.0, 90.0, 1000.0)]).requires_grad_()
    d = tangent.cdist(v, v.detach(), 0.5, fix_near=mode)  # type: ignore[arg-type]
    assert d.shape == (4, 24, 24)
    assert d.isfinite().all()
    assert torch.autograd.grad(d.sum(), v)[0].isfinite().all()
    apart = tangent.dist(v[:, :, None], v[:, None], 0.5)
    assert torch.allclose(d, apart, rtol=1e-2, atol=0.2) or mode != "all"


def test_a_shared_side_broadcasts_over_leading_dimensions() -> None:
    v = torch.stack([crowd(2.0, 0.1), crowd(1.0, 0.1)])
    got = tangent.cdist(v, v[0], 1.0, fix_near="all")
    assert torch.allclose(got, torch.stack([tangent.cdist(w, v[0], 1.0, fix_near="all") for w in v]))


def test_double_precision_and_huge_rows() -> None:
    v = crowd(3.0, 0.5).double()
    assert torch.allclose(tangent.cdist(v, v, 2.0), tangent.dist(v[:, None], v[None], 2.0), atol=1e-6)
    huge = torch.tensor([[1e38, 0.0], [0.0, -1e38], [1.0, 0.0]])
    assert tangent.cdist(huge, huge, 4.0).isfinite().all()


def test_bad_arguments_are_refused() -> None:
    v = crowd(1.0, 0.1)
    with pytest.raises(ValueError, match="fix_near must be one of"):
        tangent.cdist(v, v, 1.0, fix_near="some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="as many rows on both sides, got 24 and 3"):
        tangent.cdist(v, v[:3], 1.0, fix_near="diagonal")
    with pytest.raises(TypeError, match="must be a number or a Tensor"):
        tangent.cdist(v, v, "1")  # type: ignore[arg-type]
