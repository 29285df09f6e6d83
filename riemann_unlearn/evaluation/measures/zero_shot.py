"""Zero-shot accuracy at every level: what a model knows.

The same question is asked of an image at each level of the taxonomy: among the captions of all its labels,
which is the most similar? A tie counts against the model. Captions that read the same to it, token for token,
cannot be told apart by any model: images of them are not asked about, and the rest says nothing of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from riemann_unlearn.data import Samples, Selection, Taxonomy
from riemann_unlearn.evaluation.features import Captions, encode_captions, encode_images, ranks
from riemann_unlearn.evaluation.measures.base import Measure, percent, share
from riemann_unlearn.evaluation.subject import Subject
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.registry import register
from riemann_unlearn.spaces import Space

TOP = 5
"""The other rank that recall is given at."""


@register
@dataclass(frozen=True)
class ZeroShot(Measure):
    """Accuracy at each level, on seen and held-out images, by group."""

    name: ClassVar[str] = "zero_shot"
    title: ClassVar[str] = "What it knows, %"
    reading: ClassVar[str] = (
        "Is an image's own caption the most similar of all at its level? Forget should fall to chance; "
        "neighbours and retain should stay, and so should the accuracy of the forgotten one level up: no "
        "longer an apple, still food."
    )
    guess: ClassVar[str] = "1/labels"
    order: ClassVar[int] = 10

    def on(self, subject: Subject) -> str:
        """Both parts, where there are two."""
        return " and ".join(part.what for part in subject.parts)

    def chance(self, taxonomy: Taxonomy, selection: Selection) -> dict[str, Any]:
        """In the form of the metrics of one group."""
        return _by_name(
            taxonomy,
            selection.level,
            [
                {"accuracy": 1 / len(level), "recall_at_5": min(1.0, TOP / len(level))}
                for level in taxonomy.levels
            ],
        )

    def compute(
        self, subject: Subject, references: Mapping[str, Subject], seed: int = 0
    ) -> dict[str, dict[str, dict[str, Any]]]:
        """``value[part][group]`` as :func:`zero_shot` gives them, for the parts "seen" and "heldout"."""
        return {
            name: _metrics(
                subject.space,
                part.features,
                subject.captions,
                [part.labels(depth) for depth in range(len(subject.captions))],
                subject.taxonomy,
                subject.selection.level,
                subject.images_of(part),
            )
            # Not strict: where nothing is held out there is one part, and the second name is left over.
            for name, part in zip(("seen", "heldout"), subject.parts, strict=False)
        }

    def rows(self, value: Any) -> dict[str, str]:
        """Each group's accuracy at each level and recall among the most specific, seen and held out."""
        rows = {}
        for part, groups in value.items():
            where = {"seen": "seen", "heldout": "held out"}[part]
            for group, metrics in groups.items():
                for level, figures in metrics["levels"].items():
                    rows[f"{group}: {level}, {where}"] = percent(figures["accuracy"], figures["images"])
                level, figures = next(iter(metrics["levels"].items()))
                rows[f"{group}: {level} in top 5, {where}"] = percent(
                    metrics["recall_at_5"], figures["images"]
                )
        return rows


def zero_shot(
    model: DualEncoder,
    data: Samples,
    groups: Mapping[str, Tensor] | None = None,
    *,
    level: int | None = None,
    image_features: Tensor | None = None,
) -> Any:
    """What ``model`` knows of ``data``, overall or by group of images.

    Parameters
    ----------
    model : DualEncoder
    data : Samples
    groups : mapping of str to Tensor, optional
        Boolean masks over the images of ``data``.
    level : int, optional
        Number of the level that ``accuracy`` is asked at; by default that above the most specific, if there
        is one (:attr:`Taxonomy.grouping`).
    image_features : Tensor, shape (N, D), optional
        Features of the images of ``data``, where they are known already.

    Returns
    -------
    dict
        Shares in [0, 1], or None where no image was asked about; with ``groups``, one such dict for each:

        - ``accuracy``, ``parent_accuracy``: at the level asked for, and at the one above (None at the top);
        - ``recall_at_1``, ``recall_at_5``: among the captions of the most specific level, the own one is the
          most similar, or among the five most similar;
        - ``images``: how many there are in the group;
        - ``levels``: by name of the level ``{"accuracy", "recall_at_5", "images", "ties"}``: how many images
          were asked about there, and for how many of them the features of the right caption are exactly those
          of a wrong one, which counts as an error.
    """
    images = encode_images(model, data.images) if image_features is None else image_features
    taxonomy, concept = data.taxonomy, data.concept.to(images.device)
    whole = torch.ones_like(concept, dtype=torch.bool)
    metrics = _metrics(
        model.space.detached(),
        images,
        [encode_captions(model, one.captions) for one in taxonomy.levels],
        [taxonomy.ancestor(depth).to(images.device)[concept] for depth in range(len(taxonomy.levels))],
        taxonomy,
        taxonomy.grouping if level is None else level,
        {"": whole} if groups is None else {name: mask.to(images.device) for name, mask in groups.items()},
    )
    return metrics[""] if groups is None else metrics


def _metrics(
    space: Space,
    features: Tensor,
    captions: Sequence[Captions],
    labels: Sequence[Tensor],
    taxonomy: Taxonomy,
    level: int,
    groups: Mapping[str, Tensor],
) -> dict[str, dict[str, Any]]:
    """By group of images; ``captions`` and each image's ``labels`` are by level."""
    # Once for all groups: a rank is an image's own, whichever groups it belongs to.
    rank = [ranks(space, features, bank.features, own) for bank, own in zip(captions, labels, strict=True)]
    report = {}
    for group, mask in groups.items():
        figures: list[dict[str, Any]] = []
        for bank, own, place in zip(captions, labels, rank, strict=True):
            # A caption that reads like another is an error of any model, so it is none of this one's.
            asked = mask & ~bank.shared[own]
            figures.append(
                {
                    "accuracy": share(place[asked] < 1),
                    "recall_at_5": share(place[asked] < TOP),
                    "images": int(asked.sum()),
                    "ties": int(bank.tied[own][asked].sum()),
                }
            )
        report[group] = {**_by_name(taxonomy, level, figures), "images": int(mask.sum())}
    return report


def _by_name(taxonomy: Taxonomy, level: int, figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The public form: aliases for the level asked for and the one above it, then every level by its name."""
    # The topmost level has none above it: the key stays, so that readers need not ask for it.
    above = figures[level + 1]["accuracy"] if level + 1 < len(figures) else None
    return {
        "accuracy": figures[level]["accuracy"],
        # Level 0 is the most specific one, whichever level was asked for.
        "recall_at_1": figures[0]["accuracy"],
        "recall_at_5": figures[0]["recall_at_5"],
        "parent_accuracy": above,
        "levels": {one.name: figure for one, figure in zip(taxonomy.levels, figures, strict=True)},
    }
