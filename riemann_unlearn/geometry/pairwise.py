"""Distances of every row to every row: one matrix product, and the near pairs again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from riemann_unlearn.geometry.frame import frame
from riemann_unlearn.geometry.precision import Curvature, result_dtype, wide_length, within, working
from riemann_unlearn.geometry.triangle import is_unresolved, pairwise_side

FixNear = Literal["none", "diagonal", "all"]
"""Which pairs too near for a matrix product are computed again, elementwise."""


def pairwise(
    a: Tensor,
    b: Tensor,
    c: Curvature,
    radius: Callable[[Tensor], Tensor],
    dist: Callable[[Tensor, Tensor, Curvature], Tensor],
    fix_near: FixNear,
) -> Tensor:
    """Distances (..., N, M) of rows (..., N, D) and (..., M, D).

    Parameters
    ----------
    radius : callable
        Takes √c times the length of a row to its radius.
    dist : callable
        The elementwise distance.
    """
    if fix_near not in get_args(FixNear):
        raise ValueError(f"fix_near must be one of {get_args(FixNear)}, got {fix_near!r}")
    if fix_near == "diagonal" and a.shape[-2] != b.shape[-2]:
        raise ValueError(
            'fix_near="diagonal" compares row i with row i and needs as many rows on both sides, got '
            f"{a.shape[-2]} and {b.shape[-2]}"
        )
    dtype = result_dtype(a, b)
    framed = frame(c, a.flatten(-2), b.flatten(-2))  # one unit for all rows
    one = framed.vectors[0].unflatten(-1, a.shape[-2:])  # type: ignore[no-untyped-call]
    other = framed.vectors[1].unflatten(-1, b.shape[-2:])  # type: ignore[no-untyped-call]
    # Unit vectors, for their product has an absolute error near ε whatever the lengths are.
    (r1, u1), (r2, u2) = _polar(one, framed.root, radius), _polar(other, framed.root, radius)
    side = pairwise_side(r1, u1, r2, u2)
    d = within(side * framed.curvature_radius[..., None, None], dtype)
    if fix_near == "diagonal":
        return torch.diagonal_scatter(d, dist(a, b, c).to(dtype), dim1=-2, dim2=-1)
    if fix_near == "all":
        # To a quarter of a unit in the last place of a float32 result. A float64 result cannot ask for that,
        # its own rounding being larger: it gets 32 ε.
        tolerance = max(torch.finfo(dtype).eps / 4, 32 * torch.finfo(side.dtype).eps)
        near = is_unresolved(r1.detach(), r2.detach(), side.detach(), tolerance).nonzero(as_tuple=True)
        *batch, i, j = near
        a, b = (x.expand(*d.shape[:-2], *x.shape[-2:]) for x in (a, b))
        # Put in place of the old entries, so that their gradients, which are as wrong, are dropped with them.
        return d.index_put(near, dist(a[(*batch, i)], b[(*batch, j)], c).to(dtype))
    return d


def _polar(x: Tensor, root: Tensor, radius: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Radii (..., N) and unit vectors (..., N, D), in the working dtype.

    A row at the origin gets a tiny length and, with it, the zero vector for a direction: no value changes,
    and the gradient with respect to it is right, for the length cancels from it.
    """
    wide = working(x)
    norm = wide_length(wide)
    norm = torch.where(norm == 0, 1e-30, norm)
    # A quarter of the largest number: the sum of two radii is finite.
    r = radius(root[..., None] * norm).clamp(max=torch.finfo(wide.dtype).max / 4)
    return r, wide / norm[..., None]
