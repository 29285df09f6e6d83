from __future__ import annotations

import copy

import pytest
import torch
from torchmetrics.functional.regression import kl_divergence

from riemann_unlearn.data import Dataset
from riemann_unlearn.evaluation import neighbours
from riemann_unlearn.evaluation.encoded import encode
from riemann_unlearn.evaluation.neighbours import over_unlearning, siblings
from riemann_unlearn.models import DualEncoder
from tests.evaluation.worlds import TAXONOMY


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
def test_siblings_share_the_subcategory_and_else_the_category(forget: list[str], near: list[str]) -> None:
    found = siblings(TAXONOMY, TAXONOMY.select(forget))
    assert [TAXONOMY.concepts[i].name for i in found.nonzero()[:, 0].tolist()] == near


def test_over_unlearning_is_a_divergence_over_the_retained(
    world: Dataset, model: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "EPSILON", 0.0)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        next(moved.visual.parameters()).mul_(1.5)
    selection = world.taxonomy.select(["food-fruit"])
    before, after = (encode(one, world, selection) for one in (model, moved))
    assert world.heldout is not None
    gone, kept = selection.concepts[world.heldout.concept], ~selection.subcategories
    distributions = []
    for one in (before, after):
        assert one.heldout_features is not None
        logits = one.model.similarity(one.heldout_features[gone], one.subcategories[kept])
        distributions.append((one.model.logit_scale.exp() * logits).softmax(1))
    expected = kl_divergence(*distributions).item()
    # One float32 rounding of a logit of size τ·s moves a probability by as much, relatively.
    assert over_unlearning(after, before) == pytest.approx(expected, abs=1e-4)


def test_without_two_retained_classes_nothing_is_compared(world: Dataset, meru: DualEncoder) -> None:
    most = world.taxonomy.select(["food-fruit", "drink", "animal-bird"])
    one = encode(meru, world, most)
    assert over_unlearning(one, one) is None
