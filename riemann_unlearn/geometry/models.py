r"""The other models of hyperbolic space: the Poincaré ball and the Klein model, both of radius 1/√c.

With the space components x of a point and its time component :math:`x_t`,

.. math::

    b = \frac{x}{1 + \sqrt c\,x_t}, \qquad k = \frac{x}{\sqrt c\,x_t}.

Both put the whole space into a ball, at the price of digits: the float32 number next to the boundary of the
Poincaré ball is at radius 17.3, that of the Klein model at 9. The passages are exact to rounding; what a
stored coordinate has lost they cannot find again.
"""

from __future__ import annotations

from torch import Tensor

from riemann_unlearn.geometry.precision import Curvature
from riemann_unlearn.geometry.primitives import radial
from riemann_unlearn.geometry.profiles import FROM_KLEIN, FROM_POINCARE, TO_KLEIN, TO_POINCARE

__all__ = ["from_klein", "from_poincare", "to_klein", "to_poincare"]


def to_poincare(x: Tensor, c: Curvature) -> Tensor:
    """Poincaré ball coordinates of points, those of ``geoopt.PoincareBall(c)``.

    Parameters
    ----------
    x : Tensor, shape (..., D)
        Space components.
    c : float or Tensor
        Curvature magnitude, c > 0.

    Returns
    -------
    Tensor, shape (..., D)
        Of length at most 1/√c; it is reached, by rounding, from radius 17 on in float32.

    Examples
    --------
    >>> import torch
    >>> to_poincare(torch.tensor([0.75, 0.0]), c=1.0)
    tensor([0.3333, 0.0000])
    """
    return radial(x, c, TO_POINCARE)


def from_poincare(b: Tensor, c: Curvature) -> Tensor:
    """Space components of the points with Poincaré ball coordinates ``b``.

    Parameters
    ----------
    b : Tensor, shape (..., D)
        Points of the ball, |b| < 1/√c. What lies on its boundary or beyond is no point and is taken for the
        last one before it in float64, at radius 37.
    c : float or Tensor
        Curvature magnitude, c > 0.

    Examples
    --------
    >>> import torch
    >>> from_poincare(torch.tensor([1 / 3, 0.0]), c=1.0)
    tensor([0.7500, 0.0000])
    """
    return radial(b, c, FROM_POINCARE)


def to_klein(x: Tensor, c: Curvature) -> Tensor:
    """Klein coordinates of points, in which geodesics are straight lines.

    Parameters
    ----------
    x : Tensor, shape (..., D)
        Space components.
    c : float or Tensor
        Curvature magnitude, c > 0.

    Examples
    --------
    >>> import torch
    >>> to_klein(torch.tensor([0.75, 0.0]), c=1.0)
    tensor([0.6000, 0.0000])
    """
    return radial(x, c, TO_KLEIN)


def from_klein(k: Tensor, c: Curvature) -> Tensor:
    """Space components of the points with Klein coordinates ``k``.

    Parameters
    ----------
    k : Tensor, shape (..., D)
        |k| < 1/√c; on the boundary and beyond as :func:`from_poincare`, at radius 19.
    c : float or Tensor
        Curvature magnitude, c > 0.

    Examples
    --------
    >>> import torch
    >>> from_klein(torch.tensor([0.6, 0.0]), c=1.0)
    tensor([0.7500, 0.0000])
    """
    return radial(k, c, FROM_KLEIN)
