"""How a concept is put into words, at each level of the taxonomy."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from riemann_unlearn.data.taxonomy import Concept

NAME_PROBABILITY = 0.7
"""How often a sampled caption is the plain name; the rest is half name with keywords, half keywords."""
MAX_KEYWORDS = 2


def name_caption(concept: Concept) -> str:
    """The concept's name.

    Examples
    --------
    >>> name_caption(Concept("1f34e", "red apple", (), "food-fruit", "Food & Drink"))
    'red apple'
    """
    return concept.name


def keyword_caption(concept: Concept, keywords: Sequence[str], *, with_name: bool = False) -> str:
    """Some of the concept's keywords, after its name if so wished; the name if there are none.

    Examples
    --------
    >>> apple = Concept("1f34e", "red apple", ("fruit", "snack"), "food-fruit", "Food & Drink")
    >>> keyword_caption(apple, ["fruit", "snack"])
    'fruit, snack'
    >>> keyword_caption(apple, ["fruit"], with_name=True)
    'red apple, fruit'
    """
    name = [name_caption(concept)] if with_name or not keywords else []
    return ", ".join([*name, *keywords])


def subcategory_caption(subcategory: str) -> str:
    """A subcategory in plain words.

    Examples
    --------
    >>> subcategory_caption("food-fruit")
    'food fruit'
    """
    return subcategory.replace("-", " ").replace("&", "and")


def category_caption(category: str) -> str:
    """A category in plain words.

    Examples
    --------
    >>> category_caption("Food & Drink")
    'food and drink'
    """
    return category.replace("&", "and").lower()


def sample_caption(concept: Concept, generator: torch.Generator) -> str:
    """A caption for training: the name, the name with keywords, or keywords alone.

    Parameters
    ----------
    concept : Concept
    generator : torch.Generator
        Source of all randomness.

    Examples
    --------
    >>> apple = Concept("1f34e", "red apple", ("fruit",), "food-fruit", "Food & Drink")
    >>> sample_caption(apple, torch.Generator().manual_seed(0))
    'red apple'
    """
    draw = torch.rand((), generator=generator).item()
    if draw < NAME_PROBABILITY or not concept.keywords:
        return name_caption(concept)
    order = torch.randperm(len(concept.keywords), generator=generator)[:MAX_KEYWORDS]
    words = [concept.keywords[i] for i in order.tolist()]
    return keyword_caption(concept, words, with_name=draw < (1 + NAME_PROBABILITY) / 2)
