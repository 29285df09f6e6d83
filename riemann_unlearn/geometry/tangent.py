r"""Lorentz geometry straight from tangent vectors at the origin: what an encoder emits.

A vector ``v`` of shape (..., D) stands for the point ``expmap0(v)`` of the hyperboloid of curvature -c.
With :math:`r = \sqrt c\,|v|` everything the losses need is a function of two radii and of the angle θ at
the origin:

.. math::

    \sinh^2(\sqrt c\, d/2) &= \sinh^2\tfrac{r_1-r_2}{2} + \sinh r_1 \sinh r_2 \sin^2\tfrac θ2 \\
    \mathrm{ext}_1 &= \operatorname{atan2}(\sinh r_2 \sin θ,\;
        \sinh(r_2-r_1) - 2 \sinh r_2 \cosh r_1 \sin^2\tfrac θ2) \\
    \mathrm{aper} &= \operatorname{asin}(\min(1,\, 2K/\sinh r))

There is no radius at which a value or a gradient stops being finite. Half-precision features give
float32, also under autocast; float32 features are computed in float64 (see
:mod:`riemann_unlearn.geometry.precision`). The distance is not differentiable where its
arguments coincide; the gradient there is the subgradient 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from riemann_unlearn.geometry import triangle as tri
from riemann_unlearn.geometry.frame import Frame, frame
from riemann_unlearn.geometry.pairwise import FixNear, pairwise
from riemann_unlearn.geometry.precision import Curvature, result_dtype, wide_length, within, working_root

__all__ = ["cdist", "dist", "dist0", "exterior_angle", "half_aperture"]


def dist(v1: Tensor, v2: Tensor, c: Curvature) -> Tensor:
    r"""Geodesic distance, elementwise.

    Parameters
    ----------
    v1, v2 : Tensor, shape (..., D)
        Tangent vectors at the origin; the leading shapes broadcast.
    c : float or Tensor
        Curvature magnitude, c > 0; a tensor broadcasts against the result and takes gradients.

    Returns
    -------
    Tensor, shape (...)
        Geodesic length :math:`\frac{2}{\sqrt c}\operatorname{asinh}\sqrt{\sinh^2((r_1-r_2)/2) +
        \sinh r_1 \sinh r_2 \sin^2(θ/2)}`. Exactly 0 for equal arguments. float32 results are right to
        one unit in the last place for r ≤ 40.

    Raises
    ------
    TypeError
        For vectors that are not floating point.
    ValueError
        For a number ``c`` that is not positive.

    Examples
    --------
    >>> import torch
    >>> v = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> dist(v, v, c=1.0).tolist()
    [0.0, 0.0]
    >>> dist(v, 3 * v, c=1.0).tolist()          # along a ray, tangent lengths subtract
    [2.0, 4.0]
    """
    framed = frame(c, v1, v2)
    # `side` is in curvature radii, of which the frame knows the length: a row so small that √c
    # is held has another.
    return within(tri.side(_triangle(framed)) * framed.curvature_radius, framed.data)


def cdist(v1: Tensor, v2: Tensor, c: Curvature, *, fix_near: FixNear = "none") -> Tensor:
    r"""Geodesic distance of every row of ``v1`` to every row of ``v2``.

    The angles come from one matrix product of unit vectors in float64, whose rounding leaves an absolute
    error of about ε = 2e-16 in :math:`1 - u_1·u_2`. So a distance well above
    :math:`\sqrt{ε \sinh r_1 \sinh r_2}` (in units of the curvature radius) is accurate to rounding and one
    below it is not: two *coincident* points may come out 2e-8, 2e-7, 4e-6 and 2e-4 apart for r = 1, 3, 6
    and 10. ``fix_near`` replaces what the product cannot resolve by the elementwise :func:`dist`.

    Parameters
    ----------
    v1 : Tensor, shape (..., N, D)
    v2 : Tensor, shape (..., M, D)
        Tangent vectors at the origin; the leading shapes broadcast.
    c : float or Tensor
        Curvature magnitude, c > 0; a scalar.
    fix_near : "none", "diagonal" or "all"
        Which near pairs are made accurate. "diagonal": row i against row i (N = M), static shapes, linear
        cost. "all": every pair that rounding could move by a quarter of a unit in its last place; their
        number decides time and memory, and finding them synchronizes with the device.

    Returns
    -------
    Tensor, shape (..., N, M)

    Raises
    ------
    ValueError
        For an unknown ``fix_near``, "diagonal" with N ≠ M, or a number ``c`` that is not positive.

    Examples
    --------
    >>> import torch
    >>> cdist(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), c=1.0)
    tensor([[5.]])
    >>> v = torch.tensor([[2.0, 1.0], [1.0, 5.0]])
    >>> cdist(v, v, c=1.0, fix_near="diagonal").diagonal()
    tensor([0., 0.])
    """
    return pairwise(v1, v2, c, lambda n: n, dist, fix_near)


def dist0(v: Tensor, c: Curvature) -> Tensor:
    """Geodesic distance to the origin, |v|; the curvature drops out.

    Examples
    --------
    >>> import torch
    >>> dist0(torch.tensor([3.0, 4.0]), c=2.0)
    tensor(5.)
    """
    return within(wide_length(v), result_dtype(v))


def half_aperture(v: Tensor, c: Curvature, min_radius: float = 0.1) -> Tensor:
    r"""Half aperture of the entailment cone at each point, in radians.

    :math:`\operatorname{asin}(\min(1, 2K/\sinh r))` (Ganea et al. 2018, in the Lorentz model MERU,
    equation 7), taken as :math:`\operatorname{atan2}(2K, \sqrt{(\sinh r-2K)(\sinh r+2K)})`.

    Parameters
    ----------
    v : Tensor, shape (..., D)
        Tangent vectors at the origin.
    c : float or Tensor
        Curvature magnitude, c > 0.
    min_radius : float
        K; within sinh r ≤ 2K the cone is a half-space, π/2 with gradient 0.

    Returns
    -------
    Tensor, shape (...)
        In [0, π/2].

    Examples
    --------
    >>> import torch
    >>> half_aperture(torch.zeros(2), c=1.0)
    tensor(1.5708)
    """
    # Further out the aperture is 0, and 0 times the derivatives of a huge r would be NaN.
    r = (working_root(c, v) * wide_length(v)).clamp(max=800)
    # Everything times e^-r: sinh r becomes (1 - e^-2r)/2, and nothing overflows.
    return tri.aperture(-torch.expm1(-2 * r) / 2, 2 * min_radius * torch.exp(-r)).to(result_dtype(v))


def exterior_angle(v1: Tensor, v2: Tensor, c: Curvature) -> Tensor:
    r"""Exterior angle at point 1 of the triangle (origin, 1, 2), elementwise, in radians.

    The angle between the ray from the origin through point 1, continued, and the geodesic from point 1 to
    point 2: 0 for a point further out on the same ray, π for one further in. Point 2 is inside point 1's
    entailment cone when it is at most :func:`half_aperture` of point 1.

    Parameters
    ----------
    v1, v2 : Tensor, shape (..., D)
        Tangent vectors at the origin; the leading shapes broadcast.
    c : float or Tensor
        Curvature magnitude, c > 0.

    Returns
    -------
    Tensor, shape (...)
        In [0, π]; 0 with gradient 0 where point 1 is the origin or the points coincide, for there is
        no angle there. On the ray through point 1, where the angle has a kink, the gradient is 0.

    Examples
    --------
    >>> import torch
    >>> v = torch.tensor([1.0, 0.0])
    >>> exterior_angle(v, 2 * v, c=1.0), exterior_angle(v, 0.5 * v, c=1.0)
    (tensor(0.), tensor(3.1416))
    """
    return tri.exterior_angle(_triangle(frame(c, v1, v2))).to(result_dtype(v1, v2))


def _triangle(framed: Frame) -> tri.Triangle:
    # A tangent vector's length is its radius, so the difference of lengths is the difference of radii.
    return tri.triangle(framed, lambda n: n, lambda gap, _: gap)
