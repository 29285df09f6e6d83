r"""Lorentz geometry straight from tangent vectors at the origin: what an encoder emits.

A vector ``v`` of shape (..., D) stands for the point ``expmap0(v)`` of the hyperboloid of curvature -c.
With :math:`r = \sqrt c\,|v|` and :math:`u = v/|v|` everything the losses need is a function of two radii
and of the angle θ at the origin, through :math:`w = \sin^2(θ/2) = |u_1 - u_2|^2/4`:

.. math::

    \sinh^2(\sqrt c\, d/2) &= \sinh^2\tfrac{r_1-r_2}{2} + \sinh r_1 \sinh r_2\; w \\
    \mathrm{ext}_1 &= \operatorname{atan2}(\sinh r_2 \sin θ,\;
        \sinh(r_2-r_1) - 2 \sinh r_2 \cosh r_1\, w) \\
    \mathrm{aper} &= \operatorname{asin}(\min(1,\, 2K/\sinh r))

Both terms of the first line are non-negative, so nothing cancels. Far out, where sinh overflows, the
same expressions are taken in logarithms or scaled by :math:`e^{-(r_1+r_2)}`, so there is no radius at
which a value or a gradient stops being finite.

Half-precision features are computed in float32, also under autocast. The distance is not differentiable
where its arguments coincide; the gradient there is the subgradient 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Curvature = float | Tensor

_DIRECT_LIMIT = 40.0
"""Up to r₁+r₂ = 40, sinh r₁·sinh r₂ ≤ e⁴⁰/4 ≈ 6e16 and its square root's derivatives fit float32."""


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
        Geodesic length :math:`\sqrt c\,d = 2\operatorname{asinh}\sqrt{\sinh^2((r_1-r_2)/2) +
        \sinh r_1 \sinh r_2\, w}`, divided by :math:`\sqrt c`. Exactly 0 for equal arguments.

    Examples
    --------
    >>> import torch
    >>> v = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> dist(v, v, c=1.0).tolist()
    [0.0, 0.0]
    >>> dist(v, 3 * v, c=1.0).tolist()          # along a ray, tangent lengths subtract
    [2.0, 4.0]
    """
    v1, v2 = widen(v1), widen(v2)
    root = sqrt_c(c, v1)
    r1, u1 = _polar(v1, root)
    r2, u2 = _polar(v2, root)
    # Near the origin space is flat: d = |v1-v2|(1 + O(r²)) to rounding, with nothing to underflow. Where
    # one point is the origin that is exact, and carries the gradient that sinh r = 0 would swallow.
    flat = (r1 == 0) | (r2 == 0) | (r1 + r2 < torch.finfo(r1.dtype).eps ** 0.5)
    straight = _norm(torch.where(flat[..., None], v1 - v2, 0.0))[..., 0]
    w = (u1 - u2).square().sum(-1) / 4
    curved = _distance(*(torch.where(flat, 1.0, value) for value in (r1, r2, w)))
    return torch.where(flat, straight, curved / root)


def cdist(v1: Tensor, v2: Tensor, c: Curvature) -> Tensor:
    r"""Geodesic distance of every row of ``v1`` to every row of ``v2``.

    The angles come from one matrix product of unit vectors, whose rounding leaves an absolute error of
    about one unit roundoff ε in :math:`1 - u_1·u_2`. So a distance well above
    :math:`\sqrt{ε \sinh r_1 \sinh r_2}` is accurate to rounding and one below it is not: in float32 two
    *coincident* points may come out at 6e-4, 6e-3 and 0.1 apart for r = 1, 3 and 6. Where the distance of
    a near pair matters, such as a matched image and text, take it from :func:`dist`.

    Parameters
    ----------
    v1 : Tensor, shape (..., N, D)
    v2 : Tensor, shape (..., M, D)
        Tangent vectors at the origin.
    c : float or Tensor
        Curvature magnitude, c > 0; a scalar.

    Returns
    -------
    Tensor, shape (..., N, M)

    Examples
    --------
    >>> import torch
    >>> cdist(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), c=1.0)
    tensor([[5.]])
    """
    v1, v2 = widen(v1), widen(v2)
    root = sqrt_c(c, v1)
    r1, u1 = _polar(v1, root)
    r2, u2 = _polar(v2, root)
    with torch.autocast(v1.device.type, enabled=False):
        w = ((1 - u1 @ u2.mT) / 2).clamp(0, 1)
    return _distance(r1[..., :, None], r2[..., None, :], w) / root


def dist0(v: Tensor, c: Curvature) -> Tensor:
    """Geodesic distance to the origin, |v|; the curvature drops out.

    Examples
    --------
    >>> import torch
    >>> dist0(torch.tensor([3.0, 4.0]), c=2.0)
    tensor(5.)
    """
    return _norm(widen(v))[..., 0]


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
        In (0, π/2].

    Examples
    --------
    >>> import torch
    >>> half_aperture(torch.zeros(2), c=1.0)
    tensor(1.5708)
    """
    v = widen(v)
    r = sqrt_c(c, v) * _norm(v)[..., 0]
    open_ = r <= math.asinh(2 * min_radius)
    r = torch.where(open_, 1.0 + math.asinh(2 * min_radius), r)
    # Everything times e^-r: sinh r becomes (1 - e^-2r)/2, and nothing overflows.
    sinh, k = -torch.expm1(-2 * r) / 2, 2 * min_radius * torch.exp(-r)
    angle = torch.atan2(k, torch.sqrt((sinh - k) * (sinh + k)))
    return torch.where(open_, math.pi / 2, angle)


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
        no angle there.

    Examples
    --------
    >>> import torch
    >>> v = torch.tensor([1.0, 0.0])
    >>> exterior_angle(v, 2 * v, c=1.0), exterior_angle(v, 0.5 * v, c=1.0)
    (tensor(0.), tensor(3.1416))
    """
    v1, v2 = widen(v1), widen(v2)
    root = sqrt_c(c, v1)
    r1, u1 = _polar(v1, root)
    r2, u2 = _polar(v2, root)
    difference = u1 - u2
    chord = torch.linalg.vector_norm(difference, dim=-1)
    w = difference.square().sum(-1) / 4
    sin_theta = chord * torch.linalg.vector_norm(u1 + u2, dim=-1) / 2
    # Both arguments of atan2 times 2 e^-r2, divided by cosh r1 ~ e^r1 where that is large.
    grown = -torch.expm1(-2 * r2)  # 2 e^-r2 sinh r2
    damped = torch.exp(-r1)
    across = grown * sin_theta * damped
    cosh = (1 + damped.square()) / 2
    # sinh(r2-r1) e^-r2 e^-r1: the bracket is in (-1, 1] on either side of r1 = r2.
    gap = r2 - r1
    along = torch.where(
        gap >= 0,
        -torch.expm1(-2 * gap.clamp(min=0)) * damped.square(),
        torch.expm1(2 * gap.clamp(max=0)) * torch.exp(-2 * r2),
    )
    along = along - 2 * grown * cosh * w
    undefined = (r1 == 0) | ((across == 0) & (along == 0))
    return torch.where(
        undefined,
        0.0,
        torch.atan2(torch.where(undefined, 0.0, across), torch.where(undefined, 1.0, along)),
    )


def _distance(r1: Tensor, r2: Tensor, w: Tensor) -> Tensor:
    """√c·d from radii and w = sin²(θ/2); 0 with gradient 0 where it vanishes."""
    direct = r1 + r2 <= _DIRECT_LIMIT
    a, b = torch.where(direct, r1, 0.0), torch.where(direct, r2, 0.0)
    q = torch.sinh((a - b) / 2).square() + torch.sinh(a) * torch.sinh(b) * w
    apart = q > 0
    near = torch.where(apart, 2 * torch.asinh(torch.sqrt(torch.where(apart, q, 1.0))), 0.0)
    if r1.device.type == "cpu" and not torch.compiler.is_compiling() and bool(direct.all()):
        return near  # the usual case, at a third of the cost; elsewhere looking would synchronize
    far = ~direct
    gap = torch.where(far, (r1 - r2).abs(), 1.0)
    radial = torch.where(gap > 0, gap, 1.0)
    # log sinh²(gap/2) and log(sinh r1 sinh r2 w), each -inf where its term vanishes.
    log_radial = radial + 2 * torch.log(-torch.expm1(-radial)) - math.log(4)
    turned = far & (w > 0) & (r1 > 0) & (r2 > 0)
    a, b = torch.where(turned, r1, 1.0), torch.where(turned, r2, 1.0)
    log_turn = a + torch.log(-torch.expm1(-2 * a)) + b + torch.log(-torch.expm1(-2 * b)) - math.log(4)
    log_turn = log_turn + torch.log(torch.where(turned, w, 1.0))
    log_q = torch.where(
        gap > 0,
        torch.where(turned, torch.logaddexp(log_radial, log_turn), log_radial),
        torch.where(turned, log_turn, 0.0),
    )
    # asinh(e^(q/2)) = q/2 + log(1 + √(1+e^-q)) for q > 0, and as it stands for q <= 0.
    large = log_q > 0
    up, down = torch.where(large, log_q, 1.0), torch.where(large, 0.0, log_q)
    distance = torch.where(
        large,
        up + 2 * torch.log1p(torch.sqrt(1 + torch.exp(-up))),
        2 * torch.asinh(torch.exp(down / 2)),
    )
    same = far & (gap == 0) & ~turned
    return torch.where(direct, near, torch.where(same, 0.0, distance))


def _polar(v: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    """Radius √c·|v| and unit vector; the zero vector has radius 0 and the zero vector as direction."""
    norm = _norm(v)
    return root * norm[..., 0], v / torch.where(norm > 0, norm, 1.0)


def _norm(v: Tensor) -> Tensor:
    """Euclidean norm over the last dimension, kept; no square in it under- or overflows."""
    largest = v.detach().abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest, 1.0)
    norm: Tensor = torch.linalg.vector_norm(v / scale, dim=-1, keepdim=True) * scale
    return norm


def sqrt_c(c: Curvature, like: Tensor) -> Tensor:
    """√c as a tensor of ``like``'s dtype; ValueError for a number that is not positive."""
    if isinstance(c, Tensor):
        return c.to(like.dtype).sqrt()
    if not c > 0:
        raise ValueError(f"the curvature magnitude c must be positive, got {c}")
    return torch.tensor(math.sqrt(c), dtype=like.dtype, device=like.device)


def widen(v: Tensor) -> Tensor:
    """At least float32: half precision has no digits to spare for geometry."""
    if not v.is_floating_point():
        raise TypeError(f"expected floating-point vectors, got {v.dtype}")
    return v.float() if v.dtype in (torch.float16, torch.bfloat16) else v
