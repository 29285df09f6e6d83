"""Where what is forgotten belongs: with the label above it, and with none of those beside it.

Whatever is forgotten by generalizing becomes what its parent is: no apple any more, food still, and no bread
either. Which labels these are is said here once, for the method that brings images there and for the measure
that asks whether they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from riemann_unlearn.data.taxonomy import Selection, Taxonomy


@dataclass(frozen=True)
class Zone:
    """The labels of one level with the parents that they are left for.

    Above the topmost level stands a root that holds everything, and has all labels there for its children.
    """

    depth: int
    """Number of the level."""
    parent: Tensor
    """Long, shape (labels,): index of each label's own at the level above; 0 for all under the root."""
    rooted: bool
    """Whether the parent is the root."""

    @classmethod
    def of(cls, taxonomy: Taxonomy, depth: int, device: torch.device | str = "cpu") -> Zone:
        """That of a level.

        Examples
        --------
        >>> from riemann_unlearn.data import Concept
        >>> kinds = {"apple": "food", "owl": "bird", "tea": "food"}
        >>> concepts = [Concept(name, name, path=(kind,)) for name, kind in kinds.items()]
        >>> names = Zone.of(Taxonomy(concepts), 0)
        >>> names.children(torch.tensor([0])).tolist()          # an apple is neither an apple nor tea
        [[True, False, True]]
        >>> Zone.of(Taxonomy(concepts), 1).children(torch.tensor([0])).tolist()
        [[True, True]]
        """
        level = taxonomy.levels[depth]
        if level.parent is None:
            return cls(depth, torch.zeros(len(level), dtype=torch.long, device=device), True)
        return cls(depth, level.parent.to(device), False)

    def children(self, own: Tensor) -> Tensor:
        """Which labels share a parent with each of ``own``, itself among them; bool, shape (N, labels)."""
        return self.parent[None] == self.parent[own][:, None]


def level_to_leave(taxonomy: Taxonomy, selection: Selection) -> Tensor:
    """The topmost level at which each concept's label is forgotten, -1 for what is retained; (concepts,).

    What is above it is retained, so the parent there is where the concept belongs.

    Examples
    --------
    >>> from riemann_unlearn.data import Concept
    >>> kinds = {"apple": "food", "owl": "bird", "tea": "food"}
    >>> concepts = [Concept(name, name, path=(kind,)) for name, kind in kinds.items()]
    >>> taxonomy = Taxonomy(concepts)
    >>> level_to_leave(taxonomy, taxonomy.select(["apple", "bird"])).tolist()
    [0, 1, -1]
    """
    # A label is forgotten with the last that is below it, so what is forgotten of a concept's line is its
    # lower end, and counting finds where that stops.
    lines = [mask[taxonomy.ancestor(depth).to(mask.device)] for depth, mask in enumerate(selection.forgotten)]
    return torch.stack(lines).sum(0) - 1
