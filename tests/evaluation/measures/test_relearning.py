from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from riemann_unlearn.data import Dataset
from riemann_unlearn.evaluation import zero_shot
from riemann_unlearn.evaluation.measures import relearning as module
from riemann_unlearn.evaluation.measures.relearning import Relearning
from riemann_unlearn.evaluation.subject import encode
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.training.driver import Diverged, Driver
from tests.conftest import make_model
from tests.evaluation.worlds import subject, without_heldout


def test_two_images_teach_an_untrained_model(world: Dataset, meru: DualEncoder) -> None:
    """Of a single concept the accuracy is asked among the names."""
    # Asked about the images that it is taught, for a model of one layer does not see past a style.
    world = replace(world, heldout=world.seen)
    one = encode(meru, world, world.taxonomy.select(["red apple"]))
    measure = Relearning(shots=(0, 2, 4), rates=(1e-5, 3e-3), steps=(1, 60), frozen=0.0)
    got = measure.compute(one, {})
    start = zero_shot(meru, world.seen, {"forget": one.seen.forgotten})["forget"]
    assert got["start"] == start["recall_at_1"] == 0.0
    # There are two images, so nobody has four.
    assert (got["shots"], got["images"]) == ([0, 2], 2)
    assert got["accuracy"][1] == 1.0
    # Without an image of it, its caption is nowhere in the loss.
    assert got["accuracy"][0] < 1.0
    grid = torch.tensor(got["grid"])
    assert grid.shape == (2, 2, 2)
    # The worst of every number of images, and where it is.
    assert grid.amax((1, 2)).tolist() == pytest.approx(got["accuracy"])
    assert got["worst"][1] == [3e-3, 60]
    rows = measure.rows(got)
    assert list(rows)[:3] == ["as it is", "from no image: worst", "from 2 images: worst"]
    assert rows["from 2 images: worst"] == "100.0 [34.2, 100.0] of 2"
    assert rows["from 2 images, rate 0.003: after 1, 60 steps"].endswith(", 100.0")


def test_of_a_group_the_accuracy_is_asked_among_the_groups(world: Dataset) -> None:
    one = encode(make_model("CLIP"), world, world.taxonomy.select(["food-fruit"]))
    got = Relearning(shots=(0,), rates=(1e-5,), steps=(1,)).compute(one, {})
    assert got["images"] == 3
    start = zero_shot(one.model, one.test.samples, {"forget": one.test.forgotten})["forget"]
    assert got["start"] == start["accuracy"]


def ground(world: Dataset, model: DualEncoder, **changes: Any) -> Any:
    one = encode(model, world, world.taxonomy.select(["food-fruit"]))
    measure = Relearning(**changes)
    test = module._tested(one)
    return measure, module._Ground(measure, one, test, torch.Generator().manual_seed(0))


def test_a_step_tells_each_image_from_all_other_captions(world: Dataset, model: DualEncoder) -> None:
    _, shared = ground(world, model)
    one = shared.subject
    other, encode_rows = shared.stored.copy()
    batch = torch.tensor([0, shared.first_retained])
    features = encode_rows(batch)
    terms = shared.terms(other, encode_rows, True, batch)
    assert list(terms) == [f"{level.name}_loss" for level in world.taxonomy.levels]
    for depth, value in enumerate(terms.values()):
        logits = one.space.logits(features, one.captions[depth].features)
        own = shared.labels[depth][batch]
        assert value.item() == pytest.approx(F.cross_entropy(logits, own).item(), rel=1e-5)
    # The first row shows something forgotten, and the other one nothing.
    assert one.selection.forgotten[0][shared.labels[0][batch]].tolist() == [True, False]
    # Without images of the forgotten, their captions are no candidates.
    alone = shared.terms(other, encode_rows, False, batch[1:])
    logits = one.space.logits(features[1:], one.captions[0].features)
    logits = logits.masked_fill(one.selection.forgotten[0], -math.inf)
    assert alone["name_loss"].item() == pytest.approx(
        F.cross_entropy(logits, shared.labels[0][batch[1:]]).item(), rel=1e-5
    )


def test_fewer_images_are_some_of_more_and_none_is_none(world: Dataset, model: DualEncoder) -> None:
    measure, shared = ground(world, model, views=2, retain_batch=3)
    assert (shared.forgotten, shared.retained, shared.classes) == (4, 10, 1)

    def drawn(shots: int) -> torch.Tensor:
        batches = module._Shots(measure, shared, shots, torch.Generator().manual_seed(1))
        return torch.stack([batches.draw(number) for number in range(40)])

    for shots in (0, 1, 4):
        rows = drawn(shots)
        assert rows.shape == (40, shots + 3)
        shown, kept = rows[:, :shots], rows[:, shots:]
        # Rows of the forgotten go view by view, four each; then the retained ones.
        assert set((shown % 4).flatten().tolist()) == set(range(shots))
        assert (shown < 8).all()
        assert ((kept >= 8) & (kept < 18)).all()
    concepts = shared.labels[0]
    assert shared.subject.selection.concepts[concepts[:8]].all()
    assert concepts[:4].equal(concepts[4:8])
    assert not shared.subject.selection.concepts[concepts[8:]].any()


def test_the_attack_is_of_adam_at_the_rate_that_is_documented(
    world: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam's first step moves each weight by the learning rate, whatever its gradient."""
    measure, shared = ground(world, make_model("MERU"), rates=(1e-3,), steps=(1, 2))
    moves, run = [], Driver.run

    def watched(driver: Driver) -> None:
        before = [parameter.detach().clone() for parameter in driver.parameters]
        assert driver.steps == 2
        driver.take_step()
        moves.append(max((b - p).abs().max().item() for b, p in zip(before, driver.parameters, strict=True)))
        run(driver)

    monkeypatch.setattr(Driver, "run", watched)
    assert len(measure._attack(shared, 1, 1e-3, 0)) == 2
    # Weights are at most of size 2 here: float32 stores them with an error of 1e-7 on 1e-3.
    assert moves == [pytest.approx(1e-3, rel=1e-3)]


def test_an_attack_that_breaks_the_model_brings_nothing_back(
    world: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, shared = ground(world, make_model("CLIP"), steps=(1, 2, 3))
    monkeypatch.setattr(module._Ground, "accuracy", lambda *_: 0.5)
    run = Driver.run

    def breaks(driver: Driver) -> None:
        driver.steps = 1
        run(driver)
        raise Diverged

    monkeypatch.setattr(Driver, "run", breaks)
    assert measure._attack(shared, 1, 1e-3, 0) == [0.5, 0.0, 0.0]


def test_features_that_are_not_finite_find_nothing(world: Dataset) -> None:
    _, shared = ground(world, make_model("CLIP"))
    other, _ = shared.stored.copy()
    assert shared.accuracy(other, lambda rows: torch.full((len(rows), 16), torch.nan)) == 0.0


def test_a_frozen_model_is_attacked_as_any_other_and_stays_as_it_was(world: Dataset) -> None:
    one = encode(make_model("CLIP"), world, world.taxonomy.select(["owl"]))
    measure = Relearning(steps=(1, 2), shots=(0, 1))
    plain = measure.compute(one, {})
    weights = {name: value.clone() for name, value in one.model.state_dict().items()}
    one.model.requires_grad_(False)
    one.model.train()
    assert measure.compute(one, {}) == plain
    assert one.model.training
    assert all(value.equal(weights[name]) for name, value in one.model.state_dict().items())


def test_it_is_never_tested_on_its_own_shots() -> None:
    concept = torch.tensor([0, 1, 3])
    part = (concept, torch.eye(3, 5))
    one = subject(["owl"], part, part)
    assert Relearning().unmet(one, {}) is None
    assert "its own shots" in (Relearning().unmet(without_heldout(one), {}) or "")
    other = subject(["duck"], part, part)
    assert Relearning().unmet(other, {}) == "no seen images show anything forgotten"
    alone = subject(["fruit"], (torch.tensor([0, 1]), torch.eye(2, 5)), part)
    assert Relearning().unmet(alone, {}) == "no seen images show anything retained"
