r"""Features as the rows of a matrix product: radii, operands, matched pairs, and the way back for gradients.

A row v of norm n and radius :math:`r = \sqrt c\,n` becomes, with C = cosh r - 1,

.. math::

    \text{left } (\sinh r\,u,\; C,\; 1), \qquad \text{right } (-\sinh r\,u,\; 1+C,\; C),

so that a product of two rows is :math:`Q = \cosh D - 1`. It errs by a few roundings of
:math:`\cosh r_1 \cosh r_2 - 1 = 2\sinh^2\frac{r_1-r_2}2 + \sinh r_1\sinh r_2`, as a sum of non-negative terms
from a rounded :math:`u_1·u_2` does. *Careful* operands are float64, and every row is scaled by
:math:`\sqrt2 e^{-r}`, so that nothing overflows at any radius; their product is
:math:`Y = 2e^{-r_1-r_2} Q`. For cosines the rows are unit vectors, negated on the right.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy
import torch
from torch import Tensor

from riemann_unlearn.geometry.precision import length
from riemann_unlearn.ops.backend import FLOATS, HALVES, Backend, has_numba, implementation
from riemann_unlearn.registry import register

# The passes over features; what they do is done by torch, below, where there are none.
register(Backend("polar", "torch", None, dtypes=(*FLOATS, *HALVES)))
register(
    Backend(
        "polar", "numba", "riemann_unlearn.ops.polar.passes",
        devices=("cpu",), dtypes=(torch.float32,), available=has_numba,
    )
)  # fmt: skip

_CHUNK_BYTES = 2**18
"""Of rows converted to float64 at a time on a CPU: three such pieces stay in a core's cache."""

_CHUNK_BYTES_ELSEWHERE = 2**27
"""On other devices: what keeps them busy, and is still little memory."""


_NOTHING, _NO_COLUMN = torch.empty(0, dtype=torch.int64).numpy(), torch.empty(0).numpy()


def compiled(x: Tensor) -> Any:
    """The compiled passes, if there are such for features like ``x``, else None."""
    return implementation("polar", x)


def zeros(like: Tensor) -> Tensor:
    """Zeros of the shape of features, in rows one after the other.

    Where passes are compiled, without a parallel region of torch: its threads go on to wait in a loop for
    longer than a small batch takes, on the cores that the workers need.
    """
    if compiled(like):
        return torch.from_numpy(numpy.zeros(like.shape, numpy.float32))
    return like.new_zeros(like.shape)


class Side:
    """One side's rows and what the products need of them.

    Parameters
    ----------
    x : Tensor, shape (N, D)
        float32 or float64.
    root : Tensor
        √c, float64; not used for cosines.
    hyperbolic : bool
    right : bool
        Which of the two operands the rows are.
    norm : Tensor, shape (N,), optional
        Their lengths, float64, where they are known.
    """

    def __init__(
        self,
        x: Tensor,
        root: Tensor,
        *,
        hyperbolic: bool,
        right: bool = False,
        norm: Tensor | None = None,
    ) -> None:
        self.x, self.root, self.hyperbolic = x.detach().contiguous(), root, hyperbolic
        self.sign = -1.0 if right else 1.0
        self.order: Tensor | None = None
        self.norm = _norms(x) if norm is None else norm
        # A row at the origin has no direction. In distances what stands for it does not matter, since
        # 1 - e^-2r multiplies it and is 0; its cosines are 0.
        self.inverse = torch.where(self.norm > 0, 1 / self.norm, 0.0)
        if hyperbolic:
            self.r = root * self.norm
            # By expm1: differences of these keep their digits near the origin, where those of e^-r lose them.
            self.shrunk = -torch.expm1(-self.r)  # 1 - e^-r
            self.shrunk2 = -torch.expm1(-2 * self.r)  # 1 - e^-2r = 2 e^-r sinh r
            self.decay = torch.exp(-self.r)
        self._fast: Tensor | None = None
        self._careful: dict[int, Tensor] = {}
        self._scales: dict[bool, Tensor] = {}
        self._tables: dict[bool, Tensor] = {}

    def __len__(self) -> int:
        return len(self.x)

    def sorted(self, order: Tensor | None) -> Side:
        """The same rows in another order: row ``order[0]`` of ``x`` first."""
        if order is None:
            return self
        # Sides are sorted before any operand is made, so that there is no fast one in the old order.
        side = copy.copy(self)
        side.order, side._careful, side._scales, side._tables = order, {}, {}, {}
        # One gather for all of them; radii are not computed again.
        names = ("norm", "inverse", *(("r", "shrunk", "shrunk2", "decay") if self.hyperbolic else ()))
        values = torch.stack([getattr(self, name) for name in names]).index_select(1, order)
        for name, value in zip(names, values.unbind(), strict=True):
            setattr(side, name, value)
        return side

    def sort(self, values: Tensor) -> Tensor:
        """Values of the rows of ``x``, in this order."""
        return values if self.order is None else values[self.order]

    def unsort(self, values: Tensor) -> Tensor:
        """The inverse of :meth:`sort`."""
        # An order is a permutation: every place of what is empty is written.
        return values if self.order is None else torch.empty_like(values).scatter_(0, self.order, values)

    def index(self, rows: slice) -> Tensor | slice:
        """Where the rows lie in ``x``."""
        return rows if self.order is None else self.order[rows]

    def units(self, rows: Tensor) -> Tensor:
        """Unit vectors of some rows, float64; 0 for a row at the origin."""
        x = self.x[rows if self.order is None else self.order[rows]]
        return x.double().mul_(self.inverse[rows, None])

    def operand(self, rows: slice, careful: bool) -> Tensor:
        """Rows of the product's factor; a slice of careful rows is made once."""
        if careful:
            if rows.start not in self._careful:
                self._careful[rows.start] = self._make(rows, torch.float64, careful=True)
            return self._careful[rows.start]
        if self._fast is None:
            self._fast = self._make(slice(None), self.x.dtype, careful=False)
        return self._fast[rows]

    def a_per_length(self, rows: slice) -> Tensor:
        """(1 - e^-2r)/n, and its limit 2√c at the origin."""
        return torch.where(self.norm[rows] > 0, self.shrunk2[rows] * self.inverse[rows], 2 * self.root)

    def scale(self, careful: bool) -> Tensor:
        """By what a row is multiplied in the operand: sinh r/n, √2 e^-r sinh r/n or 1/n."""
        if not self.hyperbolic:
            return self.inverse
        if careful not in self._scales:
            size = self.shrunk2 / math.sqrt(2) if careful else torch.sinh(self.r)
            # sinh r/n goes to √c at the origin, where the row's gradient needs it though the row itself is 0.
            limit = math.sqrt(2) * self.root if careful else self.root
            self._scales[careful] = torch.where(self.norm > 0, size * self.inverse, limit)
        return self._scales[careful]

    def scaled(self) -> Tensor:
        """All rows scaled as careful ones are, in the features' own dtype."""
        return self._make(slice(None), self.x.dtype, careful=True)

    def _make(self, rows: slice, dtype: torch.dtype, careful: bool) -> Tensor:
        scale = self.sign * self.scale(careful)[rows]
        columns: tuple[Tensor, ...] = ()
        if self.hyperbolic:
            columns = self._last_columns(rows, careful)
        kernels = compiled(self.x) if dtype == torch.float32 else None
        # One pass reads the rows in order, scales them and writes the last columns; torch takes three.
        if kernels and rows == slice(None):
            out = self.x.new_empty(len(self), self.x.shape[1] + len(columns))
            more = [column.to(dtype).numpy() for column in columns] or [_NO_COLUMN] * 2
            kernels.scale(self.x.numpy(), self._order_array(), scale.numpy(), *more, out.numpy())
            return out
        x = self.x[self.index(rows)].to(dtype)
        if not columns:
            return x * scale[:, None].to(dtype)
        out = x.new_empty(len(x), x.shape[1] + 2)
        torch.mul(x, scale[:, None].to(dtype), out=out[:, :-2])
        out[:, -2], out[:, -1] = columns
        return out

    def _last_columns(self, rows: slice, careful: bool) -> tuple[Tensor, Tensor]:
        """What follows a row's direction in the operand."""
        # cosh r - 1 = 2 sinh²(r/2), and 2 e^-r (cosh r - 1) = (1 - e^-r)²: neither subtracts near the origin,
        # as cosh r - 1 does.
        if careful:
            less_one = self.shrunk[rows].square() / math.sqrt(2)  # √2 e^-r (cosh r - 1)
            one = math.sqrt(2) * self.decay[rows]
        else:
            less_one, one = 2 * torch.sinh(self.r[rows] / 2).square(), torch.ones_like(self.r[rows])
        return (less_one, one) if self.sign > 0 else (one + less_one, less_one)

    def _order_array(self) -> Any:
        return _NOTHING if self.order is None else self.order.numpy()

    def add_gradient(self, out: Tensor, m: Tensor, rows: slice, careful: bool) -> Tensor:
        """Add to ``out`` the gradient of the features of ``rows`` that follows from their operand's, ``m``.

        Returns
        -------
        Tensor, shape ()
            The gradient of √c, through the radii.
        """
        kernels = compiled(self.x) if m.dtype == out.dtype else None
        if kernels:
            if careful not in self._tables:
                radial = self._cosh_sinh(slice(None), careful) if self.hyperbolic else (self.norm,) * 2
                table = torch.stack([self.scale(careful), self.inverse, self.norm, *radial], 1)
                self._tables[careful] = table
            through = kernels.add_gradient(
                m.numpy(), self.x.numpy(), self._order_array(), rows.start,
                self._tables[careful][rows].numpy(),
                self.sign, float(self.root), self.hyperbolic, out.numpy(),
            )  # fmt: skip
            return self.norm.new_tensor(through)
        where, s = self.index(rows), self.scale(careful)[rows]
        x = self.x[where]
        # The operand is s(n)·v with s = sinh r/n, so v's gradient is s·m, plus, along v, what comes of s'(n)
        # and of the last columns, which depend on r alone. ``along`` is the part of m along the unit vector.
        main = m[:, :-2] if self.hyperbolic else m
        along = self.sign * torch.linalg.vecdot(main, x.to(m.dtype)).double() * self.inverse[rows]
        radial, grad_root = -s * along, self.norm.new_zeros(())
        if self.hyperbolic:
            # The left's last column is constant; on the right 1 + C and C both change with r.
            grad_less_one = (m[:, -2] if self.sign > 0 else m[:, -2] + m[:, -1]).double()
            cosh, sinh = self._cosh_sinh(rows, careful)
            grad_r = cosh * along + sinh * grad_less_one
            grad_root = (grad_r * self.norm[rows]).sum()
            radial = radial + self.root * grad_r
        steps = (self.sign * s)[:, None].to(m.dtype), (radial * self.inverse[rows])[:, None].to(m.dtype)
        if self.order is None and m.dtype == out.dtype:
            out[rows].addcmul_(main, steps[0]).addcmul_(x, steps[1])
        else:
            # Rows of an order are distinct, so that an indexed addition loses none.
            out[where] += (main * steps[0]).addcmul_(x.to(m.dtype), steps[1]).to(out.dtype)
        return grad_root

    def _cosh_sinh(self, rows: slice, careful: bool) -> tuple[Tensor, Tensor]:
        """Cosh r and sinh r, times √2 e^-r for careful rows."""
        # Gradients of careful products are over 2e^-(r1+r2) sinh D in place of sinh D. So ``m`` is too large
        # by 1/(√2 e^-r), which is taken out here and in ``scale``; the factor itself is never differentiated.
        if careful:
            return (2 - self.shrunk2[rows]) / math.sqrt(2), self.shrunk2[rows] / math.sqrt(2)
        return torch.cosh(self.r[rows]), torch.sinh(self.r[rows])


def careful_distance(left: Side, right: Side, i: slice, j: slice, y: Tensor) -> tuple[Tensor, Tensor]:
    """D and S = 2 e^-(r1+r2) sinh D of a tile with careful product ``y``; 0 where points coincide."""
    rest = 4 * left.decay[i, None] * right.decay[None, j]
    return _distance(y, rest, left.r[i, None], right.r[None, j])


def from_differences(left: Side, right: Side, i: Tensor, j: Tensor) -> Tensor:
    """Y of pairs of rows, accurate however near they are: exactly 0 for equal rows."""
    out = torch.empty(len(i), dtype=torch.float64, device=i.device)
    for pairs in _chunks(left.x, len(i)):
        a, b = i[pairs], j[pairs]
        chord = (left.units(a) - right.units(b)).square().sum(-1)
        # As in matched_distances: Y is a sum of squares, so that nothing cancels.
        gap = left.shrunk[a] - right.shrunk[b]
        out[pairs] = gap.square() + left.shrunk2[a] * right.shrunk2[b] * chord / 4
    return out


def _chunks(x: Tensor, count: int | None = None) -> Iterator[slice]:
    """0 to ``count``, all rows by default, in pieces of a size that suits the device."""
    room = _CHUNK_BYTES if x.device.type == "cpu" else _CHUNK_BYTES_ELSEWHERE
    size = max(1, room // (8 * max(x.shape[1], 1)))
    count = len(x) if count is None else count
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def pair_similarities(left: Side, bank: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Minus distances, or cosines, of rows ``i`` and rows ``j`` of ``bank``: float64, from differences."""
    out = torch.empty(len(i), dtype=torch.float64, device=bank.device)
    for pairs in _chunks(left.x, len(i)):
        one = Side(left.x[i[pairs]], left.root, hyperbolic=left.hyperbolic)
        other = Side(bank[j[pairs]].to(left.x.dtype), left.root, hyperbolic=left.hyperbolic, right=True)
        angle = matched_angles(one, other, 0)
        out[pairs] = -matched_distances(one, other, 0, angle)[0] / left.root if left.hyperbolic else angle
    return out


def matched_angles(left: Side, right: Side, offset: int) -> Tensor:
    """|u1 - u2|², or the cosine, of row a of the left and row ``offset + a`` of the right, unsorted."""
    angle = torch.empty_like(left.norm)
    kernels = compiled(left.x)
    if kernels:
        own = slice(offset, offset + len(left))
        kernels.angles(
            left.x.numpy(), right.x[own].numpy(), left.inverse.numpy(), right.inverse[own].numpy(),
            left.hyperbolic, angle.numpy(),
        )  # fmt: skip
        return angle
    for rows, _, u, w in _unit_pairs(left, right, offset):
        if left.hyperbolic:
            u = w = u.sub_(w)
        angle[rows] = torch.linalg.vecdot(u, w)
    return angle


def matched_distances(left: Side, right: Side, offset: int, angle: Tensor) -> tuple[Tensor, Tensor]:
    """D and S of :func:`careful_distance` of matched pairs, from their |u1 - u2|²."""
    columns = slice(offset, offset + len(left))
    # Y = (e^-r1 - e^-r2)² + a1 a2 |u1 - u2|²/4: a sum of squares, exactly 0 for equal rows.
    gap = left.shrunk - right.shrunk[columns]
    y = gap.square() + left.shrunk2 * right.shrunk2[columns] * angle / 4
    return _distance(y, 4 * left.decay * right.decay[columns], left.r, right.r[columns])


def add_matched_gradient(
    left: Side,
    right: Side,
    offset: int,
    angle: Tensor,
    gradient: Tensor,
    out: Tensor,
    out_right: Tensor,
) -> Tensor:
    r"""Add the gradients of the features that follow from those of matched D, or of minus the cosines.

    With e = u1 - u2, :math:`a = 1 - e^{-2r}` and S of :func:`careful_distance`:

    .. math::

        \frac{∂D}{∂r_1} = \frac{e^{-2r_2} - e^{-2r_1} + (2 - a_1)\,a_2\,|e|^2/4}{S}, \qquad
        \frac{∂D}{∂u_1} = \frac{a_1 a_2}{2S}\Bigl(e - \frac{|e|^2}2 u_1\Bigr),

    0 where the points coincide.

    Returns
    -------
    Tensor, shape ()
        The gradient of √c, through the radii.
    """
    grad_root, everything = gradient.new_zeros(()), slice(offset, offset + len(left))
    if left.hyperbolic:
        _, s = matched_distances(left, right, offset, angle)
        # A distance has no derivative at coincident points; 0 is a subgradient.
        gradient = torch.where(s > 0, gradient / s, 0.0)
    steps = []  # for each side, how far to go along the other's direction, and along its own vector
    for side, other, here, there in (
        (left, right, slice(None), everything),
        (right, left, everything, slice(None)),
    ):
        if left.hyperbolic:
            a1, a2 = side.shrunk2[here], other.shrunk2[there]
            # e^-2r2 - e^-2r1, by a difference of 1 - e^-r, which keeps its digits near the origin.
            gap = (side.shrunk[here] - other.shrunk[there]) * (side.decay[here] + other.decay[there])
            grad_r = gradient * (gap + (2 - a1) * a2 * angle / 4)
            grad_root = grad_root + (grad_r * side.norm[here]).sum()
            # With a/n and its limit, a row at the origin still goes along the other's direction; ``outward``
            # is 0 there, as 1/n is.
            away = gradient * side.a_per_length(here) * a2 / 2
            outward = (side.root * grad_r - away * angle / 2) * side.inverse[here]
        else:
            # -(u2 - cos·u1)/n1: what of the other's direction lies along a row's own changes no cosine.
            away = gradient * side.inverse[here]
            outward = away * angle * side.inverse[here]
        steps.append(torch.stack((away, outward), 1))
    add_pair_steps(left, right, offset, steps[0], steps[1], out, out_right)
    return grad_root


def add_pair_steps(
    left: Side,
    right: Side,
    offset: int,
    grad_left: Tensor,
    grad_right: Tensor,
    out: Tensor,
    out_right: Tensor,
) -> None:
    """Add to each of matched features a multiple of the way away from the other and one of itself.

    The way away is ±(u1 - u2), or minus the other's unit vector for cosines. How far to go, ``grad_left`` and
    ``grad_right`` say, float64, shape (N, 2).
    """
    kernels = compiled(left.x) if out.dtype == left.x.dtype else None
    if kernels:
        own = slice(offset, offset + len(left))
        kernels.add_steps(
            left.x.numpy(), right.x[own].numpy(), left.inverse.numpy(), right.inverse[own].numpy(),
            grad_left.numpy(), grad_right.numpy(), left.hyperbolic, out.numpy(), out_right[own].numpy(),
        )  # fmt: skip
        return
    (away, outward), (away_right, outward_right) = (
        steps.to(out.dtype)[:, :, None].unbind(1) for steps in (grad_left, grad_right)
    )
    sign = 1.0 if left.hyperbolic else -1.0
    for rows, columns, u, w in _unit_pairs(left, right, offset):
        if left.hyperbolic:
            u = w = u.sub_(w)
        out[rows].addcmul_(w.to(out.dtype), away[rows], value=sign)
        out[rows].addcmul_(left.x[rows], outward[rows])
        out_right[columns].addcmul_(u.to(out.dtype), away_right[rows], value=-1)
        out_right[columns].addcmul_(right.x[columns], outward_right[rows])


def _norms(x: Tensor) -> Tensor:
    """Lengths, float64: an error of a radius would be one of every distance of its row."""
    if x.dtype == torch.float64:
        return length(x)
    norm = torch.empty(len(x), dtype=torch.float64, device=x.device)
    kernels = compiled(x)
    if kernels:
        kernels.lengths(x.numpy(), norm.numpy())
        return norm
    for rows in _chunks(x):
        norm[rows] = torch.linalg.vector_norm(x[rows].double(), dim=-1)
    return norm


def _unit_pairs(left: Side, right: Side, offset: int) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Matched unit vectors, float64, a chunk at a time."""
    for rows in _chunks(left.x):
        columns = slice(rows.start + offset, rows.stop + offset)
        # A copy of float64 features too: callers go on in place.
        u = left.x[rows].to(torch.float64, copy=True).mul_(left.inverse[rows, None])
        w = right.x[columns].to(torch.float64, copy=True).mul_(right.inverse[columns, None])
        yield rows, columns, u, w


def _distance(y: Tensor, rest: Tensor, r1: Tensor, r2: Tensor) -> tuple[Tensor, Tensor]:
    """D and S from Y, 4 e^-(r1+r2) and the radii."""
    # With k² = 4e^-(r1+r2), ``rest``: √Y = k sinh(D/2) and √(Y + k²) = k cosh(D/2). Half their sum is
    # e^((D-r1-r2)/2), and their product 2e^-(r1+r2) sinh D = S.
    root, more = torch.sqrt(y), torch.sqrt(y + rest)
    d = r1 + r2 + 2 * torch.log((root + more) / 2)
    gap = (r1 - r2).abs()
    # Where e^-r underflows only the triangle inequality is left, which is then an equality to rounding.
    return torch.where(y > 0, torch.maximum(d, gap), gap), root * more
