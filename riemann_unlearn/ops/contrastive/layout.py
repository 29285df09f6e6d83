"""A problem of the contrastive op laid out in tiles.

Pairs are sorted by (forget, caption id), so that every tile lies in one of four blocks, retain or forget by
retain or forget, each with one treatment, and the columns with a row's own caption are neighbours.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cached_property
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from riemann_unlearn.ops import workers
from riemann_unlearn.ops.polar import Side

ROWS, COLUMNS = 256, 1024
"""Of a tile whose passes are compiled: a mebibyte of float32, in a core's second-level cache."""

ROWS_OF_TORCH = 512
"""Of a tile whose passes are torch's: an operation must last to be worth two threads."""

FEWEST_ROWS = 128
"""Of a tile, where there are fewer than ROWS for each of the most workers there can be."""

WORTH_WORKERS = 2**22
"""Pairs of a problem, N·M, from which workers save time. Products gain as much from torch's own threads, so
workers gain on the passes alone; and after any parallel region, which MKL opens for a vector of a thousand,
libgomp's threads wait in a loop for some 16 ms, on the cores that workers then share with them."""

FAST_RADII = 40.0
"""A fast tile needs r1 + r2 up to this: Q² < e^80, and probabilities over sinh D are ordinary numbers."""

TINY = 0.05
"""With all radii below this, torch's tiles take distances from log1p(t); else from log(1 + t), which is
faster, and wrong by 2^-24: at most 2^-20 of the largest distance."""

SMALL = 0.25
"""With all radii below this, the curvature's gradient is made without differences: see :func:`bend`."""

NEAR = 2.0**-7
"""A fast tile needs Q > this · sinh r1 · sinh r2: the product leaves about 2^-23 sinh r1 sinh r2 of error."""


SPREAD = 60.0
"""One exponential serves a tile whose logits and running maxima lie within ± this of a reference: a sum of
2^20 terms stays below float32's largest number, and what underflows is below 2^-38 of the least sum."""


class Problem(NamedTuple):
    """The arguments of the op; see :func:`riemann_unlearn.ops.contrastive`."""

    x: Tensor
    y: Tensor
    scale: Tensor
    c: Tensor
    forget: Tensor | None
    ids: Tensor | None
    offset: int
    hyperbolic: bool


class Fate(IntEnum):
    """How a tile was computed, and is again in the backward pass."""

    CAREFUL = 0
    """In float64, for a pair is too near, or too far, for float32."""
    SHARED = 1
    """One exponential serves rows and columns."""
    TWICE = 2
    """Rows and columns take an exponential each."""


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
    """The :class:`Fate` of each tile, and the reference of its exponentials, shape (tiles, 2)."""
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
    # The cut between retained and forgotten makes one piece more of either axis. By sizes alone: a graph is
    # traced before the flags are known.
    least = min(ROWS, ROWS_OF_TORCH, FEWEST_ROWS)
    return (-(-rows // least) + 1) * (-(-columns // COLUMNS) + 1)


class Layout:
    """A problem laid out: sides, tiles, and where in them its matched pairs and equal captions are.

    Parameters
    ----------
    p : Problem
    norms : pair of Tensor, optional
        Lengths of the features, where they are known.
    passes : module, optional
        The compiled passes that fast tiles are for; else they are for torch's operations.
    """

    def __init__(
        self, p: Problem, norms: tuple[Tensor | None, Tensor | None] = (None, None), *, passes: Any
    ) -> None:
        p = self.p = p._replace(x=p.x.detach(), y=p.y.detach(), scale=p.scale.detach(), c=p.c.detach())
        self.passes: Any = passes if p.x.dtype == torch.float32 else None
        root = self.root = p.c.double().sqrt()
        self.unit = -1 / root if p.hyperbolic else -torch.ones_like(root)
        """s = unit · V, where V = D, or minus the cosine."""
        # Logits are slope·V, and slope is not positive: the nearest pair has the largest.
        self.slope = float(p.scale.double() * self.unit)
        self.own = slice(p.offset, p.offset + len(p.x))
        self.sides = (
            Side(p.x, root, hyperbolic=p.hyperbolic, norm=norms[0]),
            Side(p.y, root, hyperbolic=p.hyperbolic, norm=norms[1], right=True),
        )
        self.kept = len(p.x), len(p.y)
        """How many rows and columns are retained; they come first."""
        self._sort()
        self.shared = self.passes is not None and len(p.x) * len(p.y) >= WORTH_WORKERS
        """Whether there is work for several workers."""
        size = ROWS if self.passes is not None else ROWS_OF_TORCH
        if self.shared:
            size = min(size, max(FEWEST_ROWS, -(-len(p.x) // workers.MOST)))
        self.bands = _slices(self.kept[0], len(p.x), size)
        self.blocks = _slices(self.kept[1], len(p.y), COLUMNS)
        self.strips = [[k] for k in range(len(self.bands))]
        """The bands of which the products are made at once, by their numbers."""
        # All rows fit one tile's buffer: retained and forgotten are two bands, and one product serves both.
        if self.passes is not None and 0 < len(p.x) <= size:
            self.strips = [list(range(len(self.bands)))]
        self.tile_size = min(size, len(p.x)) * min(COLUMNS, len(p.y))
        if p.hyperbolic:
            self._measure_radii()

    def shares(self) -> list[list[list[int]]]:
        """The strips of each worker."""
        parts = min(workers.count(), len(self.strips)) if self.shared else 1
        shares: list[list[list[int]]] = [[] for _ in range(parts)]
        load = [0] * parts
        sizes = [self.rows(strip).stop - self.rows(strip).start for strip in self.strips]
        # The largest first, each to who has the least. The sort is stable, so shares are the same in every
        # run.
        for number in sorted(range(len(sizes)), key=lambda k: -sizes[k]):
            least = load.index(min(load))
            shares[least].append(self.strips[number])
            load[least] += sizes[number]
        return shares

    def rows(self, strip: list[int]) -> slice:
        """The rows of a strip."""
        return slice(self.bands[strip[0]].start, self.bands[strip[-1]].stop)

    def tiles(self, strip: list[int], block: int) -> list[Tile]:
        """The tiles of a strip in one block of columns."""
        columns, count = self.blocks[block], len(self.blocks)
        return [Tile(self, self.bands[band], columns, band * count + block) for band in strip]

    def negatives(self) -> int:
        """The number of mismatched forget pairs."""
        rows, columns = self.kept
        # A forgotten row's run of equal captions lies among the forgotten columns, as runs end where the kind
        # changes; without ids it is the row's own column.
        own = self.places[rows:]
        return len(own) * (len(self.p.y) - columns) - int((own[:, 1] - own[:, 0]).sum())

    def near(self, tile: Tile) -> tuple[Any, Any]:
        """For compiled passes: a pair is too near if not Q is above the product of its row's and column's."""
        return self._near[0][tile.rows], self._near[1][tile.columns]

    @cached_property
    def _near(self) -> tuple[Any, Any]:
        if not self.p.hyperbolic:
            return torch.zeros(len(self.p.x)).numpy(), torch.zeros(len(self.p.y)).numpy()
        return (NEAR * self.sinh[0]).float().numpy(), self.sinh[1].float().numpy()

    def polar_arrays(self, tile: Tile) -> tuple[Any, tuple[Any, Any, Any]]:
        """For compiled passes: :attr:`polar` of a tile where all radii are small, else nothing."""
        rows, columns = self._polar_arrays
        i, j = (tile.rows, tile.columns) if len(rows) else (slice(0), slice(0))
        return rows[i], (columns[0][j], columns[1][j], columns[2][j])

    @cached_property
    def _polar_arrays(self) -> tuple[Any, Any]:
        if not self.p.hyperbolic or not self.is_small:
            return torch.empty(0, 3).numpy(), torch.empty(3, 0).numpy()
        return self.polar[0].numpy(), self.polar[1].T.contiguous().numpy()

    def is_far(self, tile: Tile) -> bool:
        """Whether a tile's radii are beyond float32."""
        if self.p.x.dtype == torch.float64:
            return True
        farthest = self.farthest[0][tile.rows.start] + self.farthest[1][tile.columns.start]
        # A NaN is not within: its tile is careful.
        return not farthest <= FAST_RADII

    @cached_property
    def is_small(self) -> bool:
        """Whether the curvature's gradient needs care; one exponential then serves any tile."""
        # No D exceeds twice the longest radius, so all logits are within SPREAD of 0.
        return self.longest < SMALL and -self.slope * 2 * self.longest <= SPREAD

    @cached_property
    def polar(self) -> tuple[Tensor, Tensor]:
        """:func:`bent` of rows and columns, float32, shape (., 3)."""
        return torch.stack(bent(self.left.r), 1).float(), torch.stack(bent(self.right.r), 1).float()

    def _measure_radii(self) -> None:
        """What decides how a tile is computed."""
        self.sinh = torch.sinh(self.left.r), torch.sinh(self.right.r)
        self.farthest = tuple(
            {s.start: float(side.r[s].max()) for s in pieces}
            for side, pieces in ((self.left, self.bands), (self.right, self.blocks))
        )
        self.longest = max((r for side in self.farthest for r in side.values()), default=0.0)

    def _sort(self) -> None:
        """Sides in order, and for each row the columns with its own caption, from and to, and its own.

        By numpy, of which a short operation takes a third of torch's time.
        """
        p, own, (self.left, self.right) = self.p, self.own, self.sides
        target = numpy.arange(own.start, own.stop)
        self.places = numpy.stack([target, target + 1, target], 1)
        """int64, shape (N, 3)."""
        if p.forget is None and p.ids is None:
            return
        # Sorted by caption, then stably by kind: the retained come before the forgotten, and within either
        # equal captions are neighbours.
        order = numpy.arange(len(p.y)) if p.ids is None else numpy.argsort(p.ids.numpy(), kind="stable")
        if p.forget is not None:
            drop = p.forget.numpy()
            self.kept = len(p.x) - int(drop[own].sum()), len(p.y) - int(drop.sum())
            drop = drop[order]
            order = numpy.concatenate([order[~drop], order[drop]])
        # The columns' order, of the local rows: both sides keep the blocks in the same order.
        row_order = order[(order >= own.start) & (order < own.stop)]
        place = numpy.empty_like(order)
        place[order] = numpy.arange(len(order))
        target = place[row_order]
        first, last = target, target + 1
        if p.ids is not None:
            ids = p.ids.numpy()[order]
            # One longer than the ids: the end of the last run is an edge as well.
            starts_run = numpy.ones(len(ids) + 1, bool)
            starts_run[1:-1] = ids[1:] != ids[:-1]
            starts_run[self.kept[1]] = True  # a caption in both kinds is two runs
            edges = starts_run.nonzero()[0]
            run = (starts_run.cumsum() - 1)[target]
            first, last = edges[run], edges[run + 1]
        self.places = numpy.stack([first, last, target], 1)
        self.left = self.left.sorted(torch.from_numpy(row_order - p.offset))
        self.right = self.right.sorted(torch.from_numpy(order))


def bent(r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of small radii: f = r/sinh r - 1, C = cosh r - 1 and g = r coth r - 1; see :func:`bend`."""
    z = r.square()
    # To r = 1/4 the terms left out are below 3e-9 of the sum.
    f = z * (-1 / 6 + z * (7 / 360 + z * (-31 / 15120 + z * 127 / 604800)))
    g = z * (1 / 3 + z * (-1 / 45 + z * (2 / 945 - z / 4725)))
    return f, 2 * torch.sinh(r / 2).square(), g


def bend(one: tuple[Tensor, ...], other: tuple[Tensor, ...], d: Tensor, sinh: Tensor) -> Tensor:
    r"""G, with which the gradient of a distance with respect to √c is G/c, for small radii.

    The sum on the left is of terms of first order in the radii and is itself of third order; each term on the
    right is:

    .. math::

        G = r_1 \frac{∂D}{∂r_1} + r_2 \frac{∂D}{∂r_2} - D
        = \Bigl(2\tanh\frac D2 - D\Bigr) + \frac{(f_1-f_2)(C_1-C_2)}{\sinh D} + (g_1+g_2)\tanh\frac D2

    Parameters
    ----------
    one, other : three of Tensor
        :func:`bent` of either radius.
    d, sinh : Tensor
        D, at most 1/2, and sinh D; where they are 0, G is 0.
    """
    (f1, c1, g1), (f2, c2, g2) = one, other
    z = d.square()
    # 2 tanh(D/2) - D = -D³/12 + D⁵/120 - 17 D⁷/20160 + 31 D⁹/362880 - …
    series = d * z * (-1 / 12 + z * (1 / 120 + z * (-17 / 20160 + z * 31 / 362880)))
    apart = torch.where(sinh > 0, (f1 - f2) * (c1 - c2) / torch.where(sinh > 0, sinh, 1.0), 0.0)
    return series + apart + torch.tanh(d / 2) * (g1 + g2)


class Tile:
    """A rectangle of pairs within one block."""

    def __init__(self, layout: Layout, rows: slice, columns: slice, number: int) -> None:
        self.rows, self.columns, self.number = rows, columns, number
        # Pieces do not cross the cut, so a tile is of one kind by where it ends. Retained pairs sum over the
        # retained, forgotten ones over all: retain × forget counts for its columns alone, forget × retain for
        # its rows.
        row_kept, column_kept = rows.stop <= layout.kept[0], columns.stop <= layout.kept[1]
        self.by_row = column_kept or not row_kept
        """Its terms belong to the sums of its rows; ``by_column`` likewise."""
        self.by_column = row_kept or not column_kept
        self.negatives = not row_kept and not column_kept
        """It lies in forget × forget."""
        self.kind = layout.p.hyperbolic, self.by_row, self.by_column, self.negatives
        self.places = layout.places[rows]
        # Equal captions are no negatives only among pairs of one kind; a forgotten pair sums over all others.
        self._captions = layout.p.ids is not None and row_kept == column_kept

    @cached_property
    def own(self) -> tuple[Tensor, Tensor]:
        """Where its matched pairs are."""
        column = torch.from_numpy(self.places[:, 2] - self.columns.start)
        hit = ((column >= 0) & (column < self.columns.stop - self.columns.start)).nonzero()[:, 0]
        return hit, column[hit]

    @cached_property
    def same(self) -> Tensor | None:
        """Which pairs have equal captions, if there can be other than the matched."""
        start, stop = torch.from_numpy(self.places[:, :2]).unsqueeze(-1).unbind(1)
        if not self._captions or not ((start < self.columns.stop) & (stop > self.columns.start)).any():
            return None
        column = torch.arange(self.columns.start, self.columns.stop)
        return (column >= start) & (column < stop)

    def hide(self, t: Tensor, value: float) -> Tensor:
        """Write ``value`` where no term of a sum is: at matched pairs, which are accurate and elsewhere, and
        in retain × retain at equal captions.
        """
        if len(self.own[0]):
            t[self.own] = value
        if self.same is not None and not self.negatives:
            t.masked_fill_(self.same, value)
        return t

    def only_negatives(self, t: Tensor) -> Tensor:
        """``t`` with zeros where the pair is no negative."""
        t[self.own] = 0.0
        return t if self.same is None else t.masked_fill_(self.same, 0.0)


def _slices(split: int, stop: int, size: int) -> list[slice]:
    """0 to ``stop`` in pieces of at most ``size`` that do not cross ``split``."""
    pieces = []
    for first, last in ((0, split), (split, stop)):
        pieces += [slice(k, min(k + size, last)) for k in range(first, last, size)]
    return pieces
