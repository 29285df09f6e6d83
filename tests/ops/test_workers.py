"""Threads that keep to themselves: their torch has one thread, and the caller's keeps its own number."""

from __future__ import annotations

import os
import threading

import pytest
import torch

from riemann_unlearn.ops import workers


def test_each_worker_has_one_thread_of_torch_and_the_caller_keeps_its_own() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        names = workers.run([lambda: (threading.current_thread().name, torch.get_num_threads())] * 3)
        assert all(name.startswith("riemann_unlearn") and count == 1 for name, count in names)
        started: list[int] = []
        other = threading.Thread(target=lambda: started.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert (torch.get_num_threads(), started) == (2, [2])
    finally:
        torch.set_num_threads(before)


def test_a_single_task_runs_where_it_is_and_errors_come_back() -> None:
    assert workers.run([threading.get_ident]) == [threading.get_ident()]

    def fails() -> None:
        raise ArithmeticError("no")

    with pytest.raises(ArithmeticError, match="no"):
        workers.run([fails, fails])


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_tasks_have_the_callers_mode_and_record_nothing(mode: type[torch.no_grad]) -> None:
    weight = torch.ones(2, requires_grad=True)
    with mode():
        buffer = torch.zeros(2)
        results = workers.run([lambda: buffer.add_(weight).requires_grad] * 2)
    assert results == [False, False]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_they_are_made_anew_after_a_fork() -> None:
    assert workers.run([os.getpid] * 2) == [os.getpid()] * 2
    child = os.fork()
    if child == 0:
        os._exit(0 if workers.run([os.getpid] * 2) == [os.getpid()] * 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
