"""The loops over the pairs of :mod:`riemann_unlearn.ops.calibration`, compiled; float64.

The cone of a pair is that of :mod:`riemann_unlearn.ops.cones`, which derives it, scaled so that nothing
overflows: with e = e^-r, s = 1 - e and a = 1 - e², text 1 and image 2, and w = |u1 - u2|²/4.
"""

from __future__ import annotations

import math
from typing import Any

from riemann_unlearn._jit import EXACT, jit


@jit(EXACT)
def terms(
    matched: Any, angle: Any, norm_image: Any, norm_text: Any, forget: Any, rows: Any, columns: Any,
    negative: float, weights: Any, scale: float, root: float, k: float, target: float,
) -> Any:  # fmt: skip
    """The seven weighted terms; ``k`` is 2K, and ``target`` is r* or NaN for the mean over R."""
    n = matched.size
    kept, dropped, goal_image, goal_text = _count(norm_image, norm_text, forget, root, target)
    con, pos, perf, ent, out, norm = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(n):
        sums = (rows[i] + columns[i]) / 2
        ext, _, _ = _exterior(norm_text[i], norm_image[i], angle[i], root)
        outside = ext - _aperture(norm_text[i], root, k)
        if forget[i]:
            pos += matched[i]
            perf += sums
            out -= min(outside, 0.0)
            off_image, off_text = root * norm_image[i] - goal_image, root * norm_text[i] - goal_text
            norm += (off_image * off_image + off_text * off_text) / 2
        else:
            con += sums - scale * matched[i]
            ent += max(outside, 0.0)
    if math.isnan(target) and kept == 0:
        norm = 0.0
    r, u = max(kept, 1), max(dropped, 1)
    return (
        weights[0] * con / r,
        -weights[1] * negative,
        weights[2] * pos / u,
        weights[3] * perf / u,
        weights[4] * ent / r,
        weights[5] * out / u,
        weights[6] * norm / u,
    )


@jit(EXACT)
def gradients(
    matched: Any, angle: Any, norm_image: Any, norm_text: Any, forget: Any, of: Any,
    scale: float, root: float, k: float, target: float,
    of_matched: Any, of_sums: Any, step_image: Any, step_text: Any,
) -> Any:  # fmt: skip
    """Of matched similarities and of either log-sum-exp, and the steps of images and texts, shape (n, 2): how
    far to go away from the other's direction, and along the vector itself.

    Returns
    -------
    float, float
        The gradients of τ and, through the cones and radii, of √c.
    """
    kept, dropped, goal_image, goal_text = _count(norm_image, norm_text, forget, root, target)
    r, u = max(kept, 1), max(dropped, 1)
    of_con, _, of_pos, of_perf, of_ent, of_out, of_norm = of
    if math.isnan(target) and kept == 0:
        of_norm = 0.0
    of_scale, of_root = 0.0, 0.0
    for i in range(matched.size):
        n1, n2 = norm_text[i], norm_image[i]
        ext, across, along = _exterior(n1, n2, angle[i], root)
        outside = ext - _aperture(n1, root, k)
        of_outside, of_r1, of_r2 = 0.0, 0.0, 0.0
        if forget[i]:
            of_matched[i], of_sums[i] = of_pos / u, of_perf / (2 * u)
            if outside < 0:
                of_outside = -of_out / u
            of_r1, of_r2 = of_norm * (root * n1 - goal_text) / u, of_norm * (root * n2 - goal_image) / u
        else:
            of_matched[i], of_sums[i] = -scale * of_con / r, of_con / (2 * r)
            of_scale -= of_con * matched[i] / r
            if outside > 0:
                of_outside = of_ent / r
        turn = 0.0
        if of_outside != 0:
            ext1, ext2, turn = _turn(n1, n2, angle[i], root, across, along)
            of_r1 += of_outside * (ext1 - _aperture_slope(n1, root, k))
            of_r2 += of_outside * ext2
            turn *= of_outside
        of_root += of_r1 * n1 + of_r2 * n2
        for side in range(2):
            n, of_r, step = (n1, of_r1, step_text) if side == 0 else (n2, of_r2, step_image)
            inverse = 1 / n if n > 0 else 0.0
            step[i, 0] = turn * inverse
            step[i, 1] = (root * of_r - turn * angle[i] / 2 * inverse) * inverse
    return of_scale, of_root


@jit(EXACT)
def _count(norm_image: Any, norm_text: Any, forget: Any, root: float, target: float) -> Any:
    """How many pairs are retained and how many forgotten; r* of images and texts."""
    dropped, image, text = 0, 0.0, 0.0
    for i in range(forget.size):
        if forget[i]:
            dropped += 1
        else:
            image += norm_image[i]
            text += norm_text[i]
    kept = forget.size - dropped
    if math.isnan(target):
        return kept, dropped, root * image / max(kept, 1), root * text / max(kept, 1)
    return kept, dropped, target, target


@jit(EXACT)
def _exterior(n1: float, n2: float, angle: float, root: float) -> Any:
    """The exterior angle, and 2 e1 e2 sinh D times its sine and cosine; 0, 0 and 1 where it has none."""
    r1, r2 = root * n1, root * n2
    e1, e2, s1, s2 = math.exp(-r1), math.exp(-r2), -math.expm1(-r1), -math.expm1(-r2)
    a1, a2, w = s1 * (1 + e1), s2 * (1 + e2), angle / 4
    if n1 == 0 or (s1 - s2) * (s1 - s2) + a1 * a2 * w <= 0:
        return 0.0, 0.0, 1.0
    across = e1 * a2 * math.sqrt(max(angle * (4 - angle), 0.0)) / 2
    along = (s2 - s1) * (e1 + e2) - a2 * (2 - a1) * w
    return math.atan2(across, along), across, along


@jit(EXACT)
def _turn(n1: float, n2: float, angle: float, root: float, across: float, along: float) -> Any:
    """The exterior angle's derivatives: by either radius, and by the angle at the origin over its sine."""
    square, sine = across * across + along * along, math.sqrt(max(angle * (4 - angle), 0.0)) / 2
    if not (n1 > 0 and n2 > 0 and sine > 0 and square > 0):
        return 0.0, 0.0, 0.0
    r1, r2 = root * n1, root * n2
    e1, e2, s1, s2 = math.exp(-r1), math.exp(-r2), -math.expm1(-r1), -math.expm1(-r2)
    a1, a2, w = s1 * (1 + e1), s2 * (1 + e2), angle / 4
    cosh = 2 * e1 * e2 + (s1 - s2) * (s1 - s2) + a1 * a2 * w
    gap = (s2 - s1) * (e1 + e2)
    return (
        across * cosh / square,
        -sine * a1 * 2 * e1 * e2 * e2 / square,
        a2 * e1 * (gap + (2 - a2) * a1 * w) / sine / square,
    )


@jit(EXACT)
def _aperture(n: float, root: float, k: float) -> float:
    """The half aperture: π/2 within sinh r ≤ 2K."""
    e, s = math.exp(-root * n), -math.expm1(-root * n)
    sinh, least = s * (1 + e) / 2, k * e
    return math.atan2(least, math.sqrt((sinh - least) * (sinh + least))) if sinh > least else math.pi / 2


@jit(EXACT)
def _aperture_slope(n: float, root: float, k: float) -> float:
    """Its derivative."""
    e, s = math.exp(-root * n), -math.expm1(-root * n)
    a, least = s * (1 + e), k * e
    sinh = a / 2
    return -least * (2 - a) / (2 * sinh * math.sqrt((sinh - least) * (sinh + least))) if sinh > least else 0.0
