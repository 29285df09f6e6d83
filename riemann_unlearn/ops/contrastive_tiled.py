"""The contrastive op in tiles of torch operations: no B×B matrix, and no compiler.

Pairs are sorted by (forget, caption id), so that every tile lies in one of four blocks, retain or forget by
retain or forget, each with one treatment, and equal captions meet in few tiles. The matrix product of a tile
goes to a buffer that stays in the cores' caches, and the elementwise passes run over it in place; the
backward pass computes the product again. What a product is, :mod:`riemann_unlearn.ops.polar` says.

**Fast tiles** are float32: with Q = cosh D - 1 from the product, sinh D = √(Q(Q+2)) and
D = log(1 + Q + sinh D), and one exponential serves rows and columns together.

**Careful tiles** are float64, and take over where float32 cannot know the answer: where a pair is so near
that the rounding of the product matters, where radii are large, and for float64 features. Pairs that float64
does not tell apart either are computed from the difference of their vectors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from riemann_unlearn.ops.polar import (
    Side,
    add_matched_gradient,
    careful_distance,
    from_differences,
    matched_angles,
    matched_distances,
)

ROWS, COLUMNS = 512, 1024
"""Of a tile. Half the rows keep its float32 buffers within two cores' second-level caches and are faster on
one core, and slower on two, where an operation must last to be worth two threads."""

_NEAR = 2.0**-7
"""A fast tile needs Q > this · sinh r1 · sinh r2: the product leaves about 2^-23 sinh r1 sinh r2 of error."""

_FAST_RADII = 40.0
"""... and r1 + r2 up to this: Q² < e^80 and probabilities over sinh D are ordinary float32 numbers."""

_TINY = 0.05
"""With all radii below this, distances come from log1p(t); else from log(1 + t), which is faster, and wrong
by 2^-24: at most 2^-20 of the largest distance."""

_FAR = 1e18
"""Stands in a product for what is not a pair: beyond cosh 40, and its square is a float32 number."""

_NEAR_EXACT = 2.0**-36
"""What _NEAR is to float32 this is to float64, whose products err by about 2^-52."""

_SPREAD = 60.0
"""One exponential serves a tile whose logits and running maxima lie within ± this of a reference: a sum of
2^20 terms stays below float32's largest number, and what underflows is below 2^-38 of the least sum."""

_CAREFUL, _TWICE = math.nan, math.inf
"""In a plan, instead of a reference: the tile is careful; rows and columns take an exponential each."""


class Problem(NamedTuple):
    """The arguments of the op; see :func:`riemann_unlearn.ops.contrastive.contrastive`."""

    x: Tensor
    y: Tensor
    scale: Tensor
    c: Tensor
    forget: Tensor | None
    ids: Tensor | None
    offset: int
    hyperbolic: bool


class Statistics(NamedTuple):
    """What the forward pass leaves, float64, in the order of the features.

    The first five are :class:`riemann_unlearn.ops.contrastive.Contrastive`'s.
    """

    matched: Tensor
    rows: Tensor
    columns: Tensor
    negative: Tensor
    pairs: Tensor
    plan: Tensor
    """The reference of each tile, or what it is instead; see :data:`_SPREAD`."""
    angle: Tensor
    """Of matched pairs: |u1 - u2|², or the cosine."""
    norm_x: Tensor
    norm_y: Tensor


class Gradients(NamedTuple):
    """Of the arguments that take them."""

    x: Tensor
    y: Tensor
    scale: Tensor
    c: Tensor


def most_tiles(rows: int, columns: int) -> int:
    """The number of tiles of a problem, or one that is larger."""
    return (-(-rows // ROWS) + 1) * (-(-columns // COLUMNS) + 1)


def forward(p: Problem) -> Statistics:
    """Matched similarities, row and column log-sum-exps, and the mean over the forget negatives."""
    w = _Work(p, buffers=2)
    angle = matched_angles(*w.sides, p.offset)
    value = w.unit * (matched_distances(*w.sides, p.offset, angle)[0] if p.hyperbolic else -angle)
    own = p.scale.double() * value
    column_own = torch.full((len(p.y),), -math.inf, dtype=torch.float64)
    column_own[w.own] = own
    common = _common_reference(p, own)
    rows, columns = _Running(w.left.sort(own), common), _Running(w.right.sort(column_own), common)
    total, count, plan = own.new_zeros(()), 0, []
    for tile in w.tiles:
        v, careful = w.distances(tile)
        sides = [(rows, tile.rows, 1)] if tile.by_row else []
        if tile.by_column:
            sides.append((columns, tile.columns, 0))
        reference = common
        if reference is None:
            most = w.slope * v.amin(1)
            tops = [
                torch.maximum(running.top[where], most if dim == 1 else w.slope * v.amin(0))
                for running, where, dim in sides
            ]
            highest, lowest = float(most.max()), min(float(top.min()) for top in tops)
            fits = highest - lowest <= 2 * _SPREAD and not careful
            reference = highest - _SPREAD if fits else _TWICE
            for (running, where, _), top in zip(sides, tops, strict=True):
                running.raise_top(where, top)
        shared = tile.hide(w.exponentials(1, v, reference), 0.0) if reference != _TWICE else None
        for running, where, dim in sides:
            if shared is not None and common is not None:
                running.sum[where] += shared.sum(dim)
            elif shared is not None:
                running.sum[where] += shared.sum(dim) * torch.exp(reference - running.top[where])
            else:
                top = running.top[where].to(v.dtype).unsqueeze(dim)
                running.sum[where] += tile.hide(w.exponentials(1, v, top), 0.0).sum(dim)
        plan.append(_CAREFUL if careful else reference)
        if tile.negatives:
            v, pairs = tile.only_negatives(v)
            total, count = total + v.sum(0).double().sum(), count + pairs
    return Statistics(
        value,
        w.left.unsort(rows.log()),
        w.right.unsort(columns.log()),
        w.unit * total / max(count, 1),
        own.new_tensor(float(count)),
        own.new_tensor(plan + [0.0] * (most_tiles(*w.shape) - len(plan))),
        angle,
        w.sides[0].norm,
        w.sides[1].norm,
    )


def backward(p: Problem, found: Statistics, of: Sequence[Tensor]) -> Gradients:
    """Gradients of the features, τ and c from those of ``matched, rows, columns, negative``."""
    of_matched, of_rows, of_columns, of_negative = of
    w = _Work(p, buffers=4, norms=(found.norm_x, found.norm_y))
    scale, unit, root = p.scale.double(), w.unit, p.c.double().sqrt()
    # A matched pair counts by itself and in both the sums it is part of.
    own = scale * found.matched
    in_rows = of_rows * torch.exp(own - found.rows)
    in_columns = of_columns[w.own] * torch.exp(own - found.columns[w.own])
    of_scale = ((in_rows + in_columns) * found.matched).sum()
    of_matched = of_matched + scale * (in_rows + in_columns)

    row_sums = w.left.sort(found.rows), w.left.sort(of_rows)
    column_sums = w.right.sort(found.columns), w.right.sort(of_columns)
    pull = float(of_negative / found.pairs.clamp(min=1))
    of_x, of_y = torch.zeros_like(p.x), torch.zeros_like(p.y)
    sums = _Sums(w.left, of_x), _Sums(w.right, of_y)
    weighted = []  # Σ V dL/dlogit of each tile
    for tile, reference in zip(w.tiles, found.plan.tolist(), strict=False):
        v, sinh = w.distances_again(tile, math.isnan(reference))
        h = w.logit_gradient(tile, v, reference, row_sums, column_sums)
        weighted.append(torch.dot(h.view(-1), v.view(-1)))
        if tile.negatives:
            more, _ = tile.only_negatives(w.buffer(3, tile, h.dtype).fill_(pull))
            h.mul_(float(scale)).add_(more)
        if sinh is not None:
            h = torch.where(sinh > 0, h / sinh, 0.0) if math.isnan(reference) else h.div_(sinh)
        factor = float(unit if tile.negatives else unit * scale)
        careful = math.isnan(reference)
        sums[0].add(tile.rows, h, w.right.operand(tile.columns, careful), factor, careful)
        sums[1].add(tile.columns, h.mT, w.left.operand(tile.rows, careful), factor, careful)
        if tile.columns.stop == len(p.y):
            sums[0].finish(tile.rows)

    of_tiles = unit * (torch.stack(weighted).double().sum() if weighted else 0.0)
    of_scale = of_scale + of_tiles
    for columns in _slices(0, len(p.y), ROWS):
        sums[1].finish(columns)
    of_root = sums[0].of_root + sums[1].of_root
    of_root = of_root + add_matched_gradient(*w.sides, p.offset, found.angle, unit * of_matched, of_x, of_y)
    if p.hyperbolic:  # s = -D/√c
        of_s = (of_matched * found.matched).sum() + of_negative * found.negative + scale * of_tiles
        of_root = of_root - of_s / root
    return Gradients(of_x, of_y, of_scale.to(p.scale.dtype), (of_root / (2 * root)).to(p.c.dtype))


class _Tile(NamedTuple):
    """A rectangle of pairs within one block."""

    rows: slice
    columns: slice
    by_row: bool
    """Its terms belong to the sums of its rows; ``by_column`` likewise."""
    by_column: bool
    negatives: bool
    """It lies in forget × forget."""
    own: tuple[Tensor, Tensor]
    """Where its matched pairs are."""
    ids: tuple[Tensor, Tensor] | None
    """Caption ids of rows and columns, if any pair has equal ones."""

    def hide(self, t: Tensor, value: float) -> Tensor:
        """Write ``value`` where no term of a sum is: at matched pairs, which are accurate and elsewhere, and
        in retain × retain at equal captions.
        """
        if len(self.own[0]):
            t[self.own] = value
        if self.ids is not None and not self.negatives:
            t.masked_fill_(self.same(self.ids), value)
        return t

    @staticmethod
    def same(ids: tuple[Tensor, Tensor]) -> Tensor:
        """Which pairs have equal captions; not kept, for there may be tiles enough to fill the memory."""
        return ids[0][:, None] == ids[1]

    def only_negatives(self, t: Tensor) -> tuple[Tensor, int]:
        """``t`` with zeros where the pair is no negative, and the number of the negatives."""
        t[self.own] = 0.0
        if self.ids is None:
            return t, t.numel() - len(self.own[0])
        same = self.same(self.ids)
        return t.masked_fill_(same, 0.0), t.numel() - int(same.sum())


class _Work:
    """A problem laid out: sides, tiles and buffers."""

    def __init__(
        self, p: Problem, buffers: int, norms: tuple[Tensor | None, Tensor | None] = (None, None)
    ) -> None:
        root = p.c.double().sqrt()
        self.p = p
        self.unit = -1 / root if p.hyperbolic else -torch.ones_like(root)
        """s = unit · V, where V = D, or minus the cosine."""
        self.slope = float(p.scale.double() * self.unit)
        self.shape = len(p.x), len(p.y)
        self.own = slice(p.offset, p.offset + len(p.x))
        sides = self.sides = (
            Side(p.x, root, hyperbolic=p.hyperbolic, norm=norms[0]),
            Side(p.y, root, hyperbolic=p.hyperbolic, norm=norms[1], right=True),
        )
        order = _order(p)
        row_order = None
        if order is not None:
            local = (order >= self.own.start) & (order < self.own.stop)
            row_order = order[local] - p.offset
        self.left, self.right = sides[0].sorted(row_order), sides[1].sorted(order)
        self.tiles = list(self._tiles(order, row_order))
        if p.hyperbolic:
            self._measure_radii()
        size = min(ROWS, max(len(p.x), 1)) * min(COLUMNS, max(len(p.y), 1))
        self._buffers = [torch.empty(size, dtype=p.x.dtype) for _ in range(buffers)]

    def _measure_radii(self) -> None:
        """What decides how a tile is computed."""
        left, right = self.left, self.right
        self._sinh = torch.sinh(left.r), torch.sinh(right.r)
        self._tiny = max(float(r.max()) if len(r) else 0.0 for r in (left.r, right.r)) < _TINY
        self._farthest: tuple[dict[int, float], dict[int, float]] = {}, {}
        self._near: dict[int, Tensor] = {}
        """By columns: in each row, the distance at and below which the product's rounding may matter."""
        for tile in self.tiles:
            for found, rows, side in zip(
                self._farthest, (tile.rows, tile.columns), (left, right), strict=True
            ):
                if rows.start not in found:
                    found[rows.start] = float(side.r[rows].max())
            if tile.columns.start not in self._near:
                q = _NEAR * self._sinh[0] * self._sinh[1][tile.columns].max()
                self._near[tile.columns.start] = torch.log1p(q + torch.sqrt(q * (q + 2)))

    def buffer(self, number: int, tile: _Tile, dtype: torch.dtype) -> Tensor:
        """Room for a tile: one of the buffers, or new where they have another dtype."""
        shape = tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start
        flat = self._buffers[number]
        return (
            flat[: shape[0] * shape[1]].view(shape)
            if flat.dtype == dtype
            else flat.new_empty(shape, dtype=dtype)
        )

    def distances(self, tile: _Tile) -> tuple[Tensor, bool]:
        """V of a tile, and whether it is careful."""
        if self.p.hyperbolic:
            if self._is_far(tile):
                return self._careful(tile)[0], True
            v, _ = self._fast(tile)
            if not (v.amin(1) > self._near[tile.columns.start][tile.rows]).all():
                if self._has_near(tile):
                    return self._careful(tile)[0], True
                v, _ = self._fast(tile)
            return v, False
        return tile.hide(self._product(tile), _FAR), False

    def distances_again(self, tile: _Tile, careful: bool) -> tuple[Tensor, Tensor | None]:
        """V of a tile, and dQ/dV or dY/dV of the product behind it."""
        if careful:
            return self._careful(tile)
        if self.p.hyperbolic:
            return self._fast(tile)
        return tile.hide(self._product(tile), _FAR), None

    def exponentials(self, number: int, v: Tensor, reference: Tensor | float) -> Tensor:
        """exp(slope·V - reference), in a buffer."""
        flat = self._buffers[number]
        out = flat[: v.numel()].view(v.shape) if flat.dtype == v.dtype else torch.empty_like(v)
        if isinstance(reference, Tensor):
            return torch.mul(v, self.slope, out=out).sub_(reference).exp_()
        return torch.add(v.new_tensor(-reference), v, alpha=self.slope, out=out).exp_()

    def logit_gradient(
        self,
        tile: _Tile,
        v: Tensor,
        reference: float,
        rows: tuple[Tensor, Tensor],
        columns: tuple[Tensor, Tensor],
    ) -> Tensor:
        """dL/dlogit of a tile through the sums, from (log-sum-exp, its gradient) of rows and columns."""
        sides = [
            (log[where].unsqueeze(dim), of[where].unsqueeze(dim))
            for (log, of), where, dim, wanted in (
                (rows, tile.rows, 1, tile.by_row),
                (columns, tile.columns, 0, tile.by_column),
            )
            if wanted
        ]
        if math.isfinite(reference):
            h = self.exponentials(2, v, reference)
            weights = [(of * torch.exp(reference - log)).to(v.dtype) for log, of in sides]
            if len(weights) == 1:
                h.mul_(weights[0])
            else:
                h.mul_(torch.add(*weights, out=self.buffer(3, tile, v.dtype)))
        else:
            parts = [
                self.exponentials(2 + k, v, log).mul_(of.to(v.dtype)) for k, (log, of) in enumerate(sides)
            ]
            h = parts[0] if len(parts) == 1 else parts[0].add_(parts[1])
        return tile.hide(h, 0.0)

    def _is_far(self, tile: _Tile) -> bool:
        if self.p.x.dtype == torch.float64:
            return True
        farthest = self._farthest[0][tile.rows.start] + self._farthest[1][tile.columns.start]
        return not farthest <= _FAST_RADII

    def _product(self, tile: _Tile) -> Tensor:
        a, b = self.left.operand(tile.rows, careful=False), self.right.operand(tile.columns, careful=False)
        return torch.mm(a, b.mT, out=self.buffer(0, tile, a.dtype))

    def _fast(self, tile: _Tile) -> tuple[Tensor, Tensor]:
        """D and sinh D of a tile, float32; NaN or small where the product is wrong."""
        q = tile.hide(self._product(tile), _FAR)
        sinh = torch.add(q, 2, out=self.buffer(1, tile, q.dtype)).mul_(q).sqrt_()
        q.add_(sinh)
        return (q.log1p_() if self._tiny else q.add_(1).log_()), sinh

    def _has_near(self, tile: _Tile) -> bool:
        """Whether the rounding of a fast product matters somewhere, by each pair's own radii."""
        q = tile.hide(self._product(tile), _FAR)
        least = q.div_(self._sinh[1][tile.columns].to(q.dtype)).amin(1)
        return not bool((least > _NEAR * self._sinh[0][tile.rows]).all())

    def _careful(self, tile: _Tile) -> tuple[Tensor, Tensor]:
        """D and S of a tile, float64."""
        i, j = tile.rows, tile.columns
        y = self.left.operand(i, careful=True) @ self.right.operand(j, careful=True).mT
        near = y <= _NEAR_EXACT * self.left.shrunk2[i, None] * self.right.shrunk2[None, j]
        a, b = tile.hide(near, False).nonzero(as_tuple=True)
        y[a, b] = from_differences(self.left, self.right, a + i.start, b + j.start)
        d, s = careful_distance(self.left, self.right, i, j, y.clamp_(min=0))
        return tile.hide(d, _FAR), s

    def _tiles(self, order: Tensor | None, row_order: Tensor | None) -> Iterator[_Tile]:
        p = self.p
        target = torch.arange(self.own.start, self.own.stop)
        ids = row_ids = None
        retained_rows, retained_columns = len(p.x), len(p.y)
        if order is not None and row_order is not None:
            place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
            target = place[row_order + p.offset]
            if p.forget is not None:
                retained_columns = len(order) - int(p.forget.sum())
                retained_rows = len(row_order) - int(p.forget[self.own].sum())
            if p.ids is not None:
                ids, row_ids = p.ids[order], p.ids[row_order + p.offset]
        for i in _slices(retained_rows, len(p.x), ROWS):
            for j in _slices(retained_columns, len(p.y), COLUMNS):
                row_kept, column_kept = i.stop <= retained_rows, j.stop <= retained_columns
                column = target[i] - j.start
                hit = ((column >= 0) & (column < j.stop - j.start)).nonzero()[:, 0]
                meeting = None
                if ids is not None and row_ids is not None and row_kept == column_kept:
                    a, b = row_ids[i], ids[j]
                    if a[0] <= b[-1] and b[0] <= a[-1]:
                        meeting = a, b
                yield _Tile(
                    rows=i,
                    columns=j,
                    by_row=column_kept or not row_kept,
                    by_column=row_kept or not column_kept,
                    negatives=not row_kept and not column_kept,
                    own=(hit, column[hit]),
                    ids=meeting,
                )


class _Running:
    """A log-sum-exp in the making, float64: sums relative to a logit for each row."""

    def __init__(self, own: Tensor, common: float | None) -> None:
        self.top = own.clone() if common is None else torch.full_like(own, common)
        self.sum = torch.where(own > -math.inf, torch.exp(own - self.top), 0.0)

    def raise_top(self, where: slice, top: Tensor) -> None:
        """Make the sums of some rows relative to the logits ``top``, which are no smaller than before."""
        self.sum[where] *= torch.exp(self.top[where] - top)
        self.top[where] = top

    def log(self) -> Tensor:
        """The log-sum-exp."""
        return self.top + self.sum.log()


class _Sums:
    """The gradient of one side's operand in the making, fast and careful rows apart."""

    def __init__(self, side: Side, out: Tensor) -> None:
        self.side, self.out = side, out
        self.of_root = side.norm.new_zeros(())
        self._parts: dict[bool, Tensor] = {}

    def add(self, where: slice, h: Tensor, operand: Tensor, factor: float, careful: bool) -> None:
        """Add factor·h @ operand."""
        if careful not in self._parts:
            self._parts[careful] = operand.new_zeros(len(self.side), operand.shape[1])
        self._parts[careful][where].addmm_(h, operand, alpha=factor)

    def finish(self, where: slice) -> None:
        """Pass what was added for some rows on to the features and to √c."""
        for careful, part in self._parts.items():
            self.of_root = self.of_root + self.side.add_gradient(self.out, part[where], where, careful)


def _order(p: Problem) -> Tensor | None:
    """Pairs sorted by (forget, caption id), or None where there is nothing to sort by."""
    if p.ids is None and (p.forget is None or not p.forget.any()):
        return None
    order = torch.arange(len(p.y)) if p.ids is None else torch.argsort(p.ids, stable=True)
    return order if p.forget is None else order[torch.argsort(p.forget[order].byte(), stable=True)]


def _common_reference(p: Problem, own: Tensor) -> float | None:
    """A reference for all tiles, if the matched pairs show that no sum can be far from it."""
    if len(p.x) < len(p.y) or not len(own):
        return None
    most = 0.0 if p.hyperbolic else float(p.scale)
    return most - _SPREAD if float(own.min()) >= most - 2 * _SPREAD else None


def _slices(split: int, stop: int, size: int) -> list[slice]:
    """0 to ``stop`` in pieces of at most ``size`` that do not cross ``split``."""
    pieces = []
    for first, last in ((0, split), (split, stop)):
        pieces += [slice(k, min(k + size, last)) for k in range(first, last, size)]
    return pieces
