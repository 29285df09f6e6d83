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
    """

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, steps - warmup)))

    return rate
