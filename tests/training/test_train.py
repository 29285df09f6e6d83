from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from riemann_unlearn import models
from riemann_unlearn.data import Dataset
from riemann_unlearn.data.batch import make_batch
from riemann_unlearn.training import TrainConfig, train
from riemann_unlearn.training.train import training_loss
from tests.conftest import make_model, model_config


def config(world_path: Path, **changes: object) -> TrainConfig:
    base = TrainConfig(data=str(world_path), epochs=4, batch_size=8, warmup_epochs=1, evaluate_every=2)
    return replace(base, **changes)  # type: ignore[arg-type]


def history(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize("architecture", ["MERU", "CLIP"])
def test_training_learns_and_repeats(architecture: str, world_path: Path, tmp_path: Path) -> None:
    settings = config(world_path, epochs=8, learning_rate=3e-3)
    model = train(model_config(architecture), settings, tmp_path / "a", progress=False)
    records = history(tmp_path / "a")
    assert [record["epoch"] for record in records] == list(range(1, 9))
    assert records[-1]["contrastive_name_loss"] < records[0]["contrastive_name_loss"]
    assert set(records[-1]["seen"]) == set(records[-1]["heldout"])  # type: ignore[call-overload]
    assert ("curvature" in records[0]) == (architecture == "MERU")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "config.yaml",
        "history.jsonl",
        "model.safetensors",
    }
    again = train(model_config(architecture), settings, tmp_path / "b", progress=False)
    assert history(tmp_path / "b") == records
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    saved = models.load(tmp_path / "a")
    assert saved.config["architecture"] == architecture


def test_a_resumed_training_ends_as_an_uninterrupted_one(
    world_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(world_path)
    whole = train(model_config("MERU"), settings, tmp_path / "whole", progress=False)
    module = importlib.import_module("riemann_unlearn.training.train")
    real, calls = module._run_epoch, []

    def interrupted(*arguments: object) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_run_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(model_config("MERU"), settings, tmp_path / "parts", progress=False)
    assert (tmp_path / "parts" / "checkpoint.pt").is_file()
    monkeypatch.setattr(module, "_run_epoch", real)
    resumed = train(model_config("MERU"), settings, tmp_path / "parts", resume=True, progress=False)
    assert history(tmp_path / "parts") == history(tmp_path / "whole")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_folder_that_holds_something_else_is_refused(world_path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        train(model_config("MERU"), config(world_path), tmp_path, progress=False)
    (tmp_path / "config.yaml").write_text("another: run")
    with pytest.raises(ValueError, match="another configuration"):
        train(model_config("MERU"), config(world_path), tmp_path, resume=True, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be positive, got 0"),
        ({"weight_decay": -1}, "weight_decay must not be negative, got -1"),
        ({"precision": "float8"}, "precision must be one of"),
    ],
)
def test_settings_are_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**change)  # type: ignore[arg-type]


def test_a_loss_that_is_not_finite_ends_the_run(world_path: Path, tmp_path: Path) -> None:
    settings = config(world_path, learning_rate=1e25, warmup_epochs=0)
    with pytest.raises(RuntimeError, match="smaller learning_rate"):
        train(model_config("CLIP"), settings, tmp_path / "a", progress=False)


def test_every_level_and_every_cone_has_its_term(world: Dataset) -> None:
    model = make_model("MERU")
    batch = make_batch(world.seen, torch.arange(8), (16, 16), torch.Generator().manual_seed(0))
    terms = training_loss(model, batch, TrainConfig())
    levels = ("name", "subcategory", "category")
    assert set(terms) == {
        f"{kind}_{level}_loss" for kind in ("contrastive", "entailment") for level in levels
    }
    sum(terms.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    half = training_loss(model, batch, TrainConfig(precision="bfloat16", entailment_weight=0.0))
    assert half["entailment_name_loss"].item() == 0.0
    assert half["contrastive_name_loss"].item() == pytest.approx(
        terms["contrastive_name_loss"].item(), rel=0.05
    )
