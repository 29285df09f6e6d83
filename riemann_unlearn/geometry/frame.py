r"""Rows of float64 numbers in units in which what derivatives make of them stays in range.

float32 numbers held in float64 can be multiplied eight at a time, so whatever a formula or its derivatives
make of them is finite. float64 data has no such room. But hyperbolic space has no unit of length other than
1/√c: scaling points by λ and √c by 1/λ scales distances by λ and leaves angles as they are, and with λ a
power of two nothing is rounded. So a row of small float64 numbers is divided by a power of two near its
largest one, and √c is multiplied by it; what comes out is multiplied back. Other data passes as it is.

Two things are held, where they change no value by a rounding: √c, for a row so small (10⁻⁵¹) that space is
flat around it, and the length of a vector that is so much shorter than the longest one of its row, keeping
its direction; the gradient by such a vector is that at the length it is held at.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from riemann_unlearn.geometry.precision import (
    Curvature,
    largest,
    power_of_two,
    range_root,
    result_dtype,
    row_unit,
    scaled,
    working,
    working_dtype,
    working_root,
)

FARTHEST = 2.0**990
"""For a row of longer float64 vectors (10²⁹⁸) the gradient by c is 0: what it is made of is not finite."""


class Frame(NamedTuple):
    """Vectors and √c in the unit of their row."""

    vectors: tuple[Tensor, ...]
    root: Tensor
    """√c times the unit, in the working dtype."""
    curvature_radius: Tensor
    """1/√c in the unit of the data."""
    unit: Tensor | None
    """What one is worth, shape (...), at most 1; None for narrow data, which is in units of 1."""
    data: torch.dtype
    """That of the numbers in the vectors, which may be held in a wider one."""

    def wide(self) -> tuple[Tensor, ...]:
        """The vectors in the working dtype, with NaN for what is infinite: that is in no space."""
        wide = (working(v) for v in self.vectors)
        return tuple(torch.where(v.isinf(), torch.nan, v) for v in wide)

    def back(self, value: Tensor) -> Tensor:
        """Lengths of this frame, shape (...), in the unit of the data."""
        return value if self.unit is None else scaled(value, self.unit)

    def vector_back(self, value: Tensor) -> Tensor:
        """Vectors of this frame, shape (..., D), in the unit of the data."""
        return value if self.unit is None else scaled(value, self.unit[..., None])


def frame(c: Curvature, *vectors: Tensor) -> Frame:
    """The frame of vectors of shape (..., D), whose leading shapes broadcast."""
    return _frame(c, vectors, row_unit(*vectors), None)


def point_frame(c: Curvature, *vectors: Tensor) -> Frame:
    """The frame in which points and tangent vectors are moved.

    float64 vectors longer than 10⁷⁷ curvature radii, the coordinates of a point at radius 177, are held at
    that length: products of four of their coordinates would not be finite.
    """
    return _frame(c, vectors, row_unit(*vectors), range_root(working_dtype(vectors[0]), 4))


def _frame(c: Curvature, vectors: tuple[Tensor, ...], unit: Tensor | None, reach: float | None) -> Frame:
    root, data = working_root(c, vectors[0]), result_dtype(*vectors)
    if unit is None:
        return Frame(vectors, root, 1 / root, None, data)
    root = torch.where(unit > FARTHEST, root.detach(), root)
    # Only small rows have a unit of their own. Large ones are held by `reach`, where products need it.
    unit = unit.clamp(max=1)
    # 2^-170 for float64. Curvature changes lengths by (√c·length)² relatively, here 2^-340, which no rounding
    # sees: √c in the frame may be held there. A curvature radius is then 1/least units, whatever c is.
    least = 1 / range_root(root.dtype, 6)
    far = root * unit
    radius = torch.where(far < least, unit / least, 1 / root)
    framed = tuple(_framed(v, root, unit, least, reach) for v in vectors)
    return Frame(framed, far.clamp(min=least), radius, unit, data)


def _framed(v: Tensor, root: Tensor, unit: Tensor, least: float, reach: float | None) -> Tensor:
    wide = v.to(working_dtype(v))
    own = power_of_two(largest(wide)).clamp(min=least**5)  # which has an inverse
    inverse = (1 / unit)[..., None]
    # All vectors of a row have one unit; one shorter than `least` in it is lifted to that,
    # keeping its direction.
    factor = torch.maximum(inverse, least / own)
    if reach is not None:
        # In curvature radii, by the power of two near √c, so that nothing is rounded.
        factor = torch.minimum(factor, reach / own / power_of_two(root.detach())[..., None])
    shape = torch.broadcast_shapes(wide.shape, factor.shape)  # type: ignore[no-untyped-call]
    # The slope is that of the unit also where the length is held, so gradients keep their scale.
    return scaled(wide.expand(shape), factor, inverse)
