r"""The maps of the Lorentz model between points and tangent vectors, in space components.

**Tangent vectors** are given by their space components too: a tangent vector at ``x`` is an ambient vector
with :math:`\langle x, u\rangle = x\cdot u - x_t u_t = 0`, so its time component
:math:`u_t = x\cdot u/x_t` follows, and its squared length is
:math:`|u|^2 - u_t^2 = |u_\perp|^2 + u_\parallel^2/(1 + c|x|^2)` with the parts of u across and along x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from riemann_unlearn.geometry import triangle as tri
from riemann_unlearn.geometry.precision import Curvature, length, result_dtype, sqrt_c, working
from riemann_unlearn.geometry.space import points_triangle, time_component

__all__ = ["expmap", "expmap0", "logmap", "logmap0", "parallel_transport"]


def expmap0(v: Tensor, c: Curvature) -> Tensor:
    r"""Exponential map at the origin, :math:`v \sinh(\sqrt c|v|)/(\sqrt c|v|)`.

    Parameters
    ----------
    v : Tensor, shape (..., D)
        Tangent vectors at the origin.
    c : float or Tensor
        Curvature magnitude, c > 0.

    Returns
    -------
    Tensor, shape (..., D)
        Space components, at least float32. Infinite where they exceed the dtype: from √c|v| of about 88
        in float32.

    Examples
    --------
    >>> import torch
    >>> expmap0(torch.tensor([1.0, 0.0]), c=1.0)
    tensor([1.1752, 0.0000])
    """
    wide = working(v)
    n = sqrt_c(c, wide) * length(wide)
    return (wide * _sinhc(n)[..., None]).to(result_dtype(v))


def logmap0(x: Tensor, c: Curvature) -> Tensor:
    r"""Logarithmic map at the origin, :math:`x \operatorname{asinh}(\sqrt c|x|)/(\sqrt c|x|)`.

    The inverse of :func:`expmap0`.

    Parameters
    ----------
    x : Tensor, shape (..., D)
        Space components of points.
    c : float or Tensor
        Curvature magnitude, c > 0.

    Returns
    -------
    Tensor, shape (..., D)
        Tangent vectors at the origin, at least float32.

    Examples
    --------
    >>> import torch
    >>> v = torch.tensor([3.0, 4.0])
    >>> torch.allclose(logmap0(expmap0(v, c=1.0), c=1.0), v)
    True
    """
    wide = working(x)
    n = sqrt_c(c, wide) * length(wide)
    away = n > 0
    n = torch.where(away, n, 1.0)
    return (wide * torch.where(away, torch.asinh(n) / n, 1.0)[..., None]).to(result_dtype(x))


def expmap(x: Tensor, u: Tensor, c: Curvature) -> Tensor:
    r"""Exponential map, :math:`\cosh(n)\,x + \frac{\sinh n}{n}\,u` with :math:`n = \sqrt c\,\|u\|`.

    Parameters
    ----------
    x : Tensor, shape (..., D)
        Space components of points.
    u : Tensor, shape (..., D)
        Space components of tangent vectors at ``x``.
    c : float or Tensor
        Curvature magnitude, c > 0.

    Returns
    -------
    Tensor, shape (..., D)
        Space components of the end points.

    Examples
    --------
    >>> import torch
    >>> from riemann_unlearn.geometry import dist
    >>> x = torch.tensor([0.5, 0.0])
    >>> torch.allclose(dist(x, expmap(x, torch.tensor([0.0, 2.0]), c=1.0), c=1.0), torch.tensor(2.0))
    True
    """
    a, b = working(x), working(u)
    root = sqrt_c(c, a)
    n = (root * _norm(a, b, root))[..., None]
    moved = a + 2 * torch.sinh(n / 2).square() * a + _sinhc(n) * b
    return moved.to(result_dtype(x, u))


def logmap(x: Tensor, y: Tensor, c: Curvature) -> Tensor:
    r"""Logarithmic map, :math:`\frac{D}{\sinh D}\,(y - x - 2Q\,x)`, :math:`Q = \sinh^2(D/2)`, D = √c·d.

    Parameters
    ----------
    x, y : Tensor, shape (..., D)
        Space components of points; the leading shapes broadcast.
    c : float or Tensor
        Curvature magnitude, c > 0.

    Returns
    -------
    Tensor, shape (..., D)
        Space components of the tangent vector at ``x`` that :func:`expmap` takes to ``y``; 0 with its
        finite gradient for ``x = y``.

    Examples
    --------
    >>> import torch
    >>> x, y = torch.tensor([0.5, 0.0]), torch.tensor([-1.0, 2.0])
    >>> torch.allclose(expmap(x, logmap(x, y, c=2.0), c=2.0), y)
    True
    """
    a, b = working(x), working(y)
    t, _ = points_triangle(a, b, c)
    d = tri.side(t)[..., None]
    direction = b - a - 2 * torch.sinh(d / 2).square() * a
    return (direction / _sinhc(d)).to(result_dtype(x, y))


def parallel_transport(x: Tensor, y: Tensor, u: Tensor, c: Curvature) -> Tensor:
    r"""Parallel transport along the geodesic from x to y, :math:`u + c\langle y,u\rangle (x+y)/(2+2Q)`.

    Parameters
    ----------
    x, y : Tensor, shape (..., D)
        Space components of points.
    u : Tensor, shape (..., D)
        Space components of tangent vectors at ``x``.
    c : float or Tensor
        Curvature magnitude, c > 0.

    Returns
    -------
    Tensor, shape (..., D)
        Space components of tangent vectors at ``y``; lengths and angles are kept.

    Examples
    --------
    >>> import torch
    >>> x, y = torch.tensor([0.5, 0.0]), torch.tensor([-1.0, 2.0])
    >>> torch.allclose(parallel_transport(x, y, logmap(x, y, c=1.0), c=1.0), -logmap(y, x, c=1.0))
    True
    """
    a, b, w = working(x), working(y), working(u)
    t, root = points_triangle(a, b, c)
    time_a, time_b = time_component(a, root), time_component(b, root)
    # <y,u> = <y-x,u>, for <x,u> = 0.
    difference = b - a
    rise = (difference * (a + b)).sum(-1) / (time_a + time_b)
    inner = (difference * w).sum(-1) - rise * (a * w).sum(-1) / time_a
    factor = (root / torch.cosh(tri.side(t) / 2)).square() * inner / 2
    return (w + factor[..., None] * (a + b)).to(result_dtype(x, y, u))


def _norm(x: Tensor, u: Tensor, root: Tensor) -> Tensor:
    """Length of the tangent vectors u at x, from their parts along and across x."""
    size = length(x)
    axis = x / torch.where(size > 0, size, 1.0)[..., None]
    along = (u * axis).sum(-1)
    across = length(u - along[..., None] * axis)
    ratio = along / torch.sqrt(1 + (root * size).square())
    some = (across > 0) | (ratio != 0)
    return torch.where(some, torch.hypot(torch.where(some, across, 1.0), ratio), 0.0)


def _sinhc(n: Tensor) -> Tensor:
    """sinh(n)/n, 1 with gradient 0 at 0."""
    away = n > 0
    n = torch.where(away, n, 1.0)
    return torch.where(away, torch.sinh(n) / n, 1.0)
