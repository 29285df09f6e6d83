"""What a run will take, asked before it is begun."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from riemann_unlearn.cli import main
from riemann_unlearn.data import Dataset
from riemann_unlearn.models import DualEncoder, save_model, state_of
from riemann_unlearn.runs import Unused
from riemann_unlearn.unlearning import Plan, plan
from riemann_unlearn.unlearning.plan import Activations, _duration, _size
from tests.conftest import make_model


def planned(model: DualEncoder, world: Dataset, **options: Any) -> Plan:
    asked: dict[str, Any] = {"forget": "food-fruit", "method": "tilt", "forget_batch": 4, "retain_batch": 500}
    return plan(model, world, **(asked | options))


def test_a_plan_counts_what_there_is_and_changes_nothing(
    meru: DualEncoder, world: Dataset, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in state_of(meru).items()}
    found = planned(meru, world, output=tmp_path / "run", settings={"steps": 30}, views=0)
    assert all(torch.equal(value, before[name]) for name, value in state_of(meru).items())
    assert not list(tmp_path.iterdir())
    # Three fruits and five others in two seen styles; the retained images are fewer than a batch may have.
    assert found.images == {"forget": 6, "retain": 10, "heldout": 8}
    assert (found.batch, found.steps, found.processes) == ({"forget": 4, "retain": 10}, 30, 1)
    assert found.moves["text"] == 0
    assert 0 < found.moves["image"] == found.moves["all"] < found.moves["weights"]
    # float32: the gradient of what moves, and Adam's two moments of it.
    assert found.memory["gradients"] == 4 * found.moves["all"]
    assert 2 * 4 * found.moves["all"] <= (found.memory["optimizer"] or 0) < 2.1 * 4 * found.moves["all"]
    assert found.memory["weights"] == 4 * found.moves["weights"]
    assert found.memory["batch"] == 14 * 3 * 16 * 16 * 4
    assert (found.memory["activations"] or 0) > (found.memory["batch"] or 0)
    assert found.memory["peak"] is None
    step, steps, total = (found.seconds[name] for name in ("step", "steps", "total"))
    assert step is not None
    assert steps is not None
    assert steps == pytest.approx(30 * step)
    assert total is not None
    assert total > steps
    assert found.files["model.safetensors"] == found.memory["weights"]
    assert found.folder == str(tmp_path / "run")


def test_a_plan_is_refused_what_a_run_is_refused(meru: DualEncoder, world: Dataset, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(ValueError, match="is not empty"):
        planned(meru, world, output=tmp_path)
    with pytest.raises(ValueError, match="no such thing"):
        planned(meru, world, forget="no such thing")


def test_what_is_not_measured_is_said(meru: DualEncoder, world: Dataset) -> None:
    direct = planned(meru, world, method="nullspace", output=Unused(Path("runs/x")))
    assert (direct.steps, direct.seconds["total"], direct.moves["all"]) == (0, None, 0)
    assert "nullspace takes no steps" in str(direct)
    parts = planned(meru, world, method="hac", micro_batch=3)
    assert parts.memory["activations"] is None
    assert "activations that are made again are not counted" in str(parts)
    assert "writes     no folder" in str(parts)


def test_the_command_line_prints_the_plan_and_writes_nothing(
    world_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(make_model("MERU"), tmp_path / "model.safetensors")
    asked = ["run", "--model", str(tmp_path / "model.safetensors"), "--data", str(world_path), "--dry-run"]
    asked += ["--method", "hac", "--forget-batch", "4", "--output", str(tmp_path / "out")]
    assert main(asked) == 0
    printed = capsys.readouterr().out
    for words in (
        "forget     food-fruit: 6 seen images",
        "steps      100",
        "time       step ",
        "memory     weights",
    ):
        assert words in printed
    assert main([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "hac"
    assert not (tmp_path / "out").exists()
    assert main([*asked, "--resume"]) == 2
    assert "--dry-run plans a new run; leave out --resume" in capsys.readouterr().err


def test_what_autograd_keeps_is_counted_once_and_until_it_is_gone() -> None:
    weight = nn.Parameter(torch.ones(8, 8))
    x = torch.ones(4, 8)
    with Activations([weight]) as kept:
        y = x @ weight  # keeps x, and the weight, which is kept anyway
        assert kept.now == x.numel() * 4
        z = y.square() * y.exp()  # y for the square; its exponential, and the two factors
        assert kept.now == kept.most == 4 * x.numel() * 4
        z.sum().backward()  # type: ignore[no-untyped-call]
        del y, z
        assert kept.now == 0
    assert kept.most == 4 * x.numel() * 4


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.1234, "0.123 s"), (119, "119 s"), (600, "10 min"), (7200 * 5, "10 h")]
)
def test_durations_are_for_people(seconds: float, words: str) -> None:
    assert _duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"), [(12, "12 B"), (2048, "2 KiB"), (3 * 2**20, "3 MiB"), (5 * 2**33, "40 GiB")]
)
def test_sizes_are_for_people(count: int, words: str) -> None:
    assert _size(count) == words
