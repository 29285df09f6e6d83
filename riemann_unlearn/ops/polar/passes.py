"""The passes over float32 features of :mod:`riemann_unlearn.ops.polar`, compiled; float64 inside."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from riemann_unlearn._jit import SEPARATE, SUMS, jit

_f4, _f8 = np.float32, np.float64


@jit(SUMS)
def lengths(x: Any, out: Any) -> None:
    """|v| of each row."""
    for i in range(len(x)):
        total, row = 0.0, x[i]
        for j in range(row.size):
            # The square of a float32 number is exact in float64, and neither overflows nor underflows there.
            total += _f8(row[j]) * _f8(row[j])
        out[i] = math.sqrt(total)


@jit(SUMS)
def scale(x: Any, order: Any, by: Any, one: Any, other: Any, out: Any) -> None:
    """Rows of ``x``, in ``order`` if there is one, times ``by``; then two columns more, if there is room."""
    width = x.shape[1]
    for i in range(len(out)):
        # Rows are read where they lie and written in order: no sorted copy of the features is made.
        row, to, factor = x[order[i] if len(order) else i], out[i], _f4(by[i])
        for j in range(width):
            to[j] = row[j] * factor
        if to.size > width:
            to[width], to[width + 1] = one[i], other[i]


# Equal rows must come out at exactly 0, which is how coincident points are known. With one of the two
# products fused into the difference it would be left with the other's rounding.
@jit(SEPARATE)
def angles(x: Any, y: Any, inverse_x: Any, inverse_y: Any, apart: bool, out: Any) -> None:
    """|u1 - u2|² of the rows' unit vectors, if ``apart``; else their product."""
    for i in range(len(x)):
        a, b, p, q, total = x[i], y[i], inverse_x[i], inverse_y[i], 0.0
        if apart:
            for j in range(a.size):
                e = _f8(a[j]) * p - _f8(b[j]) * q
                total += e * e
        else:
            for j in range(a.size):
                total += _f8(a[j]) * p * (_f8(b[j]) * q)
        out[i] = total


@jit(SEPARATE)
def add_steps(
    x: Any,
    y: Any,
    inverse_x: Any,
    inverse_y: Any,
    grad_x: Any,
    grad_y: Any,
    apart: bool,
    out: Any,
    out_right: Any,
) -> None:
    """Add the steps (away from the other, along itself) of matched rows; see ``add_pair_steps``."""
    for i in range(len(x)):
        a, b, p, q = x[i], y[i], inverse_x[i], inverse_y[i]
        away, outward, away_right, outward_right = grad_x[i, 0], grad_x[i, 1], grad_y[i, 0], grad_y[i, 1]
        to, to_right = out[i], out_right[i]
        if apart:
            for j in range(a.size):
                e = _f8(a[j]) * p - _f8(b[j]) * q
                # Both steps are added in float64 and rounded once.
                to[j] += _f4(away * e + outward * _f8(a[j]))
                to_right[j] += _f4(outward_right * _f8(b[j]) - away_right * e)
        else:
            for j in range(a.size):
                to[j] += _f4(outward * _f8(a[j]) - away * (_f8(b[j]) * q))
                to_right[j] += _f4(outward_right * _f8(b[j]) - away_right * (_f8(a[j]) * p))


@jit(SUMS)
def add_gradient(
    m: Any, x: Any, order: Any, first: int, polar: Any, sign: float, root: float, hyperbolic: bool, out: Any
) -> float:
    """Add the features' gradient from their operand's, ``m``; see ``Side.add_gradient``.

    Parameters
    ----------
    m : float32, shape (n, D + 2)
    order : int64
        Of the rows of ``x``; empty where they are in order. Those of ``m`` begin at ``first``.
    polar : float64, shape (n, 5)
        The operand's scale, 1/|v|, |v|, cosh r and sinh r.

    Returns
    -------
    float
        The gradient of √c, through the radii.
    """
    width = x.shape[1]
    grad_root = 0.0
    for i in range(len(m)):
        at = order[first + i] if len(order) else first + i
        row, of, to = x[at], m[i, :width], out[at]
        along = 0.0
        for j in range(width):
            along += _f8(of[j] * row[j])
        # With the operand's main part sign·s·v, s = sinh r/n, and ``along`` the part of m along sign·u, the
        # gradient of v is sign·s·m + (√c ∂L/∂r - s·along)·u, where ∂L/∂r = cosh r·along + sinh r·(that of
        # cosh r - 1).
        along *= sign * polar[i, 1]
        radial = -polar[i, 0] * along
        if hyperbolic:
            grad_less_one = _f8(m[i, width])
            # On the right both last columns, cosh r and cosh r - 1, change with r; on the left only one does.
            if sign < 0:
                grad_less_one += _f8(m[i, width + 1])
            grad_r = polar[i, 3] * along + polar[i, 4] * grad_less_one
            grad_root += grad_r * polar[i, 2]
            radial += root * grad_r
        main, own = _f4(sign * polar[i, 0]), _f4(radial * polar[i, 1])
        for j in range(width):
            to[j] += of[j] * main + row[j] * own
    return grad_root
