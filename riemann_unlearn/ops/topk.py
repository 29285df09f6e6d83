"""The k nearest of a large bank, without the matrix of all distances.

The bank is taken in blocks. A product gives each query's Q = cosh D - 1 with every row of a block, which
orders them as the distance does, so no logarithm is taken; of most blocks, only the least of each row is
looked at. A product cannot order what lies nearer together than its rounding: a few more candidates than
asked for are kept, and those that come out are ordered by distances computed from differences.

The similarity of what is returned is therefore accurate. A row of the bank is missed only if more than
:data:`SPARE` others are as near as it is to within the rounding of the product. On a GPU it is
:mod:`riemann_unlearn.ops.topk_triton`, to the same end.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple

import torch
from torch import Tensor

from riemann_unlearn.geometry.precision import Curvature, widen
from riemann_unlearn.ops.backend import as_scalar, backend
from riemann_unlearn.ops.polar import Side, careful_distance, pair_similarities

__all__ = ["TopK", "topk"]

QUERIES, BLOCK = 1024, 8192
"""Queries and rows of the bank at a time: the product of a block is 32 MiB."""

GROUP = 32
"""Columns of a block whose minimum is taken before any is sorted."""

SPARE = 8
"""Candidates kept beyond k, for the product's rounding."""

_FAST_RADII = 40.0
"""Up to this r1 + r2 a float32 product neither overflows nor, in the pairs that matter, rounds to nothing."""


class TopK(NamedTuple):
    """What :func:`topk` returns, the most similar first."""

    similarity: Tensor
    """Minus the distance, or the cosine, shape (N, k)."""
    indices: Tensor
    """Rows of the bank, shape (N, k)."""


def topk(queries: Tensor, bank: Tensor, k: int, c: Curvature | None = None) -> TopK:
    """The k rows of ``bank`` most similar to each query; takes no gradient.

    Parameters
    ----------
    queries : Tensor, shape (N, D)
    bank : Tensor, shape (M, D)
        M ≥ k.
    k : int
    c : float or Tensor, optional
        Curvature magnitude of tangent vectors at the origin; without it vectors are compared by their cosine.

    Returns
    -------
    TopK

    Raises
    ------
    ValueError
        For shapes that do not fit, numbers that are not finite, ``k`` that is not within 1 and M, or a
        ``c`` that is not positive.

    Examples
    --------
    >>> import torch
    >>> bank = torch.tensor([[0.0, 1.0], [2.0, 0.0], [3.0, 0.0]])
    >>> topk(torch.tensor([[2.5, 0.0]]), bank, k=2, c=1.0)
    TopK(similarity=tensor([[-0.5000, -0.5000]]), indices=tensor([[1, 2]]))
    """
    check_bank(queries, bank)
    if not 1 <= k <= len(bank):
        raise ValueError(f"k must be from 1 to the bank's {len(bank)} rows, got {k}")
    queries, bank = widen(queries.detach()), bank.detach()
    curvature = as_scalar(1.0 if c is None else c, queries, curvature=True).detach()
    return TopK(*_topk(queries, bank, k, curvature, c is not None))


@torch.library.custom_op(
    "riemann_unlearn::topk",
    mutates_args=(),
    schema="(Tensor queries, Tensor bank, int k, Tensor c, bool hyperbolic) -> (Tensor, Tensor)",
)
def _topk(queries: Tensor, bank: Tensor, k: int, c: Tensor, hyperbolic: bool) -> tuple[Tensor, Tensor]:
    for name, features in (("queries", queries), ("bank", bank)):
        if not torch.stack([block.isfinite().all() for block in torch.split(features, BLOCK)]).all():
            raise ValueError(
                f"{name} must be finite, and hold NaN or Inf, which is near nothing; remove those rows first"
            )
    root = c.double().sqrt()
    if backend(queries.device) == "triton":
        kernels = importlib.import_module("riemann_unlearn.ops.topk_triton")
        nearest: tuple[Tensor, Tensor] = kernels.topk(queries, bank, k, root, hyperbolic)
        return nearest
    similarity = queries.new_empty(len(queries), k)
    index = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
    with torch.autocast(queries.device.type, enabled=False):
        for start in range(0, len(queries), QUERIES):
            rows = slice(start, start + QUERIES)
            left = Side(queries[rows], root, hyperbolic=hyperbolic)
            candidates = _candidates(left, bank, min(k + SPARE, len(bank)))
            each = torch.arange(len(left), device=bank.device).repeat_interleave(candidates.shape[1])
            found = pair_similarities(left, bank, each, candidates.flatten()).view(candidates.shape)
            best, place = found.topk(k, dim=1)
            similarity[rows], index[rows] = best.to(similarity.dtype), candidates.gather(1, place)
    return similarity, index


@_topk.register_fake
def _(queries: Tensor, bank: Tensor, k: int, c: Tensor, hyperbolic: bool) -> tuple[Tensor, Tensor]:
    shape = len(queries), k
    return queries.new_empty(shape), queries.new_empty(shape, dtype=torch.int64)


def _candidates(left: Side, bank: Tensor, count: int) -> Tensor:
    """The ``count`` rows of the bank nearest by the product, shape (N, count), in no order."""
    every = slice(0, len(left))
    nearest = torch.full((len(left), count), torch.inf, dtype=torch.float64, device=bank.device)
    index = torch.zeros(len(left), count, dtype=torch.int64, device=bank.device)
    worst = nearest[:, 0].clone()
    # Q of float32 products, or D where those would overflow: one scale for the whole bank.
    fast = left.x.dtype == torch.float32 and not is_far(left, bank)
    for start in range(0, len(bank), BLOCK):
        block = bank[start : start + BLOCK].to(left.x.dtype)
        right = Side(block, left.root, hyperbolic=left.hyperbolic, right=True)
        columns = slice(0, len(block))
        if fast or not left.hyperbolic:
            size = left.operand(every, careful=False) @ right.operand(columns, careful=False).mT
        else:
            y = left.operand(every, careful=True) @ right.operand(columns, careful=True).mT
            size = careful_distance(left, right, every, columns, y.clamp_(min=0))[0]
        value, place, rows = _least(size, worst, count)
        merged = torch.cat([nearest[rows], value.double()], 1)
        known = torch.cat([index[rows], place + start], 1)
        kept, order = merged.topk(count, dim=1, largest=False)
        nearest[rows], index[rows] = kept, known.gather(1, order)
        worst[rows] = kept.amax(1)
    return index


def _least(size: Tensor, worst: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` least of those rows that have one below ``worst``, where they are, and which rows."""
    width = size.shape[1]
    if width % GROUP or width // GROUP < count:
        rows = (size.amin(1) < worst).nonzero()[:, 0]
        value, place = size[rows].topk(min(count, width), dim=1, largest=False)
        return value, place, rows
    # The least lie in the groups with the least minima.
    groups = size.view(len(size), -1, GROUP)
    minima = groups.amin(2)
    rows = (minima.amin(1) < worst).nonzero()[:, 0]
    chosen = minima[rows].topk(count, dim=1, largest=False).indices
    value, place = groups[rows[:, None], chosen].flatten(1).topk(count, dim=1, largest=False)
    return value, chosen.gather(1, place // GROUP) * GROUP + place % GROUP, rows


def check_bank(queries: Tensor, bank: Tensor) -> None:
    """Raise ValueError for features that cannot be compared."""
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise ValueError(
            f"expected shapes (N, D) and (M, D), got {tuple(queries.shape)} and {tuple(bank.shape)}"
        )


def is_far(left: Side, bank: Tensor) -> bool:
    """Whether a radius is too large for float32 products."""
    if not left.hyperbolic or not len(left):
        return False
    starts = range(0, len(bank), BLOCK)
    longest = max(float(bank[k : k + BLOCK].float().norm(dim=1).max()) for k in starts)
    return not float(left.r.max()) + float(left.root) * longest <= _FAST_RADII
