from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import riemann_unlearn as ru
from riemann_unlearn.data import Dataset
from riemann_unlearn.evaluation.features import encode_images
from riemann_unlearn.models import DualEncoder, state_of
from riemann_unlearn.unlearning import Problem, UnlearningResult, kept
from riemann_unlearn.unlearning.kept import Fronts, keep
from riemann_unlearn.unlearning.methods import Tilt
from riemann_unlearn.unlearning.problem import ForgetAndRetain
from riemann_unlearn.unlearning.split import SplitTower
from tests.conftest import make_model
from tests.unlearning.test_api import StopAfter

METHOD = Tilt(steps=4, frozen=0.6)


@pytest.fixture
def problem(world: Dataset) -> Problem:
    model = make_model("MERU")
    images = model.preprocess(world.seen.images[torch.arange(7)])
    split = SplitTower(model.visual, METHOD.parameters(model), images)
    return Problem(model, world, world.taxonomy.select(["food-fruit"]), split=split)


def run(world: Dataset, model: DualEncoder | None = None, **options: Any) -> UnlearningResult:
    options = {
        "method": METHOD,
        "views": 4,
        "forget_batch": 3,
        "retain_batch": 5,
        "progress": False,
    } | options
    return ru.unlearn(make_model("MERU") if model is None else model, world, forget="food-fruit", **options)


def test_features_go_on_from_the_cut(problem: Problem) -> None:
    fronts = Fronts(problem)
    with torch.no_grad():
        problem.model.visual.proj.mul_(2)
    seen, heldout = fronts.features()
    torch.testing.assert_close(seen, encode_images(problem.model, problem.dataset.seen.images))
    assert heldout is not None
    assert problem.dataset.heldout is not None
    torch.testing.assert_close(heldout, encode_images(problem.model, problem.dataset.heldout.images))
    without = Fronts(replace(problem, dataset=replace(problem.dataset, heldout=None)))
    assert without.features()[1] is None


class TestWhatIsKept:
    def test_all_forgotten_and_as_many_others_near_as_any(
        self, problem: Problem, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(kept, "RETAINED", 4)
        fronts = Fronts(problem)
        features = fronts.features()[0]
        chosen = self.keep(problem, known=(fronts.seen, features))
        gone = problem.gone[chosen.rows]
        assert gone.tolist() == [True] * 6 + [False] * 4
        assert set(chosen.rows[gone].tolist()) == set(problem.gone.nonzero()[:, 0].tolist())
        assert len(set(chosen.rows.tolist())) == 10
        # The nearest two come first: no retained image is nearer to the mean of a forgotten concept.
        concept = problem.dataset.seen.concept
        means = torch.stack([features[concept == c].mean(0) for c in concept[problem.gone].unique()])
        nearness = problem.space.pairwise(features, means).amax(1)
        assert nearness[chosen.rows[6:8]].min() >= nearness[~problem.gone].topk(2).values.min()

    def keep(self, problem: Problem, **options: Any) -> Any:
        assert problem.split is not None
        return keep(problem, problem.split.width, **({"views": 3, "seed": 0} | options))

    def test_an_images_first_view_is_the_image_and_the_others_are_not(self, problem: Problem) -> None:
        chosen = self.keep(problem)
        plain = Fronts(problem).seen[chosen.rows]
        torch.testing.assert_close(chosen.fronts[:, 0], plain)
        assert not torch.allclose(chosen.fronts[:, 1], plain)
        assert not torch.allclose(chosen.fronts[:, 1], chosen.fronts[:, 2])

    def test_the_seed_decides(self, problem: Problem) -> None:
        one, same, other = (self.keep(problem, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(one.fronts, same.fronts)
        assert torch.equal(one.rows, same.rows)
        assert not torch.equal(one.fronts, other.fronts)

    def test_no_more_than_there_is_room_for(self, problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
        assert problem.split is not None
        one = 4 * 3 * problem.split.width
        monkeypatch.setattr(kept, "MOST_BYTES", 5 * one)
        chosen = self.keep(problem)
        assert problem.gone[chosen.rows].tolist() == [True, True, False, False, False]
        monkeypatch.setattr(kept, "MOST_BYTES", one)
        assert self.keep(problem) is None
        assert not Fronts.fit(problem)

    def test_batches_are_of_it(self, problem: Problem) -> None:
        chosen = self.keep(problem)
        batches = ForgetAndRetain(problem, 2, 3, seed=0, kept=chosen)
        views = set()
        for number in range(10):
            step = batches.draw(number)
            assert problem.gone[step.batch.indices].tolist() == [True, True, False, False, False]
            assert step.caption_ids[0].tolist() == problem.dataset.seen.concept[step.batch.indices].tolist()
            for row, front in zip(step.batch.indices.tolist(), step.front, strict=True):
                same = (chosen.fronts[chosen.rows.tolist().index(row)] == front).all(1)
                views.update(same.nonzero()[:, 0].tolist())
                assert same.any()
        assert views == {0, 1, 2}


class TestARun:
    def test_its_figures_are_those_of_the_model(self, world: Dataset) -> None:
        before = ru.evaluate(make_model("MERU"), world, forget="food-fruit")
        result = run(world)
        after = ru.evaluate(result.model, world, forget="food-fruit")
        for when, report in (("before", before), ("after", after)):
            assert result.metrics[when]["retain"] == report["retain"]
            assert result.metrics[when]["heldout"] == report["heldout"]
            assert result.metrics["audit"][when] == report["audit"]
        assert result.metrics["kept"][:2] == [16, 4]

    def test_only_what_moves_has_moved_and_the_model_is_whole(self, world: Dataset) -> None:
        model, start = make_model("MERU"), make_model("MERU")
        result = run(world, model)
        assert result.model is model
        assert type(model.visual) is type(start.visual)
        names = {id(p): name for name, p in model.named_parameters()}
        moved = {names[id(p)] for p in METHOD.parameters(model)}
        now = state_of(model)
        assert moved
        for name, value in state_of(start).items():
            assert torch.equal(now[name], value) == (name not in moved), name

    def test_without_views_every_step_draws_its_own(self, world: Dataset) -> None:
        results = [run(world, views=views) for views in (0, 1, 4)]
        assert [result.metrics["kept"] is None for result in results] == [True, False, False]
        assert len({result.history[-1]["loss"] for result in results}) == 3

    @pytest.mark.parametrize("train", ["last-1", "lora:2"])
    def test_what_is_trained_may_be_less_than_what_the_method_moves(self, train: str, world: Dataset) -> None:
        result = run(world, train=train)
        after = ru.evaluate(result.model, world, forget="food-fruit")
        assert result.metrics["kept"] is not None
        assert result.metrics["audit"]["after"] == after["audit"]
        assert any(record["loss"] != result.history[0]["loss"] for record in result.history)

    def test_an_interrupted_run_ends_where_it_would_have(self, world: Dataset, tmp_path: Path) -> None:
        whole = run(world)
        with pytest.raises(ru.unlearning.Interrupted):
            run(world, output=tmp_path, callbacks=[StopAfter(2)])
        resumed = run(world, output=tmp_path, resume=True)
        assert resumed.history == whole.history
        for name, value in state_of(whole.model).items():
            assert torch.equal(state_of(resumed.model)[name], value)

    def test_where_there_is_no_room_the_tower_runs_each_time(
        self, world: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(kept, "MOST_BYTES", 100)
        result = run(world)
        assert result.metrics["kept"] is None
        after = ru.evaluate(result.model, world, forget="food-fruit")
        assert result.metrics["after"]["retain"] == after["retain"]

    def test_a_tower_that_cannot_be_cut_is_used_as_a_whole_and_it_is_said(self, world: Dataset) -> None:
        model = make_model("MERU")
        model.visual = Deciding(model.visual)
        with pytest.warns(UserWarning, match="the image tower runs as a whole at every step: it cannot be"):
            result = run(world, model)
        assert result.metrics["kept"] is None
        assert len(result.history) == 4


class Deciding(nn.Module):
    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, images: Tensor) -> Tensor:
        if images.isnan().any():
            raise ValueError("NaN")
        features: Tensor = self.tower(images)
        return features
