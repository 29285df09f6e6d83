r"""The Poincaré ball, of radius 1/√c.

With the space components x of a point and its time component :math:`x_t`,

.. math:: b = \frac{x}{1 + \sqrt c\,x_t}.

It puts the whole space into a ball, at the price of digits: the float32 number next to the boundary is at
radius 17.3. The passages are exact to rounding; what a stored coordinate has lost they cannot find again.
"""

from __future__ import annotations

from torch import Tensor

from riemann_unlearn.geometry.precision import Curvature
from riemann_unlearn.geometry.primitives import radial
from riemann_unlearn.geometry.profiles import FROM_POINCARE, TO_POINCARE

__all__ = ["from_poincare", "to_poincare"]


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
