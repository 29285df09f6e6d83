"""The benchmark's own arithmetic, and its whole way once, on a handful of plain images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import fashion
from riemann_unlearn.data.sources.fashion_mnist import FOLDER_VARIABLE
from riemann_unlearn.evaluation.measures.membership import Membership
from riemann_unlearn.evaluation.measures.recovery import Recovery
from riemann_unlearn.evaluation.measures.relearning import Relearning
from riemann_unlearn.models import DualEncoder, create_model
from tests.data.sources.test_fashion_mnist import write_files


def row(
    method: str, seed: int = 0, settings: dict[str, float] | None = None, **changed: float
) -> dict[str, Any]:
    """A line of the benchmark in which everything is 0.5, but for the test accuracy of the forgotten."""
    values = {"forget": 0.05, "retain": 0.5, "probe": 0.5, "relearned": 0.5, "confidence": 0.5, "class": 0.5}
    values |= changed
    return {
        "model": "MERU",
        "method": method,
        "settings": settings or {},
        "forget": ["t-shirt"],
        "seed": seed,
        "heldout": {
            "forget": {"accuracy": values["forget"], "parent_accuracy": 0.5},
            "retain": {"accuracy": values["retain"]},
        },
        "recovery": {"linear_probe": {"recall": values["probe"]}},
        "relearning": {"shots": [1, 4, 16], "accuracy": [values["relearned"]] * 3},
        "membership": {
            "confidence": {"auc": [values["confidence"], 0, 1]},
            "class_membership": {"auc": [values["class"], 0, 1]},
        },
    }


@pytest.mark.parametrize(
    ("changed", "columns"),
    [
        ({}, 0),
        ({"forget": 0.11}, 1),
        ({"forget": 0.09, "retain": 0.6, "probe": 0.1, "relearned": 0.1}, 0),
        ({"retain": 0.492, "probe": 0.518, "relearned": 0.518, "confidence": 0.482, "class": 0.518}, 0),
        ({"retain": 0.488}, 1),
        ({"probe": 0.522}, 1),
        ({"relearned": 0.522}, 3),
        ({"confidence": 0.478}, 1),
        ({"class": 0.522}, 1),
    ],
)
def test_a_missed_bar_is_marked(changed: dict[str, float], columns: int) -> None:
    found = fashion.tables([row("before"), row("oracle"), row("tilt", **changed)])
    assert found.count("✗") == columns
    assert "✗" not in "".join(line for line in found.splitlines() if "tilt" not in line)


def test_runs_are_held_to_the_oracles_of_their_own_seeds() -> None:
    rows = [row("oracle", 0, probe=0.2), row("oracle", 1, probe=0.8), row("tilt", 1, probe=0.8)]
    assert "✗" not in fashion.tables(rows)
    assert "| 50.0 (20.0–80.0) |" in fashion.tables(rows)


def test_other_settings_are_rows_of_their_own() -> None:
    found = fashion.tables([row("oracle"), row("tilt"), row("tilt", settings={"steps": 9})])
    assert "| MERU | tilt |" in found
    assert "| MERU | tilt (steps 9) |" in found


def test_the_tables_show_the_methods_asked_for_defaults_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row("hac"), row("tilt", settings={"steps": 9}), row("tilt"), row("ac"), row("oracle")]
    others = [{**row(method), "model": "CLIP"} for method in ("tilt", "oracle")]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, [*others, *rows])), "utf-8")
    fashion.main(["--output", str(file), "--table", "--methods", "hac", "tilt"])
    lines = capsys.readouterr().out.splitlines()[4:]
    shown = [tuple(line.split(" | ")[:2]) for line in lines]
    meru = ["oracle", "tilt", "tilt (steps 9)", "hac"]
    assert shown == [*(("| MERU", name) for name in meru), ("| CLIP", "oracle"), ("| CLIP", "tilt")]


@pytest.mark.parametrize("architecture", ["MERU", "CLIP"])
def test_the_model_fits_the_images(architecture: str) -> None:
    model: DualEncoder = create_model(fashion.model_config(architecture)).eval()
    images = torch.zeros(2, 3, 28, 28, dtype=torch.uint8)
    assert model.encode_image(model.preprocess(images)).shape == (2, 64)
    assert model.encode_text(model.tokenize(["t-shirt"])).shape == (1, 64)


def test_it_trains_forgets_measures_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(write_files(tmp_path, seen=180, heldout=20)))
    monkeypatch.setattr(fashion, "PER_CLASS", 16)
    monkeypatch.setattr(fashion, "RECIPE", replace(fashion.RECIPE, epochs=1))
    measures = Recovery(), Relearning(steps=(1,)), Membership(resamples=10)
    monkeypatch.setattr(fashion, "MEASURES", measures)
    train, trained_on = fashion.train, []

    def remember(*arguments: Any, data: Any, **options: Any) -> DualEncoder:
        trained_on.append(data.seen.concept.bincount(minlength=10).tolist())
        return train(*arguments, data=data, **options)

    monkeypatch.setattr(fashion, "train", remember)
    output = tmp_path / "fashion.jsonl"
    asked = ["--cache", str(tmp_path / "cache"), "--output", str(output), "--models", "MERU", "--seeds", "0"]
    asked += ["--classes", "1", "--methods", "tilt", "--set", "steps=1"]
    assert fashion.main(asked) == 0
    rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert [r["method"] for r in rows] == ["before", "oracle", "tilt"]
    assert [r["settings"].get("steps") for r in rows] == [None, None, 1]
    assert trained_on == [[16] * 10, [0] + [16] * 9]  # the oracle has never seen a t-shirt
    assert rows[0]["heldout"]["retain"].keys() == rows[2]["heldout"]["retain"].keys()

    # Neither what was measured nor what was trained is done again.
    output.write_text("\n".join(map(json.dumps, rows[:2])) + "\n")
    monkeypatch.delattr(fashion, "train")
    assert fashion.main(asked) == 0
    again = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert [r | {"seconds": 0} for r in again] == [r | {"seconds": 0} for r in rows]
    capsys.readouterr()
    assert fashion.main([*asked, "--table", "--plot", str(tmp_path / "figures" / "pareto.png")]) == 0
    assert "**Forgotten: t-shirt**" in capsys.readouterr().out
    assert (tmp_path / "figures" / "pareto.png").stat().st_size > 1000
