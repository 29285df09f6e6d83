from __future__ import annotations

import errno
import json
import os
import warnings
from collections.abc import Callable as Function
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import riemann_unlearn as ru
from riemann_unlearn import models, runs
from riemann_unlearn.data import Dataset
from riemann_unlearn.data.batch import make_batch
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.training import Callback, Driver, TrainConfig, training_loss
from riemann_unlearn.unlearning import (
    GradientMethod,
    Interrupted,
    Problem,
    RunConfig,
    Step,
    UnlearningResult,
    api,
    setting,
)
from riemann_unlearn.unlearning.methods import HAC, METHODS, NullSpace, Tilt
from tests.conftest import make_model

SETTINGS = {"steps": 6, "learning_rate": 1e-3}


def forget(model: nn.Module, data: Dataset, **arguments: Any) -> UnlearningResult:
    arguments = {"forget": "food-fruit", "settings": SETTINGS, "forget_batch": 4} | arguments
    method = "hac" if isinstance(model, models.MERU) else "ac"
    return ru.unlearn(model, data, **({"method": method, "progress": False} | arguments))


class StopAfter(Callback):
    """Ctrl-C while a step is being taken, at a moment of one's choice."""

    def __init__(
        self, steps: int, moment: str = "stepped", error: type[BaseException] = KeyboardInterrupt
    ) -> None:
        self.steps, self.moment, self.error = steps, moment, error

    def stop(self, driver: Driver) -> None:
        if driver.step == self.steps:
            raise self.error

    def updating(self, driver: Driver) -> None:
        if self.moment == "updating":
            self.stop(driver)

    def stepped(self, driver: Driver, record: dict[str, Any]) -> None:
        if self.moment == "stepped":
            self.stop(driver)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def written(model: DualEncoder) -> set[str]:
    """The files of a finished run; open_clip has no MERU."""
    for_open_clip = {"open_clip_config.json"} if model.name == "CLIP" else set()
    return {"config.yaml", "history.jsonl", "metrics.json", "model.safetensors"} | for_open_clip


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = models.state_of(a), models.state_of(b)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def unmeasured(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name != "seconds"}


def test_a_run_writes_what_it_promises(model: DualEncoder, world: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = forget(model, world, output=folder, seed=3)
    assert result.folder == folder
    assert files(folder) == written(model)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == result.metrics
    assert metrics["forget"] == ["food-fruit"]
    assert (metrics["seed"], metrics["steps"], metrics["model"]) == (3, 6, model.name)
    for when in ("before", "after"):
        for part in (metrics[when], metrics[when]["heldout"]):
            for group in ("forget", "retain"):
                assert {"accuracy", "recall_at_1", "parent_accuracy"} <= set(part[group])
    assert metrics["chance"]["accuracy"] == 1 / 4
    records = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert records == result.history
    assert ("image_features/radius_max" in records[0]) == model.space.has_cones
    assert [record["step"] for record in records] == list(range(1, 7))
    for record in records:
        terms = [value for name, value in record.items() if name.endswith("_loss")]
        assert sum(terms) == pytest.approx(record["loss"], rel=1e-5)
    config = RunConfig.read_yaml(folder / "config.yaml")
    assert (config.seed, config.data, config.settings["steps"]) == (3, world.name, 6)
    assert same(result.model, models.load(folder))


def test_a_run_changes_the_towers_and_not_the_space(meru: DualEncoder, world: Dataset) -> None:
    before = {name: p.detach().clone() for name, p in meru.named_parameters()}
    result = forget(meru, world)
    assert result.folder is None
    assert not result.model.training
    for name, parameter in result.model.named_parameters():
        assert torch.equal(parameter, before[name]) == (parameter.ndim == 0), name


def test_the_same_seed_gives_the_same_model_and_another_does_not(world: Dataset) -> None:
    results = [forget(make_model("MERU"), world, seed=seed) for seed in (0, 0, 1)]
    assert same(results[0].model, results[1].model)
    assert results[0].history == results[1].history
    assert results[0].history != results[2].history


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("tilt", {"steps": 150, "learning_rate": 1e-3, "frozen": 0.12, "stay": 5.0}),
        ("hac", {"steps": 60, "learning_rate": 1e-3, "beta": 1.0, "gamma": 0.0}),
    ],
)
def test_forgetting_forgets(method: str, settings: dict[str, float], world: Dataset) -> None:
    """A model that has learned the world no longer finds the fruit, and still finds the rest."""
    model = learned(world)
    result = ru.unlearn(model, world, forget="food-fruit", settings=settings, method=method, progress=False)
    before, after = result.metrics["before"], result.metrics["after"]
    assert before["forget"]["accuracy"] == 1.0
    assert after["forget"]["accuracy"] == 0.0
    assert after["forget"]["recall_at_1"] == 0.0
    assert after["retain"]["accuracy"] >= before["retain"]["accuracy"] - 0.2


def learned(world: Dataset) -> DualEncoder:
    model = make_model("MERU")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(120):
        batch = make_batch(world.seen, torch.arange(16), (16, 16), generator)
        terms = training_loss(model, batch, TrainConfig(), ("name", "kind", "realm"))
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        model.clamp_()
    return model


class TestGoingOn:
    @pytest.mark.parametrize("moment", ["stepped", "updating"])
    def test_an_interrupted_run_resumes_to_the_same_end(
        self, moment: str, world: Dataset, tmp_path: Path
    ) -> None:
        """Also when it is cut short while the optimizer moves: then it goes on from the last checkpoint."""
        whole = forget(make_model("MERU"), world, output=tmp_path / "whole")
        parts = tmp_path / "parts"
        with pytest.raises(Interrupted, match=r"interrupted after . of 6 steps; .*parts can be resumed"):
            forget(make_model("MERU"), world, output=parts, callbacks=[StopAfter(3, moment)])
        assert files(parts) <= {"config.yaml", "history.jsonl", "checkpoint.pt"}
        resumed = forget(make_model("MERU"), world, output=parts, resume=True)
        assert resumed.history == whole.history
        assert same(resumed.model, whole.model)
        assert unmeasured(resumed.metrics) == unmeasured(whole.metrics)
        with pytest.raises(ValueError, match="is finished; there is nothing to resume"):
            forget(make_model("MERU"), world, output=parts, resume=True)

    def test_a_step_that_is_cut_short_gives_its_draws_back(
        self, world: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Interrupted in the forward pass, when the batch was drawn already."""
        whole = forget(make_model("MERU"), world)
        real, taken = Step.calibrate, []

        def interrupted(self: Step, *arguments: Any) -> Any:
            taken.append(1)
            if len(taken) == 4:
                raise KeyboardInterrupt
            return real(self, *arguments)

        monkeypatch.setattr(Step, "calibrate", interrupted)
        with pytest.raises(Interrupted, match="after 3 of 6 steps"):
            forget(make_model("MERU"), world, output=tmp_path)
        resumed = forget(make_model("MERU"), world, output=tmp_path, resume=True)
        assert resumed.history == whole.history
        assert same(resumed.model, whole.model)

    def test_a_run_interrupted_while_it_measures_takes_no_step_again(
        self, world: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = forget(make_model("MERU"), world)
        with monkeypatch.context() as patch:
            patch.setattr(api._Run, "metrics", raising(KeyboardInterrupt))
            with pytest.raises(Interrupted, match="after 6 of 6 steps"):
                forget(make_model("MERU"), world, output=tmp_path)
        monkeypatch.setattr(Step, "calibrate", raising(AssertionError))
        resumed = forget(make_model("MERU"), world, output=tmp_path, resume=True)
        assert same(resumed.model, whole.model)
        assert unmeasured(resumed.metrics) == unmeasured(whole.metrics)

    def test_only_the_same_run_is_gone_on_with(
        self, meru: DualEncoder, world: Dataset, tmp_path: Path
    ) -> None:
        with pytest.raises(Interrupted):
            forget(meru, world, output=tmp_path, callbacks=[StopAfter(2)])
        for changed, message in (
            ({"seed": 9}, "another configuration: seed is 0 there, and 9 was asked for"),
            ({"settings": SETTINGS | {"steps": 7}}, "another configuration: settings is"),
            ({"method": "tilt"}, "another configuration: method is 'hac' there"),
            ({"output": None}, "resume=True needs output="),
        ):
            with pytest.raises(ValueError, match=message):
                forget(make_model("MERU"), world, **({"output": tmp_path, "resume": True} | changed))
        with pytest.raises(ValueError, match=r"cannot read .*config\.yaml"):
            forget(meru, world, output=tmp_path / "none", resume=True)

    def test_how_it_is_computed_may_change_on_the_way(
        self, meru: DualEncoder, world: Dataset, tmp_path: Path
    ) -> None:
        asked: dict[str, Any] = {"output": tmp_path, "precision": "float16", "saliency": 0.5}
        with pytest.raises(Interrupted):
            forget(meru, world, micro_batch=3, callbacks=[StopAfter(2)], **asked)
        changed = {"resume": True, "grad_checkpointing": True}
        with pytest.raises(ValueError, match="precision is 'float16' there, and 'bfloat16' was asked for"):
            forget(make_model("MERU"), world, **(asked | changed | {"precision": "bfloat16"}))
        found = forget(make_model("MERU"), world, **(asked | changed))
        scales = [record["gradient_scale"] for record in found.history]
        # Halved where a gradient overflowed; without a checkpoint's it would be where it began.
        assert len(scales) == 6
        assert 2.0**16 >= scales[0] >= scales[1] >= scales[2]

    def test_a_run_of_before_an_option_was_there_has_its_default(
        self, meru: DualEncoder, world: Dataset, tmp_path: Path
    ) -> None:
        with pytest.raises(Interrupted):
            forget(meru, world, output=tmp_path, callbacks=[StopAfter(2)])
        path = tmp_path / "config.yaml"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if not line.startswith("precision")))
        assert len(forget(make_model("MERU"), world, output=tmp_path, resume=True).history) == 6

    def test_an_interruption_without_a_folder_keeps_nothing(self, world: Dataset, meru: DualEncoder) -> None:
        with pytest.raises(Interrupted, match="without an output folder nothing was kept"):
            forget(meru, world, callbacks=[StopAfter(1)])

    def test_a_method_without_a_name_here_is_to_be_given_again(self, world: Dataset, tmp_path: Path) -> None:
        mine = Mine(steps=4)
        with pytest.raises(Interrupted):
            forget(
                make_model("MERU"),
                world,
                method=mine,
                settings=None,
                output=tmp_path,
                callbacks=[StopAfter(2)],
            )
        saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
        assert (saved["method"], saved["settings"]) == (
            "mine",
            {"learning_rate": 1e-4, "steps": 4, "note": "x"},
        )
        with pytest.raises(ValueError, match="of method 'mine', which is not registered; register it"):
            forget(
                make_model("MERU"),
                world,
                method="mine",
                settings=saved["settings"],
                output=tmp_path,
                resume=True,
            )
        result = forget(make_model("MERU"), world, method=mine, settings=None, output=tmp_path, resume=True)
        assert result.metrics["settings"] == saved["settings"]
        assert len(result.history) == 4

    @pytest.mark.parametrize(
        "damage", [lambda b: b[: len(b) // 2], lambda b: b[:-5000] + bytes(5000), lambda b: b""]
    )
    def test_a_damaged_checkpoint_is_named_and_the_run_can_begin_again(
        self, damage: Function[[bytes], bytes], world: Dataset, tmp_path: Path
    ) -> None:
        whole = forget(make_model("MERU"), world)
        with pytest.raises(Interrupted):
            forget(make_model("MERU"), world, output=tmp_path, callbacks=[StopAfter(3)])
        checkpoint = tmp_path / "checkpoint.pt"
        checkpoint.write_bytes(damage(checkpoint.read_bytes()))
        with pytest.raises(
            ValueError, match=r"checkpoint\.pt cannot be gone on from .* Delete checkpoint\.pt and resume"
        ):
            forget(make_model("MERU"), world, output=tmp_path, resume=True)
        checkpoint.unlink()
        assert same(forget(make_model("MERU"), world, output=tmp_path, resume=True).model, whole.model)

    def test_the_checkpoint_of_another_model_is_refused(self, world: Dataset, tmp_path: Path) -> None:
        for name in ("MERU", "CLIP"):
            with pytest.raises(Interrupted):
                forget(
                    make_model(name), world, method="tilt", output=tmp_path / name, callbacks=[StopAfter(3)]
                )
        os.replace(tmp_path / "CLIP" / "checkpoint.pt", tmp_path / "MERU" / "checkpoint.pt")
        with pytest.raises(ValueError, match="it does not fit this run"):
            forget(make_model("MERU"), world, method="tilt", output=tmp_path / "MERU", resume=True)

    def test_weights_of_another_shape_are_not_stretched_to_fit(self) -> None:
        weights = api._Weights(make_model("MERU"))
        name, state = "visual.ln_post.weight", weights.state_dict()
        with pytest.raises(ValueError, match=rf"its {name} has shape \(1,\), not \(32,\)"):
            weights.load_state_dict({**state, name: state[name][:1]})

    def test_a_full_disk_is_said_with_what_is_safe(
        self, world: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = forget(make_model("MERU"), world)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", raising(OSError(errno.ENOSPC, "No space left on device")))
            with pytest.raises(runs.WriteError, match=r"cannot write .*: No space left.*no checkpoint"):
                forget(make_model("MERU"), world, output=tmp_path)
        assert files(tmp_path) == {"config.yaml"}
        with monkeypatch.context() as patch:
            patch.setattr(api, "save_model", raising(OSError(errno.ENOSPC, "No space left on device", "m")))
            with pytest.raises(runs.WriteError, match=r"cannot write m: .*; its last checkpoint is whole"):
                forget(make_model("MERU"), world, output=tmp_path, resume=True)
        assert same(forget(make_model("MERU"), world, output=tmp_path, resume=True).model, whole.model)


@dataclass(frozen=True)
class Mine(GradientMethod):
    """A third party's, of which the library has never heard."""

    name = "mine"
    learning_rate: float = setting(1e-4, 1e-8, 1.0, "of Adam")
    steps: int = setting(3, 1, 100, "steps")
    note: str = "x"

    def objective(self, problem: Problem) -> Function[[Step], dict[str, torch.Tensor]]:
        return lambda step: {"mine_loss": step.image_features.square().mean()}


def raising(error: BaseException | type[BaseException]) -> Function[..., Any]:
    def failing(*_: Any, **__: Any) -> Any:
        raise error

    return failing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"forget": "unicorn"}, "no concept 'unicorn'"),
        ({"forget": []}, "forget must be a list of one or more texts"),
        ({"forget": ["Food & Drink", "Animals & Nature"]}, "nothing would be left"),
        ({"method": "amnesia"}, "no method 'amnesia'"),
        ({"settings": {"strength": 1}}, "hac has no setting 'strength'"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"seed": 99999999999999999999999}, "seed must be a whole number"),
        ({"forget_batch": 0}, "forget_batch must be a whole number, at least 1"),
        ({"saliency": 0}, "saliency must be a number"),
        ({"device": "toaster"}, "cannot compute on device 'toaster'"),
        ({"data": "toi"}, "no dataset 'toi'"),
        ({"model": "none.safetensors"}, "no model 'none.safetensors'"),
    ],
)
def test_a_bad_request_is_refused_before_anything_is_written(
    arguments: dict[str, Any], message: str, meru: DualEncoder, world: Dataset, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        forget(**({"model": meru, "data": world, "output": folder} | {"method": "hac"} | arguments))
    assert not folder.exists()
    # The first start has not spoiled the folder for the second.
    forget(meru, world, output=folder, seed=3, settings={"steps": 1})
    assert (folder / "metrics.json").is_file()


def test_an_unknown_option_is_refused_with_a_suggestion(meru: DualEncoder, world: Dataset) -> None:
    with pytest.raises(TypeError, match=r"unlearn\(\) has no option 'sead'; did you mean 'seed'\?"):
        forget(meru, world, sead=3)


@pytest.mark.parametrize("names", [("red apple",), ("owl", "red apple")])
def test_what_no_seen_image_shows_is_refused(
    names: tuple[str, ...], meru: DualEncoder, world: Dataset, tmp_path: Path
) -> None:
    """Held-out images show it, so the taxonomy has it."""
    apple = world.taxonomy.select(["red apple"]).concepts
    hidden = replace(world, seen=world.seen.subset(~apple[world.seen.concept]))
    for method in ("hac", "nullspace"):
        with pytest.raises(
            ValueError, match="no seen image shows 'red apple', so there is nothing to forget"
        ):
            forget(meru, hidden, forget=names, method=method, settings=None, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    forget(meru, hidden, forget="food-fruit", settings={"steps": 1})  # others of its kind are seen


def test_when_nothing_seen_would_be_retained_it_is_refused(meru: DualEncoder, world: Dataset) -> None:
    fruit = world.taxonomy.select(["food-fruit"]).concepts
    only = replace(world, seen=world.seen.subset(fruit[world.seen.concept]))
    with pytest.raises(ValueError, match="every seen image shows something that is to be forgotten"):
        forget(meru, only)


class TestDirectMethods:
    def test_they_run_like_the_others(self, model: DualEncoder, world: Dataset, tmp_path: Path) -> None:
        result = forget(model, world, method="nullspace", settings={"rank": 3}, output=tmp_path / "run")
        assert (result.metrics["steps"], result.history) == (0, [])
        assert result.metrics["settings"] == {"rank": 3, "strength": 1.0}
        assert files(tmp_path / "run") == written(model)
        assert (tmp_path / "run" / "history.jsonl").read_text() == ""

    @pytest.mark.parametrize(
        ("method", "settings"), [("nullspace", {}), ("retrain", {"epochs": 1, "batch_size": 4})]
    )
    def test_their_reports_are_written(
        self, method: str, settings: dict[str, float], meru: DualEncoder, world: Dataset, tmp_path: Path
    ) -> None:
        from riemann_unlearn.report import write_report

        forget(meru, world, method=method, settings=settings, output=tmp_path / "run")
        assert write_report(tmp_path / "run").is_file()

    def test_one_that_is_gone_on_with_counts_from_its_start(
        self, world: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And neither measures before nor changes the model twice."""
        clock = iter(range(0, 10_000_000, 100))
        monkeypatch.setattr(runs.time, "perf_counter", lambda: next(clock))
        whole = forget(make_model("MERU"), world, method="nullspace", settings={})
        real = NullSpace.apply
        monkeypatch.setattr(NullSpace, "apply", raising(KeyboardInterrupt))
        with pytest.raises(Interrupted, match=r"interrupted; .*can be resumed"):
            forget(make_model("MERU"), world, method="nullspace", settings={}, output=tmp_path)
        spent = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["run"]["clock"]["seconds"]
        assert spent > 0
        monkeypatch.setattr(NullSpace, "apply", real)
        with monkeypatch.context() as patch:
            patch.setattr(api._Run, "metrics", raising(KeyboardInterrupt))
            with pytest.raises(Interrupted):
                forget(
                    make_model("MERU"), world, method="nullspace", settings={}, output=tmp_path, resume=True
                )
        monkeypatch.setattr(NullSpace, "apply", raising(AssertionError))
        resumed = forget(
            make_model("MERU"), world, method="nullspace", settings={}, output=tmp_path, resume=True
        )
        assert same(resumed.model, whole.model)
        assert unmeasured(resumed.metrics) == unmeasured(whole.metrics)
        assert resumed.metrics["seconds"] > spent


def test_a_method_must_fit_the_model(world: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'hac' cannot be used: it needs a model whose space has"):
        forget(make_model("CLIP"), world, method="hac", output=tmp_path / "run")
    assert not (tmp_path / "run").exists()

    class Neither(ru.unlearning.Method):
        name = "neither"

    with pytest.raises(TypeError, match="'neither' is neither a GradientMethod nor a DirectMethod"):
        forget(make_model("CLIP"), world, method=Neither(), settings=None)


def test_a_third_partys_method_is_run_as_it_is_given(meru: DualEncoder, world: Dataset) -> None:
    assert "mine" not in METHODS
    results = [forget(meru, world, method=one, settings=None) for one in (Mine, Mine(steps=2))]
    assert [len(result.history) for result in results] == [3, 2]
    assert results[1].metrics["method"] == "mine"
    assert results[1].metrics["settings"]["steps"] == 2
    assert Tilt.name in METHODS


def test_a_third_partys_callback_hears_of_every_step_and_adds_to_the_history(
    meru: DualEncoder, world: Dataset
) -> None:
    heard: list[str] = []

    class Listener(Callback):
        def started(self, driver: Driver) -> None:
            heard.append("started")

        def stepped(self, driver: Driver, record: dict[str, Any]) -> None:
            assert isinstance(driver.batch, Step)
            record["forgotten"] = int(driver.batch.forget[0].sum())

        def closed(self, driver: Driver) -> None:
            heard.append("closed")

    result = forget(meru, world, callbacks=[Listener()])
    assert [record["forgotten"] for record in result.history] == [4] * 6
    assert heard == ["started", "closed"]


def test_a_folder_that_cannot_be_used_is_refused(meru: DualEncoder, world: Dataset, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep me")
    with pytest.raises(ValueError, match="is not empty; resume the run in it, or choose another"):
        forget(meru, world, output=tmp_path)
    with pytest.raises(ValueError, match="cannot write to"):
        forget(meru, world, output=tmp_path / "mine")
    with pytest.raises(ValueError, match="cannot write to"):
        forget(meru, world, output=tmp_path / "mine" / "run")
    assert (tmp_path / "mine").read_text() == "keep me"


def test_runs_without_a_folder_of_their_own_get_one_each(world: Dataset, tmp_path: Path) -> None:
    fresh = runs.Unused(tmp_path / "runs" / "hac")
    folders = [
        forget(make_model("MERU"), world, output=fresh, settings={"steps": 1}).folder for _ in range(2)
    ]
    assert folders == [tmp_path / "runs" / "hac", tmp_path / "runs" / "hac-2"]


def test_paths_are_found_again_from_another_folder(
    world_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("MERU")
    models.save_model(model, tmp_path / "m.safetensors")
    monkeypatch.chdir(world_path.parent)
    relative = os.path.relpath(tmp_path / "m.safetensors")
    result = ru.unlearn(relative, world_path.name, forget="owl", method=HAC(steps=1), progress=False)
    assert Path(result.metrics["data"]) == world_path.resolve()
    assert Path(result.metrics["model"]) == (tmp_path / "m.safetensors").resolve()
    monkeypatch.chdir("/")
    ru.evaluate(result.metrics["model"], result.metrics["data"], forget="owl")


def test_a_loss_that_is_not_finite_ends_the_run(meru: DualEncoder, world: Dataset) -> None:
    with torch.no_grad():
        meru.log_curvature.fill_(float("inf"))  # type: ignore[union-attr, operator]
    with pytest.raises((RuntimeError, ValueError), match=r"NaN|not finite|smaller learning_rate"):
        forget(meru, world)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("nullspace", "retrain")])
def test_torchs_default_dtype_is_of_no_matter(name: str, world: Dataset) -> None:
    results = []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            model = make_model("MERU")
            if dtype == torch.float64:  # of the same weights: their random draws depend on the dtype
                model.load_state_dict(results[0][1])
            start = {key: value.clone() for key, value in model.state_dict().items()}
            results.append((forget(model, world, method=name, settings={"steps": 2}), start))
        finally:
            torch.set_default_dtype(torch.float32)
    (one, _), (other, _) = results
    assert all(p.dtype == torch.float32 for p in other.model.parameters())
    assert [r["loss"] for r in other.history] == pytest.approx([r["loss"] for r in one.history], rel=1e-3)


class TestWrappedModels:
    def test_a_compiled_tower_is_unlearned_and_saved_under_its_own_names(
        self, world: Dataset, tmp_path: Path
    ) -> None:
        plain = forget(make_model("MERU"), world, method="tilt", output=tmp_path / "plain")
        model = make_model("MERU")
        model.visual = torch.compile(model.visual, backend="eager")  # type: ignore[assignment]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = forget(model, world, method="tilt", output=tmp_path / "run")
        assert result.model is model
        loaded = models.load(tmp_path / "run")
        assert same(loaded, model)
        for name, value in models.state_of(plain.model).items():
            torch.testing.assert_close(loaded.state_dict()[name], value, rtol=1e-3, atol=1e-4)

    def test_a_wrapped_model_is_unlearned_and_can_be_resumed_unwrapped(
        self, world: Dataset, tmp_path: Path
    ) -> None:
        inner = make_model("MERU")
        with pytest.raises(Interrupted):
            forget(nn.DataParallel(inner), world, method="hac", output=tmp_path, callbacks=[StopAfter(3)])
        whole = forget(make_model("MERU"), world)
        resumed = forget(make_model("MERU"), world, method="hac", output=tmp_path, resume=True)
        assert same(resumed.model, whole.model)
