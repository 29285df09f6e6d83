"""The k nearest by torch, in blocks of the bank: on any device.

A product gives each query's Q = cosh D - 1 with every row of a block, which orders them as the distance does,
so no logarithm is taken; of most blocks, only the least of each row is looked at. A product cannot order what
lies nearer together than its rounding: a few more candidates than asked for are kept, and those that come out
are ordered by distances computed from differences.

The similarity of what is returned is therefore accurate. A row of the bank is missed only if more than
:data:`SPARE` others are as near as it is to within the rounding of the product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from riemann_unlearn.ops.polar import Side, careful_distance, pair_similarities

QUERIES, BLOCK = 1024, 8192
"""Queries and rows of the bank at a time: the product of a block is 32 MiB."""

GROUP = 32
"""Columns of a block whose minimum is taken before any is sorted."""

SPARE = 8
"""Candidates kept beyond k, for the product's rounding."""

_FAST_RADII = 40.0
"""Up to this r1 + r2 a float32 product neither overflows nor, in the pairs that matter, rounds to nothing."""


def topk(queries: Tensor, bank: Tensor, k: int, root: Tensor, hyperbolic: bool) -> tuple[Tensor, Tensor]:
    """Similarities, in the dtype of ``queries``, and rows of the bank, the most similar first."""
    similarity = queries.new_empty(len(queries), k)
    index = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
    with torch.autocast(queries.device.type, enabled=False):
        for start in range(0, len(queries), QUERIES):
            rows = slice(start, start + QUERIES)
            left = Side(queries[rows], root, hyperbolic=hyperbolic)
            candidates = _candidates(left, bank, min(k + SPARE, len(bank)))
            each = torch.arange(len(left), device=bank.device).repeat_interleave(candidates.shape[1])
            # A product may have the candidates in the wrong order: differences decide who of them is nearest.
            exact = pair_similarities(left, bank, each, candidates.flatten()).view(candidates.shape)
            best, place = exact.topk(k, dim=1)
            similarity[rows], index[rows] = best.to(similarity.dtype), candidates.gather(1, place)
    return similarity, index


def _candidates(left: Side, bank: Tensor, count: int) -> Tensor:
    """The ``count`` rows of the bank nearest by the product, shape (N, count), in no order."""
    every = slice(0, len(left))
    # float64 holds the products of either dtype as they are. No infinity is left at the end: there are no
    # more candidates than rows in the bank.
    nearest = torch.full((len(left), count), torch.inf, dtype=torch.float64, device=bank.device)
    index = torch.zeros(len(left), count, dtype=torch.int64, device=bank.device)
    worst = nearest[:, 0].clone()  # of those kept: a block whose least is beyond it changes nothing
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
    # As many groups are chosen below as candidates: where there are fewer, all columns are looked at.
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


def is_far(left: Side, bank: Tensor) -> bool:
    """Whether a radius is too large for float32 products."""
    if not left.hyperbolic or not len(left):
        return False
    starts = range(0, len(bank), BLOCK)
    longest = max(float(bank[k : k + BLOCK].float().norm(dim=1).max()) for k in starts)
    # A radius that is NaN is too large as well.
    return not float(left.r.max()) + float(left.root) * longest <= _FAST_RADII
