r"""The Adam step of :mod:`riemann_unlearn.optim.lorentz`, as one pass over memory.

Each row is read once, stepped in the nearest cache and written once. With :math:`x` the space components of
a point, :math:`e = g_s + (g_t/p_t)x` and :math:`μ = m_t/p_t`, the Riemannian gradient has

.. math:: r_t/p_t = (x\cdot e)/k,\qquad \|r\|^2 = |e|^2 + k\,(r_t/p_t)^2,

and the q of the new momentum is :math:`β(m_s-μx) + (1-β)e`: one loop over a row, from which all scalars
follow, and one more for the three shears.
"""

from __future__ import annotations

import math
from typing import Any

from numba import prange

from riemann_unlearn._jit import SIGNED_SUMS, jit

Rows = Any
"""A NumPy array, (N, D+1) or (N,), C-contiguous; numba types what is computed from it."""

SHORTEST, LONGEST = 1e-154, 1e154
"""Bounds of lengths, in which a float64 holds their squares, and products of scalars in any order."""


@jit(SIGNED_SUMS, parallel=True)
def adam(  # pragma: no cover  (compiled)
    points: Rows,
    gradients: Rows,
    momenta: Rows,
    average: Rows,
    largest: Rows,
    amsgrad: bool,
    k: float,
    beta1: float,
    beta2: float,
    correction: float,
    eps: float,
    step_size: float,
    longest: float,
    furthest: float,
    ulp: float,
) -> None:
    """One step, in place in points, momenta, average, and with ``amsgrad`` in largest.

    Scalars of a row are float64, its coordinates and sums what the arrays are. ``ulp`` is the
    dtype's ε; ``correction`` is 1 - β₂^t and ``step_size`` the learning rate over 1 - β₁^t.
    """
    width = points.shape[1]
    real = points.dtype.type
    root = math.sqrt(k)
    # In the dtype of the arrays: one float64 factor would make float64 of the whole loop over a row.
    keep, take = real(beta1), real(1 - beta1)
    # No row needs another, so that bits do not depend on how rows are shared among threads.
    for i in prange(points.shape[0]):
        time = float(points[i, 0])
        tilt, mu = real(gradients[i, 0] / time), real(momenta[i, 0] / time)
        ee = xe = qq = real(0)
        for j in range(1, width):
            x = points[i, j]
            e = gradients[i, j] + tilt * x
            # q replaces m at once: m_t/p_t and g_t/p_t were taken before the loop, and no more is needed.
            q = keep * (momenta[i, j] - mu * x) + take * e
            momenta[i, j] = q
            ee += e * e
            xe += x * e
            qq += q * q
        # r_t/p_t. That |r|² is a sum of squares then, not |r_s|² - r_t², keeps it exact far out.
        slope = xe / k
        delta = beta1 * mu + (1 - beta1) * slope
        square = ee + k * slope * slope
        second = real(beta2 * average[i] + (1 - beta2) * square)
        average[i] = second
        if amsgrad:
            second = max(largest[i], second)
            largest[i] = second
        # A length whose square overflowed meets a speed of 0, and the row stays where it is.
        size = min(max(math.sqrt(qq + k * delta * delta), SHORTEST), LONGEST)
        speed = step_size / (math.sqrt(second / correction) + eps)
        n = min(size * speed, longest) / root
        if n == 0:  # the point stays as it is, to the bit; its momentum was accumulated all the same
            for j in range(1, width):
                momenta[i, j] += real(delta) * points[i, j]
            momenta[i, 0] = delta * time
            continue
        # expm1 keeps the digits of a short step, which exp(n) - 1 loses. For a step so long that it
        # overflows, infinity is over the bound, and n is made shorter before anything is computed of it.
        grown = math.expm1(n)
        if (grown + 1) * time > furthest * root:
            # See lorentz.step_coefficients; by no direction does p_t grow by more than exp n.
            outward = min(max(-delta * root / size, -1.0), 1.0)
            growth = max(furthest * root / time, 1.0)
            most = (growth + math.sqrt(growth * growth + (outward * outward - 1))) / max(1 + outward, ulp)
            n = min(n, math.log(most))
            grown = math.expm1(n)
        # tanh(n/2) and sinh n, from exp n - 1 without cancellation.
        w = -size / root * (grown / (grown + 2))
        b = -root / size * (grown * (grown + 2) / (2 * (grown + 1)))
        first, middle, last = real(delta + w), real(b), real(w)
        # The three shears at once, coordinate by coordinate: first q, with it the new x, with that the new m.
        xx = real(0)
        for j in range(1, width):
            q = momenta[i, j] + first * points[i, j]
            x = points[i, j] + middle * q
            points[i, j] = x
            momenta[i, j] = q + last * x
            xx += x * x
        # The time of m by the same shears, q having none. That of p comes from its space components.
        turned = (delta + w) * time
        momenta[i, 0] = turned + w * (time + b * turned)
        points[i, 0] = math.sqrt(k + xx)
