from __future__ import annotations

import pytest
import torch

from riemann_unlearn.data import Concept, Dataset, Taxonomy, UnknownConceptError, load


@pytest.fixture(scope="module")
def emoji() -> Dataset:
    return load("emoji")


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
    listed = "'riemann-unlearn list concepts --data DATA' shows all of them"
    with pytest.raises(UnknownConceptError, match=f"no concept '§§'; {listed}"):
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


FAMILY = Taxonomy(
    [
        Concept("1f46a", "family", (), "family", "people"),
        Concept("1f468-200d-1f466", "family: man, boy", (), "family", "people"),
        Concept("2764-fe0f", "red heart", (), "heart", "emotion"),
    ]
)


@pytest.mark.parametrize(
    ("query", "level", "picked"),
    [
        ("family", "name", [True, False, False]),
        ("name:family", "name", [True, False, False]),
        ("subcategory:family", "subcategory", [True, True, False]),
        ("Subcategory: FAMILY", "subcategory", [True, True, False]),
        ("category:people", "category", [True, True, False]),
        ("family: man, boy", "name", [False, True, False]),
        ("name:family: man, boy", "name", [False, True, False]),
        ("\u2764\ufe0f", "name", [False, False, True]),
        ("\u2764", "name", [False, False, True]),
        ("\U0001f468\u200d\U0001f466", "name", [False, True, False]),
    ],
)
def test_a_prefix_or_the_character_settles_what_is_meant(query: str, level: str, picked: list[bool]) -> None:
    selection = FAMILY.select([query])
    assert selection.levels == (level,)
    assert selection.concepts.tolist() == picked


def test_a_prefix_keeps_to_its_level() -> None:
    with pytest.raises(UnknownConceptError, match="no subcategory 'subcategory:red heart'"):
        FAMILY.select(["subcategory:red heart"])
    with pytest.raises(UnknownConceptError, match="no category 'category:peopel'; did you mean 'people'"):
        FAMILY.select(["category:peopel"])


def test_levels_come_in_the_order_asked(world: Dataset) -> None:
    assert world.taxonomy.select(["drink", "owl", "Food & Drink"]).levels == (
        "subcategory",
        "name",
        "category",
    )


def test_a_bare_string_is_refused(world: Dataset) -> None:
    with pytest.raises(TypeError, match="must be a sequence of strings, got 'owl'"):
        world.taxonomy.select("owl")


def test_every_bundled_group_can_be_asked_for(emoji: Dataset) -> None:
    taxonomy = emoji.taxonomy
    for level, names, group in (
        ("subcategory", taxonomy.subcategories, taxonomy.subcategory_of),
        ("category", taxonomy.categories, taxonomy.category_of),
    ):
        for i, name in enumerate(names):
            selection = taxonomy.select([f"{level}:{name}"])
            assert selection.levels == (level,)
            assert torch.equal(selection.concepts, group == i)


def test_every_bundled_emoji_can_be_asked_for_by_its_character(emoji: Dataset) -> None:
    concepts = emoji.taxonomy.concepts
    characters = ["".join(chr(int(point, 16)) for point in c.key.split("-")) for c in concepts]
    numbers = torch.arange(len(concepts))
    # The bits of a concept's number, together, identify it.
    for bit in range(len(concepts).bit_length()):
        wanted = (numbers >> bit & 1).bool()
        asked = [characters[i] for i in wanted.nonzero()[:, 0].tolist()]
        assert torch.equal(emoji.taxonomy.select(asked).concepts, wanted)


def test_categories_of_subcategories_agree(emoji: Dataset) -> None:
    taxonomy = emoji.taxonomy
    assert torch.equal(taxonomy.category_of_subcategory[taxonomy.subcategory_of], taxonomy.category_of)
