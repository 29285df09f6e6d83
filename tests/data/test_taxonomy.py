from __future__ import annotations

import pytest
import torch

from riemann_unlearn.data import Concept, Dataset, Taxonomy, UnknownConceptError


def test_levels_are_consistent(world: Dataset) -> None:
    taxonomy = world.taxonomy
    for i, concept in enumerate(taxonomy.concepts):
        assert taxonomy.subcategories[taxonomy.subcategory_of[i]] == concept.subcategory
        assert taxonomy.categories[taxonomy.category_of[i]] == concept.category


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("banana", {"banana"}),
        ("food-fruit", {"red apple", "banana", "cherries"}),
        ("Food & Drink", {"red apple", "banana", "cherries", "hot beverage"}),
        ("FOOD-FRUIT", {"red apple", "banana", "cherries"}),
        (" Owl ", {"owl"}),
    ],
)
def test_a_query_may_be_of_any_level(world: Dataset, query: str, names: set[str]) -> None:
    chosen = world.taxonomy.select([query]).concepts
    assert {c.name for c, picked in zip(world.taxonomy.concepts, chosen, strict=True) if picked} == names


def names_of(taxonomy: Taxonomy, level: str, mask: torch.Tensor) -> set[str]:
    return {name for name, picked in zip(getattr(taxonomy, level), mask, strict=True) if picked}


def test_a_group_is_forgotten_when_nothing_below_it_is_left(world: Dataset) -> None:
    taxonomy = world.taxonomy
    partly = taxonomy.select(["banana", "red apple"])
    assert not partly.subcategories.any()
    assert not partly.categories.any()
    one = taxonomy.select(["banana", "red apple", "cherries"])
    assert names_of(taxonomy, "subcategories", one.subcategories) == {"food-fruit"}
    both = taxonomy.select(["food-fruit", "hot beverage"])
    assert names_of(taxonomy, "subcategories", both.subcategories) == {"food-fruit", "drink"}
    assert names_of(taxonomy, "categories", both.categories) == {"Food & Drink"}


def test_an_unknown_concept_is_named_with_what_comes_close(world: Dataset) -> None:
    with pytest.raises(UnknownConceptError, match="no concept 'bananna'; did you mean 'banana'"):
        world.taxonomy.select(["owl", "bananna"])
    with pytest.raises(UnknownConceptError, match="no concept '§§'; 'riemann-unlearn list concepts'"):
        world.taxonomy.select(["§§"])


def test_nothing_and_everything_are_refused(world: Dataset) -> None:
    with pytest.raises(ValueError, match="nothing to forget"):
        world.taxonomy.select([])
    with pytest.raises(ValueError, match="nothing would be left"):
        world.taxonomy.select(["Food & Drink", "Animals & Nature"])


def test_contradictions_are_refused() -> None:
    apple = Concept("1", "apple", (), "fruit", "food")
    with pytest.raises(ValueError, match="two concepts are named 'apple'"):
        Taxonomy([apple, Concept("2", "apple", (), "fruit", "food")])
    with pytest.raises(ValueError, match="'fruit' is in two categories, 'food' and 'plants'"):
        Taxonomy([apple, Concept("2", "pear", (), "fruit", "plants")])


def test_a_name_wins_over_a_group_of_the_same_name() -> None:
    taxonomy = Taxonomy(
        [Concept("1", "bird", (), "bird", "animals"), Concept("2", "owl", (), "bird", "animals")]
    )
    assert taxonomy.select(["bird"]).concepts.tolist() == [True, False]
