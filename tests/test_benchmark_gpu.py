"""The script for a GPU, tried without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "REPEATS", 1)


def test_without_a_gpu_it_says_so_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--output", str(tmp_path / "gpu.jsonl")]) == gpu.NO_GPU
    assert "There is no GPU here" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_it_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[str] = []

    def section(name: str) -> Any:
        def run(device: torch.device) -> dict[str, Any]:
            ran.append(name)
            return {"rows": [name]}

        return run

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(gpu, "SECTIONS", {name: section(name) for name in gpu.SECTIONS})
    asked = ["--output", str(tmp_path / "gpu.jsonl")]
    assert gpu.main([*asked, "--sections", "optimizers"]) == 0
    assert gpu.main(asked) == 0
    assert ran == ["optimizers", "tests", "contrastive", "unlearning"]
    rows = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert {row["device"] for row in rows} == {"a card"}
    # Another card's rows are another card's; and with no time left nothing is begun.
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "another")
    monkeypatch.setattr(gpu, "SECONDS", -1.0)
    assert gpu.main(asked) == 0
    assert len(ran) == 4
    monkeypatch.setattr(gpu, "SECONDS", 480.0)
    assert gpu.main([*asked, "--sections", "tests", "--again"]) == 0
    assert ran[-1] == "tests"


def test_every_section_has_its_figures() -> None:
    (row, precise) = gpu.contrastive(CPU, sizes=(8,), width=4)["rows"]
    assert row["ours"] > 0
    assert (row["products"], precise["products"]) == ("highest", "high")
    rows = gpu.optimizers(CPU, make=lambda: [torch.zeros(3, 2)], count=2)["rows"]
    assert [r["optimizer"] for r in rows] == ["torch Adam, fused", "ours"] * 2
    found = gpu.unlearning(CPU, gpu.SMALL, images=40, sizes=(2, 6))
    assert [(r["precision"], r["micro_batch"]) for r in found["rows"]] == [
        (precision, micro) for precision in ("float32", "bfloat16", "float16") for micro in (None, 2)
    ]
    losses = [r["loss"][0] for r in found["rows"]]
    assert losses == pytest.approx([losses[0]] * 6, rel=5e-2)
