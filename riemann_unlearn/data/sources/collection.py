"""Samples gathered one by one from files, and made into a dataset: what sources of image files share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from riemann_unlearn.data.images import (
    Encoded,
    EncodedImages,
    UnreadableImageError,
    decode,
    read,
    thumbnail,
    thumbnails,
)
from riemann_unlearn.data.queries import composed
from riemann_unlearn.data.samples import Dataset, Images, Samples
from riemann_unlearn.data.taxonomy import Concept, Taxonomy, as_written

MAX_BROKEN = 0.05
"""Largest share of samples that may be of no use; with more, it is the data that is broken."""
CAPTION = "caption"
"""What the lowest level is called where its labels are free captions, which come and go with their images."""
MAX_DECODED = 2**28
"""Bytes up to which images of one size are held decoded: a batch is then one indexing of a tensor."""
_SHOWN = 3
"""How many such samples a message names."""


@dataclass
class _Part:
    """The seen or the held-out images, as they come."""

    files: list[Encoded] = field(default_factory=list)
    thumbnails: list[Tensor] = field(default_factory=list)
    decoded: list[Tensor] | None = field(default_factory=list)
    """None once they are too many, or not all of one size."""
    names: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    def add(self, encoded: Encoded, name: str, source: str, id: str) -> None:
        # Decoded or looked at before anything is appended, for it may raise: the lists stay of one length.
        content = read(encoded)
        if self.decoded is None:
            self.thumbnails.append(thumbnail(content))
        else:
            self.decoded.append(decode(content))
        # The files stay beside what is decoded: once an image is of another size, all are decoded from them.
        self.files.append(encoded)
        self.names.append(name)
        self.sources.append(source)
        self.ids.append(id)
        if self.decoded is not None:
            image = self.decoded[-1]
            # uint8, so as many bytes as numbers; and all of one size, or the first condition holds.
            if image.shape != self.decoded[0].shape or image.numel() * len(self.decoded) > MAX_DECODED:
                self.thumbnails = [thumbnails(image[None])[0] for image in self.decoded]
                self.decoded = None

    @property
    def images(self) -> Images:
        # torch.stack takes no empty list.
        if self.decoded:
            return torch.stack(self.decoded)
        return EncodedImages(self.files, torch.stack(self.thumbnails) if self.thumbnails else None)


class Collection:
    """Samples as they are read, which end up as a :class:`~riemann_unlearn.data.Dataset`.

    Every image is read once when it is added, so that a broken one is known before a run begins. What is not
    usable is left out, counted and named; with more than :data:`MAX_BROKEN` of it, loading ends.

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
        self,
        where: str,
        encoded: Encoded,
        concept: Concept,
        source: str,
        *,
        heldout: bool = False,
        id: str | None = None,
    ) -> None:
        """One image file with the concept it shows; an unreadable one is left out, and counted.

        Text is composed (Unicode's NFC), since forms that only differ in how accents are composed look alike
        and are one caption to a tokenizer. Keywords of samples of one concept add up.

        Parameters
        ----------
        where : str
            What messages call the sample.
        encoded : bytes, str or Slice
            Its bytes, or where they are; what is not given as bytes is not kept in memory, unless all
            images are of one size and few.
        concept : Concept
        source : str
            Who made the image, or the file it was in.
        heldout : bool, optional
        id : str, optional
            By which the image can be asked for; ``where`` by default.

        Raises
        ------
        ValueError
            When another sample has the concept under other labels.
        """
        concept = _composed(concept)
        # Before its image is decoded: a concept whose images are all broken is then missed at the end, by
        # _check_broken, rather than gone from the taxonomy without a word.
        first = self._concepts.setdefault(concept.name, concept)
        if (first.path, first.text) != (concept.path, concept.text):
            raise ValueError(
                f"{where} files {concept.name!r} under {', '.join(map(repr, concept.path))}, and another "
                f"sample under {', '.join(map(repr, first.path))}"
            )
        if first.keywords != concept.keywords:
            words = tuple(dict.fromkeys((*first.keywords, *concept.keywords)))
            self._concepts[concept.name] = replace(first, keywords=words)
        try:
            part = self._parts["heldout" if heldout else "seen"]
            part.add(encoded, concept.name, source, where if id is None else id)
        except UnreadableImageError as error:
            self.skip(where, str(error))
            self._lost.append(concept.name)

    def skip(self, where: str, why: str) -> None:
        """Count a sample as broken: it has no image, no caption, or what it says cannot be understood."""
        self._broken.append(f"{where} ({why})")

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
        self._check_broken(name)
        if not self._parts["seen"].names:
            raise ValueError(f"every image of {name} is held out; nothing is left to learn from")
        # Sorted, so that a concept's index does not depend on how samples are spread over files.
        concepts = sorted(self._concepts.values(), key=lambda c: (*reversed(c.path), c.name))
        # One taxonomy of both parts: a concept that is only held out has an index among the seen as well.
        taxonomy = Taxonomy(concepts, self._levels, self._caption)
        index = {concept.name: i for i, concept in enumerate(taxonomy.concepts)}
        parts = self._parts["seen"], self._parts["heldout"]
        seen, heldout = (_samples(part, index, taxonomy) for part in parts)
        # None, and not an empty part, says that nothing is held out.
        return Dataset(name, seen, heldout if len(heldout) else None, tuple(parts[0].ids + parts[1].ids))

    def _check_broken(self, name: str) -> None:
        left = sum(len(part.names) for part in self._parts.values())
        if not self._broken:
            if not left:
                raise ValueError(f"{name} holds no image with a label or a caption")
            return
        total = left + len(self._broken)
        shown = "; ".join(self._broken[:_SHOWN]) + ("; ..." if len(self._broken) > _SHOWN else "")
        said = f"{len(self._broken)} of {total} images cannot be used: {shown}"
        if len(self._broken) > MAX_BROKEN * total:
            raise ValueError(f"{said}. That is more than {MAX_BROKEN:.0%}; mend them or take them out")
        gone = sorted(set(self._lost) - set(self._parts["seen"].names))
        if self._levels[0] == CAPTION:
            # Of free captions each has an image or a few, and one that lost them is not missed.
            for caption in set(gone) - set(self._parts["heldout"].names):
                del self._concepts[caption]
        elif gone:
            # A concept without a seen image could be neither learned nor forgotten.
            raise ValueError(f"{said}. No image to learn {gone[0]!r} from is left; mend or replace it")
        # Level 4 is the load of a source of files, or what called it, still in this package: by that the
        # command line knows the warning for one of ours.
        warnings.warn(f"{said}. They are left out", UserWarning, stacklevel=4)


def _samples(part: _Part, index: dict[str, int], taxonomy: Taxonomy) -> Samples:
    sources = tuple(sorted(set(part.sources)))
    position = {source: i for i, source in enumerate(sources)}
    return Samples(
        part.images,
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
        caption=None if concept.caption is None else composed(concept.caption),
        path=tuple(map(composed, concept.path)),
    )
