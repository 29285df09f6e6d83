"""No text at all: does the nearest prototype still find what the caption no longer finds?

Each label of the level that probes ask at is the mean of its seen images' features, and a held-out image
belongs to the nearest mean (Snell et al. 2017, arXiv 1703.05175). What is found so is hidden, not gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from riemann_unlearn.data import Selection, Taxonomy
from riemann_unlearn.evaluation.features import nearest
from riemann_unlearn.evaluation.measures.base import Measure, percent, share
from riemann_unlearn.evaluation.subject import Subject
from riemann_unlearn.registry import register


@register
@dataclass(frozen=True)
class Prototypes(Measure):
    """Accuracy by the nearest mean of a group of concepts."""

    name: ClassVar[str] = "prototype"
    title: ClassVar[str] = "Asked by image prototypes, %"
    reading: ClassVar[str] = (
        "Share of images nearest to the mean of the seen images of their own label, among all labels of a "
        "level; no text is asked. What the caption no longer finds but this does is hidden, not gone."
    )
    label: ClassVar[str] = "by image prototypes (accuracy)"
    guess: ClassVar[str] = "1/labels"
    paper: ClassVar[str] = "Snell et al. 2017, arXiv 1703.05175"
    order: ClassVar[int] = 45
    quick: ClassVar[bool] = True

    def unmet(self, subject: Subject, references: Mapping[str, Subject]) -> str | None:
        """An image must not be asked by a mean that it is a part of."""
        return "it needs held-out images" if subject.heldout is None else None

    def chance(self, taxonomy: Taxonomy, selection: Selection) -> float:
        """One over the labels of the level that is asked at."""
        return 1 / len(taxonomy.levels[taxonomy.grouping])

    def compute(self, subject: Subject, references: Mapping[str, Subject], seed: int = 0) -> dict[str, Any]:
        """``forget`` and ``retain``: accuracy, or None of no image; of so many ``images`` each."""
        space, depth, test = subject.space, subject.taxonomy.grouping, subject.test
        # The labels that have images; a mean of none would be near to everything or nothing.
        present, own = torch.unique(subject.seen.labels(depth), return_inverse=True)
        means = space.mean(subject.seen.features, own, len(present))
        hits = present[nearest(space, test.features, means, 1)[:, 0]] == test.labels(depth)
        groups = {"forget": test.forgotten, "retain": ~test.forgotten}
        return {
            **{group: share(hits[mask]) for group, mask in groups.items()},
            "images": {group: int(mask.sum()) for group, mask in groups.items()},
        }

    def rows(self, value: Any) -> dict[str, str]:
        """Accuracy of either group."""
        return {group: percent(value[group], n) for group, n in value["images"].items()}
