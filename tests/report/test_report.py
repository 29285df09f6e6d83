from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from riemann_unlearn.report import evaluation_table, metrics_table, write_report


def group(value: float | None) -> dict[str, float | None]:
    return dict.fromkeys(("accuracy", "recall_at_1", "recall_at_5", "parent_accuracy"), value)


def metrics(heldout: bool = True) -> dict[str, Any]:
    before: dict[str, Any] = {"forget": group(0.9), "retain": group(0.8)}
    after: dict[str, Any] = {"forget": group(0.0), "retain": group(0.75)}
    if heldout:
        before["heldout"] = {"forget": group(None), "retain": group(0.5)}
        after["heldout"] = {"forget": group(None), "retain": group(0.45)}
    return {
        "method": "hac",
        "model": "meru<b>",
        "data": "emoji",
        "forget": ["food & drink"],
        "seed": 0,
        "steps": 2,
        "seconds": 3.2,
        "settings": {"alpha": 1.0},
        "chance": group(0.01),
        "before": before,
        "after": after,
        "audit": {"before": audit(0.6), "after": audit(0.1)} if heldout else {"before": {}, "after": {}},
    }


def audit(value: float) -> dict[str, dict[str, float]]:
    return {name: {"forget": value, "retain": 0.4} for name in ("paraphrase", "prototype")}


def finished_run(folder: Path, metrics: dict[str, Any], history: list[dict[str, float]]) -> Path:
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in history))
    return folder


def test_the_table_shows_before_after_change_and_chance() -> None:
    table = metrics_table(metrics())
    assert "hac on meru<b>: forget food & drink (seed 0, 2 steps, 3 s)" in table
    row = next(line for line in table.splitlines() if line.startswith("accuracy (subcategory)"))
    assert row.split()[2:] == ["90.0", "0.0", "-90.0", "80.0", "75.0", "-5.0", "chance", "1.00"]
    held_out = table.split("held-out images")[1]
    row = next(line for line in held_out.splitlines() if line.startswith("recall@1"))
    assert row.split()[2:5] == ["–", "–", "–"]
    row = next(line for line in table.splitlines() if line.startswith("by keywords (recall@1)"))
    assert row.split()[3:] == ["60.0", "10.0", "-50.0", "40.0", "40.0", "+0.0", "chance", "1.00"]
    assert "held-out" not in metrics_table(metrics(heldout=False))


def test_an_evaluation_is_a_table_too() -> None:
    report = {"model": "m", "forgotten": ["owl"], **metrics()["before"], "audit": audit(0.3)}
    table = evaluation_table(report)
    row = next(line for line in table.splitlines() if line.startswith("recall@1 (name)"))
    assert row.split()[2:] == ["90.0", "80.0"]
    row = next(line for line in table.splitlines() if line.startswith("by image prototypes (accuracy)"))
    assert row.split()[4:] == ["30.0", "40.0"]
    del report["heldout"]
    assert "held-out" not in evaluation_table(report)


class Balanced(HTMLParser):
    """Checks that every element is closed where it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass


def test_the_page_is_well_formed_and_escaped(tmp_path: Path) -> None:
    history = [
        {"step": 1, "loss": 3.0, "a_loss": 1.0, "b_loss": 2.0},
        {"step": 2, "loss": 1.5, "a_loss": 1.0, "b_loss": 0.5},
    ]
    page = write_report(finished_run(tmp_path, metrics(), history)).read_text(encoding="utf-8")
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert "meru&lt;b&gt;" in page
    assert "food &amp; drink" in page
    assert "<td>90.0 %</td><td>0.0 %</td>" in page
    assert page.count("<polyline") == 2
    assert "http" not in page.replace("http-equiv", "")


def test_a_constant_loss_of_one_step_can_be_drawn(tmp_path: Path) -> None:
    run = finished_run(tmp_path, metrics(), [{"step": 1, "loss": 1.0, "a_loss": 1.0}])
    assert "<polyline" in write_report(run).read_text(encoding="utf-8")


def test_a_folder_without_a_finished_run_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished run: expected metrics"):
        write_report(tmp_path)
