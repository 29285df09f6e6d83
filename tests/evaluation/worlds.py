"""Subjects of the full audit made by hand: features are given, no image is looked at."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from riemann_unlearn.data import Concept, ImageTextData, Taxonomy
from riemann_unlearn.evaluation.encoded import Encoded
from tests.conftest import make_model

TAXONOMY = Taxonomy(
    [
        Concept("1", "red apple", (), "fruit", "food"),
        Concept("2", "banana", (), "fruit", "food"),
        Concept("3", "coffee", (), "drink", "food"),
        Concept("4", "owl", (), "bird", "animals"),
        Concept("5", "duck", (), "bird", "animals"),
    ]
)


def images_of(concept: Tensor, seed: int = 0) -> ImageTextData:
    """Noise that is said to show ``concept``."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (len(concept), 3, 16, 16), generator=generator, dtype=torch.uint8)
    return ImageTextData(images, concept, torch.zeros_like(concept), ("hand",), TAXONOMY)


def subject(
    forget: list[str],
    seen: tuple[Tensor, Tensor],
    heldout: tuple[Tensor, Tensor] | None,
    *,
    architecture: str = "CLIP",
    captions: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Encoded:
    """Each part is (concept of each image, features); captions are of names, subcategories, categories."""
    dimension = seen[1].shape[1]
    sizes = (len(TAXONOMY.concepts), len(TAXONOMY.subcategories), len(TAXONOMY.categories))
    return Encoded(
        make_model(architecture),
        TAXONOMY.select(forget),
        images_of(seen[0]),
        None if heldout is None else images_of(heldout[0], seed=1),
        seen[1],
        None if heldout is None else heldout[1],
        *(captions or (torch.eye(n, dimension) for n in sizes)),
    )


def without_heldout(one: Encoded) -> Encoded:
    return replace(one, heldout=None, heldout_features=None)
