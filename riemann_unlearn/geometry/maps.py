r"""The maps of the Lorentz model between points and tangent vectors, in space components.

**Tangent vectors** are given by their space components too: a tangent vector at ``x`` is an ambient vector
with :math:`\langle x, u\rangle = x\cdot u - x_t u_t = 0`, so its time component
:math:`u_t = x\cdot u/x_t` follows, and its squared length is
:math:`|u|^2 - u_t^2 = |u_\perp|^2 + u_\parallel^2/(1 + c|x|^2)` with the parts of u across and along x.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from riemann_unlearn.geometry import triangle as tri
from riemann_unlearn.geometry.frame import Frame, point_frame
from riemann_unlearn.geometry.precision import (
    Curvature,
    dot,
    result_dtype,
    span,
    unit_vector,
    within,
)
from riemann_unlearn.geometry.primitives import radial
from riemann_unlearn.geometry.profiles import EXPONENTIAL, LOGARITHM, farthest, held, sinhc
from riemann_unlearn.geometry.space import points_triangle

_FAR = 700.0
"""sinh and cosh of it are finite in float64; no point that float32 holds is that far out."""

_NEAR = 1.0
"""Within this √c|x|, where |x| < x_t/√2, x itself serves; beyond, its length and its direction."""

__all__ = [
    "expmap",
    "expmap0",
    "inner",
    "logmap",
    "logmap0",
    "parallel_transport",
    "parallel_transport0",
    "parallel_transport0back",
]


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
        Space components, at least float32. Past the radius at which they leave the dtype (about 88 in
        float32, 700 in float64) the point stays there, and the gradient along v is 0.

    Examples
    --------
    >>> import torch
    >>> expmap0(torch.tensor([1.0, 0.0]), c=1.0)
    tensor([1.1752, 0.0000])
    """
    return radial(v, c, EXPONENTIAL)


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
    return radial(x, c, LOGARITHM)


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
    framed = point_frame(c, x, u)
    a, b = framed.wide()
    tangent_length, largest = _tangent_length(a, b, framed.root)
    n = framed.root * tangent_length
    # Past the end of the dtype the length is held, for the two terms may have opposite signs.
    # e^n times the largest coordinate has to fit, so its logarithm is taken from the farthest n. The longest
    # vectors leave no room, and are moved by at most 1.
    room = farthest(n.dtype) - torch.log1p(framed.back(largest))
    n = torch.minimum(n, room.clamp(min=1))[..., None]
    moved = a + 2 * torch.sinh(n / 2).square() * a + sinhc(n) * b
    return within(framed.vector_back(moved), framed.data)


def logmap(x: Tensor, y: Tensor, c: Curvature) -> Tensor:
    r"""Logarithmic map, :math:`\frac{D}{\sinh D}\,(y - x) - D \tanh(D/2)\,x` with D = √c·d.

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
    framed = point_frame(c, x, y)
    a, b = framed.wide()
    d = tri.side(points_triangle(framed))[..., None]
    # D/sinh D·(y - cosh D·x) with cosh D = 1 + (cosh D - 1) and (cosh D - 1)/sinh D = tanh(D/2): near points
    # are subtracted as they are stored, and nothing else cancels.
    u = (b - a) / sinhc(d) - d * torch.tanh(d / 2) * a
    return within(framed.vector_back(u), framed.data)


def parallel_transport(x: Tensor, y: Tensor, u: Tensor, c: Curvature) -> Tensor:
    r"""Parallel transport from x to y, :math:`u + c\langle y,u\rangle (x+y)/(2\cosh^2(D/2))`.

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
    framed, vector = point_frame(c, x, y), point_frame(c, u)
    (a, b), (w,), root = framed.wide(), vector.wide(), framed.root
    near = _radius(a, root) < _NEAR
    # Either is computed for all rows, with other numbers put in where the other one is taken, so that
    # no derivative there is infinite or NaN.
    factor = torch.where(near, _near_factor(a, b, w, root, near), _far_factor(framed, w, near))
    moved = vector.vector_back(w + factor[..., None] * (a + b))
    return within(moved, result_dtype(x, y, u))


def parallel_transport0(y: Tensor, u: Tensor, c: Curvature) -> Tensor:
    r"""Parallel transport from the origin to y: what u has along y grows by cosh r, the rest stays.

    Parameters
    ----------
    y : Tensor, shape (..., D)
        Space components of points.
    u : Tensor, shape (..., D)
        Tangent vectors at the origin.
    c : float or Tensor
        Curvature magnitude, c > 0.

    Returns
    -------
    Tensor, shape (..., D)
        Space components of tangent vectors at ``y``.

    Examples
    --------
    >>> import torch
    >>> y, u = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0])
    >>> torch.allclose(parallel_transport0(y, u, c=1.0), parallel_transport(0 * y, y, u, c=1.0))
    True
    """
    framed, vector = point_frame(c, y), point_frame(c, u)
    (a,), (w,), root = framed.wide(), vector.wide(), framed.root
    time = _time(_radius(a, root))
    # (cosh r - 1)·(w·ŷ)·ŷ, with the lengths of y cancelled: the origin has no direction.
    # By (cosh r - 1)(cosh r + 1) = c|y|² that is c(w·y)/(1 + cosh r)·y.
    grown = root * (root * dot(w, a) / (1 + time))
    return within(vector.vector_back(w + grown[..., None] * a), result_dtype(y, u))


def parallel_transport0back(x: Tensor, u: Tensor, c: Curvature) -> Tensor:
    r"""Parallel transport from x to the origin, the inverse of :func:`parallel_transport0`.

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
        Tangent vectors at the origin.

    Examples
    --------
    >>> import torch
    >>> x, u = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0])
    >>> back = parallel_transport0back(x, parallel_transport0(x, u, c=1.0), c=1.0)
    >>> torch.allclose(back, u, atol=1e-6)
    True
    """
    framed, vector = point_frame(c, x), point_frame(c, u)
    (a,), (w,), root = framed.wide(), vector.wide(), framed.root
    radius = _radius(a, root)
    near, time = radius < _NEAR, _time(radius)
    p = _parts(a, w, near)
    # Far out what u has along x nearly vanishes, and must not be a difference of what it has.
    far = p.across + (p.along / time)[..., None] * p.axis
    # (1 - 1/cosh r)(w·x̂)·x̂ by the same identity: c(w·x)/(cosh r (1 + cosh r))·x.
    shrunk = root * (root * dot(w, a) / (time * (1 + time)))
    moved = torch.where(near[..., None], w - shrunk[..., None] * a, far)
    return within(vector.vector_back(moved), result_dtype(x, u))


def inner(x: Tensor, u: Tensor, v: Tensor, c: Curvature) -> Tensor:
    r"""Inner product of tangent vectors, :math:`u_\perp\cdot v_\perp + u_\parallel v_\parallel/(1 + c|x|^2)`.

    Parameters
    ----------
    x : Tensor, shape (..., D)
        Space components of points.
    u, v : Tensor, shape (..., D)
        Space components of tangent vectors at ``x``.
    c : float or Tensor
        Curvature magnitude, c > 0.

    Returns
    -------
    Tensor, shape (...)

    Examples
    --------
    >>> import torch
    >>> x, y = torch.tensor([0.5, 0.0]), torch.tensor([-1.0, 2.0])
    >>> u = logmap(x, y, c=2.0)
    >>> from riemann_unlearn.geometry import dist
    >>> torch.allclose(inner(x, u, u, c=2.0).sqrt(), dist(x, y, c=2.0))
    True
    """
    framed, first, second = point_frame(c, x), point_frame(c, u), point_frame(c, v)
    (a,), (w,), (z,), root = framed.wide(), first.wide(), second.wide(), framed.root
    radius = _radius(a, root)
    near, time = radius < _NEAR, _time(radius)
    p, q = _parts(a, w, near), _parts(a, z, near)
    far = dot(p.across, q.across) + (p.along / time) * (q.along / time)
    # u·v - u_t v_t with u_t = x·u/x_t and x_t = cosh r/√c. It asks for no direction of x.
    close = dot(w, z) - (root * dot(a, w) / time) * (root * dot(a, z) / time)
    return within(first.back(second.back(torch.where(near, close, far))), result_dtype(x, u, v))


class _Parts(NamedTuple):
    """A vector by what it has along and across a point; all in the working dtype."""

    axis: Tensor
    """Unit vector towards the point."""
    along: Tensor
    across: Tensor


def _parts(point: Tensor, w: Tensor, near: Tensor) -> _Parts:
    """The parts of ``w``; for points ``near`` the origin, where no one uses them, by another direction."""
    # The derivative of a direction is one over the length. Where what the directions are put to is smooth
    # these derivatives cancel, but not their rounding; and at the origin there is none.
    point = torch.where(near[..., None], 1.0, point)
    axis = unit_vector(point, span(point))
    along = dot(w, axis)
    return _Parts(axis, along, w - along[..., None] * axis)


def _radius(point: Tensor, root: Tensor) -> Tensor:
    """√c|x| of a point in its frame."""
    return tri.bounded(root * span(point))


def _time(radius: Tensor) -> Tensor:
    """√(1 + c|x|²)"""
    return torch.hypot(radius, torch.ones_like(radius))


def _near_factor(a: Tensor, b: Tensor, w: Tensor, root: Tensor, near: Tensor) -> Tensor:
    r"""c⟨y,u⟩/(2cosh²(D/2)) for x near the origin, in x, y and u themselves, which is smooth there.

    :math:`\langle y,u\rangle = u\cdot κ` with :math:`κ = y - (y_t/x_t)\,x = Δ - (Δ_t/x_t)\,x`,
    Δ = y - x and :math:`Δ_t = Δ\cdot(x+y)/(x_t+y_t)`; the denominator is :math:`1 + c(x_t y_t - x\cdot y)`.
    Within |x| < x_t/√2, where c|x|² < 1, neither difference loses more than two bits. In rows that are not
    ``near`` the origin is taken for x.
    """
    a = torch.where(near[..., None], a, 0.0)
    time1, time2 = (_time(_radius(v, root)) for v in (a, b))
    difference = b - a
    rise = root * (dot(difference, a + b) / (time1 + time2))
    offset = difference - (root * rise / time1)[..., None] * a
    double = 1 + time1 * time2 - root * (root * dot(a, b))
    return root * (root * dot(offset, w) / double)


def _far_factor(framed: Frame, w: Tensor, near: Tensor) -> Tensor:
    """The same for other points, where those differences cancel: by the parts along and across x."""
    (a, b), root = framed.wide(), framed.root
    t = points_triangle(framed)
    p = _parts(a, w, near)
    # What u has along x meets y's radial offset, sinh(r₂-r₁) - 2 sinh r₂ cosh r₁ sin²(θ/2), and what it has
    # across x meets what y has across x. All over cosh²(D/2), factor by factor.
    scale = torch.cosh(held(tri.side(t) / 2))
    half_gap = (t.gap / 2).clamp(-_FAR, _FAR)
    radial_offset = (torch.sinh(half_gap) / scale) * (torch.cosh(half_gap) / scale)
    far1, far2 = t.r1.clamp(max=_FAR), t.r2.clamp(max=_FAR)
    bend = (torch.sinh(far2) * t.half_sine / scale) * (torch.cosh(far1) * t.half_sine / scale)
    offset = -2 * (radial_offset + bend)
    # p.across is orthogonal to the axis only up to rounding, and what y has along it can be much longer than
    # what it has across: the former is taken off first.
    across = dot(b - dot(b, p.axis)[..., None] * p.axis, p.across)
    along = root * p.along / _time(_radius(a, root))
    return (along * offset + root * (root * across / scale) / scale) / 2


def _tangent_length(x: Tensor, u: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    """Length of the tangent vectors u at x, and a bound of the coordinates of both.

    Near the origin |u|² - u_t², which does not ask for the direction of x; further out, where that cancels,
    from the parts of u along and across x.
    """
    size = span(x)
    near = root * size < _NEAR
    time = _time(root * size)
    whole = span(u)
    # A bound chooses where to hold; nothing should flow through it.
    bound = (size + whole).detach()
    rise = root * dot(x, u) / time
    # The root has no derivative at 0, so a zero vector is taken for one of length 1 until the end.
    some = near & (whole > 0)
    whole, rise = torch.where(some, whole, 1.0), torch.where(some, rise, 0.0)
    close = torch.sqrt((whole - rise) * (whole + rise))
    p = _parts(x, u, near)
    across, ratio = span(p.across), p.along / time
    shape = (across + ratio).shape
    # The length of the pair by span, for torch.hypot has a NaN gradient at (0, 0).
    parts = span(torch.stack([across.expand(shape), ratio.expand(shape)], -1))
    return torch.where(near, torch.where(some, close, 0.0), parts), bound
