r"""The Lorentz model in space components: points, and the way to and from the tangent space at the origin.

A point of the hyperboloid of curvature -c has space components ``x`` of shape (..., D) and the time
component :math:`\sqrt{1/c + |x|^2}` (MERU's convention). Its ambient form ``p``, shape (..., D+1), has time
first (geoopt's convention, whose ``Lorentz(k)`` has k = 1/c).

A point's coordinates grow like :math:`\sinh(\sqrt c\,|v|)`: rounding them moves the point by about one unit
roundoff times that, and float32 ends at radius 88. Where it can be had, the tangent vector is the better
representation; see :mod:`riemann_unlearn.geometry.tangent`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from riemann_unlearn.geometry.tangent import Curvature, sqrt_c, widen


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
    v = widen(v)
    return _stretch(v, sqrt_c(c, v), torch.sinh)


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
    x = widen(x)
    return _stretch(x, sqrt_c(c, x), torch.asinh)


def to_ambient(x: Tensor, c: Curvature) -> Tensor:
    r"""Space components with the time component :math:`\sqrt{1/c + |x|^2}` put before them.

    Examples
    --------
    >>> import torch
    >>> to_ambient(torch.zeros(2), c=0.25)
    tensor([2., 0., 0.])
    """
    x = widen(x)
    radius = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    time = torch.hypot(radius, (1 / sqrt_c(c, x)).expand_as(radius))
    return torch.cat([time, x], -1)


def from_ambient(p: Tensor) -> Tensor:
    """Space components of an ambient point; its time component follows from them.

    Examples
    --------
    >>> import torch
    >>> from_ambient(torch.tensor([2.0, 0.0, 0.0]))
    tensor([0., 0.])
    """
    return p[..., 1:]


def _stretch(x: Tensor, root: Tensor, function: object) -> Tensor:
    """x·f(n)/n with n = √c|x|; f(n)/n is 1 at 0, with gradient 0."""
    n = root * torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    away = n > 0
    n = torch.where(away, n, 1.0)
    return x * torch.where(away, function(n) / n, 1.0)  # type: ignore[operator]
