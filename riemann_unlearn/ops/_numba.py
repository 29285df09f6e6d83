"""How the kernels of this package are compiled; imported by them alone, and only where numba is.

Kernels release the interpreter's lock, so that :mod:`riemann_unlearn.ops.workers` run side by side. They are
compiled when first called and kept beside their source, or in the user's cache; where neither can be written
to, each process compiles anew. A kernel and what it calls belong in one file: the cache looks at no other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

jit_options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}

EXACT = {"contract"}
"""Products and sums may be fused, nothing else: for what was written with rounding in mind."""

SUMS = {"contract", "reassoc", "nsz"}
"""Sums may be taken in any order, or a reduction is not vectorized. NaN and Inf keep their meaning."""

SEPARATE = {"reassoc", "nsz"}
"""The same, and no product fused with a difference: a·b - c·d is 0 where the products are equal."""


def jit(flags: set[str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: compile with these liberties."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        options = jit_options | {"fastmath": flags}
        try:
            compiled: Callable[..., Any] = numba.njit(function, cache=True, **options)
        except RuntimeError:  # no place for a cache
            compiled = numba.njit(function, **options)
        return compiled

    return decorate
