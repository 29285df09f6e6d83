"""The cone op by operations on vectors of the batch's length, float64: on any device that has it.

What touches the features is one pass forward (norms, and |u1 - u2|² of the unit vectors, from which θ comes
without cancellation) and one backward.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from riemann_unlearn.ops.polar import Side, add_pair_steps, matched_angles, matched_distances, zeros


def forward(broad: Tensor, narrow: Tensor, c: Tensor, min_radius: float) -> tuple[Tensor, ...]:
    """How far outside; the radii of both sides; |u1 - u2|²; the lengths of both sides."""
    left, right = _sides(broad, narrow, c, None, None)
    angle = matched_angles(left, right, 0)
    return _outside(left, right, angle, min_radius), left.r, right.r, angle, left.norm, right.norm


def backward(
    broad: Tensor,
    narrow: Tensor,
    c: Tensor,
    min_radius: float,
    saved: Sequence[Tensor],
    grads: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of both sides and of √c, from those of the first three that :func:`forward` gives."""
    angle, broad_norm, narrow_norm = saved
    left, right = _sides(broad, narrow, c, broad_norm, narrow_norm)
    broad_steps, narrow_steps, grad_root = _pair_steps(left, right, angle, grads, min_radius)
    grad_broad, grad_narrow = zeros(broad), zeros(narrow)
    add_pair_steps(left, right, 0, broad_steps, narrow_steps, grad_broad, grad_narrow)
    return grad_broad, grad_narrow, grad_root


def _sides(
    broad: Tensor, narrow: Tensor, c: Tensor, broad_norm: Tensor | None, narrow_norm: Tensor | None
) -> tuple[Side, Side]:
    """Both sides as the pair functions take them."""
    root = c.double().sqrt()
    return (
        Side(broad, root, hyperbolic=True, norm=broad_norm),
        Side(narrow, root, hyperbolic=True, norm=narrow_norm, right=True),
    )


def _outside(left: Side, right: Side, angle: Tensor, min_radius: float) -> Tensor:
    """The exterior angle minus the half aperture, from |u1 - u2|²."""
    across, along, _ = _exterior(left, right, angle)
    # asin(2K/sinh r) by its sine and cosine: near a half-space an arcsine loses half its digits.
    kept, sinh, k = _aperture(left, min_radius)
    aperture = torch.where(kept, torch.atan2(k, torch.sqrt((sinh - k) * (sinh + k))), torch.pi / 2)
    return torch.atan2(across, along) - aperture


def _pair_steps(
    left: Side, right: Side, angle: Tensor, grads: Sequence[Tensor], min_radius: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The steps of both sides, and the gradient of √c, from the gradients of the three that the op gives."""
    grad_outside, grad_broad, grad_narrow = grads
    across, along, usable = _exterior(left, right, angle)
    # |u1 - u2|² (4 - |u1 - u2|²) = 4 sin² θ; opposite vectors may be above 4 by a rounding.
    w, sine = angle / 4, torch.sqrt((angle * (4 - angle)).clamp(min=0)) / 2
    a1, a2, e1, e2 = left.shrunk2, right.shrunk2, left.decay, right.decay
    square = torch.where(usable, across.square() + along.square(), 1.0)  # (2 e^-(r1+r2) sinh D)²
    # On the axis (sine 0) the angle has a kink, elsewhere there is none at all: the subgradient is 0.
    g = torch.where(usable & (sine > 0), grad_outside / square, 0.0)
    # Everything times 4 e^-2(r1+r2), which the square has too.
    cosh = 2 * e1 * e2 + (left.shrunk - right.shrunk).square() + a1 * a2 * w  # 2 e^-(r1+r2) cosh D
    grad_r1 = g * across * cosh + grad_broad
    grad_r2 = -g * sine * a1 * 2 * e1 * e2.square() + grad_narrow
    gap = (right.shrunk - left.shrunk) * (e1 + e2)
    # By θ, over sin θ: from |u1 - u2|² = 2 - 2 cos θ, θ's gradient by u1 is that much along u1 - u2.
    turn = g * a2 * e1 * (gap + (2 - a2) * a1 * w) / torch.where(sine > 0, sine, 1.0)
    kept, sinh, k = _aperture(left, min_radius)
    # The aperture's, -2K cosh r / (sinh r √(sinh² r - 4K²)), with e^-2r above and below.
    slope = -k * (2 - a1) / (2 * sinh * torch.sqrt((sinh - k) * (sinh + k)))
    grad_r1 = grad_r1 - torch.where(kept, grad_outside * slope, 0.0)
    steps = (
        torch.stack(
            (turn * side.inverse, (side.root * grad_r - turn * angle / 2 * side.inverse) * side.inverse), 1
        )
        for side, grad_r in ((left, grad_r1), (right, grad_r2))
    )
    return *steps, (grad_r1 * left.norm + grad_r2 * right.norm).sum()  # type: ignore[return-value]


def _exterior(left: Side, right: Side, angle: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sine and cosine of the exterior angle, times 2 e^-(r1+r2) sinh D, and where they mean something."""
    _, s = matched_distances(left, right, 0, angle)
    # No angle at coincident points nor at the origin. (A comparison with NaN is false: NaN stays.)
    usable = ~((s <= 0) | (left.norm == 0))
    sine = torch.sqrt((angle * (4 - angle)).clamp(min=0)) / 2
    across = left.decay * right.shrunk2 * sine
    # 2 e^-(r1+r2) sinh(r2 - r1), by differences of 1 - e^-r, which near the origin keep their digits.
    along = (right.shrunk - left.shrunk) * (left.decay + right.decay)
    along = along - right.shrunk2 * (2 - left.shrunk2) * angle / 4
    return torch.where(usable, across, 0.0), torch.where(usable, along, 1.0), usable & (right.norm > 0)


def _aperture(side: Side, min_radius: float) -> tuple[Tensor, Tensor, Tensor]:
    """Whether a cone is narrower than a half-space, and e^-r sinh r and e^-r 2K, or 2 and 1 if not."""
    sinh, k = side.shrunk2 / 2, 2 * min_radius * side.decay
    kept = sinh > k
    # 2 and 1 keep the root and the quotient ordinary in the branch that is thrown away.
    return kept, torch.where(kept, sinh, 2.0), torch.where(kept, k, 1.0)
