"""A batch of image-text pairs: images, and a caption for each of them at every level.

An image of a red apple is a pair with "red apple", with "food fruit" and with "food and drink". A loss
is applied level by level, because at one level two different captions are never both right, while
across levels they are: contrasting the apple against "food fruit" would be a false negative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from riemann_unlearn.data.augment import random_view
from riemann_unlearn.data.captions import sample_caption
from riemann_unlearn.data.samples import Samples


@dataclass(frozen=True)
class Pairing:
    """Which caption each image of a batch goes with, at one level."""

    row: Tensor
    """Row of :attr:`Batch.texts` of each image's caption, long, shape (B,)."""
    caption_ids: Tensor
    """Index of the label meant by the caption, long, shape (B,); equal ids are not negatives."""

    def to(self, device: torch.device | str) -> Pairing:
        """The same on another device."""
        return Pairing(self.row.to(device), self.caption_ids.to(device))


@dataclass(frozen=True)
class Batch:
    """Images with their captions."""

    images: Tensor
    """float32 in [0, 1], shape (B, 3, H, W); or what a run has kept of them, shape (B, K)."""
    texts: list[str]
    pairings: tuple[Pairing, ...]
    """One for each level of the taxonomy, from specific to general."""
    indices: Tensor
    """Which rows of the samples these are, long, shape (B,)."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device."""
        return Batch(
            self.images.to(device),
            self.texts,
            tuple(pairing.to(device) for pairing in self.pairings),
            self.indices.to(device),
        )


def _images(samples: Samples, indices: Tensor) -> Tensor | Iterator[Tensor]:
    """The images at ``indices``; those that are decoded when asked for one by one, to be made small."""
    if isinstance(samples.images, Tensor):
        return samples.images[indices]
    return (image for row in indices[:, None] for image in samples.images[row])


def make_batch(
    samples: Samples,
    indices: Tensor,
    size: tuple[int, int],
    generator: torch.Generator,
    *,
    fit: Callable[[Tensor], Tensor] | None = None,
    images: Tensor | None = None,
) -> Batch:
    """Random views of the images at ``indices``, with a sampled caption at every level.

    Parameters
    ----------
    samples : Samples
    indices : Tensor, shape (B,)
        Long.
    size : tuple of int
        Height and width of the views.
    generator : torch.Generator
        Source of all randomness: first the wording of the captions, image by image, then the views.
    fit : callable, optional
        As for :func:`~riemann_unlearn.data.augment.random_view`: how the model brings images to its size.
    images : Tensor, shape (B, ...), optional
        What goes with the captions where it is known already; no views are made then.
    """
    taxonomy = samples.taxonomy
    concept = samples.concept[indices]
    # A name's caption is drawn for each image, since wordings differ; a label above has one wording, so
    # it is encoded once however many of the images go with it.
    texts = [sample_caption(taxonomy.concepts[i], generator) for i in concept.tolist()]
    # Two images of one concept have a row each and one id: whatever the wording, neither is a negative.
    pairings = [Pairing(torch.arange(len(concept)), concept)]
    for depth, level in enumerate(taxonomy.levels[1:], start=1):
        ids = taxonomy.ancestor(depth)[concept]
        distinct, row = torch.unique(ids, return_inverse=True)
        # Before the texts grow: these rows are counted from the end of those that are there.
        pairings.append(Pairing(len(texts) + row, ids))
        texts += [level.captions[i] for i in distinct.tolist()]
    if images is None:
        images = random_view(_images(samples, indices), size, generator, fit=fit)
    return Batch(images, texts, tuple(pairings), indices)
