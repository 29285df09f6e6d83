from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import riemann_unlearn as ru
from riemann_unlearn.data import Dataset
from riemann_unlearn.evaluation import zero_shot
from riemann_unlearn.unlearning import Problem, UnlearningResult, api
from riemann_unlearn.unlearning.bars import ASKED, StopAtBars, set_aside
from riemann_unlearn.unlearning.kept import keep
from riemann_unlearn.unlearning.methods import Tilt
from riemann_unlearn.unlearning.problem import ForgetAndRetain
from riemann_unlearn.unlearning.split import SplitTower
from tests.conftest import make_model
from tests.unlearning.test_api import learned, raising, unmeasured


@pytest.fixture(scope="module")
def large(world: Dataset) -> Dataset:
    """The world four times: of 24 images to be forgotten 3 are set aside, of 40 others 5."""
    return replace(world, seen=world.seen.subset(torch.arange(16).repeat(4)))


def run(data: Dataset, **options: Any) -> UnlearningResult:
    options = {"method": Tilt(steps=100, learning_rate=1e-3), "tolerance": 0.2, "progress": False} | options
    return ru.unlearn(learned(data), data, forget="food-fruit", **options)


def test_an_eighth_of_either_kind_takes_no_part(large: Dataset) -> None:
    problem = Problem(make_model("MERU"), large, large.taxonomy.select(["food-fruit"]))
    aside = set_aside(problem, seed=0)
    assert (int(aside[problem.gone].sum()), int(aside[~problem.gone].sum())) == (3, 5)
    assert torch.equal(aside, set_aside(problem, seed=0))
    assert not torch.equal(aside, set_aside(problem, seed=1))
    images = problem.model.preprocess(large.seen.images[torch.arange(7)])
    split = SplitTower(problem.model.visual, Tilt(frozen=0.6).parameters(problem.model), images)
    problem = replace(problem, aside=aside, split=split)
    chosen = keep(problem, split.width, views=1, seed=0)
    assert chosen is not None
    assert len(chosen.rows) == 56
    for kept in (None, chosen):
        batches = ForgetAndRetain(problem, 21, 35, seed=0, kept=kept)
        drawn = batches.draw(0).batch.indices
        assert sorted(drawn.tolist()) == (~aside).nonzero()[:, 0].tolist()


def test_too_few_to_set_some_aside_is_refused(world: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only 6 are to be forgotten; leave it out, or give at least 8"):
        run(world, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_ends_when_its_bars_hold(large: Dataset) -> None:
    result = run(large)
    stopped = result.metrics["stopped"]
    assert stopped["step"] in (25, 50, 75)
    assert stopped["step"] == result.metrics["steps"] == len(result.history)
    assert stopped["forget"]["accuracy"] <= 1 / 4 + 0.2
    assert stopped["forget"]["recall_at_1"] <= 1 / 8 + 0.2
    assert all(share >= 0.8 for share in stopped["retain"].values())  # the model knew them all


def test_a_run_whose_bars_do_not_hold_takes_all_steps(large: Dataset) -> None:
    result = run(large, method=Tilt(steps=26, learning_rate=1e-8))
    assert (result.metrics["stopped"], result.metrics["steps"]) == (None, 26)


def test_a_run_that_had_stopped_takes_no_step_when_resumed(
    large: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(large)
    with monkeypatch.context() as patch:
        patch.setattr(api._Run, "metrics", raising(KeyboardInterrupt))
        with pytest.raises(ru.unlearning.Interrupted):
            run(large, output=tmp_path)
    resumed = run(large, output=tmp_path, resume=True)
    assert resumed.history == whole.history
    assert unmeasured(resumed.metrics) == unmeasured(whole.metrics)


@pytest.mark.parametrize("tower", ["visual", "text"])
def test_what_is_asked_is_the_model_as_it_is(tower: str, large: Dataset) -> None:
    model = learned(large)
    problem = Problem(model, large, large.taxonomy.select(["food-fruit"]))
    moved = list(model.get_submodule(tower).parameters())
    aside = set_aside(problem, seed=0)
    bars = StopAtBars(problem, moved, aside, 0.1)
    assert bars._measure()["retain"] == dict.fromkeys(ASKED, 1.0)
    with torch.no_grad():
        for weight in moved:
            weight.neg_()
    gone = problem.gone[aside]
    found = zero_shot(
        model, large.seen.subset(aside), {"forget": gone, "retain": ~gone}, level=problem.selection.level
    )
    assert bars._measure() == {
        kind: {name: found[kind][name] for name in ASKED} for kind in ("forget", "retain")
    }
    assert found["retain"]["recall_at_1"] < 1
