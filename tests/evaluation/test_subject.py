from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from riemann_unlearn.data import Concept, Dataset, Taxonomy
from riemann_unlearn.evaluation.subject import encode, siblings
from riemann_unlearn.models import DualEncoder
from tests.evaluation.worlds import TAXONOMY, dataset, subject


@pytest.mark.parametrize(
    ("forget", "near"),
    [
        (["red apple"], ["banana"]),
        (["fruit"], ["coffee"]),
        (["food"], []),
        (["red apple", "owl"], ["banana", "duck"]),
        (["coffee"], ["red apple", "banana"]),
    ],
)
def test_siblings_share_the_lowest_level_where_any_are_left(forget: list[str], near: list[str]) -> None:
    got = siblings(TAXONOMY, TAXONOMY.select(forget))
    assert [TAXONOMY.concepts[i].name for i in got.nonzero()[:, 0].tolist()] == near


def test_at_one_level_no_one_is_a_sibling_and_at_four_they_are_sought_upwards() -> None:
    flat = Taxonomy([Concept("1", "owl"), Concept("2", "duck")])
    assert not siblings(flat, flat.select(["owl"])).any()
    deep = Taxonomy(
        [
            Concept("1", "owl", (), ("raptor", "bird", "animal")),
            Concept("2", "pike", (), ("perch-like", "fish", "animal")),
            Concept("3", "rose", (), ("rosales", "dicot", "plant")),
        ]
    )
    assert siblings(deep, deep.select(["owl"])).tolist() == [False, True, False]


def test_a_forgotten_concept_of_a_group_that_stays_is_a_class_of_its_own() -> None:
    concept = torch.arange(5)
    one = subject(["red apple"], (concept, torch.eye(5)), None)
    assert one.classes.tolist() == [3, 0, 1, 2, 2]
    assert one.caption_of_class.tolist() == [True, False, False, False, False]
    hits, asked = one.known(one.seen)
    # The features are the names' own; the subcategories' captions are the first three axes.
    assert hits.tolist() == [True, False, False, False, False]
    assert asked.all()
    whole = subject(["fruit"], (concept, torch.eye(5)), None)
    assert whole.classes.tolist() == [0, 0, 1, 2, 2]


def test_an_image_whose_caption_reads_like_another_is_not_asked_about() -> None:
    concept = torch.arange(5)
    one = subject(["red apple", "owl"], (concept, torch.eye(5)), None)
    shared = torch.tensor([True, True, False, False, False])
    one = replace(one, captions=(replace(one.captions[0], shared=shared), *one.captions[1:]))
    assert one.known(one.seen)[1].tolist() == [False, True, True, True, True]


def test_of_many_seen_images_some_are_taken(world: Dataset, meru: DualEncoder) -> None:
    selection = world.taxonomy.select(["owl"])
    whole = encode(meru, world, selection)
    assert whole.at_most(16) is whole
    for some in (whole.at_most(4), encode(meru, world, selection, most_seen=4)):
        assert torch.allclose(some.seen.features, whole.seen.features[[2, 6, 10, 14]], atol=1e-6)
        assert some.seen.concept.tolist() == world.seen.concept[[2, 6, 10, 14]].tolist()


def test_the_held_out_images_are_tested_and_the_seen_ones_where_there_are_none(meru: DualEncoder) -> None:
    concepts = [Concept("1", "owl"), Concept("2", "duck")]
    for heldout, what in ((True, "held-out images"), (False, "seen images")):
        data = dataset(concepts, heldout=heldout)
        assert encode(meru, data, data.taxonomy.select(["owl"])).test.what == what
