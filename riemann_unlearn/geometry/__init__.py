"""Lorentz geometry that stays finite.

:mod:`~riemann_unlearn.geometry.tangent` works straight from tangent vectors at the origin, which is what
encoders emit; the functions here work on points in space components.
"""

from riemann_unlearn.geometry import tangent
from riemann_unlearn.geometry.averages import centroid, geodesic, midpoint
from riemann_unlearn.geometry.manifold import Lorentz
from riemann_unlearn.geometry.maps import (
    expmap,
    expmap0,
    inner,
    logmap,
    logmap0,
    parallel_transport,
    parallel_transport0,
    parallel_transport0back,
)
from riemann_unlearn.geometry.models import from_poincare, to_poincare
from riemann_unlearn.geometry.space import (
    arcosh,
    arcosh1p,
    cdist,
    dist,
    dist0,
    exterior_angle,
    from_ambient,
    half_aperture,
    to_ambient,
)

__all__ = [
    "Lorentz",
    "arcosh",
    "arcosh1p",
    "cdist",
    "centroid",
    "dist",
    "dist0",
    "expmap",
    "expmap0",
    "exterior_angle",
    "from_ambient",
    "from_poincare",
    "geodesic",
    "half_aperture",
    "inner",
    "logmap",
    "logmap0",
    "midpoint",
    "parallel_transport",
    "parallel_transport0",
    "parallel_transport0back",
    "tangent",
    "to_ambient",
    "to_poincare",
]
