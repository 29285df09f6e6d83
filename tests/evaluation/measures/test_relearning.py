from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from riemann_unlearn.data import Dataset
from riemann_unlearn.evaluation import zero_shot
from riemann_unlearn.evaluation.measures.relearning import Relearning
from riemann_unlearn.evaluation.subject import encode
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.training.driver import Callback, Driver
from tests.conftest import make_model
from tests.evaluation.worlds import subject, without_heldout


@pytest.mark.parametrize("forget", ["food-fruit", "red apple"])
def test_a_few_images_teach_an_untrained_model(world: Dataset, model: DualEncoder, forget: str) -> None:
    """Of a group the accuracy is asked among the groups, of a single concept among the names."""
    # Asked about the images that it is taught, for a model of one layer does not see past a style.
    world = replace(world, heldout=world.seen)
    one = encode(model, world, world.taxonomy.select([forget]))
    measure = Relearning(learning_rate=1e-3, steps=(1, 60))
    got = measure.compute(one, {})
    start = zero_shot(model, world.seen, {"forget": one.seen.forgotten})["forget"]
    assert got["start"] == start["accuracy" if forget == "food-fruit" else "recall_at_1"]
    assert got["shots"] == ([1, 2, 4] if forget == "food-fruit" else [1, 2])
    assert got["images"] == (6 if forget == "food-fruit" else 2)
    assert set(got["by_steps"]) == {"1", "60"}
    assert got["by_steps"]["60"] == got["accuracy"]
    assert list(measure.rows(got))[:2] == ["no shot", "1 shot"]
    if forget == "red apple":
        assert got["start"] == 0.0
        assert got["accuracy"] == [1.0, 1.0]


class Moves(Callback):
    """How far each weight is moved by each step, at most and by the median of those that move."""

    def __init__(self) -> None:
        self.most: list[float] = []
        self.median: list[float] = []

    def updating(self, driver: Driver) -> None:
        self.before = [parameter.detach().clone() for parameter in driver.parameters]

    def updated(self, driver: Driver) -> None:
        moved = torch.cat(
            [(new - old).abs().flatten() for new, old in zip(driver.parameters, self.before, strict=True)]
        )
        self.most.append(moved.max().item())
        self.median.append(moved[moved > 0].median().item())

    def stepped(self, driver: Driver, record: dict[str, Any]) -> None:
        assert {group["lr"] for group in driver.optimizer.param_groups} == {2e-4}


def test_the_attack_is_ten_steps_of_adam_at_the_rate_that_is_documented(world: Dataset) -> None:
    """Adam's first step moves each weight by the learning rate, whatever its gradient."""
    one = encode(make_model("MERU"), world, world.taxonomy.select(["food-fruit"]))
    model, moves, shots = make_model("MERU"), Moves(), one.seen.forgotten.nonzero()[:2, 0]
    Relearning().attack(model, one, shots, torch.Generator().manual_seed(0), [moves])
    assert len(moves.most) == 10
    # Weights are at most of size 2 here: float32 stores them with an error of 1e-7 on 2e-4.
    assert moves.median[0] == pytest.approx(2e-4, rel=2e-3)
    assert moves.most[0] == pytest.approx(2e-4, rel=2e-3)
    # Later a step is at most a few times the rate, and not a decayed part of it.
    assert all(1e-4 < most < 1e-3 for most in moves.most)
    scalars = [name for name, parameter in one.model.named_parameters() if parameter.ndim == 0]
    states: tuple[dict[str, Tensor], ...] = one.model.state_dict(), model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in scalars)


def test_a_frozen_model_is_attacked_as_any_other_and_stays_as_it_was(world: Dataset) -> None:
    one = encode(make_model("CLIP"), world, world.taxonomy.select(["owl"]))
    measure = Relearning(steps=(1, 2), shots=(1,))
    plain = measure.compute(one, {})
    one.model.requires_grad_(False)
    one.model.train()
    assert measure.compute(one, {}) == plain
    assert one.model.training


def test_it_is_never_tested_on_its_own_shots() -> None:
    concept = torch.tensor([0, 1, 3])
    part = (concept, torch.eye(3, 5))
    one = subject(["owl"], part, part)
    assert Relearning().unmet(one, {}) is None
    assert "its own shots" in (Relearning().unmet(without_heldout(one), {}) or "")
    other = subject(["duck"], part, part)
    assert Relearning().unmet(other, {}) == "no seen images show anything forgotten"
