from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from riemann_unlearn.data import Dataset
from riemann_unlearn.evaluation import evaluate
from riemann_unlearn.report import audit_tables, evaluation_table, write_report
from riemann_unlearn.report.figures import heat_map, shots_chart
from tests.conftest import make_model
from tests.report.test_report import Balanced, finished_run, metrics

HISTORY = [{"step": 1, "loss": 1.0, "a_loss": 1.0}]


@pytest.fixture(scope="module", params=["MERU", "CLIP"])
def audited(request: pytest.FixtureRequest, world: Dataset) -> dict[str, Any]:
    model = make_model(request.param)
    found = evaluate(model, world, forget="food-fruit", audit="full", before=model, oracle=model)
    return {"model": "a<b>", "data": "world", "forgotten": ["food-fruit"], **json.loads(json.dumps(found))}


def parsed(page: str) -> str:
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert "http" not in page
    return page


def test_the_tables_hold_the_figures_of_every_model(audited: dict[str, Any]) -> None:
    full = audited["full_audit"]
    tables = {table.family: table for table in audit_tables(full)}
    assert ("hierarchy" in tables) == (full["hierarchy"]["after"] is not None)
    assert all(table.columns == ["before", "after", "oracle"] for table in tables.values())
    rows = dict(tables["zero_shot"].rows)
    recall = full["zero_shot"]["after"]["heldout"]["retain"]["recall_at_1"]
    assert rows["retain: recall@1, held out"] == [f"{100 * recall:.1f}"] * 3
    low, middle, high = (full["membership"]["before"]["confidence"]["auc"][i] for i in (1, 0, 2))
    assert dict(tables["membership"].rows)["confidence: AUC"][0] == f"{middle:.2f} [{low:.2f}, {high:.2f}]"
    # The ratio to the oracle is not taken of the oracle.
    assert dict(tables["membership"].rows)["likelihood ratio: AUC"][2] == "–"
    assert dict(tables["alignment"].rows)["forgetting score"] == ["–", "0.000", "0.000"]
    assert "drink" in tables["zero_shot"].reading


def test_the_terminal_shows_the_tables(audited: dict[str, Any]) -> None:
    text = evaluation_table(audited)
    line = next(line for line in text.splitlines() if line.startswith("linear probe: recall"))
    recall = 100 * audited["full_audit"]["recovery"]["after"]["linear_probe"]["recall"]
    assert line.split()[-3:] == [f"{recall:.1f}"] * 3


def test_a_run_and_its_audit_are_one_page(audited: dict[str, Any], tmp_path: Path) -> None:
    run = finished_run(tmp_path, metrics(), HISTORY)
    alone = write_report(run).read_text(encoding="utf-8")
    assert "Membership inference" not in alone
    (run / "audit.json").write_text(json.dumps(audited))
    page = parsed(write_report(run).read_text(encoding="utf-8"))
    assert "Membership inference" in page
    assert "Loss terms" in page
    assert page.count('class="matrix"') == 5  # three matrices, and the gaps of two
    assert page.count('class="chart"') == 2  # shots of prototypes and of relearning
    hyperbolic = audited["full_audit"]["hierarchy"]["after"] is not None
    assert page.count('class="walk"') == (4 if hyperbolic else 0)  # three fruits and the drink


def test_an_audit_alone_is_a_page_too(audited: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "audit.json").write_text(json.dumps(audited))
    page = parsed(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "Audit: food-fruit" in page
    assert "a&lt;b&gt;" in page
    assert "Loss terms" not in page


def test_a_signed_map_is_white_at_nothing_and_a_flat_one_can_be_drawn() -> None:
    parsed(heat_map("gap", [[0.0, 1.0], [-1.0, 0.0]], 1, (-1.0, 1.0), signed=True))
    parsed(heat_map("flat", [[0.0]], 1, (0.0, 0.0), signed=True))
    parsed(heat_map("flat", [[0.5]], 1, (0.5, 0.5), signed=False))
    assert "<circle" in parsed(shots_chart("one", {"after": ([1], [0.5])}, None))
