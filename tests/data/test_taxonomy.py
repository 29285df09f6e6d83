from __future__ import annotations

import unicodedata

import pytest
import torch

from riemann_unlearn.data import Concept, Dataset, Taxonomy, UnknownConceptError


def test_levels_are_consistent(world: Dataset) -> None:
    taxonomy = world.taxonomy
    assert [level.name for level in taxonomy.levels] == ["name", "subcategory", "category"]
    for i, concept in enumerate(taxonomy.concepts):
        labels = [level.labels[taxonomy.ancestor(depth)[i]] for depth, level in enumerate(taxonomy.levels)]
        assert labels == [concept.name, *concept.path]
    for depth, level in enumerate(taxonomy.levels[:-1]):
        assert level.parent is not None
        assert torch.equal(level.parent[taxonomy.ancestor(depth)], taxonomy.ancestor(depth + 1))
        assert len(level) == len(level.labels) == len(level.captions)
    assert taxonomy.levels[-1].parent is None


@pytest.mark.parametrize("depth", [0, 1, 2, 6])
def test_there_may_be_any_number_of_levels(depth: int) -> None:
    concepts = [
        Concept(str(i), f"0-{i}", path=tuple(f"{level}-{i >> level}" for level in range(1, depth + 1)))
        for i in range(8)
    ]
    taxonomy = Taxonomy(concepts)
    assert [len(level) for level in taxonomy.levels] == [max(1, 8 >> level) for level in range(depth + 1)]
    assert [level.name for level in taxonomy.levels] == ["name", *(f"level {i}" for i in range(1, depth + 1))]
    assert taxonomy.grouping == (1 if depth else 0)
    assert taxonomy.levels[-1].captions == taxonomy.levels[-1].labels
    for level in range(min(depth, 2) + 1):
        selection = taxonomy.select([f"{level}-1"])
        assert selection.asked == (level,)
        assert selection.level == level
        assert selection.concepts.sum() == 1 << level
        assert len(selection.forgotten) == depth + 1
        assert [int(mask.sum()) for mask in selection.forgotten] == [
            max(0, (1 << level) >> above) for above in range(depth + 1)
        ]


def test_captions_of_groups_are_worded_and_concepts_are_called_by_their_names() -> None:
    taxonomy = Taxonomy(
        [Concept("1", "Owl", path=("Birds",)), Concept("2", "Cat", path=("Mammals",))],
        levels=("animal", "class"),
        caption=lambda level, label: f"{level}: {label.lower()}",
    )
    assert taxonomy.levels[0].captions == ("Owl", "Cat")
    assert taxonomy.levels[1].captions == ("class: birds", "class: mammals")


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


def labels_of(taxonomy: Taxonomy, level: int, mask: torch.Tensor) -> set[str]:
    return {label for label, picked in zip(taxonomy.levels[level].labels, mask, strict=True) if picked}


def test_a_group_is_forgotten_when_nothing_below_it_is_left(world: Dataset) -> None:
    taxonomy = world.taxonomy
    partly = taxonomy.select(["banana", "red apple"])
    assert not partly.forgotten[1].any()
    assert not partly.forgotten[2].any()
    one = taxonomy.select(["banana", "red apple", "cherries"])
    assert labels_of(taxonomy, 1, one.forgotten[1]) == {"food-fruit"}
    both = taxonomy.select(["food-fruit", "hot beverage"])
    assert labels_of(taxonomy, 1, both.forgotten[1]) == {"food-fruit", "drink"}
    assert labels_of(taxonomy, 2, both.forgotten[2]) == {"Food & Drink"}
    assert both.level == 0
    moved = both.to("meta")
    assert {mask.device.type for mask in moved.forgotten} == {"meta"}
    assert moved.asked == both.asked


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


@pytest.mark.parametrize(
    ("concepts", "levels", "message"),
    [
        ([], None, "at least one concept, got none"),
        (
            [Concept("1", "apple", path=("fruit",)), Concept("2", "apple", path=("fruit",))],
            None,
            "two concepts are named 'apple'",
        ),
        (
            [Concept("1", "apple", path=("fruit", "food")), Concept("2", "pear", path=("fruit", "plants"))],
            ("name", "kind", "realm"),
            "kind 'fruit' is in two labels of level 'realm', 'food' and 'plants'",
        ),
        (
            [Concept("1", "apple", path=("fruit",)), Concept("2", "pear")],
            None,
            "'pear' has 0 levels above it and 'apple' has 1",
        ),
        ([Concept("1", "apple")], ("name", "kind"), "expected 1 different names of levels"),
        ([Concept("1", "apple", path=("fruit",))], ("name", "name"), "expected 2 different names"),
        (
            [Concept("1", "caf\u00e9"), Concept("2", "cafe\u0301")],
            None,
            r"two labels of level 'name' look like .* \('caf\\xe9' and 'cafe\\u0301'\); bring them to one",
        ),
        (
            [Concept("1", "a", path=("caf\u00e9",)), Concept("2", "b", path=("cafe\u0301",))],
            None,
            "two labels of level 'level 1' look like",
        ),
    ],
)
def test_contradictions_are_refused(
    concepts: list[Concept], levels: tuple[str, ...] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Taxonomy(concepts, levels)


def test_a_name_wins_over_a_group_of_the_same_name() -> None:
    taxonomy = Taxonomy(
        [Concept("1", "bird", path=("bird", "animals")), Concept("2", "owl", path=("bird", "animals"))]
    )
    assert taxonomy.select(["bird"]).concepts.tolist() == [True, False]


@pytest.mark.parametrize("data_form", ["NFC", "NFD"])
@pytest.mark.parametrize("query_form", ["NFC", "NFD"])
@pytest.mark.parametrize("label", ["crème brûlée", "Crème Brûlée", "level:Gâteaux"])
def test_how_accents_are_composed_does_not_matter(data_form: str, query_form: str, label: str) -> None:
    cream, cakes = (unicodedata.normalize(data_form, text) for text in ("crème brûlée", "gâteaux"))
    taxonomy = Taxonomy(
        [Concept("1", cream, path=("desserts",)), Concept("2", "tart", path=(cakes,))],
        levels=("name", "level"),
    )
    chosen = taxonomy.select([unicodedata.normalize(query_form, label)])
    assert chosen.concepts.tolist() == ([True, False] if "r" in label else [False, True])


def test_composition_is_looked_past_before_case_is() -> None:
    upper, lower = unicodedata.normalize("NFC", "Été"), unicodedata.normalize("NFC", "été")
    taxonomy = Taxonomy([Concept("1", upper), Concept("2", lower)])
    assert taxonomy.select([unicodedata.normalize("NFD", "été")]).concepts.tolist() == [False, True]
    assert taxonomy.select([unicodedata.normalize("NFD", "Été")]).concepts.tolist() == [True, False]


FAMILY = Taxonomy(
    [
        Concept("1f46a", "family", path=("family", "people")),
        Concept("1f468-200d-1f466", "family: man, boy", path=("family", "people")),
        Concept("2764-fe0f", "red heart", path=("heart", "emotion")),
    ],
    levels=("name", "kind", "realm"),
)


@pytest.mark.parametrize(
    ("query", "level", "picked"),
    [
        ("family", 0, [True, False, False]),
        ("name:family", 0, [True, False, False]),
        ("kind:family", 1, [True, True, False]),
        ("Kind: FAMILY", 1, [True, True, False]),
        ("realm:people", 2, [True, True, False]),
        ("family: man, boy", 0, [False, True, False]),
        ("name:family: man, boy", 0, [False, True, False]),
        ("\u2764\ufe0f", 0, [False, False, True]),
        ("\u2764", 0, [False, False, True]),
        ("\U0001f468\u200d\U0001f466", 0, [False, True, False]),
    ],
)
def test_a_prefix_or_the_character_settles_what_is_meant(query: str, level: int, picked: list[bool]) -> None:
    selection = FAMILY.select([query])
    assert selection.asked == (level,)
    assert selection.concepts.tolist() == picked


def test_a_prefix_keeps_to_its_level() -> None:
    with pytest.raises(UnknownConceptError, match="no kind 'kind:red heart'"):
        FAMILY.select(["kind:red heart"])
    with pytest.raises(UnknownConceptError, match="no realm 'realm:peopel'; did you mean 'people'"):
        FAMILY.select(["realm:peopel"])


def test_levels_come_in_the_order_asked(world: Dataset) -> None:
    selection = world.taxonomy.select(["drink", "Food & Drink"])
    assert selection.asked == (1, 2)
    assert selection.level == 1
    assert world.taxonomy.select(["drink", "owl", "Food & Drink"]).asked == (1, 0, 2)


def test_a_bare_string_is_refused(world: Dataset) -> None:
    with pytest.raises(TypeError, match="must be a sequence of strings, got 'owl'"):
        world.taxonomy.select("owl")


def test_every_bundled_group_can_be_asked_for(emoji: Dataset) -> None:
    taxonomy = emoji.taxonomy
    for depth, level in enumerate(taxonomy.levels[1:], start=1):
        for i, label in enumerate(level.labels):
            selection = taxonomy.select([f"{level.name}:{label}"])
            assert selection.asked == (depth,)
            assert torch.equal(selection.concepts, taxonomy.ancestor(depth) == i)


def test_every_bundled_emoji_can_be_asked_for_by_its_character(emoji: Dataset) -> None:
    concepts = emoji.taxonomy.concepts
    characters = ["".join(chr(int(point, 16)) for point in c.key.split("-")) for c in concepts]
    numbers = torch.arange(len(concepts))
    # The bits of a concept's number, together, identify it.
    for bit in range(len(concepts).bit_length()):
        wanted = (numbers >> bit & 1).bool()
        asked = [characters[i] for i in wanted.nonzero()[:, 0].tolist()]
        assert torch.equal(emoji.taxonomy.select(asked).concepts, wanted)
