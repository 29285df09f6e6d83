from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import riemann_unlearn as ru
from riemann_unlearn import models
from riemann_unlearn.data import Dataset
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.unlearning import Interrupted, RunConfig, UnlearningResult, loop, read_config
from tests.conftest import make_model

SETTINGS = {"steps": 6, "learning_rate": 1e-3}


def forget(model: DualEncoder, data: Dataset, **arguments: Any) -> UnlearningResult:
    arguments = {"forget": "food-fruit", "settings": SETTINGS, "forget_batch": 4} | arguments
    method = "hac" if model.geometry == "hyperbolic" else "ac"
    return ru.unlearn(model, data, **({"method": method, "progress": False} | arguments))


def test_a_run_writes_what_it_promises(model: DualEncoder, world: Dataset, tmp_path: Path) -> None:
    result = forget(model, world, output=tmp_path / "run", seed=3)
    folder = tmp_path / "run"
    assert {p.name for p in folder.iterdir()} == {
        "config.yaml",
        "history.jsonl",
        "metrics.json",
        "model.safetensors",
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == result.metrics
    assert metrics["forget"] == ["food-fruit"]
    assert (metrics["seed"], metrics["steps"], metrics["method"]) == (3, 6, metrics["method"])
    for when in ("before", "after"):
        for part in (metrics[when], metrics[when]["heldout"]):
            for group in ("forget", "retain"):
                assert {"accuracy", "recall_at_1", "parent_accuracy"} <= set(part[group])
    records = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert records == result.history
    assert ("image_features/radius_max" in records[0]) == (model.geometry == "hyperbolic")
    assert [record["step"] for record in records] == list(range(1, 7))
    for record in records:
        terms = [value for name, value in record.items() if name.endswith("_loss")]
        assert sum(terms) == pytest.approx(record["loss"], rel=1e-5)
    assert read_config(folder / "config.yaml").seed == 3
    saved = models.load(folder)
    for name, value in result.model.state_dict().items():
        assert torch.equal(value, saved.state_dict()[name]), name


def test_a_run_changes_the_towers_and_not_the_space(meru: DualEncoder, world: Dataset) -> None:
    before = {name: p.detach().clone() for name, p in meru.named_parameters()}
    result = forget(meru, world)
    assert not result.model.training
    for name, parameter in result.model.named_parameters():
        assert torch.equal(parameter, before[name]) == (parameter.ndim == 0), name


def test_the_same_seed_gives_the_same_model_and_another_does_not(world: Dataset) -> None:
    runs = [forget(make_model("MERU"), world, seed=seed) for seed in (0, 0, 1)]
    states = [run.model.state_dict() for run in runs]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert runs[0].history == runs[1].history
    assert runs[0].history != runs[2].history


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("tilt", {"steps": 60, "learning_rate": 1e-3}),
        ("hac", {"steps": 60, "learning_rate": 1e-3, "beta": 10.0, "gamma": 0.0}),
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
    from riemann_unlearn.data.batch import make_batch
    from riemann_unlearn.training import TrainConfig
    from riemann_unlearn.training.train import training_loss

    model = make_model("MERU")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(120):
        batch = make_batch(world.seen, torch.arange(16), (16, 16), generator)
        loss = torch.stack(list(training_loss(model, batch, TrainConfig()).values())).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        model.clamp_()
    return model


def test_an_interrupted_run_resumes_to_the_same_end(
    world: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = forget(make_model("MERU"), world, output=tmp_path / "whole")
    real, taken = loop._Run._step, []

    def interrupted(self: Any, rate: float) -> dict[str, Any]:
        taken.append(1)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return real(self, rate)

    monkeypatch.setattr(loop._Run, "_step", interrupted)
    with pytest.raises(Interrupted, match="interrupted after 3 of 6 steps; "):
        forget(make_model("MERU"), world, output=tmp_path / "parts")
    left = {p.name for p in (tmp_path / "parts").iterdir()}
    assert left == {"config.yaml", "history.jsonl", "checkpoint.pt"}
    monkeypatch.setattr(loop._Run, "_step", real)
    resumed = forget(make_model("MERU"), world, output=tmp_path / "parts", resume=True)
    assert resumed.history == whole.history
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert {k: v for k, v in resumed.metrics.items() if k != "seconds"} == {
        k: v for k, v in whole.metrics.items() if k != "seconds"
    }
    with pytest.raises(ValueError, match="is finished; there is nothing to resume"):
        forget(make_model("MERU"), world, output=tmp_path / "parts", resume=True)
    with pytest.raises(ValueError, match="holds a run with another configuration"):
        forget(make_model("MERU"), world, output=tmp_path / "parts", resume=True, seed=9)


def test_an_interruption_without_a_folder_keeps_nothing(
    world: Dataset, monkeypatch: pytest.MonkeyPatch, meru: DualEncoder
) -> None:
    def interrupted(self: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop._Run, "_evaluate", interrupted)
    with pytest.raises(Interrupted, match="without an output folder nothing was kept"):
        forget(meru, world)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"forget": "unicorn"}, "no concept 'unicorn'"),
        ({"forget": []}, "nothing to forget"),
        ({"forget": ["Food & Drink", "Animals & Nature"]}, "nothing would be left"),
        ({"method": "amnesia"}, "no method 'amnesia'"),
        ({"settings": {"strength": 1}}, "hac has no setting 'strength'"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"forget_batch": 0}, "forget_batch must be a whole number of at least 1"),
    ],
)
def test_a_bad_request_is_refused_before_anything_is_written(
    arguments: dict[str, Any], message: str, meru: DualEncoder, world: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        forget(meru, world, output=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_a_method_without_steps_runs_like_the_others(
    model: DualEncoder, world: Dataset, tmp_path: Path
) -> None:
    result = forget(model, world, method="nullspace", settings={"rank": 3}, output=tmp_path / "run")
    assert (result.metrics["steps"], result.history) == (0, [])
    assert result.metrics["settings"] == {"rank": 3, "strength": 1.0}
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "config.yaml",
        "metrics.json",
        "model.safetensors",
    }


def test_a_method_must_fit_the_geometry(world: Dataset) -> None:
    with pytest.raises(ValueError, match="'hac' needs a model with a hyperbolic geometry, and CLIP is"):
        forget(make_model("CLIP"), world, method="hac")


def test_a_folder_that_cannot_be_used_is_refused(meru: DualEncoder, world: Dataset, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep me")
    with pytest.raises(ValueError, match="is not empty; resume the run in it, or choose another"):
        forget(meru, world, output=tmp_path)
    with pytest.raises(ValueError, match="cannot write to"):
        forget(meru, world, output=tmp_path / "mine")
    with pytest.raises(ValueError, match="cannot write to"):
        forget(meru, world, output=tmp_path / "mine" / "run")
    assert (tmp_path / "mine").read_text() == "keep me"


def test_a_loss_that_is_not_finite_ends_the_run(meru: DualEncoder, world: Dataset) -> None:
    with torch.no_grad():
        meru.log_curvature.fill_(float("inf"))  # type: ignore[union-attr, operator]
    with pytest.raises((RuntimeError, ValueError), match=r"NaN|smaller learning_rate"):
        forget(meru, world)


def test_a_configuration_file_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"forget": ["owl"], "settings": {"alpha": 2}, "seed": 5}))
    assert read_config(path) == RunConfig(forget=("owl",), settings={"alpha": 2}, seed=5)
    assert read_config(path, seed=6).seed == 6
    for text, message in (
        ("forget: [", "is not valid YAML"),
        ("- owl", "must hold a mapping"),
        ("colour: red", "unknown key 'colour'; known: forget, model"),
        ("seed: 3", "names nothing to forget; add 'forget: "),
        ("forget: owl", "forget must be a list of concepts"),
        ("{forget: [owl], settings: 3}", "settings must be a mapping"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_config(path)
    with pytest.raises(ValueError, match="No such file"):
        read_config(tmp_path / "none.yaml")
