"""Kernels for the CPU, compiled by numba.

A module of kernels decorates them with :func:`jit` and imports numba at its top; who uses it asks
:func:`is_available` first and imports it then, so that numba is imported by the first step that has work for
it and by nothing else. Where numba is not there, the caller goes on with torch.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

INSTALLED = importlib.util.find_spec("numba") is not None

_lock = threading.Lock()
_process: list[int] = []
"""The process that runs kernels, once one does."""


EXACT = {"contract"}
"""Products and sums may be fused, nothing else: for what was written with rounding in mind."""

SUMS = {"contract", "reassoc", "nsz"}
"""Sums may be taken in any order, or a reduction is not vectorized. NaN and Inf keep their meaning."""

SIGNED_SUMS = {"contract", "reassoc"}
"""The same, and zeros keep their sign."""

SEPARATE = {"reassoc", "nsz"}
"""The same, and no product fused with a difference: a·b - c·d is 0 where the products are equal."""


def jit(flags: set[str], *, parallel: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: compile with these liberties, and ``prange`` loops on several threads if ``parallel``.

    A kernel releases the interpreter's lock. It is compiled when first called and kept beside its source, or
    in the user's cache; where neither can be written to, each process compiles anew. A kernel and what it
    calls belong in one file: the cache looks at no other.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        import numba

        # numpy's error model: a division by 0 gives Inf or NaN, as torch's does. Python's would raise, and a
        # loop with its check in it is not vectorized.
        compiler = functools.partial(
            numba.njit, parallel=parallel, nogil=True, error_model="numpy", fastmath=flags
        )
        try:
            compiled: Callable[..., Any] = compiler(cache=True)(function)
        except RuntimeError:  # no folder to keep it in can be written to
            compiled = compiler()(function)
        return compiled

    return decorate


def is_available() -> bool:
    """Whether kernels can run here: with numba, outside ``torch.compile``, in the process that began it.

    A process forked from one that ran kernels has lost their threads.
    """
    return not torch.compiler.is_compiling() and INSTALLED and _process in ([], [os.getpid()])


@contextmanager
def threads() -> Iterator[None]:
    """Run kernels on as many threads as torch would, one at a time: not every threading layer allows more."""
    import numba

    with _lock:
        # Before a thread can start: whoever forks from here on has lost them.
        _process[:] = [os.getpid()]
        wanted = torch.get_num_threads()
        before = numba.get_num_threads()
        if torch.get_num_threads() != wanted:  # numba has started its own, and OpenMP has one number for both
            torch.set_num_threads(wanted)
        # numba raises for more threads than it was started with.
        numba.set_num_threads(min(wanted, before))
        try:
            yield
        finally:
            numba.set_num_threads(before)
