"""What a method is: settings, and either the loss of one step or the whole change at once.

A method is a frozen dataclass whose fields are its settings. A :class:`GradientMethod` says what loss a batch
has; the loop (``unlearning.loop``) draws the batches and steps the optimizer, and knows nothing else
about it. A :class:`DirectMethod` changes the model itself, in closed form or by a training of its own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riemann_unlearn.data import Dataset, Selection
from riemann_unlearn.data.batch import Batch
from riemann_unlearn.models import DualEncoder


@dataclass(frozen=True)
class Problem:
    """What is to be changed, what it learned from, and what of that has to go."""

    model: DualEncoder
    dataset: Dataset
    selection: Selection

    def forgotten(self, level: str) -> Tensor:
        """Which captions of a level are to be forgotten, bool, one for each caption of the taxonomy."""
        return {
            "name": self.selection.concepts,
            "subcategory": self.selection.subcategories,
            "category": self.selection.categories,
        }[level]


@dataclass(frozen=True)
class Step:
    """One batch, as a method sees it; a tower runs when its features are first asked for."""

    problem: Problem
    batch: Batch
    indices: Tensor
    """Rows of the batch's images in the seen data, long, shape (B,)."""
    number: int = 0
    """How many steps were taken before this one."""

    @property
    def model(self) -> DualEncoder:
        """The model that is being changed."""
        return self.problem.model

    @cached_property
    def image_features(self) -> Tensor:
        """What the image tower emits for the batch, shape (B, D)."""
        return self.model.encode_image(self.model.preprocess(self.batch.images))

    @cached_property
    def text_features(self) -> dict[str, Tensor]:
        """By level, the features of each image's caption at that level, shape (B, D)."""
        texts = self.model.encode_text(self.model.tokenize(self.batch.texts))
        return {level: texts[pair.row] for level, pair in self.batch.pairings.items()}

    @cached_property
    def forget(self) -> dict[str, Tensor]:
        """By level, bool, shape (B,): whether the pair's caption names something to be forgotten."""
        return {
            level: self.problem.forgotten(level)[pair.caption_ids]
            for level, pair in self.batch.pairings.items()
        }

    def sum_over_levels(self, loss: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The terms of a loss of one level, summed by name over the levels."""
        total: dict[str, Tensor] = {}
        for level in self.batch.pairings:
            for name, value in loss(level).items():
                total[name] = total[name] + value if name in total else value
        return total

    def contrast(self, *, retained: bool) -> Tensor:
        """The symmetric InfoNCE of some pairs, summed over the levels.

        Retained pairs are contrasted among themselves, as in AC; forgotten ones with the whole batch, for
        among themselves they may all have the same caption. 0 at a level without such pairs.
        """
        return self.sum_over_levels(lambda level: {"sum": self._contrast(level, retained)})["sum"]

    def _contrast(self, level: str, retained: bool) -> Tensor:
        chosen = self.forget[level] != retained
        inside = chosen if retained else torch.ones_like(chosen)
        if not chosen.any():
            return self.image_features.new_zeros(())
        captions = self.batch.pairings[level].caption_ids[inside]
        same = captions[:, None] == captions[None, :]
        same.fill_diagonal_(False)  # other images of one's caption are no negatives
        logits = self.model.logit_scale.exp() * self.model.similarity(
            self.image_features[inside], self.text_features[level][inside]
        )
        logits = logits.masked_fill(same, -math.inf)
        own = torch.arange(len(logits), device=logits.device)
        rows = chosen[inside]
        both = F.cross_entropy(logits[rows], own[rows]) + F.cross_entropy(logits.mT[rows], own[rows])
        return both / 2

    def calibrate(self, loss: Callable[..., dict[str, Tensor]]) -> dict[str, Tensor]:
        """A calibration loss of :mod:`riemann_unlearn.losses` applied at every level."""
        return self.sum_over_levels(
            lambda level: loss(
                self.image_features,
                self.text_features[level],
                self.forget[level],
                logit_scale=self.model.logit_scale.exp(),
                c=self.model.curvature,
                caption_ids=self.batch.pairings[level].caption_ids,
                output_dict=True,
            )
        )


Objective = Callable[[Step], dict[str, Tensor]]
"""The weighted loss terms of one step, named ``..._loss``; their sum is the loss."""


@dataclass(frozen=True)
class Method(ABC):
    """A way to forget; its fields are its settings."""

    name: ClassVar[str]
    description: ClassVar[str]
    paper: ClassVar[str]
    geometries: ClassVar[tuple[str, ...]] = ("euclidean", "hyperbolic")

    def __post_init__(self) -> None:
        """Refuse settings outside their ranges."""
        for entry in fields(self):
            low, high = entry.metadata["range"]
            value = getattr(self, entry.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"{self.name}: {entry.name} must be a number, got {value!r}")
            if isinstance(entry.default, int) and not isinstance(value, int):
                raise ValueError(f"{self.name}: {entry.name} must be a whole number, got {value!r}")
            if not low <= value <= high:
                raise ValueError(f"{self.name}: {entry.name} must be in [{low}, {high}], got {value}")


@dataclass(frozen=True)
class GradientMethod(Method):
    """A method that takes optimizer steps on batches of forget and retain pairs."""

    forget_batch: ClassVar[int] = 32
    retain_batch: ClassVar[int] = 96

    learning_rate: float
    steps: int

    @abstractmethod
    def objective(self, problem: Problem) -> Objective:
        """The loss to be descended, made once, while the model still is what it was."""

    def parameters(self, model: DualEncoder) -> list[nn.Parameter]:
        """What the optimizer moves: all weights, and not the scalars.

        τ, c and the feature scales define the space; fixed, they keep distances comparable.
        """
        return [p for p in model.parameters() if p.ndim > 0]

    def rate(self, step: int) -> float:
        """What the learning rate is multiplied with at a step, the first being 0."""
        return 1.0


@dataclass(frozen=True)
class DirectMethod(Method):
    """A method that is no sequence of steps on the given model."""

    @abstractmethod
    def apply(self, problem: Problem, *, seed: int, folder: Path | None, progress: bool) -> None:
        """Change the model in place.

        Parameters
        ----------
        problem : Problem
        seed : int
            Decides what is left to chance.
        folder : Path or None
            Where intermediate results may be kept, to be gone on with after an interruption.
        progress : bool
            Show a progress bar, if it takes long.
        """


def setting(default: float, low: float, high: float, description: str) -> Any:
    """A dataclass field for a number in [low, high], with what it means."""
    return field(default=default, metadata={"range": (low, high), "description": description})
