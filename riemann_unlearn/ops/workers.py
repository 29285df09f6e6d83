"""One thread a core, each with work of its own.

Between two short matrix products there is nothing to gain from waiting for each other: workers that each
compute their own products on one thread, and what follows them, are kept busy by both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock
from typing import TypeVar

import torch

MOST = 8
"""Workers: each has accumulators of its own, as large as one side's features."""

Result = TypeVar("Result")


def count() -> int:
    """How many workers there are: torch's threads, as far as they are any use."""
    return min(torch.get_num_threads(), MOST)


def run(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """The results of ``tasks``, at most :data:`MOST`; side by side, each with one thread of torch.

    A single task runs where it is, with torch's threads. Tasks record no gradients.
    """
    inference = torch.is_inference_mode_enabled()

    def guarded(task: Callable[[], Result]) -> Result:
        # Both modes belong to a thread.
        with torch.inference_mode(inference), torch.no_grad():
            return task()

    if len(tasks) == 1:
        return [guarded(tasks[0])]
    # In the order of the tasks, whoever ends first: callers add results up, and get the same sum each time.
    return list(_pool().map(guarded, tasks))


_lock = Lock()
_made: ThreadPoolExecutor | None = None


def _pool() -> ThreadPoolExecutor:
    """The threads; made once, since telling torch how many threads one has is not free."""
    global _made
    with _lock:
        if _made is None:
            threads = torch.get_num_threads()
            # An executor starts a thread only where none is idle. Each waits at the barrier before its first
            # task, so that none is idle until all are there; the last to wait is whoever made the pool.
            ready = Barrier(MOST + 1)
            _made = ThreadPoolExecutor(MOST, "riemann_unlearn", lambda: _start(ready))
            for _ in range(MOST):
                _made.submit(int)
            ready.wait()
            # What a thread is told is also what threads to come will start with: not what was asked for.
            torch.set_num_threads(threads)
        return _made


def _start(ready: Barrier) -> None:
    torch.get_num_threads()  # a thread that asks has its number; one that does not gets it later, over ours
    torch.set_num_threads(1)
    ready.wait()


def _forget() -> None:
    """Threads do not survive a fork."""
    global _made, _lock
    # A new lock too: another thread may have held the old one when the process was forked.
    _made, _lock = None, Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
