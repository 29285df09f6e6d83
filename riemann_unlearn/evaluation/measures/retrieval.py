"""Retrieval in both directions.

Image to text: the rank of an image's own name among all names. Text to image: the rank of the best image
of a concept among all images, asked by its name; a name without images is not asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from riemann_unlearn.evaluation.features import CHUNK, ranks
from riemann_unlearn.evaluation.measures.base import Measure, percent, share
from riemann_unlearn.evaluation.subject import Subject
from riemann_unlearn.registry import register
from riemann_unlearn.spaces import Space

AT = (1, 5)


@register
@dataclass(frozen=True)
class Retrieval(Measure):
    """Recall at 1 and 5 of either direction, by group of concepts."""

    name: ClassVar[str] = "retrieval"
    title: ClassVar[str] = "Retrieval, %"
    reading: ClassVar[str] = (
        "Image to text: is an image's own name among the nearest of all names? Text to image: is one of a "
        "concept's images among the nearest of all images? The forgotten should be found in neither "
        "direction."
    )
    guess: ClassVar[str] = "1/names"
    order: ClassVar[int] = 30

    def compute(
        self, subject: Subject, references: Mapping[str, Subject], seed: int = 0
    ) -> dict[str, dict[str, Any]]:
        """Recalls by group of concepts.

        For each group ``image_to_text_at_1``, ``..._at_5``, ``text_to_image_at_1``, ``..._at_5``, or None
        for a group without images; and how many ``images`` and ``names`` were asked about. A tie counts
        against the model; a name that reads the same as another is not asked.
        """
        part, names, space = subject.test, subject.captions[0], subject.space
        image_rank = ranks(space, part.features, names.features, part.concept)
        # Only names that have images: of the others no image could be the right one.
        present, own = torch.unique(part.concept, return_inverse=True)
        text_rank = _ranks_of_texts(space, part.features, names.features[present], own)
        images = subject.images_of(part)
        report: dict[str, dict[str, Any]] = {}
        for group, concepts in subject.groups.items():
            report[group] = {}
            for direction, rank, mask, concept, asked in (
                ("image_to_text", image_rank, images[group], part.concept, "images"),
                ("text_to_image", text_rank, concepts[present], present, "names"),
            ):
                chosen = mask & ~names.shared[concept]
                report[group] |= {f"{direction}_at_{k}": share((rank < k)[chosen]) for k in AT}
                report[group][asked] = int(chosen.sum())
        return report

    def rows(self, value: Any) -> dict[str, str]:
        """Every recall of every group."""
        return {
            f"{group}: {direction.replace('_', ' ')}, recall@{k}": percent(
                recalls[f"{direction}_at_{k}"], recalls[asked]
            )
            for group, recalls in value.items()
            for direction, asked in (("image_to_text", "images"), ("text_to_image", "names"))
            for k in AT
        }


@torch.no_grad()
def _ranks_of_texts(space: Space, images: Tensor, texts: Tensor, own: Tensor) -> Tensor:
    """How many images of others are at least as similar to each text as the best of its own; shape (texts,).

    The similarities are computed twice, a chunk of images at a time: first for the best, then to count.
    """
    chunks = list(zip(torch.split(images, CHUNK), torch.split(own, CHUNK), strict=True))
    # -inf is below every similarity: the identity of a maximum, in which scatter_reduce counts the initial
    # values too.
    best = images.new_full((len(texts),), -torch.inf)
    for some, text in chunks:
        mine = space.pairwise(some, texts).gather(1, text[:, None])[:, 0]
        best = best.scatter_reduce(0, text, mine, "amax")
    columns = torch.arange(len(texts), device=own.device)
    count = torch.zeros_like(columns)
    for some, text in chunks:
        count += ((space.pairwise(some, texts) >= best) & (text[:, None] != columns)).sum(0)
    return count
