"""The cone op by the geometry's functions, elementwise: what the others are held to."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from riemann_unlearn.geometry import tangent
from riemann_unlearn.geometry.precision import Curvature, sqrt_c, working


class Cones(NamedTuple):
    """What the op returns; float64 on devices that have it, shape (B,) each."""

    outside: Tensor
    """ext(t, i) - aper(t), in radians: positive outside the caption's cone."""
    broad_radius: Tensor
    """√c·|v| of the captions."""
    narrow_radius: Tensor
    """√c·|v| of the images."""


def reference(text: Tensor, image: Tensor, c: Curvature, *, min_radius: float = 0.1) -> Cones:
    """The same by the geometry's functions; :func:`cones` is held to it."""
    angle = tangent.exterior_angle(text, image, c) - tangent.half_aperture(text, c, min_radius)
    radii = (sqrt_c(c, working(v)) * tangent.dist0(v, c) for v in (text, image))
    return Cones(angle, *radii)
