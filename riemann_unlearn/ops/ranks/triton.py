"""Ranks among a large bank on a GPU: one kernel measures own rows, one counts the others of each tile.

A pair that a product of float32 is sure to order is counted by it. A tile with any that it is not is
measured once more, from differences; so is one whose rows are float64 or lie too far out. Own rows are
measured by the same operations in the same order, so that rows that are equal tie exactly. Nothing is decided
on the host, and counts are integers, which sum to the same in any order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from riemann_unlearn.ops.launch import UNFUSED, launch
from riemann_unlearn.ops.polar import Side
from riemann_unlearn.ops.topk.triton import (
    TILES,
    apart,
    apart_tile,
    grid,
    is_far,
    meta,
    nearness,
    operands,
    places,
    polar,
    tile,
)

BLOCK = 128
"""Queries that a program measures at a time."""

ROUNDING = tl.constexpr(2.0**-18)
"""Of a product of three TF32, relative to the sum of its terms: 2^-21 each, and their sum's own error."""


def ranks(queries: Tensor, bank: Tensor, own: Tensor, root: Tensor, hyperbolic: bool) -> Tensor:
    """How many other rows of ``bank`` are at least as similar to each query as its own row."""
    count = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    if not len(queries):
        return count
    left = Side(queries, root, hyperbolic=hyperbolic)
    right = Side(bank, root, hyperbolic=hyperbolic, right=True)
    mine = torch.empty(len(left), dtype=torch.float64, device=queries.device)
    _own[(triton.cdiv(len(left), BLOCK),)](
        left.x, right.x, own, *polar(left), *polar(right), mine, len(left), left.x.shape[1],
        HYPERBOLIC=hyperbolic, BLOCK=BLOCK, **UNFUSED,
    )  # fmt: skip
    level = (2 * torch.sinh(mine / 2).square() if hyperbolic else mine).float()
    counted = own, mine, level, count
    launch(_count, grid(left, right), *operands(left, right), *counted, len(left), len(right), **meta(left))
    return count


@triton.jit
def _own(
    x, y, own, inverse1, r1, shrunk1, a1, decay1, inverse2, r2, shrunk2, a2, decay2, out, rows, inner,
    HYPERBOLIC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How near own rows are."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < rows
    j = tl.load(own + i, mask=inside, other=0)
    by_row, by_own = tl.load(inverse1 + i, mask=inside, other=0.0), tl.load(inverse2 + j)
    total = tl.zeros((BLOCK,), tl.float64)
    for k in range(inner):
        u = tl.load(x + i.to(tl.int64) * inner + k, mask=inside, other=0.0).to(tl.float64) * by_row
        w = tl.load(y + j * inner + k, mask=inside, other=0.0).to(tl.float64) * by_own
        total = apart(total, u, w, HYPERBOLIC)
    near = nearness(
        total,
        tl.load(r1 + i, mask=inside, other=0.0),
        tl.load(shrunk1 + i, mask=inside, other=0.0),
        tl.load(a1 + i, mask=inside, other=0.0),
        tl.load(decay1 + i, mask=inside, other=1.0),
        tl.load(r2 + j),
        tl.load(shrunk2 + j),
        tl.load(a2 + j),
        tl.load(decay2 + j),
        HYPERBOLIC,
    )
    tl.store(out + i, near, mask=inside)


@triton.autotune(TILES, key=["inner", "HYPERBOLIC", "WIDE"], restore_value=["count"])
@triton.jit
def _count(
    x, scale1, less_one1, inverse1, r1, shrunk1, a1, decay1,
    y, scale2, less_one2, inverse2, r2, shrunk2, a2, decay2,
    own, mine, level, count, rows, columns, inner,
    HYPERBOLIC: tl.constexpr, WIDE: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Add how many of one tile's columns are at least as near to each row as its own."""
    i, j = places(rows, M, N)
    others = (i < rows)[:, None] & (j < columns)[None, :]
    others = others & (tl.load(own + i, mask=i < rows, other=0)[:, None] != j[None, :])
    far = WIDE
    if HYPERBOLIC and not WIDE:
        far = is_far(r1, r2, i, j, rows, columns)
    nearer = others
    careful = far
    if careful == 0:
        q, most = tile(
            x, scale1, less_one1, y, scale2, less_one2, i, j, rows, columns, inner, HYPERBOLIC, M, N, K
        )
        over = q - tl.load(level + i, mask=i < rows, other=0.0)[:, None]
        nearer = others & (over < -(most * ROUNDING))
        sure = nearer | (over > most * ROUNDING) | (others == 0)
        careful = tl.min(sure.to(tl.int32)) == 0
    if careful:
        d = apart_tile(
            x, inverse1, r1, shrunk1, a1, decay1, y, inverse2, r2, shrunk2, a2, decay2,
            i, j, rows, columns, inner, HYPERBOLIC, M, N,
        )  # fmt: skip
        # A comparison that is false counts what is no number.
        nearer = others & ((d > tl.load(mine + i, mask=i < rows, other=0.0)[:, None]) == 0)
    tl.atomic_add(count + i, tl.sum(nearer.to(tl.int64), 1), mask=i < rows)
