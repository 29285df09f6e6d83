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

    def select(self, queries: Sequence[str]) -> Selection:
        """What ``queries`` name: concepts, subcategories or categories, in any mixture.

        A query is looked up as written and then without regard to case, first among the names, then
        the subcategories, then the categories. A subcategory or category is selected when nothing
        below it is left.

        Raises
        ------
        UnknownConceptError
            For a query that is none of these; the message says what comes close.
        ValueError
            When nothing is asked for, or when everything is.
        """
        if not queries:
            raise ValueError("nothing to forget: name at least one concept")
        chosen = torch.zeros(len(self.concepts), dtype=torch.bool)
        levels = (
            {c.name: torch.tensor([i]) for i, c in enumerate(self.concepts)},
            {name: (self.subcategory_of == i).nonzero()[:, 0] for i, name in enumerate(self.subcategories)},
            {name: (self.category_of == i).nonzero()[:, 0] for i, name in enumerate(self.categories)},
        )
        known: dict[str, Tensor] = {}
        for members in levels:
            for name, rows in members.items():
                known.setdefault(name, rows)
        folded = {name.casefold(): name for name in reversed(known)}
        for query in queries:
            found = query if query in known else folded.get(query.strip().casefold())
            if found is None:
                close = difflib.get_close_matches(query, known, n=3, cutoff=0.5)
                hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
                raise UnknownConceptError(
                    f"no concept {query!r}; {hint}'riemann-unlearn list concepts' shows all of them"
                )
            chosen[known[found]] = True
        if chosen.all():
            raise ValueError("this would forget every concept; nothing would be left to retain")
        return Selection(
            chosen,
            _wholly(chosen, self.subcategory_of, len(self.subcategories)),
            _wholly(chosen, self.category_of, len(self.categories)),
        )


def _wholly(chosen: Tensor, group: Tensor, count: int) -> Tensor:
    """Which groups have no member that is not chosen."""
    left = torch.zeros(count, dtype=torch.long).index_add(0, group, (~chosen).long())
    return left == 0
