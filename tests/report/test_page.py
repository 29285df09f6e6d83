from __future__ import annotations

import json
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from riemann_unlearn.data import Dataset
from riemann_unlearn.evaluation import MEASURES, Measure, evaluate, list_measures
from riemann_unlearn.evaluation.measures.relearning import Relearning
from riemann_unlearn.report import evaluation_table, write_report
from riemann_unlearn.report.tables import audit_tables
from tests.conftest import make_model
from tests.report.results import HISTORY, LEVELS, evaluation, finished_run, metrics

HOSTILE = "<script>alert(1)</script>\"'&$\\frac$ 🍎 \N{RIGHT-TO-LEFT OVERRIDE}قط"


class Page(HTMLParser):
    """Checks that every element is closed where it should be, and takes the page apart."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def of(self, tag: str) -> list[str]:
        return [text for inside, text in self.texts if inside == tag]

    def count(self, tag: str) -> int:
        return sum(inside == tag for inside, _ in self.elements)


def page_of(folder: Path) -> Page:
    text = write_report(folder).read_text(encoding="utf-8")
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    # One file: no scripts, and nothing fetched from anywhere.
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/"))
    assert "http:" not in text
    assert "https:" not in text
    return page


def test_a_run_is_a_page(tmp_path: Path) -> None:
    page = page_of(finished_run(tmp_path, metrics()))
    assert page.of("h2") == [
        "Seen images",
        "Held-out images",
        "Audit: asked in other ways",
        "Loss terms",
        "Settings",
    ]
    assert "meru<b>" in page.of("bdi")
    assert "Forget food & drink" in page.of("bdi")
    assert page.of("td")[:8] == ["%", "90.0", "0.0", "-90.0", "80.0", "75.0", "-5.0", "chance 1.00"]
    assert "by keywords (recall@1) is measured on seen images." in page.of("p")
    assert page.count("svg") == 4  # bars of three tables, and the curves
    assert "2 steps: a_loss from 1 to 1; b_loss from 2 to 0.5." in page.of("desc")


def test_tables_can_be_read_aloud_and_scroll_in_their_own_box(tmp_path: Path) -> None:
    page = page_of(finished_run(tmp_path, metrics()))
    heads = [attributes for tag, attributes in page.elements if tag == "th"]
    assert {attributes.get("scope") for attributes in heads} == {"row", "col", "colgroup"}
    boxes = [attributes for tag, attributes in page.elements if attributes.get("class") == "scroll"]
    assert len(boxes) == page.count("table") + page.count("figure")
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in boxes)


def test_the_same_run_makes_the_same_page(tmp_path: Path) -> None:
    run = finished_run(tmp_path, metrics())
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_nothing_from_outside_is_markup(tmp_path: Path) -> None:
    levels = (HOSTILE, "b")
    hostile = metrics(
        levels=levels,
        method=HOSTILE,
        model=HOSTILE,
        data=HOSTILE,
        forget=[HOSTILE],
        settings={HOSTILE: HOSTILE},
    )
    hostile["unmet"] = {HOSTILE: HOSTILE}
    run = finished_run(tmp_path, hostile, [{f"{HOSTILE}_loss": 1.0}])
    page = page_of(run)
    assert f"recall@1 ({HOSTILE})" in page.of("bdi")
    assert f"recall@1 ({HOSTILE})" in page.of("text")
    assert page.of("b") == [HOSTILE]
    assert HOSTILE in page.of("td")


def test_a_text_that_is_no_text_is_shown_as_what_it_is(tmp_path: Path) -> None:
    page = page_of(finished_run(tmp_path, metrics(model="\ud800")))
    assert "\\ud800" in page.of("bdi")


@pytest.mark.parametrize("history", [None, []])
def test_a_method_that_takes_no_steps_has_no_curves(
    history: list[dict[str, Any]] | None, tmp_path: Path
) -> None:
    page = page_of(finished_run(tmp_path, metrics(steps=0, settings={}), history))
    assert page.of("h2")[-1] == "Audit: asked in other ways"


def test_what_could_not_be_measured_is_listed_with_the_reason(tmp_path: Path) -> None:
    page = page_of(finished_run(tmp_path, metrics(heldout=False, levels=("class",))))
    assert "Held-out images" not in page.of("h2")
    assert "Not measured" in page.of("h2")
    assert page.of("li") == [": it needs held-out images"]
    assert page.of("b") == ["Asked by image prototypes, %"]


class Owls(Measure):
    name = "owls"
    title = "How many owls"
    reading = "The more the better."

    def compute(self, subject: Any, references: Any, seed: int = 0) -> Any:
        return {"owls": 3}

    def rows(self, value: Any) -> dict[str, str]:
        return {"owls": str(value["owls"])}


class DrawnOwls(Owls):
    name = "drawn_owls"

    def figure(self, values: Mapping[str, Any]) -> Figure:
        figure = Figure(figsize=(2, 1))
        figure.text(0, 0, "/".join(values))
        return figure


@pytest.fixture
def owls(monkeypatch: pytest.MonkeyPatch) -> None:
    list(MEASURES)  # loads ours, so that what is added here can be taken away
    for kind in (Owls, DrawnOwls):
        monkeypatch.setitem(MEASURES._entries, kind.name, kind)


@pytest.mark.usefixtures("owls")
def test_a_third_party_s_measure_is_shown_like_ours(tmp_path: Path) -> None:
    names = ("owls", "drawn_owls")
    full = {
        **{name: {"before": {"owls": 3}, "after": {"owls": 2}} for name in names},
        "on": dict.fromkeys(names, "seen images"),
        "neighbours": ["bird"],
        "unmet": {},
    }
    report = {"model": "m", "data": "d", "forgotten": ["owl"], **evaluation(0.9, 0.8), "full_audit": full}
    (tmp_path / "audit.json").write_text(json.dumps(report))
    page = page_of(tmp_path)
    assert page.of("h2") == ["How many owls"] * 2
    assert page.of("p") == ["Measured on seen images.", "The more the better."] * 2
    assert page.of("td") == ["3", "2"] * 2
    assert page.of("text") == ["before/after"]
    assert "bird" in page.of("bdi")


def test_a_measure_of_another_program_is_shown_as_it_was_written(tmp_path: Path) -> None:
    full = {"mine": {"after": {"owls": [3]}}, "on": {"mine": "owls"}, "neighbours": [], "unmet": {}}
    report = {"model": "m", "data": "d", "forgotten": ["owl"], **evaluation(0.9, 0.8), "full_audit": full}
    (tmp_path / "audit.json").write_text(json.dumps(report))
    page = page_of(tmp_path)
    assert page.of("h2") == ["mine"]
    assert page.of("p")[1].startswith("No measure of this name is registered here")
    assert page.of("td") == ["3"]


@pytest.fixture(scope="module", params=["MERU", "CLIP"])
def audited(request: pytest.FixtureRequest, world: Dataset) -> dict[str, Any]:
    model = make_model(request.param)
    quick = Relearning(steps=(1, 2), rates=(1e-3,))
    measures = [quick if name == "relearning" else name for name in list_measures()]
    report = evaluate(
        model, world, forget="food-fruit", audit="full", before=model, oracle=model, measures=measures
    )
    return {"model": "a<b>", "data": "world", "forgotten": ["food-fruit"], **json.loads(json.dumps(report))}


def test_the_tables_hold_the_figures_of_every_model(audited: dict[str, Any]) -> None:
    full = audited["full_audit"]
    tables = {asked.name: asked.table for asked in audit_tables(full)}
    assert ("hierarchy" in tables) == (full["hierarchy"]["after"] is not None)
    heads = ("before", "after", "retrained")
    assert all(table.heads in (heads, heads[1:]) for table in tables.values())
    knows = {row.label: row.cells for row in tables["zero_shot"].rows}
    recall = full["zero_shot"]["after"]["heldout"]["retain"]["recall_at_1"]
    cells = knows[f"retain: {LEVELS[0]}, held out"]
    assert cells == cells[:1] * 3
    assert cells[0].startswith(f"{100 * recall:.1f} [")
    assert cells[0].endswith(" of 5")
    members = {row.label: row.cells for row in tables["membership"].rows}
    low, middle, high = (full["membership"]["before"]["confidence"]["auc"][i] for i in (1, 0, 2))
    assert members["confidence: AUC"][0] == f"{middle:.2f} [{low:.2f}, {high:.2f}] of 6 against 3"
    # The ratio to the oracle is not taken of the oracle.
    assert members["likelihood ratio: AUC"][2] == "–"


def test_the_terminal_shows_the_tables(audited: dict[str, Any]) -> None:
    text = evaluation_table(audited)
    assert text.splitlines()[0] == "a<b>; forget means food-fruit; neighbours are drink"
    line = next(line for line in text.splitlines() if line.startswith("linear probe: recall"))
    recall = 100 * audited["full_audit"]["recovery"]["after"]["linear_probe"]["recall"]
    assert line.count(f"{recall:.1f} [") == 3
    assert text.splitlines()[1] == audited["full_audit"]["verdict"]["sentence"]


def test_a_run_and_its_audit_are_one_page(audited: dict[str, Any], tmp_path: Path) -> None:
    run = finished_run(tmp_path, metrics(), HISTORY)
    assert "Membership inference" not in page_of(run).of("h2")
    (run / "audit.json").write_text(json.dumps(audited))
    page = page_of(run)
    assert {"Membership inference", "Loss terms", "Seen images"} <= set(page.of("h2"))
    assert page.of("h2")[0] == "Hidden, or gone?"
    assert "drink" in page.of("bdi")


def test_an_audit_alone_is_a_page_too(audited: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "audit.json").write_text(json.dumps(audited))
    page = page_of(tmp_path)
    assert {"Audit: food-fruit", "a<b>"} <= set(page.of("bdi"))
    assert page.of("h2")[0] == "Hidden, or gone?"
    assert audited["full_audit"]["verdict"]["sentence"] in page.of("p")
    assert "Loss terms" not in page.of("h2")


def test_a_folder_without_a_finished_run_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished run: expected metrics"):
        write_report(tmp_path)


@pytest.mark.parametrize("name", ["metrics.json", "history.jsonl"])
@pytest.mark.parametrize("content", [b"{", b"\xff"])
def test_a_damaged_file_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    run = finished_run(tmp_path, metrics())
    (run / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        write_report(run)
    assert not (run / "report.html").exists()
