"""The geometry in mpmath, by formulas other than the library's: inner products of ambient points."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mpmath as mp


def digits(*vectors: Sequence[float], c: float) -> int:
    """Enough for 50 that count: cosh² of radius r has 0.87 r digits, of which as many cancel."""
    radius = sum(math.sqrt(c * sum(float(x) ** 2 for x in v)) for v in vectors)
    return 130 + int(1.8 * radius)


def _point(v: Sequence[float], c: mp.mpf) -> tuple[mp.mpf, list[mp.mpf]]:
    """Time and space components, on the hyperboloid of curvature -1."""
    scaled = [mp.sqrt(c) * mp.mpf(x) for x in v]
    r = mp.sqrt(mp.fsum(x * x for x in scaled))
    return mp.cosh(r), [x * mp.sinh(r) / r if r else x for x in scaled]


def dist(v1: Sequence[float], v2: Sequence[float], c: float) -> mp.mpf:
    """acosh(-<x,y>)/√c."""
    with mp.workdps(digits(v1, v2, c=c)):
        curvature = mp.mpf(c)
        (t1, x1), (t2, x2) = _point(v1, curvature), _point(v2, curvature)
        inner = t1 * t2 - mp.fsum(a * b for a, b in zip(x1, x2, strict=True))
        return mp.acosh(max(inner, mp.mpf(1))) / mp.sqrt(curvature)


def exterior_angle(v1: Sequence[float], v2: Sequence[float], c: float) -> mp.mpf:
    """MERU's equation: acos of (t2 + t1 <x,y>) / (|x1| sqrt(<x,y>² - 1))."""
    with mp.workdps(digits(v1, v2, c=c)):
        curvature = mp.mpf(c)
        (t1, x1), (t2, x2) = _point(v1, curvature), _point(v2, curvature)
        inner = mp.fsum(a * b for a, b in zip(x1, x2, strict=True)) - t1 * t2
        norm = mp.sqrt(mp.fsum(x * x for x in x1))
        cosine = (t2 + t1 * inner) / (norm * mp.sqrt(inner**2 - 1))
        return mp.acos(max(min(cosine, mp.mpf(1)), mp.mpf(-1)))


def half_aperture(v: Sequence[float], c: float, min_radius: float = 0.1) -> mp.mpf:
    """asin(min(1, 2K/sinh r))."""
    with mp.workdps(digits(v, c=c)):
        _, x = _point(v, mp.mpf(c))
        norm = mp.sqrt(mp.fsum(a * a for a in x))
        return mp.asin(min(mp.mpf(1), 2 * mp.mpf(min_radius) / norm)) if norm else mp.pi / 2
