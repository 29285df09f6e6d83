"""Asked in other words: is only the name unlearned?

Every concept is described by the whole list of its keywords, a caption that neither training nor unlearning
used (both draw the name and at most two keywords). Is the description of its own concept the nearest to an
image? A concept without keywords is asked for by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from riemann_unlearn.data import Concept, Selection, Taxonomy
from riemann_unlearn.data.captions import keyword_caption
from riemann_unlearn.evaluation.features import encode_captions, ranks
from riemann_unlearn.evaluation.measures.base import Measure, percent, share
from riemann_unlearn.evaluation.subject import Subject
from riemann_unlearn.registry import register


@register
@dataclass(frozen=True)
class Paraphrase(Measure):
    """Recall@1 by keywords."""

    name: ClassVar[str] = "paraphrase"
    title: ClassVar[str] = "Asked by keywords, %"
    reading: ClassVar[str] = (
        "Recall@1 by descriptions that no unlearning used, the whole list of a concept's keywords. High "
        "after: only the name was unlearned. Where a description is another concept's too, or reads the same "
        "to the model, the answer counts as wrong; how often that is so stands beside."
    )
    label: ClassVar[str] = "by keywords (recall@1)"
    guess: ClassVar[str] = "1/concepts"
    order: ClassVar[int] = 40
    quick: ClassVar[bool] = True

    def on(self, subject: Subject) -> str:
        """Seen images: what was trained on is what there is to unlearn."""
        return subject.seen.what

    def unmet(self, subject: Subject, references: Mapping[str, Subject]) -> str | None:
        """Without keywords it would repeat recall@1 by names, as if that were an independent check."""
        concepts = subject.taxonomy.concepts
        if not any(concept.keywords for concept in concepts):
            return "the concepts have no keywords"
        if not any(_described(concept) for concept in concepts):
            return "the concepts have no keywords but their names"
        # Then every description reads alike, and no model could tell any image by its own.
        if all(concept.keywords == concepts[0].keywords for concept in concepts):
            return "all concepts have the same keywords"
        return None

    def chance(self, taxonomy: Taxonomy, selection: Selection) -> float:
        """One over the concepts."""
        return 1 / len(taxonomy.concepts)

    def compute(self, subject: Subject, references: Mapping[str, Subject], seed: int = 0) -> dict[str, Any]:
        """``forget`` and ``retain``: recall@1; ``images``: of how many; ``ties``: the share of them that tie.

        An image ties when the tokens of its description, or its features, are those of another concept's.
        Recall is None for a group in which the tokens of all do: no model could find any, and 0 would pass
        for forgetting. So it is for a group of which no concept is described but by its name: that is
        recall@1 by names again.
        """
        part = subject.seen
        texts = [keyword_caption(concept, concept.keywords) for concept in subject.taxonomy.concepts]
        captions = encode_captions(subject.model, texts)
        hits = ranks(subject.space, part.features, captions.features, part.concept) < 1
        # Shared ones are the data's doing, the other ties the model's: only the former excuse an error.
        shared, ties = captions.shared[part.concept], captions.tied[part.concept]
        own = torch.tensor([_described(concept) for concept in subject.taxonomy.concepts])
        asked = ~shared & own.to(part.concept.device)[part.concept]
        groups = {"forget": part.forgotten, "retain": ~part.forgotten}
        return {
            **{group: share(hits[mask]) if asked[mask].any() else None for group, mask in groups.items()},
            "ties": {group: share(ties[mask]) for group, mask in groups.items()},
            "images": {group: int(mask.sum()) for group, mask in groups.items()},
        }

    def rows(self, value: Any) -> dict[str, str]:
        """Recall of either group, and how often it could not be had."""
        groups = value["images"]
        return {
            **{group: percent(value[group], n) for group, n in groups.items()},
            **{
                f"{group}: described as another is": percent(value["ties"][group], n)
                for group, n in groups.items()
            },
        }


def _described(concept: Concept) -> bool:
    """Whether its keywords say something else than its name does."""
    return keyword_caption(concept, concept.keywords) != concept.text
