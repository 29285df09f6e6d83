"""Stopping when it is done: the bars of a run, asked of seen images that take no part in it.

An eighth of the seen images of either kind is set aside. Every 25 steps they are asked what they show: the
forgotten must not be found more often than by chance, and the retained no less often than before, each within
one tolerance. The first time that all of it holds, the run has taken its last step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from riemann_unlearn.evaluation.features import Captions, encode_captions
from riemann_unlearn.evaluation.measures.zero_shot import ZeroShot
from riemann_unlearn.evaluation.subject import SEEN, Part, Subject
from riemann_unlearn.training import Callback, Driver
from riemann_unlearn.training.towers import WHOLE
from riemann_unlearn.unlearning.problem import Problem

EVERY = 25
"""Steps between two times that the images are asked."""
MOST = 1024
"""Images of either kind that are set aside at most: a share of 84 % of 1,024 has a standard error of 1.1
points, and its change, as most images keep their answer, a smaller one."""
ASKED = ("accuracy", "recall_at_1")
"""What each is asked: by the captions of the level that is to be forgotten, and by the most specific ones."""


def set_aside(problem: Problem, seed: int) -> Tensor:
    """Which seen images are to take no part in a run, bool, shape (N,).

    Raises
    ------
    ValueError
        When there are fewer than eight of a kind.
    """
    generator = torch.Generator().manual_seed(seed)
    aside = torch.zeros_like(problem.gone)
    for name, kind in (("to be forgotten", problem.gone), ("to be retained", ~problem.gone)):
        rows = kind.nonzero()[:, 0]
        if len(rows) < 8:
            raise ValueError(
                f"tolerance sets an eighth of the seen images of either kind aside, and only {len(rows)} are "
                f"{name}; leave it out, or give at least 8"
            )
        count = min(MOST, len(rows) // 8)
        aside[rows[torch.randperm(len(rows), generator=generator)[:count]]] = True
    return aside


class StopAtBars(Callback):
    """Ends a run at the first step at which all bars hold.

    Parameters
    ----------
    problem : Problem
        The model is what it was.
    moved : sequence of nn.Parameter
        What the method moves: captions are encoded once if it is nothing of the text tower.
    aside : Tensor, shape (N,)
        bool: the seen images to ask.
    tolerance : float
        By how much the forgotten may be found more often than by chance and the retained less often than
        before, as shares; at the level that is to be forgotten, and by the most specific captions.

    Attributes
    ----------
    stopped : dict or None
        Which step was the last one, and what the images set aside showed after it; None if all were taken.
    """

    def __init__(
        self, problem: Problem, moved: Sequence[nn.Parameter], aside: Tensor, tolerance: float
    ) -> None:
        # An evaluation is in float32, in whichever precision the steps are.
        self.problem = problem = replace(problem, towers=WHOLE)
        self._samples = problem.dataset.seen.subset(aside)
        self._front = problem.front(self._samples.images[torch.arange(len(self._samples))])
        self._captions: tuple[Captions, ...] | None = None
        if not set(moved).intersection(problem.model.text.parameters()):
            self._captions = self._encode()
        before, chance = self._measure(), ZeroShot().chance(problem.taxonomy, problem.selection)
        self._most = {name: chance[name] + tolerance for name in ASKED}
        self._least = {name: before["retain"][name] - tolerance for name in ASKED}
        self.stopped: dict[str, Any] | None = None

    def started(self, driver: Driver) -> None:
        """A run that had stopped when it was interrupted takes no more steps."""
        if self.stopped is not None:
            driver.steps = driver.step

    def stepped(self, driver: Driver, record: dict[str, Any]) -> None:
        """Ask, when it is time."""
        if driver.step % EVERY:
            return
        found = self._measure()
        if all(found["forget"][name] <= self._most[name] for name in ASKED) and all(
            found["retain"][name] >= self._least[name] for name in ASKED
        ):
            self.stopped = {"step": driver.step, **found}
            driver.steps = driver.step

    def state_dict(self) -> dict[str, Any]:
        """Whether the run has stopped."""
        return {"stopped": self.stopped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.stopped = state["stopped"]

    def _encode(self) -> tuple[Captions, ...]:
        levels = self.problem.taxonomy.levels
        return tuple(encode_captions(self.problem.model, level.captions) for level in levels)

    @torch.no_grad()
    def _measure(self) -> dict[str, dict[str, float]]:
        """Of either kind, what :data:`ASKED` is now."""
        problem = self.problem
        part = Part(self._samples, problem.tower.encode_image(self._front), problem.selection, SEEN)
        captions = self._encode() if self._captions is None else self._captions
        groups = ZeroShot().compute(Subject(problem.model, problem.selection, part, None, captions), {})[
            "seen"
        ]
        return {kind: {name: groups[kind][name] for name in ASKED} for kind in ("forget", "retain")}
