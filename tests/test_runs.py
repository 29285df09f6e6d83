"""The run directory: who gets a folder, and what a checkpoint is."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from riemann_unlearn.runs import Clock, RunDirectory, Unused, WriteError, check_free, run_name


class Part:
    def __init__(self, value: Any) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.value = state["value"]


def at_once(count: int, start: Any) -> list[Any]:
    """What ``start`` gives or raises in each of several threads that begin together."""
    gate, results = threading.Barrier(count), []

    def one() -> None:
        gate.wait()
        try:
            results.append(start())
        except ValueError as error:
            results.append(error)

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_runs_that_start_at_once_get_different_folders(tmp_path: Path) -> None:
    unused = Unused(tmp_path / "runs" / "tilt")
    results = at_once(8, lambda: RunDirectory.claim(unused, {"a": 1}).folder)
    assert len(set(results)) == 8
    assert {path.name for path in results} == {"tilt", *(f"tilt-{i}" for i in range(2, 9))}
    assert all((path / "config.yaml").read_text() == "a: 1\n" for path in results)


@pytest.mark.parametrize("there", [True, False])
def test_of_runs_that_want_one_folder_at_once_one_gets_it(there: bool, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    if there:
        folder.mkdir()
    results = at_once(8, lambda: RunDirectory.claim(folder, {"a": 1}))
    refused = [result for result in results if isinstance(result, ValueError)]
    assert len(refused) == 7
    assert all("is not empty; resume the run in it, or choose another folder" in str(e) for e in refused)


def test_a_folder_is_left_as_it_was_when_it_cannot_be_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    (tmp_path / "mine").mkdir()
    for output in (tmp_path / "new", Unused(tmp_path / "new"), tmp_path / "mine"):
        with pytest.raises(ValueError, match=r"cannot write to .*: No space left on device"):
            RunDirectory.claim(output, {})
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]
    monkeypatch.undo()
    RunDirectory.claim(tmp_path / "new", {})
    with pytest.raises(ValueError, match="cannot write to"):
        RunDirectory.claim(Unused(tmp_path / "new" / "config.yaml" / "deeper"), {})


def test_a_check_writes_nothing(tmp_path: Path) -> None:
    for free in (tmp_path / "none", tmp_path, Unused(tmp_path)):
        check_free(free)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("mine")
    for taken, message in ((tmp_path, "is not empty"), (tmp_path / "file", "cannot write to")):
        with pytest.raises(ValueError, match=message):
            check_free(taken)


def test_a_run_is_gone_on_with_until_it_is_finished(tmp_path: Path) -> None:
    first = RunDirectory.claim(tmp_path / "run", {"seed": 3, "forget": ["owl"]})
    assert not first.restore({"part": Part(0)})
    first.save({"part": Part([1.5, torch.arange(3)]), "other": Part("x")})
    first.write("metrics.json", "{}")
    again = RunDirectory.reopen(tmp_path / "run")  # the checkpoint is there: something was left to be done
    assert again.config == {"seed": 3, "forget": ["owl"]}
    part = Part(None)
    assert again.restore({"part": part})
    assert part.value[0] == 1.5
    assert part.value[1].tolist() == [0, 1, 2]
    again.finish()
    again.finish()
    with pytest.raises(ValueError, match="is finished; there is nothing to resume"):
        RunDirectory.reopen(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("- owl")
    with pytest.raises(ValueError, match="is not a run's configuration"):
        RunDirectory.reopen(tmp_path / "run")


def test_a_checkpoint_is_data(tmp_path: Path) -> None:
    class Thing:
        def __reduce__(self) -> Any:
            return (os.system, (f"touch {tmp_path}/harm",))

    run = RunDirectory.claim(tmp_path / "run", {})
    for content, message in (
        ({"format": 1, "part": Thing()}, "cannot be gone on from"),
        ({"format": 0}, "it was written by another version"),
        ([1], "it was written by another version"),
        ({"format": 1, "part": {}}, "it does not fit this run: 'value'"),
        ({"format": 1}, "it does not fit this run: 'part'"),
    ):
        torch.save(content, run.folder / "checkpoint.pt")
        with pytest.raises(ValueError, match=message):
            run.restore({"part": Part(0)})
    assert not (tmp_path / "harm").exists()


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """torch reads past it."""
    run = RunDirectory.claim(tmp_path / "run", {})
    run.save({"part": Part(torch.full((1000,), 7.0))})
    path = run.folder / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    at = content.index(torch.tensor(7.0).numpy().tobytes() * 3)
    content[at] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["part"]["value"][0] != 7.0
    with pytest.raises(ValueError, match=r"checkpoint\.pt cannot be gone on from .*is not what was written"):
        run.restore({"part": Part(0)})


def test_what_cannot_be_written_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory.claim(tmp_path / "run", {})

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(WriteError, match="no checkpoint was written yet, so it will begin again"):
            run.save({"part": Part(1)})
    run.save({"part": Part(2)})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            WriteError, match=r"cannot write .*checkpoint\.pt: No space .*its last checkpoint is whole"
        ):
            run.save({"part": Part(3)})
    part = Part(0)
    run.restore({"part": part})
    assert part.value == 2


def test_a_clock_counts_the_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("riemann_unlearn.runs.time.perf_counter", lambda: now[0])
    first = Clock()
    now[0] += 5
    state = first.state_dict()
    now[0] += 1000  # nobody works
    second = Clock()
    now[0] += 2
    second.load_state_dict(state)
    now[0] += 1
    assert second.seconds == 8


def test_names_say_model_method_and_concept() -> None:
    assert run_name("tilt", "meru-emoji", ("food-fruit",), 0) == "tilt-meru-emoji-food-fruit-seed0"
    assert run_name("hac", "runs/a/model.safetensors", ["crème brûlée", "b/c"], 7) == (
        "hac-model-crème-brûlée+b-c-seed7"
    )
    assert len(run_name("hac", "m", ["x" * 300], 0)) < 100
