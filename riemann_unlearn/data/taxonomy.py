"""Concepts and the hierarchy above them: name, subcategory, category."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class UnknownConceptError(ValueError):
    """A concept was asked for that the taxonomy does not have."""


@dataclass(frozen=True)
class Concept:
    """A thing with a name, and where it stands in the hierarchy."""

    key: str
    """Identifies the concept within its dataset; for emoji, its code points."""
    name: str
    keywords: tuple[str, ...]
    subcategory: str
    category: str


@dataclass(frozen=True)
class Selection:
    """What is to be forgotten, at each level of a taxonomy."""

    concepts: Tensor
    """bool, shape (concepts,)."""
    subcategories: Tensor
    """bool, shape (subcategories,): those of which nothing is left to retain."""
    categories: Tensor
    """bool, shape (categories,): likewise."""
    levels: tuple[str, ...]
    """What each query was taken for, in the order asked: "name", "subcategory" or "category"."""


class Taxonomy:
    """Concepts in a hierarchy of three levels.

    Parameters
    ----------
    concepts : sequence of Concept
        With unique names; a subcategory may belong to only one category.

    Attributes
    ----------
    concepts : tuple of Concept
    subcategories, categories : tuple of str
        In the order of first appearance.
    subcategory_of, category_of : Tensor, shape (concepts,)
        Long; index of each concept's subcategory and category.
    category_of_subcategory : Tensor, shape (subcategories,)
        Long; index of each subcategory's category.

    Raises
    ------
    ValueError
        When two concepts share a name, or a subcategory is in two categories.

    Examples
    --------
    >>> apple = Concept("1", "red apple", ("fruit",), "food-fruit", "Food & Drink")
    >>> bread = Concept("2", "bread", (), "food-prepared", "Food & Drink")
    >>> taxonomy = Taxonomy([apple, bread])
    >>> taxonomy.select(["food-fruit"]).concepts.tolist()
    [True, False]
    """

    def __init__(self, concepts: Sequence[Concept]) -> None:
        self.concepts = tuple(concepts)
        seen: dict[str, Concept] = {}
        above: dict[str, str] = {}
        for concept in self.concepts:
            if concept.name in seen:
                raise ValueError(
                    f"two concepts are named {concept.name!r} "
                    f"(keys {seen[concept.name].key} and {concept.key}); names must be unique"
                )
            seen[concept.name] = concept
            category = above.setdefault(concept.subcategory, concept.category)
            if category != concept.category:
                raise ValueError(
                    f"subcategory {concept.subcategory!r} is in two categories, "
                    f"{category!r} and {concept.category!r}"
                )
        self.subcategories = tuple(above)
        self.categories = tuple(dict.fromkeys(above.values()))
        subcategory_index = {name: i for i, name in enumerate(self.subcategories)}
        category_index = {name: i for i, name in enumerate(self.categories)}
        self.subcategory_of = torch.tensor(
            [subcategory_index[c.subcategory] for c in self.concepts], dtype=torch.long
        )
        self.category_of = torch.tensor([category_index[c.category] for c in self.concepts], dtype=torch.long)
        self.category_of_subcategory = torch.tensor(
            [category_index[category] for category in above.values()], dtype=torch.long
        )

    def select(self, queries: Sequence[str]) -> Selection:
        """What ``queries`` name: concepts, subcategories or categories, in any mixture.

        A query is looked up as written, then without regard to case, and last as an emoji character;
        each time first among the names, then the subcategories, then the categories. Where a group is
        called as one of its members is ("family", "hotel"), a prefix says which is meant:
        ``name:family``, ``subcategory:family`` or ``category:...``. A subcategory or category is
        selected when nothing below it is left.

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
        >>> owl = Concept("1f989", "owl", (), "animal-bird", "Animals & Nature")
        >>> apple = Concept("1f34e", "red apple", (), "food-fruit", "Food & Drink")
        >>> Taxonomy([owl, apple]).select(["\N{OWL}"]).concepts.tolist()
        [True, False]
        """
        if isinstance(queries, str):
            raise TypeError(f"queries must be a sequence of strings, got {queries!r}; write [{queries!r}]")
        if not queries:
            raise ValueError("nothing to forget: name at least one concept")
        tables = {
            "name": {c.name: [i] for i, c in enumerate(self.concepts)},
            "subcategory": _members(self.subcategories, self.subcategory_of),
            "category": _members(self.categories, self.category_of),
        }
        characters = {_without_selectors(c.key): [i] for i, c in enumerate(self.concepts)}
        chosen = torch.zeros(len(self.concepts), dtype=torch.bool)
        levels = []
        for query in queries:
            level, rows = _look_up(query, tables, characters)
            chosen[rows] = True
            levels.append(level)
        if chosen.all():
            raise ValueError("this would forget every concept; nothing would be left to retain")
        return Selection(
            chosen,
            _wholly(chosen, self.subcategory_of, len(self.subcategories)),
            _wholly(chosen, self.category_of, len(self.categories)),
            tuple(levels),
        )


def _look_up(
    query: str, tables: dict[str, dict[str, list[int]]], characters: dict[str, list[int]]
) -> tuple[str, list[int]]:
    """The level a query is of, and the concepts it stands for."""
    # As written first: a name may itself begin with "name:".
    for level, table in tables.items():
        if query in table:
            return level, table[query]
    prefix, colon, rest = query.partition(":")
    prefix = prefix.strip().casefold()
    if colon and prefix in tables:
        tables, sought = {prefix: tables[prefix]}, rest.strip()
    else:
        sought = query.strip()
    for level, table in tables.items():
        if sought in table:
            return level, table[sought]
    for level, table in tables.items():
        for name, rows in table.items():
            if name.casefold() == sought.casefold():
                return level, rows
    code_points = _without_selectors("-".join(f"{ord(character):04x}" for character in sought))
    if "name" in tables and code_points in characters:
        return "name", characters[code_points]
    known = list(dict.fromkeys(name for table in tables.values() for name in table))
    close = difflib.get_close_matches(sought, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    kind = "concept" if "name" in tables else next(iter(tables))
    raise UnknownConceptError(
        f"no {kind} {query!r}; {hint}'riemann-unlearn list concepts --data DATA' shows all of them"
    )


def _without_selectors(key: str) -> str:
    """Code points without the one that only asks for colour, which is often left out in typing."""
    return "-".join(point for point in key.split("-") if point != "fe0f")


def _members(names: Sequence[str], group: Tensor) -> dict[str, list[int]]:
    """The rows of the concepts in each group."""
    return {name: (group == i).nonzero()[:, 0].tolist() for i, name in enumerate(names)}


def _wholly(chosen: Tensor, group: Tensor, count: int) -> Tensor:
    """Which groups have no member that is not chosen."""
    left = torch.zeros(count, dtype=torch.long).index_add(0, group, (~chosen).long())
    return left == 0
