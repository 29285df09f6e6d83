"""How a concept is put into words; labels of the levels above it have :attr:`Level.captions`.

A concept is called by its :attr:`Concept.text`, as in the first level's captions, and by its keywords.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from riemann_unlearn.data.taxonomy import Concept

NAME_PROBABILITY = 0.7
"""How often a sampled caption is the plain name; the rest is half name with keywords, half keywords."""
MAX_KEYWORDS = 2
"""Most keywords of a sampled caption; a concept's others are never seen beside these two."""


def keyword_caption(concept: Concept, keywords: Sequence[str], *, with_name: bool = False) -> str:
    """Some of the concept's keywords, after its name if so wished; the name if there are none.

    Examples
    --------
    >>> apple = Concept("1f34e", "red apple", ("fruit", "snack"))
    >>> keyword_caption(apple, ["fruit", "snack"])
    'fruit, snack'
    >>> keyword_caption(apple, ["fruit"], with_name=True)
    'red apple, fruit'
    """
    name = [concept.text] if with_name or not keywords else []
    return ", ".join([*name, *keywords])


def sample_caption(concept: Concept, generator: torch.Generator) -> str:
    """A caption for training: the name, the name with keywords, or keywords alone.

    Parameters
    ----------
    concept : Concept
    generator : torch.Generator
        Source of all randomness.

    Examples
    --------
    >>> apple = Concept("1f34e", "red apple", ("fruit",))
    >>> sample_caption(apple, torch.Generator().manual_seed(0))
    'red apple'
    """
    draw = torch.rand((), generator=generator, dtype=torch.float32).item()
    if draw < NAME_PROBABILITY or not concept.keywords:
        return concept.text
    # Without replacement, in random order: no keyword is drawn twice.
    order = torch.randperm(len(concept.keywords), generator=generator)[:MAX_KEYWORDS]
    words = [concept.keywords[i] for i in order.tolist()]
    # The rest of the unit interval, halved: the same draw says whether the name comes before the keywords.
    return keyword_caption(concept, words, with_name=draw < (1 + NAME_PROBABILITY) / 2)
