"""A batch of image-text pairs: images, and a caption for each of them at every level.

An image of a red apple is a pair with "red apple", with "food fruit" and with "food and drink". A loss
is applied level by level, because at one level two different captions are never both right, while
across levels they are: contrasting the apple against "food fruit" would be a false negative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from riemann_unlearn.data.augment import random_view
from riemann_unlearn.data.captions import category_caption, sample_caption, subcategory_caption
from riemann_unlearn.data.dataset import ImageTextData

LEVELS = ("name", "subcategory", "category")
"""The levels of the taxonomy, from the most specific up."""


@dataclass(frozen=True)
class Pairing:
    """Which caption each image of a batch goes with, at one level."""

    row: Tensor
    """Row of :attr:`Batch.texts` of each image's caption, long, shape (B,)."""
    caption_ids: Tensor
    """Identity of the concept meant by the caption, long, shape (B,); equal ids are not negatives."""


@dataclass(frozen=True)
class Batch:
    """Images with their captions."""

    images: Tensor
    """float32 in [0, 1], shape (B, 3, H, W)."""
    concept: Tensor
    """Index into the taxonomy's concepts, long, shape (B,)."""
    texts: list[str]
    pairings: dict[str, Pairing]
    """By level, in the order of :data:`LEVELS`."""


def make_batch(
    data: ImageTextData, indices: Tensor, size: tuple[int, int], generator: torch.Generator
) -> Batch:
    """Random views of ``data``'s images at ``indices``, with a sampled caption at every level.

    Parameters
    ----------
    data : ImageTextData
    indices : Tensor, shape (B,)
        Long.
    size : tuple of int
        Height and width of the views.
    generator : torch.Generator
        Source of all randomness: the views and the wording of the captions.
    """
    taxonomy = data.taxonomy
    concept = data.concept[indices]
    texts = [sample_caption(taxonomy.concepts[i], generator) for i in concept.tolist()]
    pairings = {"name": Pairing(torch.arange(len(concept)), concept)}
    above: list[tuple[str, Tensor, Sequence[str], Callable[[str], str]]] = [
        ("subcategory", taxonomy.subcategory_of, taxonomy.subcategories, subcategory_caption),
        ("category", taxonomy.category_of, taxonomy.categories, category_caption),
    ]
    for level, parent_of, names, caption in above:
        ids = parent_of[concept]
        distinct, row = torch.unique(ids, return_inverse=True)
        pairings[level] = Pairing(len(texts) + row, ids)
        texts += [caption(names[i]) for i in distinct.tolist()]
    return Batch(random_view(data.images[indices], size, generator), concept, texts, pairings)
