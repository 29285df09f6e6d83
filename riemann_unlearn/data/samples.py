"""Image-text pairs by index: images, the concept each one shows, and the taxonomy.

Where the images are kept is behind a protocol (:class:`Images`): a tensor of equally large ones, files that
are decoded when asked for (:class:`~riemann_unlearn.data.images.EncodedImages`), or a third party's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from riemann_unlearn.data.taxonomy import Taxonomy


class Images(Protocol):
    """Images by row number."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, rows: Tensor, /) -> Tensor | Sequence[Tensor]:
        """The images at ``rows`` (long, shape (B,)), each uint8 of shape (3, h, w).

        One tensor of shape (B, 3, h, w) when all images of the set are of one size; else one tensor each.
        """


@dataclass(frozen=True)
class Rows:
    """Some rows of a set of images, none of which is touched before it is asked for."""

    images: Images
    rows: Tensor
    """Long, shape (N,)."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rows)

    def __getitem__(self, rows: Tensor) -> Tensor | Sequence[Tensor]:
        """As :class:`Images` says."""
        return self.images[self.rows[rows]]


@dataclass(frozen=True)
class Samples:
    """Images with the concept that each of them shows.

    Raises
    ------
    ValueError
        When there are not as many concepts or sources as images, or one is out of range.

    Examples
    --------
    >>> import torch
    >>> from riemann_unlearn.data import Concept
    >>> taxonomy = Taxonomy([Concept("1", "owl"), Concept("2", "duck")])
    >>> images = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
    >>> samples = Samples(images, torch.tensor([0, 0, 0]), torch.tensor([0, 0, 0]), ("me",), taxonomy)
    >>> len(samples), len(samples.subset(torch.tensor([0, 2])))
    (3, 2)
    """

    images: Images
    """By row: a uint8 tensor of shape (N, 3, H, W), or another thing that does as :class:`Images` says."""
    concept: Tensor
    """Long, shape (N,): index into the taxonomy's concepts."""
    source: Tensor
    """Long, shape (N,): index into ``sources`` of where the image comes from."""
    sources: tuple[str, ...]
    """Who made the images, or the files they were in; sorted."""
    taxonomy: Taxonomy
    number: Tensor | None = None
    """Long, shape (N,): which image of the whole :class:`Dataset` each one is. The dataset numbers them."""

    def __post_init__(self) -> None:
        for name, index, names in (
            ("concept", self.concept, self.taxonomy.concepts),
            ("source", self.source, self.sources),
        ):
            if index.shape != (len(self.images),):
                raise ValueError(
                    f"expected the {name} of each of {len(self.images)} images, "
                    f"got shape {tuple(index.shape)}"
                )
            if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(names):
                raise ValueError(
                    f"{name} must be between 0 and {len(names) - 1}, "
                    f"got {int(index.min())} to {int(index.max())}"
                )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def labels(self, depth: int) -> Tensor:
        """Index of each image's label at level number ``depth``, long, shape (N,); level 0: its concept."""
        return self.taxonomy.ancestor(depth)[self.concept]

    def subset(self, rows: Tensor) -> Samples:
        """The images at ``rows``, under the same taxonomy.

        Parameters
        ----------
        rows : Tensor
            A mask (bool, shape (N,)) or indices (long).

        Examples
        --------
        >>> from riemann_unlearn.data import load
        >>> seen = load("emoji").seen
        >>> noto = seen.subset(seen.source == seen.sources.index("noto"))
        >>> len(noto)
        1906
        """
        images: Images
        if isinstance(self.images, Tensor):
            images = self.images[rows]
        else:
            # Images only promises to take row numbers. They are kept for later: decoding now would hold the
            # whole subset in memory.
            index = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
            images = Rows(self.images, index)
        return replace(
            self,
            images=images,
            concept=self.concept[rows],
            source=self.source[rows],
            number=None if self.number is None else self.number[rows],
        )


@dataclass(frozen=True)
class Dataset:
    """What a model is trained on, and what it is tested on; both under one taxonomy.

    Raises
    ------
    ValueError
        When the parts have other concepts, or other levels above them.
    """

    name: str
    """What :func:`riemann_unlearn.data.load` takes to find it again: a source's name, or an absolute path."""
    seen: Samples
    heldout: Samples | None
    ids: tuple[str, ...] = ()
    """By number, what each image can be asked for by, such as its file's name in the folder; those of the
    seen images first. None where images have no names."""

    def __post_init__(self) -> None:
        # A part of a numbered dataset keeps its numbers; samples made by hand get theirs here, together.
        if self.seen.number is None:
            first = torch.arange(len(self.seen))
            object.__setattr__(self, "seen", replace(self.seen, number=first))
            if self.heldout is not None:
                rest = torch.arange(len(self.seen), len(self.seen) + len(self.heldout))
                object.__setattr__(self, "heldout", replace(self.heldout, number=rest))
        # In order, since samples have indices into them; and with their paths, so the labels above agree too.
        if self.heldout is not None and self.heldout.taxonomy.concepts != self.seen.taxonomy.concepts:
            raise ValueError(
                f"the seen and the held-out part of {self.name} have different concepts; "
                "give both the same taxonomy, that of all concepts"
            )

    @property
    def taxonomy(self) -> Taxonomy:
        """The concepts of both parts."""
        return self.seen.taxonomy
