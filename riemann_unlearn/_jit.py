"""Kernels for the CPU, compiled by numba.

A module of kernels decorates them with :func:`kernel` and imports numba at its top; who uses it asks
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


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function whose ``prange`` loops run on several threads, keeping the result on disk.

    Sums may be reordered, so that they are vectorized; NaN, infinities and the sign of zero are kept.
    """
    import numba

    compiler = functools.partial(
        numba.njit, parallel=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"}
    )
    try:
        compiled: Callable[..., Any] = compiler(cache=True)(function)
    except RuntimeError:  # no folder to keep it in can be written to
        compiled = compiler()(function)
    return compiled


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
        _process[:] = [os.getpid()]
        before = numba.get_num_threads()
        numba.set_num_threads(min(torch.get_num_threads(), numba.get_num_threads()))
        try:
            yield
        finally:
            numba.set_num_threads(before)
