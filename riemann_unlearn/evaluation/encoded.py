"""What the measures of the full audit share: one model's features of a dataset, encoded once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from riemann_unlearn.data import Dataset, ImageTextData, Selection
from riemann_unlearn.evaluation.encoding import encode_captions, encode_images, ranks
from riemann_unlearn.models import DualEncoder

MOST_SEEN = 12_000
"""Seen images that are encoded at most: more change no measure by more than its own sampling error."""


@dataclass(frozen=True)
class Encoded:
    """A model, a dataset, and the model's features of the dataset's images and captions."""

    model: DualEncoder
    selection: Selection
    seen: ImageTextData
    heldout: ImageTextData | None
    seen_features: Tensor
    """Shape (N, D)."""
    heldout_features: Tensor | None
    """Shape (M, D)."""
    names: Tensor
    subcategories: Tensor
    categories: Tensor
    """Features of the captions of every concept, subcategory and category, shape (·, D)."""

    @property
    def test(self) -> tuple[ImageTextData, Tensor]:
        """The held-out images with their features, or the seen ones where nothing is held out."""
        if self.heldout is None or self.heldout_features is None:
            return self.seen, self.seen_features
        return self.heldout, self.heldout_features

    @cached_property
    def labels(self) -> Tensor:
        """Class of each concept, long, shape (concepts,).

        Its subcategory; but a forgotten concept of a subcategory that is not forgotten as a whole is a
        class of its own.
        """
        taxonomy, chosen = self.seen.taxonomy, self.selection.concepts
        label = taxonomy.subcategory_of.clone()
        alone = chosen & ~self.selection.subcategories[label]
        label[alone] = len(taxonomy.subcategories) + torch.arange(int(alone.sum()))
        return label

    def known(self, data: ImageTextData, features: Tensor) -> Tensor:
        """Whether each image is called what it is by the caption of its class; bool, shape (N,).

        A class that is a subcategory is asked for among the subcategories, one that is a single concept
        among the names.
        """
        taxonomy = self.seen.taxonomy
        alone = (self.labels >= len(taxonomy.subcategories))[data.concept]
        hits = torch.zeros(len(data), dtype=torch.bool)
        for mask, captions, own in (
            (~alone, self.subcategories, taxonomy.subcategory_of[data.concept]),
            (alone, self.names, data.concept),
        ):
            if mask.any():
                found = ranks(self.model, features[mask], captions, own[mask].to(features.device))
                hits[mask] = (found < 1).cpu()
        return hits


def encode(
    model: DualEncoder,
    dataset: Dataset,
    selection: Selection,
    seen_features: Tensor | None = None,
    heldout_features: Tensor | None = None,
) -> Encoded:
    """Encode all that the measures ask for, or take the features that are known already.

    Parameters
    ----------
    model : DualEncoder
    dataset : Dataset
    selection : Selection
        What is, or is to be, forgotten.
    seen_features, heldout_features : Tensor, shape (N, D), optional
        Features of every image of either part.
    """
    rows = evenly(torch.arange(len(dataset.seen)), MOST_SEEN)
    seen = dataset.seen if len(rows) == len(dataset.seen) else dataset.seen.subset(rows)
    if seen_features is None:
        seen_features = encode_images(model, seen.images)
    else:
        seen_features = seen_features[rows]
    if dataset.heldout is not None and heldout_features is None:
        heldout_features = encode_images(model, dataset.heldout.images)
    captions = encode_captions(model, dataset.taxonomy)
    return Encoded(
        model,
        selection,
        seen,
        dataset.heldout,
        seen_features,
        heldout_features,
        captions["name"],
        captions["subcategory"],
        captions["category"],
    )


def evenly(rows: Tensor, most: int) -> Tensor:
    """At most ``most`` of ``rows``, at even steps; all of them where there are no more.

    Examples
    --------
    >>> evenly(torch.arange(10), 4).tolist()
    [1, 3, 6, 8]
    """
    if len(rows) <= most:
        return rows
    return rows[(torch.arange(most) + 0.5).mul(len(rows) / most).long()]
