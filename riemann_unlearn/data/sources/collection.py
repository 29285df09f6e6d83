"""Samples gathered one by one from files, and made into a dataset: what sources of image files share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from riemann_unlearn.data.images import EncodedImages, UnreadableImageError, decode
from riemann_unlearn.data.queries import composed
from riemann_unlearn.data.samples import Dataset, Images, Samples
from riemann_unlearn.data.taxonomy import Concept, Taxonomy, as_written

MAX_BROKEN = 0.05
"""Largest share of images that may be unreadable; with more, it is the data that is broken."""
MAX_DECODED = 2**28
"""Bytes up to which images of one size are held decoded: a batch is then one indexing of a tensor."""
_SHOWN = 3
"""How many unreadable images a message names."""


@dataclass
class _Part:
    """The seen or the held-out images, as they come."""

    files: list[bytes] = field(default_factory=list)
    decoded: list[Tensor] | None = field(default_factory=list)
    """None once they are too many, or not all of one size."""
    names: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)

    def add(self, encoded: bytes, name: str, source: str) -> None:
        # Before anything is appended, for it may raise: files, names and sources stay of one length.
        image = decode(encoded)
        self.files.append(encoded)
        self.names.append(name)
        self.sources.append(source)
        if self.decoded is not None:
            # The bytes stay beside it: once an image is of another size, all are decoded from them.
            self.decoded.append(image)
            # uint8, so as many bytes as numbers; and all of one size, or the first condition holds.
            if image.shape != self.decoded[0].shape or image.numel() * len(self.decoded) > MAX_DECODED:
                self.decoded = None

    @property
    def images(self) -> Images:
        return EncodedImages(self.files) if self.decoded is None else torch.stack(self.decoded)


class Collection:
    """Samples as they are read, which end up as a :class:`~riemann_unlearn.data.Dataset`.

    Every image is decoded once when it is added, so that a broken one is known before a run begins.

    Parameters
    ----------
    levels : sequence of str
        What the levels of the concepts are called, from specific to general.
    caption : callable, optional
        As for :class:`~riemann_unlearn.data.Taxonomy`.
    """

    def __init__(self, levels: Sequence[str], caption: Callable[[str, str], str] = as_written) -> None:
        self._levels, self._caption = tuple(levels), caption
        self._concepts: dict[str, Concept] = {}
        self._parts = {"seen": _Part(), "heldout": _Part()}
        self._broken: list[str] = []
        self._lost: list[str] = []

    def add(
        self, where: str, encoded: bytes, concept: Concept, source: str, *, heldout: bool = False
    ) -> None:
        """One image file with the concept it shows; an unreadable one is left out, and counted.

        Text is composed (Unicode's NFC), since forms that only differ in how accents are composed look alike
        and are one caption to a tokenizer. Keywords of samples of one concept add up.

        Parameters
        ----------
        where : str
            What messages call the sample.
        encoded : bytes
        concept : Concept
        source : str
            Who made the image, or the file it was in.
        heldout : bool, optional

        Raises
        ------
        ValueError
            When another sample has the concept under other labels.
        """
        concept = _composed(concept)
        # Before its image is decoded: a concept whose images are all broken is then missed at the end, by
        # _check_broken, rather than gone from the taxonomy without a word.
        first = self._concepts.setdefault(concept.name, concept)
        if first.path != concept.path:
            raise ValueError(
                f"{where} files {concept.name!r} under {', '.join(map(repr, concept.path))}, and another "
                f"sample under {', '.join(map(repr, first.path))}"
            )
        if first.keywords != concept.keywords:
            words = tuple(dict.fromkeys((*first.keywords, *concept.keywords)))
            self._concepts[concept.name] = replace(first, keywords=words)
        try:
            self._parts["heldout" if heldout else "seen"].add(encoded, concept.name, source)
        except UnreadableImageError as error:
            self._broken.append(f"{where} ({error})")
            self._lost.append(concept.name)

    def dataset(self, name: str) -> Dataset:
        """What was added, by concepts in the order of their labels from general to specific.

        Warns
        -----
        UserWarning
            When images were left out; how many, and the first of them.

        Raises
        ------
        ValueError
            When no image is to be learned from, or too many are unreadable.
        """
        self._check_broken()
        if not self._parts["seen"].names:
            raise ValueError(f"every image of {name} is held out; nothing is left to learn from")
        # Sorted, so that a concept's index does not depend on how samples are spread over files.
        concepts = sorted(self._concepts.values(), key=lambda c: (*reversed(c.path), c.name))
        # One taxonomy of both parts: a concept that is only held out has an index among the seen as well.
        taxonomy = Taxonomy(concepts, self._levels, self._caption)
        index = {concept.name: i for i, concept in enumerate(taxonomy.concepts)}
        seen, heldout = (_samples(part, index, taxonomy) for part in self._parts.values())
        # None, and not an empty part, says that nothing is held out.
        return Dataset(name, seen, heldout if len(heldout) else None)

    def _check_broken(self) -> None:
        if not self._broken:
            return
        left = sum(len(part.names) for part in self._parts.values())
        total = left + len(self._broken)
        shown = "; ".join(self._broken[:_SHOWN]) + ("; ..." if len(self._broken) > _SHOWN else "")
        said = f"{len(self._broken)} of {total} images cannot be read: {shown}"
        if len(self._broken) > MAX_BROKEN * total:
            raise ValueError(f"{said}. That is more than {MAX_BROKEN:.0%}; mend them or take them out")
        # A concept without a seen image could be neither learned nor forgotten.
        gone = sorted(set(self._lost) - set(self._parts["seen"].names))
        if gone:
            raise ValueError(f"{said}. No image to learn {gone[0]!r} from is left; mend or replace it")
        # Level 4 is the load of a source of shards, still in this package: by that the command line knows
        # the warning for one of ours.
        warnings.warn(f"{said}. They are left out", UserWarning, stacklevel=4)


def _samples(part: _Part, index: dict[str, int], taxonomy: Taxonomy) -> Samples:
    sources = tuple(sorted(set(part.sources)))
    position = {source: i for i, source in enumerate(sources)}
    return Samples(
        # torch.stack takes no empty list.
        part.images if part.files else EncodedImages([]),
        torch.tensor([index[name] for name in part.names], dtype=torch.long),
        torch.tensor([position[source] for source in part.sources], dtype=torch.long),
        sources,
        taxonomy,
    )


def _composed(concept: Concept) -> Concept:
    return replace(
        concept,
        name=composed(concept.name),
        keywords=tuple(map(composed, concept.keywords)),
        path=tuple(map(composed, concept.path)),
    )
