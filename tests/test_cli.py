from __future__ import annotations

import argparse
import errno
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from riemann_unlearn import config, models
from riemann_unlearn._version import __version__
from riemann_unlearn.cli import listing, main
from riemann_unlearn.cli.commands import given
from riemann_unlearn.cli.parser import add_options
from riemann_unlearn.options import Config, option
from riemann_unlearn.training.driver import Diverged
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
    # A finished run is a model, and remembers what it forgot, and of which data.
    assert main(["evaluate", "--model", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["forgotten"] == ["food-fruit"]
    after = json.loads((folder / "metrics.json").read_text())["after"]
    assert report["retain"] == after["retain"]
    assert main(["evaluate", "--model", str(folder), "--forget", "owl"]) == 0
    assert "forget means owl" in capsys.readouterr().out
    # Its report can be written again, and drawn.
    page = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    assert main(["report", str(folder), "--picture", str(tmp_path / "run.png")]) == 0
    assert (folder / "report.html").read_bytes() == page
    assert (tmp_path / "run.png").stat().st_size > 10_000
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no finished run" in capsys.readouterr().err
    (folder / "metrics.json").write_text("{")
    assert main(["evaluate", "--model", str(folder)]) == 2
    assert f"{folder / 'metrics.json'} is not valid JSON" in capsys.readouterr().err
    (folder / "metrics.json").write_text("[]")
    assert main(["evaluate", "--model", str(folder)]) == 2
    assert "must hold a JSON object" in capsys.readouterr().err


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
    assert made == ["tilt-tiny-owl+food-fruit-seed4", "tilt-tiny-owl+food-fruit-seed4-2"]


def test_flags_override_the_configuration_file(
    run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("forget: [owl]\nmethod: hac\nseed: 7\nsettings: {alpha: 2, steps: 9}\n")
    assert main([*run, "--config", str(path), "--seed", "8", "--json", "--output", str(tmp_path / "r")]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert (metrics["forget"], metrics["seed"], metrics["steps"]) == (["owl"], 8, 2)
    assert metrics["settings"]["alpha"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--forget", "unicorn"], "no concept 'unicorn'"),
        (["--forget", ""], "no concept ''"),
        (["--forget", "Food & Drink", "--forget", "Animals & Nature"], "nothing would be left"),
        (["--method", "amnesia"], "no method 'amnesia'"),
        (["--model", "none"], "no model 'none'"),
        (["--data", "none"], "no dataset 'none'"),
        (["--device", "toaster"], "cannot compute on device 'toaster'"),
        (["--set", "alpha"], "--set takes NAME=NUMBER"),
        (["--set", "alpha=high"], "--set takes NAME=NUMBER"),
        (["--set", "margin=nan"], "margin must be in"),
        (["--steps", "many"], "--set takes NAME=NUMBER"),
        (["--steps", "0"], "steps must be in"),
        (["--set", "steps=0"], "steps must be in"),
        (["--set", "steps=2.5"], "steps must be a whole number"),
        (["--seed", "-1"], "--seed must be a whole number from 0 to"),
        (["--seed", "1.5"], "--seed must be a whole number from 0 to 9223372036854775807, got 1.5"),
        (["--seed", 23 * "9"], "--seed must be a whole number from 0 to"),
        (["--saliency", "much"], "--saliency must be a number above 0, at most 1, got 'much'"),
        (["--saliency", "nan"], "--saliency must be a number above 0, at most 1, got nan"),
        (["--forget-batch", "0"], "--forget-batch must be a whole number, at least 1"),
        (["--config", "none.yaml"], "cannot read none.yaml"),
        (["--output", "/dev/null/run"], "cannot write to /dev/null/run"),
    ],
)
def test_a_bad_request_is_one_sentence_and_leaves_nothing_behind(
    run: list[str],
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main([*run, "--output", "z", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_resume_needs_a_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["run", "--resume"]) == 2
    assert "--resume needs --output DIR" in capsys.readouterr().err
    assert main(["run", "--resume", "--output", str(tmp_path)]) == 2
    assert "cannot read" in capsys.readouterr().err
    assert main(["run", "--resume", "--output", str(tmp_path), "--config", "c.yaml"]) == 2
    assert "leave out --config" in capsys.readouterr().err


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so_and_can_be_resumed(
    kill: signal.Signals, run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    many = ["--steps", "100000", "--output", str(folder)]
    process = subprocess.Popen(
        [sys.executable, "-m", "riemann_unlearn", *run, *many],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
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
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("steps: 100000", f"steps: {done + 1}"))
    # A damaged checkpoint is not gone on from.
    whole = (folder / "checkpoint.pt").read_bytes()
    (folder / "checkpoint.pt").write_bytes(whole[: len(whole) // 2])
    assert main(["run", "--output", str(folder), "--resume"]) == 2
    assert f"{folder / 'checkpoint.pt'} cannot be gone on from" in capsys.readouterr().err
    (folder / "checkpoint.pt").write_bytes(whole)
    assert main(["run", "--output", str(folder), "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == done + 1


def test_train_makes_a_model_that_runs(
    world_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.json").write_text(json.dumps(model_config("CLIP")))
    (tmp_path / "train.yaml").write_text(f"data: {world_path}\nepochs: 7\nbatch_size: 8\n")
    arguments = ["train", "--model", str(tmp_path / "model.json"), "--config", str(tmp_path / "train.yaml")]
    assert main([*arguments, "--epochs", "1", "--output", str(tmp_path / "out")]) == 0
    assert len((tmp_path / "out" / "history.jsonl").read_text().splitlines()) == 1
    evaluate = ["evaluate", "--model", str(tmp_path / "out"), "--data", str(world_path)]
    assert main([*evaluate, "--forget", "owl"]) == 0
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train.yaml", "epoch: 1", "train.yaml: unknown key 'epoch'; did you mean 'epochs'?"),
        ("train.yaml", 'epochs: "2"', "train.yaml: epochs must be a whole number, at least 1, got '2'"),
        ("train.yaml", "epochs: [", "train.yaml is not valid YAML"),
        ("train.yaml", "data: none", "no dataset 'none'"),
        ("model.json", "{", "model.json is not JSON"),
        ("model.json", "[1]", "model.json is a list, expected a mapping"),
        ("model.json", "{}", "the model configuration lacks 'model_cfg'"),
        ("none.json", "", "meru-emoji-flat, clip-emoji-flat, open_clip:ARCHITECTURE, or the path"),
    ],
)
def test_a_bad_training_leaves_nothing_behind(
    file: str,
    content: str,
    message: str,
    world_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "model.json").write_text(json.dumps(model_config("CLIP")))
    (tmp_path / "train.yaml").write_text(f"data: {world_path}\n")
    (tmp_path / file).write_text(content)
    if file == "none.json":
        (tmp_path / "model.json").unlink()
    arguments = ["train", "--model", str(tmp_path / "model.json"), "--config", str(tmp_path / "train.yaml")]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("what", "known"),
    [
        ("models", "meru-emoji"),
        ("methods", "hac"),
        ("concepts", "red apple"),
        ("measures", "relearning"),
        ("sources", "shards"),
        ("spaces", "lorentz"),
    ],
)
def test_lists_are_tables_and_json(what: str, known: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", what]) == 0
    assert known in capsys.readouterr().out
    assert main(["list", what, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert known in {row["name"] for row in rows}
    assert all(value is not None for row in rows for value in row.values())


def test_concepts_are_those_of_the_data(world_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "concepts", "--data", str(world_path)]) == 0
    listed = capsys.readouterr().out
    assert "Food & Drink      food-fruit    banana" in listed
    assert len(listed.splitlines()) == 8
    assert main(["list", "models", "--data", str(world_path)]) == 2
    assert "--data is for concepts" in capsys.readouterr().err


def test_help_tells_every_option_and_is_quick(capsys: pytest.CaptureFixture[str]) -> None:
    for command, settings in (
        ("run", config.RunConfig),
        ("train", config.TrainConfig),
        ("evaluate", config.EvaluateConfig),
    ):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        printed = capsys.readouterr().out
        for entry in fields(settings):
            assert settings.flag(entry.name) in printed
        assert "--device" in printed
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "130 interrupted" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert __version__ in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main([])
    # What costs time is not imported for it.
    heavy = (
        "import sys; from riemann_unlearn.cli.parser import build_parser; build_parser(); "
        "print({'torch', 'yaml', 'numpy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_module_is_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["riemann_unlearn", "--version"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("riemann_unlearn", run_name="__main__")
    assert capsys.readouterr().out == f"riemann-unlearn {__version__}\n"


def test_a_bundled_model_is_trained_as_it_was_but_for_what_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("riemann_unlearn.training.train", lambda *given, **_: asked.extend(given))
    assert main(["train", "--model", "meru-emoji", "--output", str(tmp_path / "o"), "--epochs", "3"]) == 0
    model, settings, output = asked
    assert (model["architecture"], output) == ("MERU", tmp_path / "o")
    assert (settings.epochs, settings.batch_size, settings.start) == (3, 128, "meru-emoji-flat")


@dataclass(frozen=True)
class Shout(Config):
    example: ClassVar[str] = "loud: true"
    loud: bool = option(False, "at 100 %")
    words: int = option(3, "how many", low=1)


def test_a_field_is_all_that_a_flag_takes(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, Shout)
    assert given(parser.parse_args(["--loud"]), Shout) == {"loud": True}
    assert given(parser.parse_args(["--no-loud", "--words", "4"]), Shout) == {"loud": False, "words": 4}
    parser.print_help()
    printed = capsys.readouterr().out
    assert "at 100 %" in printed
    assert "how many (default: 3)" in printed


def test_a_terminal_that_cannot_show_an_apple_is_shown_what_it_can(
    run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert main([*run, "--output", str(tmp_path / "é🍎")]) == 0
    assert (tmp_path / "é🍎" / "report.html").is_file()
    printed = sys.stdout.buffer.getvalue()  # type: ignore[attr-defined]
    assert b"accuracy" in printed
    assert b"Written to " in printed
    assert main(["run", "--forget", "🍎", "--data", "nowhere-é"]) == 2
    sys.stderr.flush()
    assert b"nowhere-?" in sys.stderr.buffer.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def broken_pipe() -> Iterator[Any]:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        yield stream


def test_a_reader_that_has_enough_is_no_error(
    broken_pipe: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", broken_pipe)
    assert main(["list", "spaces"]) == 128 + signal.SIGPIPE
    assert capsys.readouterr().err == ""
    broken_pipe.flush()  # what Python does at its exit is quiet too


def test_neither_is_one_of_help(broken_pipe: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "riemann_unlearn", "run", "--help"],
        stdout=broken_pipe,
        stderr=subprocess.PIPE,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_output_that_cannot_be_written_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["list", "spaces"]) == 1
        error = capsys.readouterr().err
        assert error == "riemann-unlearn: cannot write the output: No space left on device\n"


def test_nobody_may_be_there_to_read_the_error(broken_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with os.fdopen(os.dup(broken_pipe.fileno()), "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        assert main(["list", "models", "--data", "x"]) == 2
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def test_a_full_disk_leaves_what_is_whole(
    run: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"

    def full_for(name: str) -> None:
        replace = os.replace

        def fail(source: Any, target: Any) -> None:
            if Path(target).name == name:
                raise OSError(errno.ENOSPC, "No space left on device")
            replace(source, target)

        monkeypatch.setattr(os, "replace", fail)

    full_for("model.safetensors")
    assert main([*run, "--output", str(folder)]) == 1
    error = capsys.readouterr().err.strip()
    assert f"cannot write {folder / 'model.safetensors'}: No space left on device" in error
    assert "its last checkpoint is whole" in error
    assert len(error.splitlines()) == 1
    assert {p.name for p in folder.iterdir()} == {"config.yaml", "history.jsonl", "checkpoint.pt"}
    monkeypatch.undo()
    full_for("report.html")
    assert main(["run", "--output", str(folder), "--resume"]) == 1
    error = capsys.readouterr().err.strip()
    assert f"cannot write {folder / 'report.html'}: No space left on device" in error
    assert f"write its report with: riemann-unlearn report {folder}" in error
    monkeypatch.undo()
    assert main(["report", str(folder)]) == 0


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (Diverged("the loss became nan at step 3"), 1, "the loss became nan at step 3"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried"), 1, "CUDA out of memory. Tried"),
        (MemoryError("cannot allocate"), 1, "cannot allocate"),
        (PermissionError(errno.EACCES, "Permission denied", "a.tar"), 1, "cannot read or write a.tar: Perm"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_is_foreseen_is_a_sentence(
    error: BaseException,
    code: int,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: str) -> None:
        raise error

    monkeypatch.setitem(listing.LISTS, "models", fail)
    assert main(["list", "models"]) == code
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shape '[2]' is invalid"), KeyError("x"), ImportError("y"), ValueError("too many values")],
)
def test_what_nobody_foresaw_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise error

    monkeypatch.setitem(listing.LISTS, "models", fail)
    with pytest.raises(type(error)):
        main(["list", "models"])


def test_a_fault_of_ours_is_told_from_a_sentence_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    # Raised in a file of this library, and by no raise statement of it.
    monkeypatch.setitem(listing.LISTS, "models", lambda _: [{"name": 1}, {}])
    with pytest.raises(ValueError, match="zip"):
        main(["list", "models"])


@pytest.mark.filterwarnings("default")
def test_a_warning_of_ours_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warn(_: str) -> list[Any]:
        warnings.warn_explicit("two captions read the same", UserWarning, listing.__file__, 1)
        warnings.warn_explicit("theirs", UserWarning, "torch/nn.py", 1)
        return []

    others: list[Any] = []
    monkeypatch.setattr(warnings, "showwarning", lambda *given: others.append(given[0]))
    monkeypatch.setitem(listing.LISTS, "models", warn)
    assert main(["list", "models"]) == 0
    assert capsys.readouterr().err == "riemann-unlearn: two captions read the same\n"
    assert list(map(str, others)) == ["theirs"]


def test_a_command_runs_in_any_thread(capsys: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["list", "spaces"])))
    thread.start()
    thread.join()
    assert codes == [0]


def test_a_full_audit_is_kept_with_the_run(
    run: list[str],
    tmp_path: Path,
    world_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    assert main([*run, "--output", str(folder)]) == 0
    capsys.readouterr()
    full = ["evaluate", "--model", str(folder), "--audit", "full", "--output", str(folder), "--json"]
    # Relearning has attacks by the dozen, and is tested by itself.
    assert main([*full, "--measure", "recovery", "--measure", "membership"]) == 0
    report = json.loads(capsys.readouterr().out)
    # The run says what its data and its untouched model are.
    assert report["data"] == str(world_path)
    assert list(report["full_audit"]["recovery"]) == ["before", "after"]
    assert json.loads((folder / "audit.json").read_text()) == report
    assert "Membership inference" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "x"], "--output is for a full audit; add --audit full"),
        (["--oracle", "x"], "--oracle is for a full audit; add --audit full"),
        (["--before", "x"], "--before is for a full audit; add --audit full"),
        (["--audit", "half"], "--audit must be one of quick, full, got 'half'"),
        (["--audit", "full", "--output", "/dev/null/x"], "cannot write to /dev/null/x"),
        (["--model", "none"], "no model 'none'"),
        (["--seed", "-3"], "--seed must be a whole number from 0"),
        (["--device", "toaster"], "cannot compute on device 'toaster'"),
        (["--measure", "charm"], "no measure 'charm'"),
    ],
)
def test_an_evaluation_that_cannot_be_made(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "evaluate"])
def test_weights_alone_are_no_model(
    command: str, world_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(make_model("MERU").state_dict(), tmp_path / "model.pt")
    asked = [command, "--model", str(tmp_path / "model.pt"), "--data", str(world_path), "--forget", "owl"]
    assert main([*asked, *(["--output", str(tmp_path / "run")] if command == "run" else [])]) == 2
    said = capsys.readouterr().err
    assert "model.pt has no model configuration in its metadata, nor open_clip_config.json beside it" in said
    assert "name its architecture, as in open_clip:ViT-B-32/" in said  # and what to do
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_evaluation_is_printed_even_where_it_cannot_be_written(
    model_path: Path,
    world_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("riemann_unlearn.evaluation.evaluate", lambda **_: {"forget": 0.5})
    (tmp_path / "out" / "audit.json").mkdir(parents=True)
    arguments = ["--model", str(model_path), "--data", str(world_path), "--forget", "owl", "--json"]
    full = ["--audit", "full", "--output", str(tmp_path / "out")]
    assert main(["evaluate", *arguments, *full]) == 1
    output, error = capsys.readouterr()
    assert json.loads(output)["forget"] == 0.5
    assert f"{tmp_path / 'out' / 'audit.json'}: Is a directory" in error


def test_what_a_run_does_not_say_is_asked_for_or_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("riemann_unlearn.evaluation.evaluate", lambda **given: asked.update(given) or {})
    full = ["evaluate", "--model", str(tmp_path), "--audit", "full", "--json"]
    # Of a model that was never saved, a run has the name of its class.
    for model, before in (("MERU", None), ("meru-emoji", "meru-emoji"), (str(tmp_path), str(tmp_path))):
        (tmp_path / "metrics.json").write_text(json.dumps({"model": model, "forget": ["owl"], "data": "d"}))
        assert main(full) == 0
        assert (asked["before"], asked["forget"], asked["data"]) == (before, ["owl"], "d")
        assert ("give it by --before" in capsys.readouterr().err) == (before is None)
    assert main([*full, "--before", "mine", "--forget", "duck", "--data", "e"]) == 0
    assert (asked["before"], asked["forget"], asked["data"]) == ("mine", ["duck"], "e")
    (tmp_path / "e.yaml").write_text("model: clip-emoji\nseed: 5\n")
    assert main(["evaluate", "--config", str(tmp_path / "e.yaml"), "--seed", "6", "--json"]) == 0
    assert (asked["model"], asked["seed"], asked["audit"]) == ("clip-emoji", 6, "quick")
    assert (asked["before"], asked["forget"], asked["data"]) == (None, ["food-fruit"], "emoji")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot", "errors.xyz"], "expected a name that ends in .svg, .png or .pdf"),
        (["--plot", "none/errors.svg"], "there is no folder"),
        (["--device", "toaster"], "cannot compute on device 'toaster'"),
        (["--manifold", "nowhere:Ball"], "cannot load the manifold 'nowhere:Ball'"),
    ],
)
def test_an_audit_that_cannot_be_made(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stability", *arguments]) == 2
    output, error = capsys.readouterr()
    assert (output, message in error) == ("", True)
