r"""The Lorentz model in space components: points, their distances and angles.

A point of the hyperboloid of curvature -c has space components ``x`` of shape (..., D) and the time
component :math:`x_t = \sqrt{1/c + |x|^2}` (MERU's convention). Its ambient form ``p``, shape (..., D+1), has
time first (geoopt's convention, whose ``Lorentz(k)`` has k = 1/c).

A point's coordinates grow like :math:`\sinh(\sqrt c\,|v|)`: rounding them moves the point by about one unit
roundoff times that, and float32 ends at radius 88. Where it can be had, the tangent vector at the origin is
the better representation; see :mod:`riemann_unlearn.geometry.tangent`. Dtypes are treated as there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from riemann_unlearn.geometry import triangle as tri
from riemann_unlearn.geometry.frame import Frame, frame
from riemann_unlearn.geometry.pairwise import FixNear, pairwise
from riemann_unlearn.geometry.precision import (
    Curvature,
    finite,
    result_dtype,
    wide_length,
    within,
    working,
    working_root,
)

__all__ = [
    "arcosh",
    "arcosh1p",
    "cdist",
    "dist",
    "dist0",
    "exterior_angle",
    "from_ambient",
    "half_aperture",
    "to_ambient",
]


def dist(x: Tensor, y: Tensor, c: Curvature) -> Tensor:
    r"""Geodesic distance, elementwise.

    :math:`d = \frac{2}{\sqrt c}\operatorname{asinh}\sqrt{h^2 + XY\,|\hat x-\hat y|^2/4}` with
    :math:`X = \sqrt c|x|`, :math:`h = \sinh((r_x-r_y)/2) = \sqrt c\,(|x|-|y|)/(2\cosh((r_x+r_y)/2))`, and
    the differences taken from x - y.

    Parameters
    ----------
    x, y : Tensor, shape (..., D)
        Space components; the leading shapes broadcast.
    c : float or Tensor
        Curvature magnitude, c > 0.

    Returns
    -------
    Tensor, shape (...)
        Exactly 0, with the subgradient 0, for equal arguments.

    Examples
    --------
    >>> import torch
    >>> from riemann_unlearn.geometry import expmap0
    >>> x = expmap0(torch.tensor([[1.0, 0.0], [-3.0, 0.0]]), c=1.0)
    >>> dist(x[0], x[1], c=1.0)
    tensor(4.)
    """
    framed = frame(c, x, y)
    side = tri.side(points_triangle(framed))
    return within(side * framed.curvature_radius, framed.data)


def cdist(x: Tensor, y: Tensor, c: Curvature, *, fix_near: FixNear = "none") -> Tensor:
    """Geodesic distance of every row of ``x`` to every row of ``y``.

    What is guaranteed for near pairs, and what ``fix_near`` does, is said at
    :func:`riemann_unlearn.geometry.tangent.cdist`.

    Parameters
    ----------
    x : Tensor, shape (..., N, D)
    y : Tensor, shape (..., M, D)
        Space components.
    c : float or Tensor
        Curvature magnitude, c > 0; a scalar.
    fix_near : "none", "diagonal" or "all"
        Which near pairs are made accurate.

    Returns
    -------
    Tensor, shape (..., N, M)

    Examples
    --------
    >>> import torch
    >>> from riemann_unlearn.geometry import expmap0
    >>> x = expmap0(torch.tensor([[1.0, 0.0], [-3.0, 0.0]]), c=1.0)
    >>> cdist(x, x, c=1.0, fix_near="diagonal")
    tensor([[0., 4.],
            [4., 0.]])
    """
    return pairwise(x, y, c, tri.asinh, dist, fix_near)


def dist0(x: Tensor, c: Curvature) -> Tensor:
    r"""Geodesic distance to the origin, :math:`\operatorname{asinh}(\sqrt c|x|)/\sqrt c`.

    Examples
    --------
    >>> import torch
    >>> from riemann_unlearn.geometry import expmap0
    >>> dist0(expmap0(torch.tensor([3.0, 4.0]), c=2.0), c=2.0)
    tensor(5.)
    """
    root = working_root(c, x)
    return within(tri.asinh(tri.bounded(root * wide_length(x))) / root, result_dtype(x))


def half_aperture(x: Tensor, c: Curvature, min_radius: float = 0.1) -> Tensor:
    r"""Half aperture of the entailment cone at each point, in radians.

    :math:`\operatorname{asin}(\min(1, 2K/(\sqrt c|x|)))` (MERU, equation 7), taken as
    :math:`\operatorname{atan2}(2K, \sqrt{(n-2K)(n+2K)})`, :math:`n = \sqrt c|x|`.

    Parameters
    ----------
    x : Tensor, shape (..., D)
        Space components of points.
    c : float or Tensor
        Curvature magnitude, c > 0.
    min_radius : float
        K; for n ≤ 2K the cone is a half-space, π/2 with gradient 0.

    Returns
    -------
    Tensor, shape (...)
        In [0, π/2].

    Examples
    --------
    >>> import torch
    >>> half_aperture(torch.tensor([[0.1, 0.0], [0.4, 0.0]]), c=1.0)
    tensor([1.5708, 0.5236])
    """
    n = tri.bounded(working_root(c, x) * wide_length(x))
    # Divided by 1+n, for the square of a far point's n may not be finite.
    # The angle depends on the ratio alone.
    return tri.aperture(n / (1 + n), 2 * min_radius / (1 + n)).to(result_dtype(x))


def exterior_angle(x: Tensor, y: Tensor, c: Curvature) -> Tensor:
    """Exterior angle at x of the triangle (origin, x, y), elementwise, in radians.

    As :func:`riemann_unlearn.geometry.tangent.exterior_angle`, for points.

    Parameters
    ----------
    x, y : Tensor, shape (..., D)
        Space components; the leading shapes broadcast.
    c : float or Tensor
        Curvature magnitude, c > 0.

    Returns
    -------
    Tensor, shape (...)
        In [0, π]; 0 with gradient 0 where x is the origin or x = y.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([1.0, 0.0])
    >>> exterior_angle(x, 2 * x, c=1.0), exterior_angle(x, -x, c=1.0)
    (tensor(0.), tensor(3.1416))
    """
    return tri.exterior_angle(points_triangle(frame(c, x, y))).to(result_dtype(x, y))


def to_ambient(x: Tensor, c: Curvature) -> Tensor:
    r"""Space components with the time component :math:`\sqrt{1/c + |x|^2}` put before them.

    Examples
    --------
    >>> import torch
    >>> to_ambient(torch.zeros(2), c=0.25)
    tensor([2., 0., 0.])
    """
    dtype = result_dtype(x)
    time = tri.bounded(time_component(x, working_root(c, x)))
    # c may have more axes than x: points of one batch at several curvatures.
    shape = (*time.shape, x.shape[-1])
    # The time component of a point whose coordinates just fit may itself not fit, and is held.
    return torch.cat([finite(time, dtype).to(dtype)[..., None], x.to(dtype).expand(shape)], -1)


def from_ambient(p: Tensor) -> Tensor:
    """Space components of an ambient point; its time component follows from them.

    Examples
    --------
    >>> import torch
    >>> from_ambient(torch.tensor([2.0, 0.0, 0.0]))
    tensor([0., 0.])
    """
    return p[..., 1:]


def arcosh(z: Tensor) -> Tensor:
    """Inverse hyperbolic cosine; 0 with gradient 0 for z ≤ 1.

    For those who start from a cosh and have already lost what 1 + t loses of t; who has t should use
    :func:`arcosh1p`, and who has points :func:`dist`.

    Examples
    --------
    >>> import torch
    >>> arcosh(torch.tensor([0.9999, 1.0, 3.0]))
    tensor([0.0000, 0.0000, 1.7627])
    """
    return arcosh1p(working(z) - 1).to(result_dtype(z))


def arcosh1p(t: Tensor) -> Tensor:
    r"""arcosh(1 + t) = :math:`2\operatorname{asinh}\sqrt{t/2}`, exact near 0; 0 with gradient 0 for t ≤ 0.

    Examples
    --------
    >>> import torch
    >>> arcosh1p(torch.tensor([0.0, 5e-21, 2.0]))
    tensor([0.0000e+00, 1.0000e-10, 1.7627e+00])
    """
    wide = working(t)
    # The root has no derivative at 0; it is taken of 1 there, and not used.
    low = wide <= 0
    root = torch.sqrt(torch.where(low, 1.0, wide) / 2)
    return torch.where(low, 0.0, 2 * torch.asinh(root)).to(result_dtype(t))


def points_triangle(framed: Frame) -> tri.Triangle:
    """The triangle of the origin and the first two of framed points, in the working dtype."""

    def gap(difference: Tensor, total: Tensor) -> Tensor:
        # From sinh r₁ - sinh r₂ = 2 cosh((r₁+r₂)/2) sinh((r₁-r₂)/2). Lengths are bounded, which keeps a
        # radius below 709.1, where cosh is finite.
        return 2 * tri.asinh(difference / (2 * torch.cosh(total / 2)))

    return tri.triangle(framed, tri.asinh, gap)


def time_component(x: Tensor, root: Tensor) -> Tensor:
    """√(1/c + |x|²), shape (...), from √c."""
    # hypot, for the square of a far point's length may not be finite.
    size = wide_length(x)
    return torch.hypot(size, torch.reciprocal(root))
