r"""Points between points: geodesics, midpoints and centroids, in space components."""

from __future__ import annotations

import torch
from torch import Tensor

from riemann_unlearn.geometry import triangle as tri
from riemann_unlearn.geometry.frame import point_frame
from riemann_unlearn.geometry.precision import (
    Curvature,
    dot,
    span,
    unit_vector,
    within,
)
from riemann_unlearn.geometry.profiles import sinhc
from riemann_unlearn.geometry.space import points_triangle

__all__ = ["centroid", "geodesic", "midpoint"]


def geodesic(x: Tensor, y: Tensor, t: float | Tensor, c: Curvature) -> Tensor:
    r"""The point a fraction t of the way from x to y.

    :math:`(\sinh((1-t)D)\,x + \sinh(tD)\,y)/\sinh D` with D = √c·d.

    Parameters
    ----------
    x, y : Tensor, shape (..., D)
        Space components of points.
    t : float or Tensor
        0 gives x and 1 gives y; between them nothing cancels or overflows. Broadcasts against the batch.
    c : float or Tensor
        Curvature magnitude, c > 0.

    Returns
    -------
    Tensor, shape (..., D)

    Examples
    --------
    >>> import torch
    >>> from riemann_unlearn.geometry import expmap0
    >>> v = torch.tensor([3.0, 4.0])
    >>> torch.allclose(geodesic(0 * v, expmap0(v, c=1.0), 0.5, c=1.0), expmap0(v / 2, c=1.0))
    True
    """
    framed = point_frame(c, x, y)
    a, b = framed.wide()
    d = tri.side(points_triangle(framed))
    part = torch.as_tensor(t, dtype=d.dtype, device=d.device)
    # Between the points each share is at most 1; far out it is found without its two sinhs.
    first, second = _share(1 - part, d)[..., None], _share(part, d)[..., None]
    return within(framed.vector_back(first * a + second * b), framed.data)


def midpoint(x: Tensor, y: Tensor, c: Curvature) -> Tensor:
    r"""The point halfway from x to y, :math:`(x+y)/(2\cosh(D/2))`.

    Parameters
    ----------
    x, y : Tensor, shape (..., D)
        Space components of points.
    c : float or Tensor
        Curvature magnitude, c > 0.

    Returns
    -------
    Tensor, shape (..., D)

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([0.3, -0.4])
    >>> midpoint(x, x, c=1.0), midpoint(x, -x, c=1.0)
    (tensor([ 0.3000, -0.4000]), tensor([0., 0.]))
    """
    framed = point_frame(c, x, y)
    a, b = framed.wide()
    # 1/(2 cosh(D/2)) = e^(-D/2)/(1 + e^-D), which does not overflow.
    near = torch.exp(-tri.side(points_triangle(framed)) / 2)
    return within(framed.vector_back((a + b) * (near / (1 + near * near))[..., None]), framed.data)


def centroid(x: Tensor, c: Curvature, weights: Tensor | None = None) -> Tensor:
    r"""The Lorentz centroid of points, :math:`\sum w_i p_i` of the ambient points, scaled onto the manifold.

    It minimizes the weighted sum of the squared Lorentz distances :math:`-2/c - 2\langle p, p_i\rangle`
    (Law et al. 2019) and has a closed form. It is not Fréchet's mean, but near it for points that lie
    together.

    Parameters
    ----------
    x : Tensor, shape (..., N, D)
        Space components of points.
    c : float or Tensor
        Curvature magnitude, c > 0; a scalar.
    weights : Tensor, shape (..., N), optional
        Non-negative, not all zero; only their ratios matter. Equal when not given.

    Returns
    -------
    Tensor, shape (..., D)

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[0.3, -0.4], [0.0, 1.0]])
    >>> torch.allclose(centroid(x, c=1.0), midpoint(x[0], x[1], c=1.0))
    True
    """
    framed = point_frame(c, x.flatten(-2))  # in one unit
    (flat,), root = framed.wide(), framed.root
    a = flat.unflatten(-1, x.shape[-2:])  # type: ignore[no-untyped-call]
    w = torch.ones_like(a[..., 0]) if weights is None else weights.to(a)
    # Only ratios matter; with weights that add up to 1 the sums below are no larger than the points.
    w = w / w.sum(-1, keepdim=True)
    times = torch.hypot(span(a), 1 / root[..., None])
    mean = dot(w[..., None, :], a.mT)
    size = span(mean)
    axis = unit_vector(mean, size)[..., None, :]
    # <m,m> = (t+|m|)(t-|m|), and t-|m| is the mean of t_i - x_i·m̂, which has a form without cancellation.
    along = dot(a, axis)
    across = span(a - along[..., None] * axis)
    ahead = along > 0
    # t - p = (t² - p²)/(t + p) and t² = 1/c + |x|², so that t² - p² is 1/c and the square of the part across.
    # A point behind, with p < 0, is added as it is.
    near = (root[..., None] ** -2 + across.square()) / (times + torch.where(ahead, along, 0.0))
    below = dot(w, torch.where(ahead, near, times - along))
    above = dot(w, times) + size
    # Two roots rather than the root of a product, which far points would take out of the dtype.
    centre = mean / (root * torch.sqrt(below) * torch.sqrt(above))[..., None]
    return within(framed.vector_back(centre), framed.data)


def _share(t: Tensor, d: Tensor) -> Tensor:
    """sinh(t·d)/sinh(d), t for d = 0."""
    near = d < 1  # not NaN, which then is seen
    short, long = torch.where(near, d, 0.0), torch.where(near, 1.0, d)
    # Between near points by series: the derivative of the quotient is a difference of terms of size 1/d.
    small = t * sinhc(t.abs() * short) / sinhc(short)
    # e^((t-1)d)·(1 - e^(-2td))/(1 - e^(-2d)): no exponent is positive for t in [0, 1].
    large = torch.exp((t - 1) * long) * (torch.expm1(-2 * t * long) / torch.expm1(-2 * long))
    return torch.where(near, small, large)
