"""The benchmarks of the operators: that every peer takes its step, and that peers compute the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import cones, contrastive, hac_step, loop_step, topk
from riemann_unlearn.data import Dataset
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.unlearning.methods.hac import HAC
from tests.unlearning.test_methods import problem, step

STEPS = {
    contrastive.step: ("floor", "ours", "plain"),
    cones.step: ("floor", "ours", "plain"),
    hac_step.step: ("contrastive", "HAC", "HAC, captions", "plain"),
    topk.step: ("floor", "ours", "ranks", "plain"),
}


@pytest.mark.parametrize(
    ("make", "peer"),
    [
        pytest.param(make, peer, id=f"{make.__module__}-{peer}")
        for make, peers in STEPS.items()
        for peer in peers
    ],
)
def test_every_peer_takes_its_step(make: Callable[..., Callable[[], Any]], peer: str) -> None:
    found = make(peer, 12, 8)()
    if peer != "floor":
        assert all(value.isfinite().all() for value in ([found] if torch.is_tensor(found) else found))


def test_the_plain_hac_of_a_whole_step_is_hac(meru: DualEncoder, world: Dataset) -> None:
    task = problem(meru, world)
    settings = {"alpha": 0.3, "beta": 0.7, "gamma": 0.1, "omega": 0.5, "eta": 0.9, "epsilon": 0.8}
    plain, ours = (make(**settings).objective(task)(step(task)) for make in (loop_step.Plain, HAC))
    assert plain.keys() == ours.keys()
    for name, value in ours.items():
        torch.testing.assert_close(plain[name], value.to(plain[name].dtype), rtol=1e-4, atol=1e-5)
