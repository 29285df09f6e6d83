"""Concepts and the levels above them: a hierarchy of any depth, from specific to general.

A taxonomy is a tuple of levels. The first has a label for each concept (what an image shows); each level
above groups the labels of the one below. One level is a set of classes; three are names, kinds and realms;
free captions are a single level whose labels are the captions. Nothing here knows how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from riemann_unlearn.data.queries import Lookup, composed, matching


@dataclass(frozen=True)
class Concept:
    """A thing with a name, and where it stands in the hierarchy."""

    key: str
    """Identifies the concept within its dataset; for a character, its code points."""
    name: str
    keywords: tuple[str, ...] = ()
    """Other words for it, from which captions are drawn and by which it is asked for again."""
    path: tuple[str, ...] = ()
    """Its labels at the levels above, from specific to general."""
    caption: str | None = None
    """What a text encoder is shown for it, where that is not its name."""

    @property
    def text(self) -> str:
        """What a text encoder is shown for it."""
        return self.name if self.caption is None else self.caption


@dataclass(frozen=True)
class Level:
    """One level of a taxonomy."""

    name: str
    """What the level is called, in metrics and in queries such as ``level:label``."""
    labels: tuple[str, ...]
    captions: tuple[str, ...]
    """What a text encoder is shown for each label."""
    parent: Tensor | None
    """Long, shape (labels,): index of each label's own at the level above; None at the top."""

    def __len__(self) -> int:
        """Number of labels."""
        return len(self.labels)


@dataclass(frozen=True)
class Selection:
    """What is to be forgotten, at each level of a taxonomy."""

    forgotten: tuple[Tensor, ...]
    """By level, bool, shape (labels,): the labels of which nothing is left to retain."""
    asked: tuple[int, ...]
    """The number of the level that each query was of, in the order asked; 0 is the most specific."""
    images: Tensor | None = None
    """By an image's number in its dataset, bool: those to be forgotten of which other images retain the label
    at the most specific level, so that no label says it. None where labels say all."""

    @property
    def concepts(self) -> Tensor:
        """bool, shape (concepts,): what is to be forgotten at the most specific level."""
        return self.forgotten[0]

    @property
    def level(self) -> int:
        """The most specific level that was asked for: there, all that was asked for is forgotten whole."""
        return min(self.asked)

    def to(self, device: torch.device | str) -> Selection:
        """The same on another device."""
        images = None if self.images is None else self.images.to(device)
        return Selection(tuple(mask.to(device) for mask in self.forgotten), self.asked, images)


def as_written(level: str, label: str) -> str:
    """The caption of a label that says nothing but itself; the default of :class:`Taxonomy`."""
    return label


class Taxonomy:
    """Concepts in a hierarchy of as many levels as their paths have, and one more.

    Parameters
    ----------
    concepts : sequence of Concept
        With unique names and paths of one length. A label may belong to only one label of the level above.
    levels : sequence of str, optional
        What the levels are called, from specific to general; by default "name", "level 1", "level 2" ...
    caption : callable, optional
        Puts a label of the levels above the concepts into words: ``caption(level, label)``; as it is written
        by default. Concepts are called by their :attr:`Concept.text`.

    Attributes
    ----------
    concepts : tuple of Concept
    levels : tuple of Level
        From specific to general; labels in the order of first appearance.

    Raises
    ------
    ValueError
        When there is no concept, two share a name, paths differ in length, two levels share a name, a label
        stands under two labels, or two labels of a level look alike (they differ in Unicode's composition).

    Examples
    --------
    >>> apple = Concept("1", "red apple", ("fruit",), ("fruit", "food"))
    >>> bread = Concept("2", "bread", (), ("baked", "food"))
    >>> taxonomy = Taxonomy([apple, bread], levels=("name", "kind", "realm"))
    >>> [(level.name, level.labels) for level in taxonomy.levels[1:]]
    [('kind', ('fruit', 'baked')), ('realm', ('food',))]
    >>> taxonomy.select(["fruit"]).concepts.tolist()
    [True, False]
    """

    def __init__(
        self,
        concepts: Sequence[Concept],
        levels: Sequence[str] | None = None,
        caption: Callable[[str, str], str] = as_written,
    ) -> None:
        self.concepts = tuple(concepts)
        if not self.concepts:
            raise ValueError("a taxonomy needs at least one concept, got none")
        _check_names(self.concepts)
        depth = len(self.concepts[0].path)
        for concept in self.concepts:
            if len(concept.path) != depth:
                raise ValueError(
                    f"{concept.name!r} has {len(concept.path)} levels above it and "
                    f"{self.concepts[0].name!r} has {depth}; every concept must have as many"
                )
        names = list(levels) if levels is not None else ["name", *(f"level {i + 1}" for i in range(depth))]
        if len(names) != depth + 1 or len(set(names)) != len(names):
            raise ValueError(
                f"expected {depth + 1} different names of levels, one for the concepts and one for each of "
                f"the {depth} levels above them; got {names}"
            )
        self.levels: tuple[Level, ...] = _levels(self.concepts, names, caption)
        # By level, each concept's label there: one step up from its label at the level below.
        self._ancestors = [torch.arange(len(self.concepts))]
        for level in self.levels[:-1]:
            # Every level but the topmost has a parent.
            self._ancestors.append(level.parent[self._ancestors[-1]])  # type: ignore[index]

    @property
    def grouping(self) -> int:
        """The level whose labels are the classes of a probe: that above the most specific, if there is one.

        A concept has a handful of images, a group of concepts has enough to fit something to.
        """
        return min(1, len(self.levels) - 1)

    def ancestor(self, depth: int) -> Tensor:
        """Each concept's index at a level, long, shape (concepts,); level 0 are the concepts themselves."""
        return self._ancestors[depth]

    def select(self, queries: Sequence[str]) -> Selection:
        """What ``queries`` name: labels of any level, in any mixture.

        A query is looked up as written, then without regard to how accents are composed, then to case, and
        last as a character by the concepts' keys; each time from the most specific level up. Where a group is
        called as one of its members is ("family", "hotel"), a prefix says which is meant: ``name:family``,
        with the name of the level before the colon. A label of a higher level is selected when nothing below
        it is left. ``/.../`` is a regular expression that captions of concepts are searched for, without
        regard to case, and ``words:red sofa`` stands for captions that have both words, in any order.

        Raises
        ------
        UnknownConceptError
            For a query that is none of these; the message says what comes close.
        TypeError
            When ``queries`` is a string rather than a sequence of them.
        ValueError
            When nothing is asked for, or when everything is.

        Examples
        --------
        >>> owl = Concept("1f989", "owl", (), ("bird",))
        >>> apple = Concept("1f34e", "red apple", (), ("fruit",))
        >>> Taxonomy([owl, apple]).select(["\N{OWL}"]).concepts.tolist()
        [True, False]
        """
        # A text is a sequence of its letters, each of which would be looked up.
        if isinstance(queries, str):
            raise TypeError(f"queries must be a sequence of strings, got {queries!r}; write [{queries!r}]")
        if not queries:
            raise ValueError("nothing to forget: name at least one concept")
        chosen = torch.zeros(len(self.concepts), dtype=torch.bool)
        asked = []
        for depth, rows in self.find(queries):
            chosen[rows] = True
            asked.append(depth)
        return self.selection(chosen, asked)

    def find(self, queries: Sequence[str]) -> list[tuple[int, list[int]]]:
        """For each query, the number of the level that it is of, and the concepts it stands for.

        Raises
        ------
        UnknownConceptError
            As :meth:`select` does.
        """
        found = []
        for query in queries:
            rows = matching(query, ((concept.name, concept.text) for concept in self.concepts))
            found.append(self._lookup.find(query) if rows is None else (0, rows))
        return found

    @cached_property
    def _lookup(self) -> Lookup:
        # Once for all queries: there may be a million captions.
        return Lookup(
            [(level.name, self._members(depth)) for depth, level in enumerate(self.levels)],
            [concept.key for concept in self.concepts],
        )

    def selection(self, chosen: Tensor, asked: Sequence[int], images: Tensor | None = None) -> Selection:
        """What is forgotten at each level when certain concepts are.

        Parameters
        ----------
        chosen : Tensor, shape (concepts,)
            bool.
        asked : sequence of int
        images : Tensor, optional
            As :attr:`Selection.images`.

        Raises
        ------
        ValueError
            When all are chosen.
        """
        if chosen.all():
            raise ValueError("this would forget every concept; nothing would be left to retain")
        forgotten = tuple(
            _wholly(chosen, self.ancestor(depth), len(level)) for depth, level in enumerate(self.levels)
        )
        return Selection(forgotten, tuple(asked), images)

    def _members(self, depth: int) -> dict[str, list[int]]:
        """By label of a level, the concepts below it."""
        labels = self.levels[depth].labels
        members: dict[str, list[int]] = {label: [] for label in labels}
        for concept, label in enumerate(self.ancestor(depth).tolist()):
            members[labels[label]].append(concept)
        return members


def _check_names(concepts: Sequence[Concept]) -> None:
    seen: dict[str, Concept] = {}
    for concept in concepts:
        if concept.name in seen:
            raise ValueError(
                f"two concepts are named {concept.name!r} "
                f"(keys {seen[concept.name].key} and {concept.key}); names must be unique"
            )
        seen[concept.name] = concept


def _levels(
    concepts: Sequence[Concept], names: Sequence[str], caption: Callable[[str, str], str]
) -> tuple[Level, ...]:
    """The levels of concepts whose paths have one length."""
    # Level by level upward: each concept's label here, and from them the labels in the order of appearance.
    below: list[str] = [concept.name for concept in concepts]
    levels = []
    for depth, name in enumerate(names):
        labels = tuple(dict.fromkeys(below))
        _check_look(name, labels)
        parent = None
        if depth < len(names) - 1:
            above = [concept.path[depth] for concept in concepts]
            # A label has one parent, or "everything under it" would depend on which concept is asked about.
            parent_of: dict[str, str] = {}
            for label, group in zip(below, above, strict=True):
                if parent_of.setdefault(label, group) != group:
                    raise ValueError(
                        f"{name} {label!r} is in two labels of level {names[depth + 1]!r}, "
                        f"{parent_of[label]!r} and {group!r}"
                    )
            # In the order in which the next round numbers its labels; else the parents would be others.
            index = {group: i for i, group in enumerate(dict.fromkeys(above))}
            parent = torch.tensor([index[parent_of[label]] for label in labels], dtype=torch.long)
            below = above
        if depth:
            captions = tuple(caption(name, label) for label in labels)
        else:
            captions = tuple(concept.text for concept in concepts)  # names are unique, so labels are theirs
        levels.append(Level(name, labels, captions, parent))
    return tuple(levels)


def _check_look(level: str, labels: Sequence[str]) -> None:
    """No two labels may look alike: a reader could not ask for one, nor a tokenizer tell them apart."""
    first: dict[str, str] = {}
    for label in labels:
        other = first.setdefault(composed(label), label)
        if other != label:
            raise ValueError(
                f"two labels of level {level!r} look like {label!r}, but are composed differently ({other!a} "
                f"and {label!a}); bring them to one form, as unicodedata.normalize does"
            )


def _wholly(chosen: Tensor, group: Tensor, count: int) -> Tensor:
    """Which groups have no member that is not chosen."""
    # Counting what is left rather than what is chosen: a label is gone with its last member.
    left = torch.zeros(count, dtype=torch.long).index_add(0, group, (~chosen).long())
    return left == 0
