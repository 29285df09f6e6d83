"""Subjects made by hand, whose features are given and no image looked at; small datasets of any depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from riemann_unlearn.data import Concept, Dataset, Samples, Taxonomy
from riemann_unlearn.evaluation.features import Captions
from riemann_unlearn.evaluation.subject import HELDOUT, SEEN, Part, Subject
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.spaces import Cosine, Space
from tests.conftest import make_model

TAXONOMY = Taxonomy(
    [
        Concept("1", "red apple", (), ("fruit", "food")),
        Concept("2", "banana", (), ("fruit", "food")),
        Concept("3", "coffee", (), ("drink", "food")),
        Concept("4", "owl", (), ("bird", "animals")),
        Concept("5", "duck", (), ("bird", "animals")),
    ],
    levels=("name", "subcategory", "category"),
)


def noise(concept: Tensor, taxonomy: Taxonomy = TAXONOMY, seed: int = 0) -> Samples:
    """Noise that is said to show ``concept``."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (len(concept), 3, 16, 16), generator=generator, dtype=torch.uint8)
    return Samples(images, concept, torch.zeros_like(concept), ("hand",), taxonomy)


def dataset(concepts: Sequence[Concept], each: int = 2, *, heldout: bool = True) -> Dataset:
    """Noise of concepts of any depth: so many seen images of each, and as many held-out ones."""
    taxonomy = Taxonomy(concepts)
    concept = torch.arange(len(concepts)).repeat(each)
    return Dataset("hand", noise(concept, taxonomy), noise(concept, taxonomy, seed=1) if heldout else None)


def captions(texts: Sequence[str], features: Tensor) -> Captions:
    """As of a model that can tell all texts apart."""
    none = torch.zeros(len(texts), dtype=torch.bool)
    return Captions(tuple(texts), features, none, none, context_length=16)


def subject(
    forget: list[str],
    seen: tuple[Tensor, Tensor],
    heldout: tuple[Tensor, Tensor] | None,
    *,
    architecture: str = "CLIP",
    features: Sequence[Tensor] | None = None,
) -> Subject:
    """Each part is (concept of each image, features); ``features`` are of the captions of each level."""
    dimension, selection = seen[1].shape[1], TAXONOMY.select(forget)
    given = features or [torch.eye(len(level), dimension) for level in TAXONOMY.levels]
    return Subject(
        make_model(architecture),
        selection,
        Part(noise(seen[0]), seen[1], selection, SEEN),
        None if heldout is None else Part(noise(heldout[0], seed=1), heldout[1], selection, HELDOUT),
        tuple(captions(level.captions, of) for level, of in zip(TAXONOMY.levels, given, strict=True)),
    )


def without_heldout(one: Subject) -> Subject:
    return replace(one, heldout=None)


class Knows(DualEncoder):
    """Knows the images of a dataset by heart, except for a concept that it takes for another."""

    name = "Knows"

    def __init__(self, data: Dataset, wrong: str | None = None, taken_for: str | None = None) -> None:
        torch.nn.Module.__init__(self)
        self.register_buffer("mean", torch.zeros(1))
        parts = [data.seen] + ([] if data.heldout is None else [data.heldout])
        names = [concept.name for concept in data.taxonomy.concepts]
        self.seen = {
            image.numpy().tobytes(): int(concept)
            for part in parts
            for image, concept in zip(part.images[torch.arange(len(part))], part.concept, strict=True)
        }
        if wrong is not None and taken_for is not None:
            taken = names.index(taken_for)
            self.seen = {k: taken if c == names.index(wrong) else c for k, c in self.seen.items()}
        # Every caption is an axis, and a concept is the sum of those of all its levels.
        self.words = sorted({text for level in data.taxonomy.levels for text in level.captions})
        self.paths = [
            [
                level.captions[int(data.taxonomy.ancestor(depth)[i])]
                for depth, level in enumerate(data.taxonomy.levels)
            ]
            for i in range(len(names))
        ]

    @property
    def space(self) -> Space:
        return Cosine(scale=10.0)

    def preprocess(self, images: Tensor) -> Tensor:  # type: ignore[override]
        return images

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        known = {word: i for i, word in enumerate(self.words)}
        return torch.tensor([[known.get(text, len(known))] for text in texts])

    def encode_text(self, tokens: Tensor) -> Tensor:
        return one_hot(tokens[:, 0], len(self.words) + 1).float()

    def encode_image(self, images: Tensor) -> Tensor:
        rows = [self.paths[self.seen[image.numpy().tobytes()]] for image in images]
        return torch.stack([self.encode_text(self.tokenize(row)).sum(0) for row in rows])
