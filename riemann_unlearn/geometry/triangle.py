r"""The hyperbolic triangle with one corner at the origin, which every function of two points comes down to.

It is given by two radii, in units of the curvature radius, and the angle θ between them. The side
opposite the origin and the exterior angle at corner 1 are

.. math::

    \sinh^2\tfrac{D}{2} &= \sinh^2\tfrac{r_1-r_2}{2} + \sinh r_1 \sinh r_2 \sin^2\tfrac θ2 \\
    \mathrm{ext}_1 &= \operatorname{atan2}(\sinh r_2 \sin θ,\;
        \sinh(r_2-r_1) - 2 \sinh r_2 \cosh r_1 \sin^2\tfrac θ2)

The first has no cancellation. In the second, every term is at most about sinh D, which is the length of
the pair (law of sines), so the angle is right to rounding. What remains is to find r₁ - r₂ and θ from two
vectors without cancellation, by their difference: :func:`~riemann_unlearn.geometry.primitives.corner` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from riemann_unlearn.geometry.frame import Frame
from riemann_unlearn.geometry.primitives import corner


class Triangle(NamedTuple):
    """Two radii and the angle between them, each in the form that keeps its digits."""

    r1: Tensor
    r2: Tensor
    gap: Tensor
    """r₁ - r₂, from the difference of the points."""
    sine: Tensor
    """sin θ; 0 where a corner is at the origin."""
    half_sine: Tensor
    """sin(θ/2); 0 where a corner is at the origin."""


def triangle(
    framed: Frame, radius: Callable[[Tensor], Tensor], radial_gap: Callable[[Tensor, Tensor], Tensor]
) -> Triangle:
    """The triangle of the origin and two points, given by vectors from the origin.

    Parameters
    ----------
    framed : Frame
        Its first two vectors are taken.
    radius : callable
        Takes √c·|p| to the radius.
    radial_gap : callable
        Takes √c·(|p|-|q|), accurate, and r₁+r₂ to r₁-r₂.
    """
    root = framed.root
    p, q = framed.vectors[:2]
    n1, n2, gap, sine, half_sine = corner(p, q, framed.data)
    r1, r2 = radius(bounded(root * n1)), radius(bounded(root * n2))
    return Triangle(r1, r2, radial_gap(bounded(root * gap), r1 + r2), sine, half_sine)


def side(t: Triangle) -> Tensor:
    """D, the side opposite the origin; 0 with gradient 0 where the corners coincide."""
    direct = ~(t.r1 + t.r2 > _direct_limit(t.r1.dtype))  # with what is NaN, which then is seen
    radial = torch.sinh(torch.where(direct, t.gap, 0.0) / 2)
    turned = direct & (t.half_sine > 0)
    turn = _sqrt_sinh(t.r1, turned) * _sqrt_sinh(t.r2, turned) * torch.where(turned, t.half_sine, 0.0)
    # torch.hypot has a NaN gradient at (0, 0): coincident corners are computed at 1 and not used.
    apart = (radial != 0) | (turn > 0)
    q = torch.hypot(torch.where(apart, radial, 1.0), turn)
    near = torch.where(apart, 2 * asinh(q), 0.0)
    return torch.where(direct, near, _far_side(t, ~direct))


def exterior_angle(t: Triangle) -> Tensor:
    """The exterior angle at corner 1; 0 with gradient 0 where there is none, and gradient 0 on the axis."""
    # Scaled by e^-D, and D is the logarithm of what the pair is long: nothing overflows. A common factor may
    # depend on anything: this one moves with the larger radius, so that no exponent below does. Otherwise its
    # derivatives, of the size of the radius and its square, would cancel only when all terms are added.
    behind = t.r1 >= t.r2  # one choice for all of them, also between equal radii
    low, high = torch.where(behind, t.r2, t.r1), torch.where(behind, t.r1, t.r2)
    d = side(t).detach()
    slack = high.detach() - d
    off_axis = t.half_sine > 0
    r1, r2 = (torch.where(off_axis, r, 1.0) for r in (t.r1, t.r2))
    sinh2 = -torch.expm1(-2 * r2)  # 2 e^-r2 sinh r2
    cosh1 = 1 + torch.exp(-2 * r1)  # 2 e^-r1 cosh r1
    # sinh r₂·sin θ ≤ sinh D and 2 sinh r₂·cosh r₁·sin²(θ/2) ≲ sinh D, and r₁ + r₂ ≥ d by the triangle
    # inequality; rounding of large radii may say otherwise.
    # r₂ - D, and below r₁ + r₂ - D.
    up_across = torch.minimum(slack - torch.where(behind, t.gap, 0.0), 1 - _log(t.sine))
    across = _exp(up_across) * sinh2 * t.sine
    up_bend = torch.minimum((slack + low).clamp(min=0), 2 - 2 * _log(t.half_sine))
    bend = torch.exp(up_bend) * sinh2 * cosh1 * t.half_sine.square()
    along = -_scaled_gap(t.gap, low, high, slack) - torch.where(off_axis, bend, 0.0)
    # Together they are as long as 2 e^-D sinh D; where radii are too large for that to be seen in float64,
    # both may be tiny, and their squares nothing.
    largest = torch.maximum(across.abs(), along.abs()).detach()
    undefined = (t.r1 == 0) | (d == 0) | (largest == 0)
    largest = torch.where(undefined, 1.0, largest)
    across = torch.where(undefined, 0.0, across / largest)
    return torch.atan2(across, torch.where(undefined, 1.0, along / largest))


def aperture(sinh: Tensor, k: Tensor) -> Tensor:
    """asin(min(1, k/sinh)), π/2 with gradient 0 for sinh ≤ k."""
    # At sinh = k the root has no derivative: such rows get an angle of other numbers, not used.
    half_space = sinh <= k
    sinh, k = torch.where(half_space, 2.0, sinh), torch.where(half_space, 1.0, k)
    angle = torch.atan2(k, torch.sqrt((sinh - k) * (sinh + k)))
    return torch.where(half_space, math.pi / 2, angle)


def pairwise_side(r1: Tensor, u1: Tensor, r2: Tensor, u2: Tensor) -> Tensor:
    r"""D for every pair of rows, from radii (..., N), (..., M) and unit vectors (..., N, D), (..., M, D).

    One matrix product gives sin²(θ/2) = (1 - u₁·u₂)/2, with an absolute error of about one unit roundoff
    u. Beyond R with :math:`e^{-2R} \le u^2`, moving a point out by t lengthens every side that this can
    tell from a radial one by t, to rounding; so radii are cut off at R and the rest is added.
    """
    # 1 - u₁·u₂ cancels, and a narrower product would leave no digit. Autocast leaves float64 alone, but not
    # the float32 of devices that have no float64.
    with torch.autocast(u1.device.type, enabled=False):
        w = ((1 - u1 @ u2.mT) / 2).clamp(0, 1)
    # e^(-2·cut) = (2u)²·e^-8, which is less than u² by a factor 700.
    cut = -math.log(torch.finfo(r1.dtype).eps) + 4
    near1, near2 = r1.clamp(max=cut), r2.clamp(max=cut)
    beyond1, beyond2 = r1 - near1, r2 - near2
    turn = torch.sinh(near1)[..., :, None] * torch.sinh(near2)[..., None, :] * w
    # Without a turn the side is the difference of the radii, and no root of 0 is differentiated.
    turned = turn > 0
    radial = torch.sinh((near1[..., :, None] - near2[..., None, :]) / 2).square()
    q = torch.where(turned, radial + turn, 1.0)
    bent = 2 * torch.asinh(torch.sqrt(q)) + beyond1[..., :, None] + beyond2[..., None, :]
    return torch.where(turned, bent, (r1[..., :, None] - r2[..., None, :]).abs())


def is_unresolved(r1: Tensor, r2: Tensor, d: Tensor, tolerance: float) -> Tensor:
    """Which entries ``d`` of :func:`pairwise_side` a rounding of u₁·u₂ may move by more, relatively."""
    # dD = sinh r1 sinh r2 dw · 2 / sinh D with dw of about ε; asked in logarithms for large radii.
    ratio = torch.finfo(d.dtype).eps / tolerance
    log = torch.log(-torch.expm1(-2 * r1))[..., :, None] + torch.log(-torch.expm1(-2 * r2))[..., None, :]
    log = log + r1[..., :, None] + r2[..., None, :] + math.log(ratio)
    log_size = torch.log(d) + d + torch.log(-torch.expm1(-2 * d))
    # So asked, equal points (D = 0, of logarithm -∞) and NaN are unresolved. The halves of the sinhs cancel.
    return ~(log < log_size)


def asinh(x: Tensor) -> Tensor:
    """torch.asinh, whose derivatives square x."""
    # There 1/(4x²) is 3e-18 and log(2x) is 20, so the next term of the series is below rounding.
    far = x.abs() > 2.0**28
    near = torch.asinh(torch.where(far, 1.0, x))
    # Its series goes on with 1/(4x²).
    size = torch.log(torch.where(far, x, 1.0).abs()) + math.log(2)
    return torch.where(far, torch.sign(x) * size, near)


def bounded(x: Tensor) -> Tensor:
    """``x`` where a vector of the largest float64 numbers would be infinite."""
    most = torch.finfo(x.dtype).max / 4
    return x.clamp(-most, most)


def _far_side(t: Triangle, far: Tensor) -> Tensor:
    """D where sinh overflows: the first formula in logarithms, of its radial term and of the other to it."""
    size = t.gap.abs()
    ahead, turned = far & (size > 0), far & (t.half_sine > 0)
    size = torch.where(ahead, size, 1.0)
    r1, r2 = torch.where(turned, t.r1, 1.0), torch.where(turned, t.r2, 1.0)
    radial = 2 * torch.log(-torch.expm1(-size))  # log of 4 sinh²(gap/2), less |gap|
    turn = torch.log(torch.expm1(-2 * r1) * torch.expm1(-2 * r2))
    # r₁ + r₂ - |gap| is twice the smaller radius, without the rounding of the larger one.
    turn = turn + 2 * torch.minimum(r1, r2) + 2 * torch.log(torch.where(turned, t.half_sine, 1.0))
    # logaddexp, whose second derivative torch takes with an overflow.
    both = torch.maximum(radial, turn) + torch.log1p(torch.exp(-(radial - turn).abs()))
    over = torch.where(turned, both, radial)
    log_4q = torch.where(ahead, size + over, torch.where(turned, turn, 0.0))
    large = log_4q > 0
    up, down = torch.where(large, log_4q, 1.0), torch.where(large, 0.0, log_4q)
    # D = 2 asinh(s), s = e^(up/2)/2, and asinh(s) = log(s + √(1 + s²)) with e^(up/2)
    # taken out of the logarithm.
    d = torch.where(
        large,
        up + 2 * torch.log((1 + torch.sqrt(1 + 4 * torch.exp(-up))) / 2),
        2 * torch.asinh(torch.exp(down / 2) / 2),
    )
    return torch.where(ahead & ~turned, size, torch.where(ahead | turned, d, 0.0))


def _scaled_gap(gap: Tensor, low: Tensor, high: Tensor, slack: Tensor) -> Tensor:
    """2 e^-D sinh(gap) of radii that differ by ``gap``, with D = high - slack, at least high - low."""
    small = gap.abs() < 1
    near = 2 * _exp(slack - high) * torch.sinh(torch.where(small, gap, 0.0))
    # Further apart, by the exponents that the other terms have, so that their roundings are the same.
    far = _exp((slack - low).clamp(max=0)) * -torch.expm1(2 * (low - high))
    return torch.where(small, near, torch.where(gap > 0, far, -far))


def _exp(x: Tensor) -> Tensor:
    """exp, constant where it is 0: there 0 times the derivatives of a huge x would be NaN."""
    return torch.exp(x.clamp(min=-800))


def _log(sine: Tensor) -> Tensor:
    """Its logarithm, without gradient, and 0 for 0."""
    sine = sine.detach()
    return torch.log(torch.where(sine > 0, sine, 1.0))


def _sqrt_sinh(r: Tensor, where: Tensor) -> Tensor:
    return torch.sqrt(torch.sinh(torch.where(where, r, 1.0)))


def _direct_limit(dtype: torch.dtype) -> float:
    """Up to this r₁+r₂, sinh r₁·sinh r₂ and the square of its root stay finite."""
    return math.log(torch.finfo(dtype).max) - 8
