"""The cone op on a CPU: one compiled loop over the pairs each way, float64.

The formulas are those of :mod:`riemann_unlearn.ops.cones.vectors`, where they are derived, pair by pair: with
e = e^-r, s = 1 - e and a = 1 - e², the apex 1 and the narrow side 2, and w = |u1 - u2|²/4. As operations on
vectors they are a hundred calls of torch, which for some hundred pairs cost more than the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from riemann_unlearn._jit import EXACT, jit
from riemann_unlearn.ops.polar import passes


def forward(broad: Tensor, narrow: Tensor, c: Tensor, min_radius: float) -> tuple[Tensor, ...]:
    """How far outside; the radii of both sides; |u1 - u2|²; the lengths of both sides."""
    root = math.sqrt(float(c))
    sides = [features.detach().contiguous().numpy() for features in (broad, narrow)]
    norms = numpy.empty((2, len(broad)))
    for side, norm in zip(sides, norms, strict=True):
        passes.lengths(side, norm)
    angle, outside = numpy.empty(len(broad)), numpy.empty(len(broad))
    passes.angles(*sides, *_inverse(norms), True, angle)
    _outside(*norms, angle, root, 2 * min_radius, outside)
    r = root * norms
    return tuple(map(torch.from_numpy, (outside, r[0], r[1], angle, norms[0], norms[1])))


def backward(
    broad: Tensor,
    narrow: Tensor,
    c: Tensor,
    min_radius: float,
    saved: Sequence[Tensor],
    grads: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of both sides and of √c, from those of the first three that :func:`forward` gives."""
    sides = [features.detach().contiguous().numpy() for features in (broad, narrow)]
    angle, norms = saved[0].numpy(), numpy.stack([norm.numpy() for norm in saved[1:]])
    steps = numpy.empty((2, len(broad), 2))
    # A gradient that is the same for all may come as one number that is spread out.
    wanted = [grad.contiguous().numpy() for grad in grads]
    grad_root = _steps(*norms, angle, *wanted, math.sqrt(float(c)), 2 * min_radius, steps)
    # The pass adds to what is there.
    results = [numpy.zeros(side.shape, side.dtype) for side in sides]
    passes.add_steps(*sides, *_inverse(norms), *steps, True, *results)
    grad_broad, grad_narrow = map(torch.from_numpy, results)
    return grad_broad, grad_narrow, torch.tensor(grad_root, dtype=torch.float64)


def _inverse(norms: Any) -> Any:
    """One over each length, 0 for a vector at the origin."""
    return numpy.divide(1.0, norms, out=numpy.zeros_like(norms), where=norms > 0)


@jit(EXACT)
def _outside(norm1: Any, norm2: Any, angle: Any, root: float, k: float, out: Any) -> None:
    """The exterior angle minus the half aperture; ``k`` is 2K."""
    for i in range(out.size):
        across, along, _ = _exterior(norm1[i], norm2[i], angle[i], root)
        e, s = math.exp(-root * norm1[i]), -math.expm1(-root * norm1[i])
        # asin(2K/sinh r) by its sine and cosine, up to a factor: near a half-space an arcsine loses half its
        # digits. The difference of squares is a product, or it would lose them too.
        sinh, least = s * (1 + e) / 2, k * e
        aperture = math.pi / 2
        if sinh > least:
            aperture = math.atan2(least, math.sqrt((sinh - least) * (sinh + least)))
        out[i] = math.atan2(across, along) - aperture


@jit(EXACT)
def _steps(
    norm1: Any, norm2: Any, angle: Any, grad_outside: Any, grad_r1: Any, grad_r2: Any,
    root: float, k: float, out: Any,
) -> float:  # fmt: skip
    """For each side, how far to go away from the other's direction and along itself; the gradient of √c."""
    grad_root = 0.0
    for i in range(angle.size):
        n1, n2, at = norm1[i], norm2[i], angle[i]
        across, along, usable = _exterior(n1, n2, at, root)
        r1, r2 = root * n1, root * n2
        e1, e2, s1, s2 = math.exp(-r1), math.exp(-r2), -math.expm1(-r1), -math.expm1(-r2)
        a1, a2, w = s1 * (1 + e1), s2 * (1 + e2), at / 4
        sine = math.sqrt(max(at * (4 - at), 0.0)) / 2
        by_r1, by_r2, turn = grad_r1[i], grad_r2[i], 0.0
        # On the axis (sine 0) the angle has a kink, elsewhere there is none at all: the subgradient is 0.
        if usable and n2 > 0 and sine > 0:
            g = grad_outside[i] / (across * across + along * along)
            # 2 e1 e2 cosh D. The divisor is (2 e1 e2 sinh D)², of which numerators have the factors too, so
            # that nothing overflows.
            cosh = 2 * e1 * e2 + (s1 - s2) * (s1 - s2) + a1 * a2 * w
            by_r1 += g * across * cosh
            by_r2 -= g * sine * a1 * 2 * e1 * e2 * e2
            turn = g * a2 * e1 * ((s2 - s1) * (e1 + e2) + (2 - a2) * a1 * w) / sine
        sinh, least = a1 / 2, k * e1
        if sinh > least:
            slope = -least * (2 - a1) / (2 * sinh * math.sqrt((sinh - least) * (sinh + least)))
            by_r1 -= grad_outside[i] * slope
        # Curvature acts through the radii alone, r = √c n.
        grad_root += by_r1 * n1 + by_r2 * n2
        for side in range(2):
            n, by_r = (n1, by_r1) if side == 0 else (n2, by_r2)
            inverse = 1 / n if n > 0 else 0.0
            out[side, i, 0] = turn * inverse
            out[side, i, 1] = (root * by_r - turn * at / 2 * inverse) * inverse
    return grad_root


@jit(EXACT)
def _exterior(n1: float, n2: float, angle: float, root: float) -> Any:
    """2 e1 e2 sinh D times the exterior angle's sine and cosine, and whether it has any; else 0 and 1."""
    r1, r2 = root * n1, root * n2
    e1, e2, s1, s2 = math.exp(-r1), math.exp(-r2), -math.expm1(-r1), -math.expm1(-r2)
    a1, a2, w = s1 * (1 + e1), s2 * (1 + e2), angle / 4
    # No angle at coincident points nor at the origin. (A comparison with NaN is false: NaN stays.)
    if n1 == 0 or (s1 - s2) * (s1 - s2) + a1 * a2 * w <= 0:
        return 0.0, 1.0, False
    across = e1 * a2 * math.sqrt(max(angle * (4 - angle), 0.0)) / 2
    return across, (s2 - s1) * (e1 + e2) - a2 * (2 - a1) * w, True
