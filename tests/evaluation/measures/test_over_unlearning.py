from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torchmetrics.functional.regression import kl_divergence

from riemann_unlearn.data import Dataset
from riemann_unlearn.evaluation.measures.over_unlearning import OverUnlearning
from riemann_unlearn.evaluation.subject import encode
from riemann_unlearn.models import DualEncoder


def test_it_is_a_divergence_over_the_retained(world: Dataset, model: DualEncoder) -> None:
    moved = copy.deepcopy(model)
    with torch.no_grad():
        next(moved.visual.parameters()).mul_(1.5)
    selection = world.taxonomy.select(["food-fruit"])
    before, after = (encode(one, world, selection) for one in (model, moved))
    gone, kept = before.test.forgotten, ~selection.forgotten[1]
    distributions = []
    for one in (before, after):
        logits = one.space.logits(one.test.features[gone], one.captions[1].features[kept])
        distributions.append(logits.softmax(1))
    expected = kl_divergence(*distributions).item()
    got = OverUnlearning(epsilon=0.0).compute(after, {"before": before})
    # One float32 rounding of a logit of size τ·s moves a probability by as much, relatively.
    assert got == pytest.approx(expected, abs=1e-4)


def test_what_it_needs_is_said(world: Dataset, meru: DualEncoder) -> None:
    one = encode(meru, world, world.taxonomy.select(["food-fruit", "drink", "animal-bird"]))
    measure = OverUnlearning()
    assert "two retained classes" in (measure.unmet(one, {"before": one}) or "")
    assert "before=" in (measure.unmet(one, {}) or "")
    nothing = encode(meru, world, world.taxonomy.select(["owl"]))
    kept = (~nothing.test.forgotten).nonzero()[:, 0]
    nothing = replace(nothing, heldout=nothing.test.subset(kept))
    assert measure.unmet(nothing, {"before": nothing}) == "no held-out images show anything forgotten"
