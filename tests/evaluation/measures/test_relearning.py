from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from riemann_unlearn.data import Dataset
from riemann_unlearn.evaluation import relearning as module
from riemann_unlearn.evaluation.encoded import encode
from riemann_unlearn.evaluation.relearning import relearning
from riemann_unlearn.evaluation.zero_shot import zero_shot
from riemann_unlearn.models import DualEncoder
from tests.evaluation.worlds import subject


@pytest.mark.parametrize("forget", ["food-fruit", "red apple"])
def test_a_few_images_teach_an_untrained_model(
    world: Dataset, model: DualEncoder, forget: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a group the accuracy is asked among the groups, of a single concept among the names."""
    monkeypatch.setattr(module, "LEARNING_RATE", 1e-3)
    monkeypatch.setattr(module, "STEPS", (1, 60))
    # Asked about the images that it is taught, for a model of one layer does not see past a style.
    world = replace(world, heldout=world.seen)
    one = encode(model, world, world.taxonomy.select([forget]))
    found = relearning(one)
    assert found is not None
    groups = {"forget": one.selection.concepts[world.seen.concept]}
    measure = "accuracy" if forget == "food-fruit" else "recall_at_1"
    assert found["start"] == zero_shot(model, world.seen, groups)["forget"][measure]
    assert found["shots"] == ([1, 2, 4] if forget == "food-fruit" else [1, 2])
    assert set(found["by_steps"]) == {"1", "60"}
    assert found["by_steps"]["60"] == found["accuracy"]
    if forget == "red apple":
        assert found["start"] == 0.0
        assert found["accuracy"] == [1.0, 1.0]


def test_without_images_of_the_forgotten_there_is_nothing_to_learn() -> None:
    concept = torch.tensor([0, 1])
    assert relearning(subject(["owl"], (concept, torch.eye(2, 5)), (concept, torch.eye(2, 5)))) is None
