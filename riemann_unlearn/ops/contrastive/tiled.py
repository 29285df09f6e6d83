"""The contrastive op on a CPU, in tiles: no B×B matrix.

The matrix product of a tile goes to a buffer that stays in a core's caches, where it is reduced in place; the
backward pass computes the product again. What a product is, :mod:`riemann_unlearn.ops.polar` says; how the
problem is laid out, :mod:`riemann_unlearn.ops.contrastive.layout`.

**Fast tiles** are float32: with Q = cosh D - 1 from the product, sinh D = √(Q(Q+2)) and
D = log(1 + Q + sinh D), and one exponential serves rows and columns together. Where numba is, what lies
between the products is one compiled pass (``passes``), and each core works
through bands of rows of its own; else it is a dozen torch operations on all cores.

**Careful tiles** are float64, and take over where float32 cannot know the answer: where a pair is so near
that the rounding of the product matters, where radii are large, and for float64 features. Pairs that float64
does not tell apart either are computed from the difference of their vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from riemann_unlearn.ops import workers
from riemann_unlearn.ops.contrastive.layout import (
    COLUMNS,
    NEAR,
    SPREAD,
    TINY,
    Fate,
    Gradients,
    Layout,
    Problem,
    Statistics,
    Tile,
    bend,
    bent,
    most_tiles,
)
from riemann_unlearn.ops.polar import (
    Side,
    add_matched_gradient,
    careful_distance,
    from_differences,
    matched_angles,
    matched_distances,
    zeros,
)

_FAR = 1e18
"""Stands in a product for what is not a pair: beyond cosh 40, and its square is a float32 number."""

_NEAR_EXACT = 2.0**-36
"""What NEAR is to float32 this is to float64, whose products err by about 2^-52."""

Made = tuple[Fate, float]
"""How a tile is computed, and the reference of its exponentials where one serves rows and columns."""


def forward(p: Problem, *, passes: Any = None) -> Statistics:
    """Matched similarities, row and column log-sum-exps, and the mean over the forget negatives.

    ``passes`` are the compiled ones for what lies between the products, if there are any.
    """
    w = Layout(p, passes=passes)
    angle = matched_angles(*w.sides, p.offset)
    value = w.unit * (matched_distances(*w.sides, p.offset, angle)[0] if p.hyperbolic else -angle)
    own = w.p.scale.double() * value
    # A matched pair starts the sums it is part of: its logit is exact, and a reference surely in range.
    own_columns = torch.full((len(p.y),), -math.inf, dtype=torch.float64)
    own_columns[w.own] = own
    own_columns = w.right.sort(own_columns)
    common = _common_reference(w.p, own)
    rows = _Running(w.left.sort(own), common)
    plan = own.new_zeros(most_tiles(len(p.x), len(p.y)), 2)
    made = plan.numpy()  # of which an assignment takes a fifth of torch's time

    def task(share: list[list[int]]) -> tuple[_Running, float]:
        # Each worker has column sums of its own; only one of them may begin with the matched pairs.
        first = any(0 in strip for strip in share)
        work = _Forward(w, rows, _Running(own_columns, common, begun=first), common)
        total = 0.0
        for strip in share:
            for block in range(len(w.blocks)):
                tiles = w.tiles(strip, block)
                for tile, (how, more) in zip(tiles, work.add(tiles), strict=True):
                    # A tile is one worker's, and so are its rows: none of this needs a lock.
                    made[tile.number] = how
                    total += more
        return work.columns, total

    results = workers.run([partial(task, share) for share in w.shares()])
    columns, total = results[0][0], math.fsum(more for _, more in results)
    # Rows belong to one worker each; columns to all, and are joined in the order of the shares, so that
    # rounding is the same in each run.
    for other, _ in results[1:]:
        columns.join(other)
    pairs = w.negatives()
    return Statistics(
        value,
        w.left.unsort(rows.log()),
        w.right.unsort(columns.log()),
        w.unit * (total / max(pairs, 1)),
        own.new_tensor(float(pairs)),
        plan,
        angle,
        w.sides[0].norm,
        w.sides[1].norm,
    )


def backward(p: Problem, statistics: Statistics, grads: Sequence[Tensor], *, passes: Any = None) -> Gradients:
    """Gradients of the features, τ and c from those of ``matched, rows, columns, negative``."""
    grad_matched, grad_rows, grad_columns, grad_negative = grads
    w = Layout(p, (statistics.norm_x, statistics.norm_y), passes=passes)
    scale, unit, root = w.p.scale.double(), w.unit, w.root
    # A matched pair counts by itself and in both the sums it is part of.
    own = scale * statistics.matched
    in_rows = grad_rows * torch.exp(own - statistics.rows)
    in_columns = grad_columns[w.own] * torch.exp(own - statistics.columns[w.own])
    grad_scale = ((in_rows + in_columns) * statistics.matched).sum()
    grad_matched = grad_matched + scale * (in_rows + in_columns)

    grad_x, grad_y = zeros(w.p.x), zeros(w.p.y)
    sums = (
        torch.stack([w.left.sort(statistics.rows), w.left.sort(grad_rows)], 1),
        torch.stack([w.right.sort(statistics.columns), w.right.sort(grad_columns)], 1),
    )
    # Of every mismatched forget pair, through their mean.
    pull = float(grad_negative / statistics.pairs.clamp(min=1))
    plan = [(Fate(int(fate)), reference) for fate, reference in statistics.plan.tolist()]

    def task(share: list[list[int]]) -> _Backward:
        work = _Backward(w, *sums, pull)
        for strip in share:
            left = _Sums(w, w.left, w.rows(strip))
            for block in range(len(w.blocks)):
                tiles = w.tiles(strip, block)
                work.add(tiles, [plan[tile.number] for tile in tiles], left)
            # Rows are one worker's, who may write their gradients; columns wait until all shares are joined.
            work.grad_left = work.grad_left + left.finish(grad_x, w.rows(strip))
        return work

    parts = workers.run([partial(task, share) for share in w.shares()])
    grad_right = parts[0].right
    for part in parts[1:]:
        grad_right.join(part.right)
    grad_root = sum((part.grad_left for part in parts), root.new_zeros(()))
    for start in range(0, len(p.y), COLUMNS):
        grad_root = grad_root + grad_right.finish(grad_y, slice(start, min(start + COLUMNS, len(p.y))))
    grad_scale = grad_scale + unit * math.fsum(part.grad_scale for part in parts)
    through = add_matched_gradient(*w.sides, p.offset, statistics.angle, unit * grad_matched, grad_x, grad_y)
    if p.hyperbolic:  # s = -D/√c
        grad_root = grad_root + math.fsum(part.grad_root for part in parts) / root.square()
        # D depends on √c through both radii, and s = -D/√c once more. Near the origin the two nearly cancel,
        # and their sum is taken as one (see bend) instead.
        if w.is_small:
            d = -root * statistics.matched
            g = bend(bent(w.sides[0].r), bent(w.sides[1].r[w.own]), d, torch.sinh(d))
            grad_root = grad_root - (grad_matched * g).sum() / root.square()
        else:
            grad_root = grad_root + through - (grad_matched * statistics.matched).sum() / root
    return Gradients(grad_x, grad_y, grad_scale.to(p.scale.dtype), (grad_root / (2 * root)).to(p.c.dtype))


class _Tiles:
    """The products of tiles, and what torch makes of them; for one worker, whose buffers it has."""

    def __init__(self, layout: Layout, buffers: int) -> None:
        self.w = layout
        self._buffers = [
            torch.empty(layout.tile_size, dtype=layout.p.x.dtype)
            for _ in range(1 if layout.passes is not None else buffers)
        ]
        self._near: dict[int, Tensor] = {}
        self._tiny = layout.p.hyperbolic and layout.longest < TINY

    def product(self, rows: slice, columns: slice) -> Tensor:
        """The fast product."""
        a = self.w.left.operand(rows, careful=False)
        b = self.w.right.operand(columns, careful=False)
        return torch.mm(a, b.mT, out=self.buffer(0, rows, columns, a.dtype))

    def products(self, tiles: list[Tile]) -> tuple[Tensor, list[Tensor]]:
        """The fast products of a strip's tiles, made at once: whole, and each tile's part."""
        whole = self.product(slice(tiles[0].rows.start, tiles[-1].rows.stop), tiles[0].columns)
        return whole, list(torch.split(whole, [tile.rows.stop - tile.rows.start for tile in tiles]))

    def buffer(self, number: int, rows: slice, columns: slice, dtype: torch.dtype) -> Tensor:
        """Room for a tile: one of the buffers, or new where there is none of the dtype."""
        shape = rows.stop - rows.start, columns.stop - columns.start
        if number < len(self._buffers) and self._buffers[number].dtype == dtype:
            return self._buffers[number][: shape[0] * shape[1]].view(shape)
        return torch.empty(shape, dtype=dtype)

    def fast(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """D and sinh D of a tile, float32; NaN or small where the product is wrong."""
        q = tile.hide(self.product(tile.rows, tile.columns), _FAR)
        # With Q = cosh D - 1: sinh D = √(Q(Q+2)), D = log(1 + Q + sinh D).
        sinh = torch.add(q, 2, out=self.buffer(1, tile.rows, tile.columns, q.dtype)).mul_(q).sqrt_()
        q.add_(sinh)
        return (q.log1p_() if self._tiny else q.add_(1).log_()), sinh

    def careful(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """D and S of a tile, float64."""
        left, right, i, j = self.w.left, self.w.right, tile.rows, tile.columns
        y = left.operand(i, careful=True) @ right.operand(j, careful=True).mT
        # Where rounding could be 2^-16 of Y, the pair is measured by the difference of its vectors.
        near = y <= _NEAR_EXACT * left.shrunk2[i, None] * right.shrunk2[None, j]
        a, b = tile.hide(near, False).nonzero(as_tuple=True)
        y[a, b] = from_differences(left, right, a + i.start, b + j.start)
        # Rounding may leave a Y below 0, of which there is no root.
        d, s = careful_distance(left, right, i, j, y.clamp_(min=0))
        return tile.hide(d, _FAR), s

    def cosines(self, tile: Tile) -> Tensor:
        """Minus the cosines of a tile."""
        return tile.hide(self.product(tile.rows, tile.columns), _FAR)

    def fast_if_right(self, tile: Tile) -> Tensor | None:
        """D of a tile, or None where a pair is too near for its product."""
        v, _ = self.fast(tile)
        # By the largest radius of the columns, which costs a minimum. A NaN is not greater: it goes on below.
        if (v.amin(1) > self._nearest(tile.columns)[tile.rows]).all():
            return v
        # By each pair's own radii, which takes a pass more.
        # The product is made again: ``fast`` worked in its place.
        q = tile.hide(self.product(tile.rows, tile.columns), _FAR)
        least = q.div_(self.w.sinh[1][tile.columns].to(q.dtype)).amin(1)
        return self.fast(tile)[0] if (least > NEAR * self.w.sinh[0][tile.rows]).all() else None

    def exponentials(self, number: int, v: Tensor, reference: Tensor | float) -> Tensor:
        """exp(slope·V - reference), in a buffer."""
        flat = self._buffers[number] if number < len(self._buffers) else v.new_empty(0)
        fits = flat.dtype == v.dtype and len(flat) >= v.numel()
        out = flat[: v.numel()].view(v.shape) if fits else torch.empty_like(v)
        if isinstance(reference, Tensor):
            return torch.mul(v, self.w.slope, out=out).sub_(reference).exp_()
        return torch.add(v.new_tensor(-reference), v, alpha=self.w.slope, out=out).exp_()

    def _nearest(self, columns: slice) -> Tensor:
        """In each row, the distance at and below which the rounding of a product with ``columns`` matters."""
        if columns.start not in self._near:
            q = NEAR * self.w.sinh[0] * self.w.sinh[1][columns].max()
            self._near[columns.start] = torch.log1p(q + torch.sqrt(q * (q + 2)))
        return self._near[columns.start]


class _Forward(_Tiles):
    """Adds tiles to the sums of their rows and columns."""

    def __init__(self, layout: Layout, rows: _Running, columns: _Running, common: float | None) -> None:
        super().__init__(layout, buffers=2)
        self.rows, self.columns, self.common = rows, columns, common

    def add(self, tiles: list[Tile]) -> list[tuple[Made, float]]:
        """Add a strip's tiles; what the plan should say of each, and ΣV over its negatives."""
        far = self.w.p.hyperbolic and any(map(self.w.is_far, tiles))
        if self.w.passes is None or far:
            return [self._add_by_torch(tile) for tile in tiles]
        # All of them before the first by torch, which takes the buffer that their products are in.
        results = [self._add_compiled(*part) for part in zip(tiles, self.products(tiles)[1], strict=True)]
        return [
            self._add_by_torch(tile) if how[0] == Fate.CAREFUL else (how, total)
            for tile, (how, total) in zip(tiles, results, strict=True)
        ]

    def _add_by_torch(self, tile: Tile) -> tuple[Made, float]:
        if not self.w.p.hyperbolic:
            return self._add(tile, self.cosines(tile), False)
        if self.w.passes is None and not self.w.is_far(tile):
            v = self.fast_if_right(tile)
            if v is not None:
                return self._add(tile, v, False)
        return self._add(tile, self.careful(tile)[0], True)

    def _add_compiled(self, tile: Tile, product: Tensor) -> tuple[Made, float]:
        w, passes = self.w, self.w.passes
        i, j = tile.rows, tile.columns
        fate, reference, total = passes.reduce_tile(
            product.numpy(), j.start, tile.places, *w.near(tile),
            self.rows.array[i], self.columns.array[j],
            w.slope, self.common is not None, self.common or 0.0, SPREAD, tile.kind,
        )  # fmt: skip
        return (Fate(fate), reference), total

    def _add(self, tile: Tile, v: Tensor, careful: bool) -> tuple[Made, float]:
        sides = [(self.rows, tile.rows, 1)] if tile.by_row else []
        if tile.by_column:
            sides.append((self.columns, tile.columns, 0))
        reference, slope = self.common, self.w.slope
        # Without a reference for all tiles, the sums' own are raised to what the tile needs (slope < 0: the
        # least V is the largest logit), and one exponential serves both if all of them are near each other.
        if reference is None:
            # Hidden pairs are at _FAR and are never the least, unless all of a row or column are.
            most = slope * v.amin(1)
            tops = [
                torch.maximum(running.top[where], most if dim == 1 else slope * v.amin(0))
                for running, where, dim in sides
            ]
            highest, lowest = float(most.max()), min(float(top.min()) for top in tops)
            # With the reference SPREAD below the largest logit no term is above e^SPREAD, and no sum's own
            # reference is more than SPREAD below it.
            fits = highest - lowest <= 2 * SPREAD and not careful
            reference = highest - SPREAD if fits else None
            for (running, where, _), top in zip(sides, tops, strict=True):
                running.raise_top(where, top)
        # The exponential of _FAR is 0, but where τ is 0 it is that of any pair: hidden again.
        shared = None if reference is None else tile.hide(self.exponentials(1, v, reference), 0.0)
        for running, where, dim in sides:
            if shared is not None and self.common is not None:
                running.sum[where] += shared.sum(dim)
            elif shared is not None and reference is not None:
                running.sum[where] += shared.sum(dim) * torch.exp(reference - running.top[where])
            else:
                top = running.top[where].to(v.dtype).unsqueeze(dim)
                running.sum[where] += tile.hide(self.exponentials(1, v, top), 0.0).sum(dim)
        total = float(tile.only_negatives(v).sum(0).double().sum()) if tile.negatives else 0.0
        fate = Fate.CAREFUL if careful else Fate.TWICE if reference is None else Fate.SHARED
        return (fate, reference or 0.0), total


class _Backward(_Tiles):
    """Adds what tiles contribute to the gradients."""

    def __init__(self, layout: Layout, rows: Tensor, columns: Tensor, pull: float) -> None:
        super().__init__(layout, buffers=4)
        self.rows, self.columns, self.pull = rows, columns, pull
        """Log-sum-exps and their gradients, shape (., 2), and dL/ds of a negative from their mean."""
        self.right = _Sums(layout, layout.right, slice(0, len(layout.right)))
        self.grad_left = layout.root.new_zeros(())
        self.grad_scale = 0.0
        """Σ V dL/dlogit."""
        self.grad_root = 0.0
        """c times the gradient of √c, but for what goes through the operands."""

    def add(self, tiles: list[Tile], plan: list[Made], left: _Sums) -> None:
        """What a strip's tiles contribute; their row sums to ``left``."""
        w, careful = self.w, any(fate == Fate.CAREFUL for fate, _ in plan)
        # Careful tiles have operands of another scale and dtype: a strip that has one is taken apart.
        if careful and len(tiles) > 1:
            for tile, how in zip(tiles, plan, strict=True):
                self.add([tile], [how], left)
            return
        rows, columns = slice(tiles[0].rows.start, tiles[-1].rows.stop), tiles[0].columns
        if w.passes is not None and not careful:
            h, parts = self.products(tiles)
            for tile, part, how in zip(tiles, parts, plan, strict=True):
                self._differentiate_compiled(tile, part, how)
        else:
            h = self._gradient(tiles[0], plan[0])
        factor = float(w.unit)
        left.add(rows, h, w.right.operand(columns, careful), factor, careful)
        self.right.add(columns, h.mT, w.left.operand(rows, careful), factor, careful)

    def _differentiate_compiled(self, tile: Tile, product: Tensor, how: Made) -> None:
        """Put what :meth:`_gradient` gives in the product's place."""
        w, i, j = self.w, tile.rows, tile.columns
        fate, reference = how
        grad_scale, grad_root = w.passes.differentiate_tile(
            product.numpy(), j.start, tile.places, self.rows[i].numpy(), self.columns[j].numpy(),
            *w.polar_arrays(tile), w.slope, fate == Fate.SHARED, reference,
            float(w.p.scale), self.pull, tile.kind,
        )  # fmt: skip
        self.grad_scale += grad_scale
        self.grad_root += grad_root

    def _gradient(self, tile: Tile, how: Made) -> Tensor:
        """dL/dproduct over ``unit``, by torch."""
        w, careful = self.w, how[0] == Fate.CAREFUL
        sinh = None
        if careful:
            v, sinh = self.careful(tile)
        elif w.p.hyperbolic:
            v, sinh = self.fast(tile)
        else:
            v = self.cosines(tile)
        h = self._logit_gradient(tile, v, how)
        # Before the pull is added: the mean over negatives does not depend on τ.
        grad_scale = float(torch.dot(h.view(-1), v.view(-1)))
        self.grad_scale += grad_scale
        scale = float(w.p.scale)
        h.mul_(scale)
        grad_root = scale * grad_scale
        if tile.negatives:
            more = tile.only_negatives(self.buffer(3, tile.rows, tile.columns, h.dtype).fill_(self.pull))
            h.add_(more)
            grad_root = float(torch.dot(h.view(-1), v.view(-1)))
        if sinh is not None and not careful and w.is_small:
            one, other = w.polar[0][tile.rows].unsqueeze(1), w.polar[1][tile.columns].unsqueeze(0)
            g = bend(one.unbind(-1), other.unbind(-1), v, sinh)
            grad_root = -float(torch.dot(h.view(-1), g.view(-1)))
        self.grad_root += grad_root
        if sinh is not None:
            # dD/dQ = 1/sinh D. Of fast tiles none is 0, as Q > NEAR sinh r1 sinh r2 ≥ 0; a careful pair may
            # coincide, where a distance has no derivative and 0 is a subgradient.
            h = torch.where(sinh > 0, h / sinh, 0.0) if careful else h.div_(sinh)
        return h

    def _logit_gradient(self, tile: Tile, v: Tensor, how: Made) -> Tensor:
        """dL/dlogit of a tile through the sums."""
        fate, reference = how
        sides = [
            (sums[where, 0].unsqueeze(dim), sums[where, 1].unsqueeze(dim))
            for sums, where, dim, wanted in (
                (self.rows, tile.rows, 1, tile.by_row),
                (self.columns, tile.columns, 0, tile.by_column),
            )
            if wanted
        ]
        if fate == Fate.SHARED:
            h = self.exponentials(2, v, reference)
            weights = [(grad * torch.exp(reference - log)).to(v.dtype) for log, grad in sides]
            if len(weights) == 1:
                h.mul_(weights[0])
            else:
                h.mul_(torch.add(*weights, out=self.buffer(3, tile.rows, tile.columns, v.dtype)))
        else:
            parts = [
                self.exponentials(2 + k, v, log).mul_(grad.to(v.dtype)) for k, (log, grad) in enumerate(sides)
            ]
            h = parts[0] if len(parts) == 1 else parts[0].add_(parts[1])
        # A column all of whose pairs are hidden has a log-sum-exp of -Inf, and an infinite weight above.
        # Hiding writes over what comes of it.
        return tile.hide(h, 0.0)


class _Running:
    """A log-sum-exp in the making, float64: for each row a reference and a sum relative to it.

    Parameters
    ----------
    own : Tensor, shape (N,)
        A logit of each sum, -inf where there is none yet.
    common : float or None
        The reference, where one will do.
    begun : bool
        Whether the sums have these logits' terms.
    """

    def __init__(self, own: Tensor, common: float | None, *, begun: bool = True) -> None:
        table = torch.zeros(len(own), 2, dtype=torch.float64)
        self.top, self.sum = table.unbind(1)
        self.array = table.numpy()
        if common is None:
            self.top.copy_(own)
        else:
            self.top.fill_(common)
        if begun:
            self.sum.copy_(torch.where(own > -math.inf, torch.exp(own - self.top), 0.0))

    def raise_top(self, where: slice, top: Tensor) -> None:
        """Make the sums of some rows relative to the logits ``top``, which are no smaller than before."""
        self.sum[where] *= torch.exp(self.top[where] - top)
        self.top[where] = top

    def join(self, other: _Running) -> None:
        """Add what another has added up."""
        top = torch.maximum(self.top, other.top)
        for sums in (self, other):  # where there was nothing at all, both are -inf
            sums.sum.mul_(torch.exp(torch.where(top > -math.inf, sums.top - top, 0.0)))
        self.sum += other.sum
        self.top.copy_(top)

    def log(self) -> Tensor:
        """The log-sum-exp."""
        return self.top + self.sum.log()


class _Sums:
    """The gradient of some rows of an operand in the making, fast and careful ones apart."""

    def __init__(self, layout: Layout, side: Side, rows: slice) -> None:
        self.side, self.rows = side, rows
        self._parts: dict[bool, Tensor] = {}
        # Of fast tiles G has what goes through the radii already; careful ones take the difference, in
        # float64.
        self._skips_root = layout.p.hyperbolic and layout.is_small

    def add(self, where: slice, h: Tensor, operand: Tensor, factor: float, careful: bool) -> None:
        """Add factor·h @ operand."""
        count = self.rows.stop - self.rows.start
        # Careful operands have another scale and dtype: their sums cannot be one with those of the fast.
        if careful not in self._parts:
            self._parts[careful] = operand.new_zeros(count, operand.shape[1])
        start = self.rows.start
        part = self._parts[careful][where.start - start : where.stop - start]
        part.addmm_(h, operand, alpha=factor)

    def join(self, other: _Sums) -> None:
        """Add what another has added up."""
        for careful, part in other._parts.items():
            if careful in self._parts:
                self._parts[careful] += part
            else:
                self._parts[careful] = part

    def finish(self, out: Tensor, rows: slice) -> Tensor:
        """Pass what was added for some rows on to the features, ``out``; the gradient of √c through them."""
        grad_root = self.side.norm.new_zeros(())
        here = slice(rows.start - self.rows.start, rows.stop - self.rows.start)
        for careful, part in self._parts.items():
            through = self.side.add_gradient(out, part[here], rows, careful)
            if careful or not self._skips_root:
                grad_root = grad_root + through
        return grad_root


def _common_reference(p: Problem, own: Tensor) -> float | None:
    """A reference for all tiles, if the matched pairs show that no sum can be far from it."""
    # Every sum must have a matched pair, and with more columns than rows some do not. No logit exceeds
    # ``most``, for D ≥ 0 and cosines are at most 1. So terms are at most e^SPREAD, and with the least matched
    # logit not below most - 2 SPREAD every sum is at least e^-SPREAD.
    if len(p.x) < len(p.y) or not len(own):
        return None
    most = 0.0 if p.hyperbolic else float(p.scale)
    return most - SPREAD if float(own.min()) >= most - 2 * SPREAD else None
