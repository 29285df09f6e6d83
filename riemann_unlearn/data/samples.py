"""Image-text pairs by index: images, the concept each one shows, and the taxonomy.

Where the images are kept is behind a protocol (:class:`Images`): a tensor of equally large ones, files that
are decoded when asked for (:class:`~riemann_unlearn.data.images.EncodedImages`), or a third party's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from riemann_unlearn.data.queries import UnknownConceptError
from riemann_unlearn.data.taxonomy import Selection, Taxonomy


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

    def chosen(self, selection: Selection) -> Tensor:
        """Which images are to be forgotten: by their concept, or by themselves; bool, shape (N,), on the CPU.

        Raises
        ------
        ValueError
            When images were selected by themselves, and these are not numbered as those of a dataset are.
        """
        mask = selection.concepts.cpu()[self.concept]
        if selection.images is None:
            return mask
        if self.number is None:
            raise ValueError("single images are to be forgotten, and these have no numbers; take a Dataset's")
        return mask | selection.images.cpu()[self.number]

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

    @property
    def parts(self) -> tuple[Samples, ...]:
        """The seen images, and the held-out ones where there are such."""
        return (self.seen,) if self.heldout is None else (self.seen, self.heldout)

    def select(self, queries: Sequence[str]) -> Selection:
        """What ``queries`` name: concepts, as :meth:`Taxonomy.select` finds them, and single images.

        ``@FILE`` stands for the images that a text file names, one a line, by their :attr:`ids`; and a query
        that is no concept may be the id of an image. A file's name is enough where it is the only one. An
        image that has several rows, one for each caption, is selected with all of them. When no seen image of
        a concept is left, the concept is selected; otherwise :attr:`Selection.images` has those that were.

        Raises
        ------
        UnknownConceptError, TypeError, ValueError
            As :meth:`Taxonomy.select` does; also for a file that cannot be read or names an unknown image.
        """
        if isinstance(queries, str) or not queries:
            return self.taxonomy.select(queries)
        concepts = torch.zeros(len(self.taxonomy.concepts), dtype=torch.bool)
        images: list[int] = []
        asked = []
        names: _Names | None = None
        for query in queries:
            try:
                if query.startswith("@"):
                    raise UnknownConceptError(query)
                ((depth, rows),) = self.taxonomy.find([query])
                concepts[rows] = True
            except UnknownConceptError:
                # Made for the first query that needs it: there may be a million names.
                names = names or _Names(self.ids)
                if query.startswith("@"):
                    images += names.listed(Path(query[1:]).expanduser(), self.name)
                elif numbers := names.find(query):
                    images += numbers
                else:
                    raise
                depth = 0
            asked.append(depth)
        if not images:
            return self.taxonomy.selection(concepts, asked)
        return self._with_images(concepts, torch.tensor(images), asked)

    def _with_images(self, concepts: Tensor, images: Tensor, asked: Sequence[int]) -> Selection:
        """A selection of concepts and of images by number."""
        number = torch.cat([part.number for part in self.parts if part.number is not None])
        shown = torch.cat([part.concept for part in self.parts])
        chosen = torch.isin(number, images)
        # Concepts of which no seen image is left; one that is held out alone goes with nothing.
        seen = slice(0, len(self.seen))
        count = torch.bincount(shown[seen], minlength=len(concepts))
        gone = torch.bincount(shown[seen][chosen[seen]], minlength=len(concepts))
        concepts = concepts | ((gone == count) & (count > 0))
        # What a concept says already need not be said of its images.
        chosen &= ~concepts[shown]
        mask = torch.zeros(max(len(self.ids), int(number.max()) + 1), dtype=torch.bool)
        mask[number] = chosen
        return self.taxonomy.selection(concepts, asked, mask if chosen.any() else None)


class _Names:
    """Images by their ids, and by the names of their files where these say enough."""

    def __init__(self, ids: Sequence[str]) -> None:
        self._by_id: dict[str, list[int]] = {}
        self._by_name: dict[str, set[str]] = {}
        for number, id in enumerate(ids):
            self._by_id.setdefault(id, []).append(number)
            self._by_name.setdefault(id.rpartition("/")[2], set()).add(id)

    def find(self, name: str) -> list[int]:
        """The numbers of the images of a name; none where it is unknown, or the name of several files."""
        ids = {name} if name in self._by_id else self._by_name.get(name, set())
        return [number for id in ids for number in self._by_id[id]] if len(ids) == 1 else []

    def listed(self, path: Path, dataset: str) -> list[int]:
        """The numbers of the images that a file lists."""
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
        names = [line for line in lines if line]
        if not names:
            raise ValueError(f"{path} names no image; write one a line, by its path in the data")
        found = [self.find(name) for name in names]
        unknown = [name for name, numbers in zip(names, found, strict=True) if not numbers]
        if unknown:
            known = f", as {next(iter(self._by_id))!r}" if self._by_id else "; there images have no names"
            raise ValueError(
                f"{len(unknown)} of {len(names)} lines of {path} name no image of {dataset}, or several: "
                f"{', '.join(map(repr, unknown[:3]))}; write the paths in the data{known}"
            )
        return [number for numbers in found for number in numbers]
