"""Learning rates over the steps of a run: what they are multiplied with, the first step being number 0."""

from __future__ import annotations

import math
from collections.abc import Callable


def constant(step: int) -> float:
    """The same at every step."""
    return 1.0


def cosine(steps: int, warmup: float = 0) -> Callable[[int], float]:
    """Linear warm-up, then half a cosine down to zero.

    Parameters
    ----------
    steps : int
        Of the whole run, the warm-up included.
    warmup : float
        Steps in which the rate rises.

    Examples
    --------
    >>> rate = cosine(steps=10, warmup=2)
    >>> [round(rate(step), 2) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.04]
    >>> max(map(cosine(steps=10, warmup=2.5), range(10)))
    1.0
    """

    def rate(step: int) -> float:
        if step < warmup:
            # From step + 1: a first step at rate 0 would move nothing. A part of a step is a whole one.
            return min(1.0, (step + 1) / warmup)
        # Within a run the divisor is at least 1 here, as warmup <= step <= steps - 1. A driver may be asked
        # for a step beyond it, which must not divide by zero.
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, steps - warmup)))

    return rate
