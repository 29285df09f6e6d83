from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from riemann_unlearn import cli, models
from riemann_unlearn.cli import main
from tests.conftest import make_model, model_config

FAST = ["--set", "steps=2", "--set", "learning_rate=1e-3"]


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    models.save_model(make_model("MERU"), tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


@pytest.fixture
def run(model_path: Path, world_path: Path) -> list[str]:
    return ["run", "--model", str(model_path), "--data", str(world_path), *FAST]


def test_run_writes_a_run_directory_and_a_table(
    run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main([*run, "--output", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "accuracy (subcategory)" in printed
    assert "held-out images" in printed
    assert {p.name for p in folder.iterdir()} == {
        "config.yaml",
        "history.jsonl",
        "metrics.json",
        "model.safetensors",
        "report.html",
    }
    assert json.loads((folder / "metrics.json").read_text())["forget"] == ["food-fruit"]
    # A finished run is a model, and remembers what it forgot.
    data = json.loads((folder / "metrics.json").read_text())["data"]
    assert main(["evaluate", "--model", str(folder), "--data", data, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["forgotten"] == ["food-fruit"]
    after = json.loads((folder / "metrics.json").read_text())["after"]
    assert report["retain"] == after["retain"]
    assert main(["evaluate", "--model", str(folder), "--data", data, "--forget", "owl"]) == 0
    assert "forget means owl" in capsys.readouterr().out
    # Its report can be written again, and drawn.
    page = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    assert main(["report", str(folder), "--picture", str(tmp_path / "run.png")]) == 0
    assert (folder / "report.html").read_bytes() == page
    assert (tmp_path / "run.png").stat().st_size > 10_000
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no finished run" in capsys.readouterr().err


def test_run_prints_json_and_makes_its_own_folder(
    run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [*run, "--forget", "owl", "--forget", "food-fruit", "--seed", "4", "--json"]
    for _ in range(2):
        assert main(arguments) == 0
        metrics = json.loads(capsys.readouterr().out)
        assert metrics["forget"] == ["owl", "food-fruit"]
        assert metrics["settings"]["learning_rate"] == 1e-3
    made = sorted(p.name for p in (tmp_path / "runs").iterdir())
    assert made == ["tilt-owl-food-fruit-seed4", "tilt-owl-food-fruit-seed4-2"]


def test_flags_override_the_configuration_file(
    run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("forget: [owl]\nmethod: hac\nseed: 7\nsettings: {alpha: 2, steps: 9}\n")
    assert main([*run, "--config", str(path), "--seed", "8", "--json", "--output", str(tmp_path / "r")]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert (metrics["forget"], metrics["seed"], metrics["steps"]) == (["owl"], 8, 2)
    assert metrics["settings"]["alpha"] == 2
    path.write_text("forget: [")
    assert main([*run, "--config", str(path)]) == 2
    assert "is not valid YAML" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--forget", "unicorn"], "no concept 'unicorn'"),
        (["--forget", ""], "no concept ''"),
        (["--forget", "Food & Drink", "--forget", "Animals & Nature"], "nothing would be left"),
        (["--method", "amnesia"], "no method 'amnesia'"),
        (["--model", "none"], "no model 'none'"),
        (["--data", "none"], "no dataset 'none'"),
        (["--set", "alpha"], "--set takes NAME=NUMBER"),
        (["--set", "alpha=high"], "--set takes NAME=NUMBER"),
        (["--steps", "0"], "steps must be in"),
        (["--set", "steps=0"], "steps must be in"),
        (["--set", "steps=2.5"], "steps must be a whole number"),
        (["--config", "none.yaml"], "cannot read none.yaml"),
        (["--output", "/dev/null/run"], "cannot write to /dev/null/run"),
    ],
)
def test_a_bad_request_ends_in_one_sentence(
    run: list[str],
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*run, *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_resume_needs_a_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["run", "--resume"]) == 2
    assert "--resume needs --output DIR" in capsys.readouterr().err
    assert main(["run", "--resume", "--output", str(tmp_path)]) == 2
    assert "cannot read" in capsys.readouterr().err


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so_and_can_be_resumed(
    kill: signal.Signals, run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "riemann_unlearn.cli",
        *run,
        "--steps",
        "100000",
        "--output",
        str(folder),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # A shell's background jobs ignore SIGINT, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while not (folder / "checkpoint.pt").exists():
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            time.sleep(0.1)
        process.send_signal(kill)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "of 100000 steps" in error.splitlines()[-1]
    assert "can be resumed" in error.splitlines()[-1]
    assert {p.name for p in folder.iterdir()} == {"config.yaml", "history.jsonl", "checkpoint.pt"}
    done = len((folder / "history.jsonl").read_text().splitlines())
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("steps: 100000", f"steps: {done + 1}"))
    assert main(["run", "--output", str(folder), "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == done + 1


def test_train_makes_a_model_that_runs(
    world_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.json").write_text(json.dumps(model_config("CLIP")))
    (tmp_path / "train.yaml").write_text(f"data: {world_path}\nepochs: 1\nbatch_size: 8\n")
    arguments = ["train", "--model", str(tmp_path / "model.json"), "--config", str(tmp_path / "train.yaml")]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    evaluate = ["evaluate", "--model", str(tmp_path / "out"), "--data", str(world_path)]
    assert main([*evaluate, "--forget", "owl"]) == 0
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
    (tmp_path / "train.yaml").write_text("epoch: 1")
    assert main([*arguments, "--output", str(tmp_path / "out2")]) == 2
    (tmp_path / "train.yaml").write_text("epochs: [")
    assert main([*arguments, "--output", str(tmp_path / "out2")]) == 2
    error = capsys.readouterr().err
    assert "is not empty" in error
    assert "unexpected keyword argument 'epoch'" in error
    assert "cannot read the configuration" in error


@pytest.mark.parametrize("what", ["models", "methods", "concepts"])
def test_lists_are_tables_and_json(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    known = {"models": "meru-emoji", "methods": "hac", "concepts": "red apple"}[what]
    assert main(["list", what]) == 0
    assert known in capsys.readouterr().out
    assert main(["list", what, "--json"]) == 0
    assert known in {row["name"] for row in json.loads(capsys.readouterr().out)}


def test_concepts_are_those_of_the_data(world_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "concepts", "--data", str(world_path)]) == 0
    listed = capsys.readouterr().out
    assert "Food & Drink  food-fruit  banana" in listed
    assert len(listed.splitlines()) == 8
    assert main(["list", "models", "--data", str(world_path)]) == 2
    assert "--data is for concepts" in capsys.readouterr().err


def test_bench_runs_a_benchmark_of_the_source_tree(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["bench", "optimizer_step", "--help"])
    assert "ViT-B-32" in capsys.readouterr().out
    assert main(["bench", "nothing"]) == 2
    assert "there are" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "benchmarks", None)
    assert main(["bench", "optimizer_step"]) == 2
    assert "source tree" in capsys.readouterr().err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["run", "--help"], ["train", "--help"], ["evaluate", "--help"]):
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
        assert "usage: riemann-unlearn" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert cli.__version__ in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main([])


def test_an_unexpected_failure_is_one_sentence_too(
    run: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("riemann_unlearn.unlearning.loop.save_model", full)
    assert main([*run, "--output", str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err.strip().endswith("No space left on device")
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_a_full_audit_is_kept_with_the_run(
    run: list[str], tmp_path: Path, world_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main([*run, "--output", str(folder)]) == 0
    capsys.readouterr()
    full = ["evaluate", "--model", str(folder), "--audit", "full", "--output", str(folder), "--json"]
    assert main(full) == 0
    report = json.loads(capsys.readouterr().out)
    # The run says what its data and its untouched model are.
    assert report["data"] == str(world_path)
    assert list(report["full_audit"]["recovery"]) == ["before", "after"]
    assert json.loads((folder / "audit.json").read_text()) == report
    assert "Membership inference" in (folder / "report.html").read_text(encoding="utf-8")
    assert main(["evaluate", "--model", str(folder), "--output", str(folder)]) == 2
    assert "add --audit full" in capsys.readouterr().err
