"""What every measure is asked of: a model with its features of a dataset's images and captions, made once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from riemann_unlearn.data import Dataset, Samples, Selection, Taxonomy
from riemann_unlearn.evaluation.features import Captions, encode_captions, encode_images, ranks
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.spaces import Space

MOST_SEEN = 12_000
"""Seen images that a full audit uses at most: more change no measure by more than its own sampling error."""

SEEN, HELDOUT = "seen images", "held-out images"
"""What measures say they were made on."""


@dataclass(frozen=True)
class Part:
    """Images with a model's features of them. All tensors but the images are on the features' device."""

    samples: Samples
    features: Tensor
    """Shape (N, D)."""
    selection: Selection
    what: str
    """What the images are: :data:`SEEN` or :data:`HELDOUT`."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.features)

    @cached_property
    def concept(self) -> Tensor:
        """Index of each image's concept, long, shape (N,)."""
        return self.samples.concept.to(self.features.device)

    @cached_property
    def forgotten(self) -> Tensor:
        """Which images show something that is, or is to be, forgotten; bool, shape (N,)."""
        return self.samples.chosen(self.selection).to(self.features.device)

    def labels(self, depth: int) -> Tensor:
        """Index of each image's label at a level, long, shape (N,)."""
        return self.samples.taxonomy.ancestor(depth).to(self.features.device)[self.concept]

    def images(self, rows: Tensor) -> Any:
        """The images at ``rows``: a uint8 tensor (N, 3, H, W), or a list of tensors of their own sizes."""
        # Images stay where the data keeps them, and are fetched by the rows of there.
        return self.samples.images[rows.cpu()]

    def subset(self, rows: Tensor) -> Part:
        """The images at ``rows`` (long)."""
        return replace(self, samples=self.samples.subset(rows.cpu()), features=self.features[rows])


@dataclass(frozen=True)
class Subject:
    """A model, what it is to forget, and its features of the images and the captions of a dataset."""

    model: DualEncoder
    selection: Selection
    """On the features' device."""
    seen: Part
    heldout: Part | None
    captions: tuple[Captions, ...]
    """By level of the taxonomy, from specific to general."""

    @property
    def space(self) -> Space:
        """In which the features are compared; without gradients."""
        return self.model.space.detached()

    @property
    def taxonomy(self) -> Taxonomy:
        """The concepts of both parts."""
        return self.seen.samples.taxonomy

    @property
    def parts(self) -> tuple[Part, ...]:
        """The seen images, and the held-out ones where there are such."""
        return (self.seen,) if self.heldout is None else (self.seen, self.heldout)

    @property
    def test(self) -> Part:
        """The held-out images, or the seen ones where nothing is held out; :attr:`Part.what` says which."""
        return self.seen if self.heldout is None else self.heldout

    @cached_property
    def neighbours(self) -> Tensor:
        """Concepts next to the forgotten, bool, shape (concepts,); see :func:`siblings`.

        Of images that are forgotten by themselves, their own concept is the nearest.
        """
        near = siblings(self.taxonomy, self.selection)
        for part in self.parts:
            near[part.concept[part.forgotten]] = True
        return near & ~self.selection.concepts

    def images_of(self, part: Part) -> dict[str, Tensor]:
        """By the names of :attr:`groups`, which images of a part are of each; bool, shape (N,)."""
        near = self.neighbours[part.concept] & ~part.forgotten
        return {"forget": part.forgotten, "neighbours": near, "retain": ~part.forgotten}

    @property
    def groups(self) -> dict[str, Tensor]:
        """Concepts that figures are given of: "forget", "neighbours", "retain"; bool, shape (concepts,)."""
        gone = self.selection.concepts
        return {"forget": gone, "neighbours": self.neighbours, "retain": ~gone}

    @cached_property
    def classes(self) -> Tensor:
        """Class of each concept in probes, long, shape (concepts,).

        Its label at the level :attr:`Taxonomy.grouping`; but a forgotten concept whose label there is not
        forgotten as a whole is a class of its own.
        """
        depth = self.taxonomy.grouping
        classes = self.taxonomy.ancestor(depth).to(self.selection.concepts.device).clone()
        alone = self.selection.concepts & ~self.selection.forgotten[depth][classes]
        count = len(self.taxonomy.levels[depth])
        # Numbered behind the labels: a class of at least `count` is a concept by itself, which
        # caption_of_class relies on.
        classes[alone] = count + torch.arange(int(alone.sum()), device=classes.device)
        return classes

    @property
    def caption_of_class(self) -> Tensor:
        """Whether each concept's class is asked for by the concept's own caption; bool, shape (concepts,).

        All others are asked for by the caption of the level :attr:`Taxonomy.grouping`.
        """
        return self.classes >= len(self.taxonomy.levels[self.taxonomy.grouping])

    def known(self, part: Part) -> tuple[Tensor, Tensor]:
        """Whether each image is called what it is by the caption of its class, and whether that can be asked.

        A class that is a label of the level :attr:`Taxonomy.grouping` is asked for among the captions there,
        one that is a single concept among the concepts' own.

        Returns
        -------
        hits, asked : Tensor, shape (N,)
            bool. An image is not asked about when its caption reads the same as another
            (:attr:`Captions.shared`).
        """
        alone = self.caption_of_class[part.concept]
        hits, asked = torch.zeros_like(alone), torch.zeros_like(alone)
        for mask, depth in ((~alone, self.taxonomy.grouping), (alone, 0)):
            # Not asked in vain: relearning has only the captions encoded that are asked with.
            if mask.any():
                captions, own = self.captions[depth], part.labels(depth)[mask]
                hits[mask] = ranks(self.space, part.features[mask], captions.features, own) < 1
                asked[mask] = ~captions.shared[own]
        return hits, asked

    def at_most(self, most: int) -> Subject:
        """The same with at most ``most`` seen images, at even steps."""
        # The rows that encode takes with most_seen: models encoded either way have the same images.
        rows = evenly(torch.arange(len(self.seen), device=self.seen.features.device), most)
        return self if len(rows) == len(self.seen) else replace(self, seen=self.seen.subset(rows))


def encode(
    model: DualEncoder,
    dataset: Dataset,
    selection: Selection,
    *,
    most_seen: int | None = None,
    features: tuple[Tensor, Tensor | None] | None = None,
) -> Subject:
    """Encode all that measures ask for.

    Parameters
    ----------
    model : DualEncoder
    dataset : Dataset
    selection : Selection
        What is, or is to be, forgotten.
    most_seen : int, optional
        Seen images to encode at most, taken at even steps.
    features : tuple of Tensor, optional
        The model's features of the seen and of the held-out images, where all are known already.
    """
    seen, heldout = dataset.seen, dataset.heldout
    if most_seen is not None and len(seen) > most_seen:
        seen = seen.subset(evenly(torch.arange(len(seen)), most_seen))
    # Captions first: they are few, and say on which device the model's features are.
    captions = tuple(encode_captions(model, level.captions) for level in dataset.taxonomy.levels)
    here = selection.to(captions[0].features.device)

    def part(samples: Samples, known: Tensor | None, what: str) -> Part:
        return Part(samples, encode_images(model, samples.images) if known is None else known, here, what)

    of_seen, of_heldout = (None, None) if features is None else features
    return Subject(
        model,
        here,
        part(seen, of_seen, SEEN),
        None if heldout is None else part(heldout, of_heldout, HELDOUT),
        captions,
    )


def siblings(taxonomy: Taxonomy, selection: Selection) -> Tensor:
    """Which concepts are neighbours of what is forgotten; bool, shape (concepts,).

    For each forgotten concept those retained that share its label at the lowest level where any do. Where
    there is one level, or nothing is left even at the topmost, there are none.

    Examples
    --------
    >>> from riemann_unlearn.data import Concept
    >>> apple, tea = Concept("1", "apple", (), ("fruit", "food")), Concept("2", "tea", (), ("drink", "food"))
    >>> taxonomy = Taxonomy([apple, tea])
    >>> siblings(taxonomy, taxonomy.select(["fruit"])).tolist()
    [False, True]
    """
    chosen = selection.concepts
    # `alone` are the forgotten that have no neighbour yet; level by level upwards they are settled.
    near, alone = torch.zeros_like(chosen), chosen.clone()
    for depth in range(1, len(taxonomy.levels)):
        label = taxonomy.ancestor(depth).to(chosen.device)
        inhabited = torch.zeros(len(taxonomy.levels[depth]), dtype=torch.bool, device=chosen.device)
        inhabited[label[~chosen]] = True
        settled = alone & inhabited[label]
        near |= ~chosen & torch.isin(label, label[settled])
        alone &= ~settled
    return near


def evenly(rows: Tensor, most: int) -> Tensor:
    """At most ``most`` of ``rows``, at even steps; all of them where there are no more.

    Examples
    --------
    >>> evenly(torch.arange(10), 4).tolist()
    [1, 3, 6, 8]
    """
    if len(rows) <= most:
        return rows
    # float32, whatever the default dtype is: the same steps for everyone.
    # The middles of equal parts, each longer than a row. The last is more than half a row before the end,
    # which is more than float32 rounds by below 2^22 rows, so its index is a row's.
    steps = (torch.arange(most, dtype=torch.float32, device=rows.device) + 0.5).mul(len(rows) / most)
    return rows[steps.long()]
