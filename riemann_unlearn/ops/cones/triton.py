"""The cone op on a GPU: one kernel each way, a program for each pair.

Forward, a program measures its two vectors, and their |u1 - u2|², from which the rest follows in a few
operations on numbers; backward it reads them once more and writes their gradients. Features are float32, all
else is float64.

The cone of a pair is that of :mod:`riemann_unlearn.ops.cones`, which derives it, scaled so that nothing
overflows: with e = e^-r, s = 1 - e and a = 1 - e², the apex 1, what may lie in the cone 2, and
w = |u1 - u2|²/4. A GPU's ``exp``, ``log`` and ``sqrt`` are all that it takes, so that the kernels run in the
interpreter too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

UNFUSED: dict[str, Any] = {"enable_fp_fusion": False}
"""An option of kernels that take differences: with x·a - y·b made one operation, equal rows would differ."""

WIDEST = 1024
"""Of a vector, the most numbers that a program holds at a time."""


def forward(broad: Tensor, narrow: Tensor, c: Tensor, min_radius: float) -> tuple[Tensor, ...]:
    """How far outside; the radii of both sides; |u1 - u2|²; the lengths of both sides."""
    broad, narrow = broad.contiguous(), narrow.contiguous()
    outputs = tuple(broad.new_empty(len(broad), dtype=torch.float64) for _ in range(6))
    if len(broad):
        _measure[(len(broad),)](
            broad, narrow, c.double().sqrt().reshape(1), *outputs, broad.shape[1],
            K=2 * min_radius, BLOCK=_block(broad), **UNFUSED,
        )  # fmt: skip
    return outputs


def backward(
    broad: Tensor,
    narrow: Tensor,
    c: Tensor,
    min_radius: float,
    saved: Sequence[Tensor],
    grads: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of both sides and of √c, from those of the first three that :func:`forward` gives."""
    broad, narrow = broad.contiguous(), narrow.contiguous()
    out, out_narrow = torch.empty_like(broad), torch.empty_like(narrow)
    grad_root = broad.new_empty(len(broad), dtype=torch.float64)
    if len(broad):
        grads = [gradient.contiguous() for gradient in grads]
        _step[(len(broad),)](
            broad, narrow, c.double().sqrt().reshape(1), *saved, *grads, out, out_narrow, grad_root,
            broad.shape[1], K=2 * min_radius, BLOCK=_block(broad), **UNFUSED,
        )  # fmt: skip
    return out, out_narrow, grad_root.sum()


def _block(x: Tensor) -> int:
    # A power of two, as Triton's ranges are.
    return min(WIDEST, int(triton.next_power_of_2(max(x.shape[1], 1))))


@triton.jit
def expm1(x):
    """Of x ≤ 0: Kahan's quotient, in which the roundings of exp and log cancel."""
    u = tl.exp(x)
    less = u - 1
    # At 0 the quotient is 0/0, and at -1 e^x may be 0, whose logarithm is infinite.
    whole = (less == 0) | (less == -1)
    return tl.where(less == 0, x, tl.where(whole, less, less * (x / tl.log(tl.where(whole, 0.5, u)))))


@triton.jit
def atan2(y, x):
    """Of y ≥ 0. Rational approximation: Cephes' atan."""
    steep = y > tl.abs(x)
    bottom = tl.where(steep, y, tl.abs(x))
    t = tl.where(steep, tl.abs(x), y) / tl.where(bottom == 0, 1.0, bottom)
    far = t > 0.66
    t = tl.where(far, (t - 1) / (t + 1), t)
    z = t * t
    p = z * -8.750608600031904122785e-1 - 1.615753718733365076637e1
    p = p * z - 7.500855792314704667340e1
    p = p * z - 1.228866684490136173410e2
    p = p * z - 6.485021904942025371773e1
    q = z + 2.485846490142306297962e1
    q = q * z + 1.650270098316988542046e2
    q = q * z + 4.328810604912902668951e2
    q = q * z + 4.853903996359136964868e2
    q = q * z + 1.945506571482613964425e2
    angle = t * (z * p / q) + t
    # atan t = π/4 + atan((t - 1)/(t + 1)); the small number is what π/4 rounds away.
    angle = tl.where(far, 0.7853981633974483 + (angle + 3.061616997868383e-17), angle)
    angle = tl.where(steep, 1.5707963267948966 - angle, angle)
    # What is no number would be lost in the comparisons.
    return tl.where(x < 0, 3.141592653589793 - angle, angle) + (x - x) + (y - y)


@triton.jit
def polar(n, root):
    """e, s and a of a length."""
    s = -expm1(-root * n)
    e = tl.exp(-root * n)
    return e, s, s * (1 + e)


@triton.jit
def exterior(n1, n2, angle, root):
    """2 e1 e2 sinh D times the exterior angle's sine and cosine; 0 and 1 where it has none."""
    e1, s1, a1 = polar(n1, root)
    e2, s2, a2 = polar(n2, root)
    w = angle / 4
    # (e1 - e2)² + a1 a2 w = 2 e1 e2 (cosh D - 1), a sum of squares: 0 only where the two coincide.
    none = (n1 == 0) | ((s1 - s2) * (s1 - s2) + a1 * a2 * w <= 0)
    across = e1 * a2 * tl.sqrt(tl.maximum(angle * (4 - angle), 0.0)) / 2
    along = (s2 - s1) * (e1 + e2) - a2 * (2 - a1) * w
    return tl.where(none, 0.0, across), tl.where(none, 1.0, along)


@triton.jit
def turn(n1, n2, angle, root, across, along):
    """The exterior angle's derivatives: by either radius, and by the angle at the origin over its sine."""
    e1, s1, a1 = polar(n1, root)
    e2, s2, a2 = polar(n2, root)
    w = angle / 4
    square, sine = across * across + along * along, tl.sqrt(tl.maximum(angle * (4 - angle), 0.0)) / 2
    some = (n1 > 0) & (n2 > 0) & (sine > 0) & (square > 0)
    square, sine = tl.where(some, square, 1.0), tl.where(some, sine, 1.0)
    cosh = 2 * e1 * e2 + (s1 - s2) * (s1 - s2) + a1 * a2 * w
    by_angle = a2 * e1 * ((s2 - s1) * (e1 + e2) + (2 - a2) * a1 * w) / sine / square
    by_broad, by_narrow = across * cosh / square, -sine * a1 * 2 * e1 * e2 * e2 / square
    return tl.where(some, by_broad, 0.0), tl.where(some, by_narrow, 0.0), tl.where(some, by_angle, 0.0)


@triton.jit
def aperture(n, root, K: tl.constexpr):
    """The half aperture, π/2 within sinh r ≤ 2K, and its derivative."""
    e, _, a = polar(n, root)
    narrow = a / 2 > K * e
    # In the branch that is thrown away, numbers whose root and quotient are ordinary.
    sinh, least = tl.where(narrow, a / 2, 2.0), tl.where(narrow, K * e, 1.0)
    # As factors: the difference of the squares would lose digits near a half-space.
    width = tl.sqrt((sinh - least) * (sinh + least))
    half = tl.where(narrow, atan2(least, width), 1.5707963267948966)
    return half, tl.where(narrow, -least * (2 - a) / (2 * sinh * width), 0.0)


@triton.jit
def inverse(n):
    """1/n, or 0."""
    return tl.where(n > 0, 1 / tl.where(n > 0, n, 1.0), 0.0)


@triton.jit
def _measure(
    broad, narrow, root, outside, r_broad, r_narrow, angles, n_broad, n_narrow, columns,
    K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One pair's part of what :func:`forward` gives."""
    # Row times columns may pass 2^31.
    row = tl.program_id(0).to(tl.int64)
    square1, square2 = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    for start in range(0, columns, BLOCK):
        j = start + tl.arange(0, BLOCK)
        x = tl.load(broad + row * columns + j, mask=j < columns, other=0.0).to(tl.float64)
        y = tl.load(narrow + row * columns + j, mask=j < columns, other=0.0).to(tl.float64)
        square1 += x * x
        square2 += y * y
    n1, n2 = tl.sqrt(tl.sum(square1)), tl.sqrt(tl.sum(square2))
    inverse1, inverse2 = inverse(n1), inverse(n2)
    # The vectors are read again: a program holds at most WIDEST numbers of each.
    apart = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, columns, BLOCK):
        j = start + tl.arange(0, BLOCK)
        x = tl.load(broad + row * columns + j, mask=j < columns, other=0.0).to(tl.float64)
        y = tl.load(narrow + row * columns + j, mask=j < columns, other=0.0).to(tl.float64)
        way = x * inverse1 - y * inverse2
        apart += way * way
    angle, scale = tl.sum(apart), tl.load(root)
    across, along = exterior(n1, n2, angle, scale)
    half, _ = aperture(n1, scale, K)
    tl.store(outside + row, atan2(across, along) - half)
    tl.store(r_broad + row, scale * n1)
    tl.store(r_narrow + row, scale * n2)
    tl.store(angles + row, angle)
    tl.store(n_broad + row, n1)
    tl.store(n_narrow + row, n2)


@triton.jit
def _step(
    broad, narrow, root, angles, n_broad, n_narrow, grad_outsides, grad_r_broad, grad_r_narrow,
    out, out_narrow, grad_root, columns, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One pair's gradients."""
    row = tl.program_id(0).to(tl.int64)
    angle, n1, n2 = tl.load(angles + row), tl.load(n_broad + row), tl.load(n_narrow + row)
    grad_outside, grad_r1 = tl.load(grad_outsides + row), tl.load(grad_r_broad + row)
    grad_r2, scale = tl.load(grad_r_narrow + row), tl.load(root)
    across, along = exterior(n1, n2, angle, scale)
    by_broad, by_narrow, by_angle = turn(n1, n2, angle, scale, across, along)
    _, slope = aperture(n1, scale, K)
    grad_r1 += grad_outside * (by_broad - slope)
    grad_r2 += grad_outside * by_narrow
    tl.store(grad_root + row, grad_r1 * n1 + grad_r2 * n2)
    inverse1, inverse2 = inverse(n1), inverse(n2)
    grad_angle = grad_outside * by_angle
    away1, away2 = grad_angle * inverse1, grad_angle * inverse2
    # θ changes with u1 by (u1 - u2 - |u1 - u2|²/2 u1)/sin θ: along the difference, less what lengthens u1.
    outward1 = (scale * grad_r1 - grad_angle * angle / 2 * inverse1) * inverse1
    outward2 = (scale * grad_r2 - grad_angle * angle / 2 * inverse2) * inverse2
    for start in range(0, columns, BLOCK):
        j = start + tl.arange(0, BLOCK)
        x = tl.load(broad + row * columns + j, mask=j < columns, other=0.0).to(tl.float64)
        y = tl.load(narrow + row * columns + j, mask=j < columns, other=0.0).to(tl.float64)
        way = x * inverse1 - y * inverse2
        # Both steps are added in float64 and rounded once.
        tl.store(out + row * columns + j, (away1 * way + outward1 * x).to(tl.float32), mask=j < columns)
        tl.store(
            out_narrow + row * columns + j, (outward2 * y - away2 * way).to(tl.float32), mask=j < columns
        )
