r"""The radial maps of the Lorentz model, each :math:`v \mapsto \hat v\, f(\sqrt c|v|)/\sqrt c` for its f.

=================  ==================================  =======================
map                f(m)                                from, to
=================  ==================================  =======================
``EXPONENTIAL``    sinh m                              tangent at 0, point
``LOGARITHM``      asinh m                             point, tangent at 0
``TO_POINCARE``    m/(1+√(1+m²))                       point, Poincaré ball
``FROM_POINCARE``  2m/((1-m)(1+m))                     Poincaré ball, point
=================  ==================================  =======================

Each is given by f(m)/m and by m·f'(m) - f(m); where the terms of the latter are close, by a series.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from riemann_unlearn.geometry.primitives import Profile


def sinhc(m: Tensor) -> Tensor:
    """sinh(m)/m, 1 with gradient 0 at 0; constant where sinh is about to leave the dtype."""
    m = held(m)
    small = m < 0.5
    s, big = torch.where(small, m, 0.0), torch.where(small, 1.0, m)
    q = s * s
    # Σ m^2k/(2k+1)!, k = 0 … 7, by the ratios of its terms. The derivative of the quotient is m/3 near 0,
    # but cosh m/m - sinh m/m² has an error of ε/m there. The first term left out is 4e-20 at m = 1/2.
    series = torch.ones_like(q)
    for ratio in (210, 156, 110, 72, 42, 20, 6):
        series = 1 + q / ratio * series
    return torch.where(small, series, torch.sinh(big) / big)


def asinhc(m: Tensor) -> Tensor:
    """asinh(m)/m, 1 with gradient 0 at 0."""
    # asinh keeps its digits down to the smallest numbers, so only 0 needs care; the derivative of the map
    # comes from _asinh_excess.
    away = m > 0
    m = torch.where(away, m, 1.0)
    return torch.where(away, torch.asinh(m) / m, 1.0)


def held(m: Tensor) -> Tensor:
    """``m`` up to :func:`farthest`."""
    return m.clamp(max=farthest(m.dtype))


def farthest(dtype: torch.dtype) -> float:
    """The radius m at which m·e^m is about to leave the dtype."""
    # e^8 is 2981 and m is at most 702 in float64: m·e^m is a quarter of the largest number.
    return math.log(torch.finfo(dtype).max) - 8


def _sinh_excess(m: Tensor) -> Tensor:
    m = held(m)
    small = m < 0.5
    s, big = torch.where(small, m, 0.0), torch.where(small, 1.0, m)
    q = s * s
    # The difference below loses 4 bits at m = 1/2, and ever more nearer to 0.
    # Σ 2k m^(2k+1)/(2k+1)!, k = 1 … 6, by the ratios of its terms. The next is 8e-15 of the sum at m = 1/2.
    series = torch.ones_like(q)
    for ratio in (130, 88, 54, 28, 10):
        series = 1 + q / ratio * series
    return torch.where(small, s * q / 3 * series, big * torch.cosh(big) - torch.sinh(big))


def _asinh_excess(m: Tensor) -> Tensor:
    small = m < 0.06
    s, big = torch.where(small, m, 0.0), torch.where(small, 1.0, m)
    q = s * s
    # The difference below loses 10 bits at m = 0.06, where the first term left out is 1e-15 of the sum. This
    # series converges only for m < 1, so it is not used as far out as that of sinh.
    # Σ binom(-1/2, k) 2k/(2k+1) m^(2k+1), k = 1 … 6.
    series = torch.zeros_like(q)
    for coefficient in (693 / 3328, -315 / 1408, 35 / 144, -15 / 56, 3 / 10, -1 / 3):
        series = q * (coefficient + series)
    return torch.where(small, s * series, big / _time(big) - torch.asinh(big))


def _time(m: Tensor) -> Tensor:
    return torch.hypot(m, torch.ones_like(m))


def _complement(m: Tensor) -> Tensor:
    """1 - m²; at m ≥ 1, where there are no points, its smallest value within."""
    # 1 - m is exact near 1, and 1 - m² is not. ε/2 is what is left at the last number below 1.
    return (1 - m).clamp(min=torch.finfo(m.dtype).eps / 2) * (1 + m.clamp(max=1))


EXPONENTIAL = Profile(sinhc, _sinh_excess)
LOGARITHM = Profile(asinhc, _asinh_excess)
# For the ball m·f' - f has a closed form in which nothing is subtracted: -m³/(t(1+t)²) with t = √(1+m²), in
# factors below 1, and 4m³/(1-m²)².
TO_POINCARE = Profile(
    lambda m: 1 / (1 + _time(m)),
    lambda m: -(m / _time(m)) * (m / (1 + _time(m))) * (m / (1 + _time(m))),
)
FROM_POINCARE = Profile(
    lambda m: 2 / _complement(m),
    lambda m: 4 * m.clamp(max=1) ** 3 / _complement(m).square(),
)
