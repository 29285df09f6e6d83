"""The cone op by the geometry's functions, elementwise: what the others are held to."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from riemann_unlearn.geometry import tangent
from riemann_unlearn.geometry.precision import Curvature, sqrt_c, working


class Cones(NamedTuple):
    """What the op returns; float64 on devices that have it, shape (B,) each."""

    outside: Tensor
    """ext - aper, in radians: positive outside the cone."""
    broad_radius: Tensor
    """√c·|v| of the apexes."""
    narrow_radius: Tensor
    """√c·|v| of what may lie in their cones."""


def reference(broad: Tensor, narrow: Tensor, c: Curvature, *, min_radius: float = 0.1) -> Cones:
    """The same by the geometry's functions; :func:`cones` is held to it."""
    angle = tangent.exterior_angle(broad, narrow, c) - tangent.half_aperture(broad, c, min_radius)
    radii = (sqrt_c(c, working(v)) * tangent.dist0(v, c) for v in (broad, narrow))
    return Cones(angle, *radii)
