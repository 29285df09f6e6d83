from __future__ import annotations

import pytest
import torch

from riemann_unlearn.data import Dataset
from riemann_unlearn.evaluation import zero_shot
from riemann_unlearn.evaluation.features import encode_images
from riemann_unlearn.models import DualEncoder
from tests.evaluation.worlds import Knows


def test_a_model_that_knows_everything_scores_one(world: Dataset) -> None:
    got = zero_shot(Knows(world), world.seen)
    everything = {"accuracy": 1.0, "recall_at_1": 1.0, "recall_at_5": 1.0, "parent_accuracy": 1.0}
    assert {name: got[name] for name in everything} == everything
    assert list(got["levels"]) == ["name", "subcategory", "category"]


def test_the_level_that_accuracy_is_asked_at_can_be_chosen(world: Dataset) -> None:
    model = Knows(world, "red apple", "banana")
    images = world.seen.concept == [c.name for c in world.taxonomy.concepts].index("red apple")
    for level, (accuracy, parent) in enumerate([(0.0, 1.0), (1.0, 1.0), (1.0, None)]):
        got = zero_shot(model, world.seen, {"apple": images}, level=level)["apple"]
        assert (got["accuracy"], got["parent_accuracy"]) == (accuracy, parent)
        assert got["recall_at_1"] == 0.0


def test_a_group_without_images_has_no_measure(world: Dataset, model: DualEncoder) -> None:
    none = torch.zeros(len(world.seen), dtype=torch.bool)
    report = zero_shot(model, world.seen, {"none": none, "all": ~none})
    assert report["none"]["images"] == 0
    assert all(report["none"][name] is None for name in ("accuracy", "recall_at_1", "parent_accuracy"))
    assert report["all"] == zero_shot(model, world.seen)


def test_features_that_are_known_are_not_made_again(
    world: Dataset, model: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = encode_images(model, world.seen.images)
    expected = zero_shot(model, world.seen)
    monkeypatch.setattr(model, "preprocess", None)
    assert zero_shot(model, world.seen, image_features=features) == expected
