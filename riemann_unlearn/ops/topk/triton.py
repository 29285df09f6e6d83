"""The k nearest of a large bank on a GPU: two kernels, and torch's top-k after each.

The first takes a product of queries and bank on the tensor cores and leaves, of each group of :data:`GROUP`
rows of the bank, only how near its nearest is, so the matrix of all distances is never written. The k nearest
lie in the k groups that are nearest by that; a few more are kept for the product's rounding. The second
measures every row of those groups from differences. Nothing is decided on the host.

Where a product of float32 does not reach, because features are float64 or lie too far out, a tile is measured
from differences at once, column by column: as exact, and many times slower.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from riemann_unlearn.ops.launch import UNFUSED, launch
from riemann_unlearn.ops.polar import Side

GROUP = 32
"""Rows of the bank, one after the other, that are kept or dropped together."""

SPARE = 8
"""Groups kept beyond k, for the product's rounding."""

ROOM = 2**28
"""Bytes of what is kept of the groups: as many queries are taken at a time as fit."""

WIDEST = 128
"""Of a group's rows, the most columns that a program holds at a time."""


def topk(queries: Tensor, bank: Tensor, k: int, root: Tensor, hyperbolic: bool) -> tuple[Tensor, Tensor]:
    """Similarities, in the dtype of ``queries``, and rows of the bank, the most similar first."""
    similarity = queries.new_empty(len(queries), k)
    index = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
    right = Side(bank, root, hyperbolic=hyperbolic, right=True)
    groups = triton.cdiv(len(bank), GROUP)
    count = min(k + SPARE, groups)
    rows = max(1, ROOM // (4 * groups + 8 * GROUP * count))
    for start in range(0, len(queries), rows):
        left = Side(queries[start : start + rows], root, hyperbolic=hyperbolic)
        chosen = _nearest_groups(left, right, groups).topk(count, dim=1, largest=False).indices
        best, place = _within(left, right, chosen).topk(k, dim=1, largest=False)
        similarity[start : start + rows] = (-best / root if hyperbolic else -best).to(similarity.dtype)
        index[start : start + rows] = chosen.gather(1, place // GROUP) * GROUP + place % GROUP
    return similarity, index


def _nearest_groups(left: Side, right: Side, groups: int) -> Tensor:
    """How near the nearest of each group is to each query, shape (N, groups)."""
    near = torch.empty(len(left), groups, dtype=torch.float32, device=left.x.device)
    sizes = len(left), len(right), groups
    launch(_nearest, grid(left, right), *operands(left, right), near, *sizes, GROUP=GROUP, **meta(left))
    return near


def _within(left: Side, right: Side, chosen: Tensor) -> Tensor:
    """How near each row of chosen groups is, shape (N, groups·GROUP); ∞ past the bank's end."""
    near = torch.empty(*chosen.shape, GROUP, dtype=torch.float64, device=chosen.device)
    block = min(WIDEST, int(triton.next_power_of_2(max(left.x.shape[1], 1))))
    _measure[(chosen.numel(),)](
        left.x, right.x, chosen.contiguous(), *polar(left), *polar(right), near, len(right),
        chosen.shape[1], left.x.shape[1], HYPERBOLIC=left.hyperbolic, BLOCK=block, GROUP=GROUP, **UNFUSED,
    )  # fmt: skip
    return near.flatten(1)


def grid(left: Side, right: Side) -> Callable[[dict[str, int]], tuple[int]]:
    """Programs, one a tile; an axis of the grid other than the first would end at 65,535."""
    return lambda meta: (triton.cdiv(len(left), meta["M"]) * triton.cdiv(len(right), meta["N"]),)


def operands(left: Side, right: Side) -> tuple[Tensor, ...]:
    """What :func:`tile` and :func:`apart_tile` know of the two sides."""
    return (left.x, *fast(left), *polar(left), right.x, *fast(right), *polar(right))


def meta(left: Side) -> dict[str, Any]:
    """Sizes and choices that the kernels of products share."""
    wide = left.x.dtype == torch.float64
    return {"inner": left.x.shape[1], "HYPERBOLIC": left.hyperbolic, "WIDE": wide, **UNFUSED}


def fast(side: Side) -> tuple[Tensor, Tensor]:
    """What a product of float32 takes of rows: their scale, and cosh r - 1."""
    scale = side.scale(careful=False).float()
    return scale, (2 * torch.sinh(side.r / 2).square()).float() if side.hyperbolic else scale


def polar(side: Side) -> tuple[Tensor, ...]:
    """What differences take of rows, float64: 1/n, r, 1 - e^-r, 1 - e^-2r and e^-r."""
    if not side.hyperbolic:
        return (side.inverse,) * 5
    return side.inverse, side.r, side.shrunk, side.shrunk2, side.decay


@triton.jit
def places(rows, M: tl.constexpr, N: tl.constexpr):
    """Rows and columns of one program's tile; programs that run together take the same rows of the bank."""
    down = tl.cdiv(rows, M)
    i = (tl.program_id(0) % down) * M + tl.arange(0, M)
    return i, (tl.program_id(0) // down) * N + tl.arange(0, N)


@triton.jit
def apart(total, u, w, HYPERBOLIC: tl.constexpr):
    """Add what one column of unit vectors says: to |u - w|², or to the cosine."""
    if HYPERBOLIC:
        way = u - w
        return total + way * way
    return total + u * w


@triton.jit
def nearness(total, r1, shrunk1, a1, decay1, r2, shrunk2, a2, decay2, HYPERBOLIC: tl.constexpr):
    """√c times the distance, from |u - w|² as in :mod:`riemann_unlearn.ops.polar`; or minus the cosine."""
    if HYPERBOLIC:
        gap = shrunk1 - shrunk2
        y = gap * gap + a1 * a2 * total / 4
        half = (tl.sqrt(y) + tl.sqrt(y + 4 * decay1 * decay2)) / 2
        least = tl.abs(r1 - r2)
        d = r1 + r2 + 2 * tl.log(tl.where(half > 0, half, 1.0))
        # A comparison that is false leaves what is no number.
        return tl.where((y <= 0) | (half <= 0), least, tl.where(d < least, least, d))
    return -total


@triton.jit
def tile(
    x, scale1, less_one1, y, scale2, less_one2, i, j, rows, columns, inner,
    HYPERBOLIC: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Q of a tile by a float32 product, and what its terms sum to at most; or minus cosines, and 1."""
    by_row = tl.load(scale1 + i, mask=i < rows, other=0.0)[:, None]
    by_column = tl.load(scale2 + j, mask=j < columns, other=0.0)[None, :]
    one = x + i.to(tl.int64)[:, None] * inner
    other = y + j.to(tl.int64)[None, :] * inner
    product = tl.zeros((M, N), tl.float32)
    for start in range(0, inner, K):
        k = start + tl.arange(0, K)
        a = tl.load(one + k[None, :], mask=(i < rows)[:, None] & (k < inner)[None, :], other=0.0)
        b = tl.load(other + k[:, None], mask=(k < inner)[:, None] & (j < columns)[None, :], other=0.0)
        a, b = a.to(tl.float32) * by_row, b.to(tl.float32) * by_column
        product += tl.dot(a, b, input_precision="tf32x3")
    if HYPERBOLIC:
        c1 = tl.load(less_one1 + i, mask=i < rows, other=0.0)[:, None]
        c2 = tl.load(less_one2 + j, mask=j < columns, other=0.0)[None, :]
        most = c1 * (1 + c2) + c2
        return most - product, most
    return -product, tl.full((M, N), 1.0, tl.float32)


@triton.jit
def apart_tile(
    x, inverse1, r1, shrunk1, a1, decay1, y, inverse2, r2, shrunk2, a2, decay2, i, j, rows, columns, inner,
    HYPERBOLIC: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """:func:`nearness` of a tile, from differences."""
    in_i, in_j = i < rows, j < columns
    by_row, by_column = (
        tl.load(inverse1 + i, mask=in_i, other=0.0),
        tl.load(inverse2 + j, mask=in_j, other=0.0),
    )
    one, other = x + i.to(tl.int64) * inner, y + j.to(tl.int64) * inner
    total = tl.zeros((M, N), tl.float64)
    for k in range(inner):
        u = tl.load(one + k, mask=in_i, other=0.0).to(tl.float64) * by_row
        w = tl.load(other + k, mask=in_j, other=0.0).to(tl.float64) * by_column
        total = apart(total, u[:, None], w[None, :], HYPERBOLIC)
    return nearness(
        total,
        tl.load(r1 + i, mask=in_i, other=0.0)[:, None],
        tl.load(shrunk1 + i, mask=in_i, other=0.0)[:, None],
        tl.load(a1 + i, mask=in_i, other=0.0)[:, None],
        tl.load(decay1 + i, mask=in_i, other=1.0)[:, None],
        tl.load(r2 + j, mask=in_j, other=0.0)[None, :],
        tl.load(shrunk2 + j, mask=in_j, other=0.0)[None, :],
        tl.load(a2 + j, mask=in_j, other=0.0)[None, :],
        tl.load(decay2 + j, mask=in_j, other=1.0)[None, :],
        HYPERBOLIC,
    )


@triton.jit
def is_far(r1, r2, i, j, rows, columns):
    """Whether a product of a tile could overflow float32, or lose the pairs that matter to its rounding."""
    longest = tl.max(tl.load(r1 + i, mask=i < rows, other=0.0))
    return longest + tl.max(tl.load(r2 + j, mask=j < columns, other=0.0)) > 40


TILES = [
    triton.Config({"M": 64, "N": 128, "K": 32}, num_warps=8, num_stages=3),
    triton.Config({"M": 64, "N": 64, "K": 32}, num_warps=4, num_stages=3),
]


@triton.autotune(TILES, key=["inner", "HYPERBOLIC", "WIDE"])
@triton.jit
def _nearest(
    x, scale1, less_one1, inverse1, r1, shrunk1, a1, decay1,
    y, scale2, less_one2, inverse2, r2, shrunk2, a2, decay2,
    out, rows, columns, groups, inner,
    HYPERBOLIC: tl.constexpr, WIDE: tl.constexpr, GROUP: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Of one tile, how near the nearest of each group of columns is."""
    i, j = places(rows, M, N)
    far = WIDE
    if HYPERBOLIC and not WIDE:
        far = is_far(r1, r2, i, j, rows, columns)
    if far:
        near = apart_tile(
            x, inverse1, r1, shrunk1, a1, decay1, y, inverse2, r2, shrunk2, a2, decay2,
            i, j, rows, columns, inner, HYPERBOLIC, M, N,
        ).to(tl.float32)  # fmt: skip
    else:
        near, _ = tile(
            x, scale1, less_one1, y, scale2, less_one2, i, j, rows, columns, inner, HYPERBOLIC, M, N, K
        )
        if HYPERBOLIC:
            # D = 2 log(1 + t), and log(1 + t) = log(u)·t/(u - 1) of the rounded u = 1 + t.
            q = tl.maximum(near, 0.0) / 2
            t = tl.sqrt(q) + q / (1 + tl.sqrt(1 + q))
            rounded = 1 + t
            small = rounded == 1
            near = 2 * tl.where(small, t, tl.log(rounded) * (t / tl.where(small, 1.0, rounded - 1)))
    near = tl.where((j < columns)[None, :], near, float("inf"))
    nearest = tl.min(tl.reshape(near, (M, N // GROUP, GROUP)), 2)
    group = tl.min(j) // GROUP + tl.arange(0, N // GROUP)
    inside = (i < rows)[:, None] & (group < groups)[None, :]
    tl.store(out + i.to(tl.int64)[:, None] * groups + group[None, :], nearest, mask=inside)


@triton.jit
def _measure(
    x, y, chosen, inverse1, r1, shrunk1, a1, decay1, inverse2, r2, shrunk2, a2, decay2, out,
    columns, count, inner, HYPERBOLIC: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """How near the rows of one chosen group are to one query."""
    place = tl.program_id(0).to(tl.int64)
    i = place // count
    j = tl.load(chosen + place) * GROUP + tl.arange(0, GROUP)
    in_j = j < columns
    by_row, by_column = tl.load(inverse1 + i), tl.load(inverse2 + j, mask=in_j, other=0.0)[:, None]
    total = tl.zeros((GROUP, BLOCK), tl.float64)
    for start in range(0, inner, BLOCK):
        k = start + tl.arange(0, BLOCK)
        u = tl.load(x + i * inner + k, mask=k < inner, other=0.0).to(tl.float64)[None, :] * by_row
        inside = in_j[:, None] & (k < inner)[None, :]
        w = tl.load(y + j[:, None] * inner + k[None, :], mask=inside, other=0.0).to(tl.float64) * by_column
        total = apart(total, u, w, HYPERBOLIC)
    near = nearness(
        tl.sum(total, 1),
        tl.load(r1 + i),
        tl.load(shrunk1 + i),
        tl.load(a1 + i),
        tl.load(decay1 + i),
        tl.load(r2 + j, mask=in_j, other=0.0),
        tl.load(shrunk2 + j, mask=in_j, other=0.0),
        tl.load(a2 + j, mask=in_j, other=0.0),
        tl.load(decay2 + j, mask=in_j, other=1.0),
        HYPERBOLIC,
    )
    tl.store(out + place * GROUP + tl.arange(0, GROUP), tl.where(in_j, near, float("inf")))
