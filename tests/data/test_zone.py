from __future__ import annotations

import pytest
import torch

from riemann_unlearn.data import Concept, Taxonomy
from riemann_unlearn.data.zone import Zone, level_to_leave

TAXONOMY = Taxonomy(
    [
        Concept("1", "red apple", (), ("fruit", "food")),
        Concept("2", "banana", (), ("fruit", "food")),
        Concept("3", "coffee", (), ("drink", "food")),
        Concept("4", "owl", (), ("bird", "animals")),
    ]
)


@pytest.mark.parametrize(
    ("queries", "expected"),
    [
        (["red apple"], [0, -1, -1, -1]),
        (["fruit"], [1, 1, -1, -1]),
        # Each of its own level, also where several are asked for.
        (["coffee", "banana"], [-1, 0, 1, -1]),
        # With both its kinds food itself is gone: what is left is the root.
        (["fruit", "drink"], [2, 2, 2, -1]),
        (["red apple", "owl"], [0, -1, -1, 2]),
    ],
)
def test_what_is_forgotten_leaves_the_topmost_level_that_is_forgotten(
    queries: list[str], expected: list[int]
) -> None:
    assert level_to_leave(TAXONOMY, TAXONOMY.select(queries)).tolist() == expected


def test_children_are_those_of_one_parent_and_all_of_the_root() -> None:
    kinds = Zone.of(TAXONOMY, 1)
    assert (kinds.depth, kinds.rooted, kinds.parent.tolist()) == (1, False, [0, 0, 1])
    assert kinds.children(torch.tensor([1, 2])).tolist() == [[True, True, False], [False, False, True]]
    realms = Zone.of(TAXONOMY, 2)
    assert realms.rooted
    assert realms.children(torch.tensor([1])).tolist() == [[True, True]]


def test_of_one_level_all_labels_are_the_roots() -> None:
    flat = Taxonomy([Concept(str(i), name) for i, name in enumerate(("one", "two"))])
    assert Zone.of(flat, 0).children(torch.tensor([0])).all()
    assert level_to_leave(flat, flat.select(["two"])).tolist() == [-1, 0]
