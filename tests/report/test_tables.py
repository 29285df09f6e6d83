from __future__ import annotations

from typing import Any

import pytest

from riemann_unlearn.report import evaluation_table, metrics_table
from riemann_unlearn.report.tables import audit_tables, measured
from tests.report.results import audit, evaluation, metrics


def row(table: str, label: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(label))
    return line.removeprefix(label).split()


def labels(table: str, title: str) -> list[str]:
    lines = table.split(title)[1].split("\n\n")[0].splitlines()[2:]
    return [line.split("  ")[0] for line in lines]


def test_the_table_shows_before_after_change_and_chance() -> None:
    table = metrics_table(metrics())
    assert table.splitlines()[0] == "hac on meru<b>: forget food & drink (seed 0, 2 steps, 3 s)"
    values = ["90.0", "0.0", "-90.0", "80.0", "75.0", "-5.0", "chance", "1.00"]
    assert row(table, "accuracy (subcategory)") == values
    held_out = table.split("held-out images")[1]
    assert row(held_out, "recall@1 (name)")[:3] == ["–", "–", "–"]
    by_keywords = row(table, "by keywords (recall@1)")
    assert by_keywords == ["90.0", "0.0", "-90.0", "40.0", "40.0", "+0.0", "chance", "2.00"]
    # What a guess scores is not known of everything.
    assert row(table, "by image prototypes (accuracy)")[-1] == "+0.0"
    assert "not measured" not in table


def test_a_run_is_laid_out_as_the_readme_has_it() -> None:
    lines = metrics_table(metrics()).splitlines()
    assert lines[2] == "seen images                             forget                   retain"
    assert lines[3] == "%                                before   after   change  before   after   change"
    assert lines[4] == (
        "accuracy (subcategory)             90.0     0.0    -90.0    80.0    75.0     -5.0   chance 1.00"
    )


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (("class",), ["recall@1 (class)", "recall@5 (class)"]),
        (("name", "kind"), ["accuracy (kind)", "recall@1 (name)", "recall@5 (name)"]),
        (
            ("name", "subcategory", "category"),
            ["accuracy (subcategory)", "recall@1 (name)", "recall@5 (name)", "accuracy (category)"],
        ),
        (
            ("species", "genus", "family", "order"),
            [
                "accuracy (genus)",
                "recall@1 (species)",
                "recall@5 (species)",
                "accuracy (family)",
                "accuracy (order)",
            ],
        ),
    ],
)
def test_the_rows_are_the_levels_of_the_data(levels: tuple[str, ...], expected: list[str]) -> None:
    assert labels(metrics_table(metrics(levels=levels)), "seen images") == expected


def test_what_could_not_be_measured_is_listed_with_the_reason() -> None:
    table = metrics_table(metrics(heldout=False))
    assert "held-out images  " not in table
    assert "by image prototypes" not in table.replace("Asked by image prototypes", "")
    assert table.splitlines()[-1] == "not measured: Asked by image prototypes, %: it needs held-out images"


def test_metrics_of_an_older_version_are_refused_in_words() -> None:
    old = metrics()
    del old["before"]["forget"]["levels"]
    with pytest.raises(ValueError, match="an older version wrote them"):
        metrics_table(old)


def test_a_method_without_steps_names_none() -> None:
    assert "(seed 0, 3 s)" in metrics_table(metrics(steps=0))


def test_an_evaluation_is_a_table_too() -> None:
    report = {"model": "m", "forgotten": ["owl"], **evaluation(0.9, 0.8)}
    table = evaluation_table(report)
    assert table.splitlines()[0] == "m; forget means owl"
    assert row(table, "recall@1 (name)") == ["90.0", "80.0"]
    assert row(table, "by image prototypes (accuracy)") == ["90.0", "40.0"]
    # Where it is known of how many images a share is, it says so, and how sure it is.
    sure = {"model": "m", "forgotten": ["owl"], **evaluation(0.9, 0.8)}
    for group, images in (("forget", 20), ("retain", 200)):
        sure[group]["levels"]["name"]["images"] = images
    sure["audit"]["prototype"]["images"] = {"forget": 20, "retain": 200}
    line = next(line for line in evaluation_table(sure).splitlines() if line.startswith("recall@1 (name)"))
    assert "90.0 [69.9, 97.2] of 20  80.0 [73.9, 85.0] of 200" in line
    line = next(line for line in evaluation_table(sure).splitlines() if line.startswith("by image"))
    assert "90.0 [69.9, 97.2] of 20  40.0 [33.5, 46.9] of 200" in line
    alone = evaluation_table({"model": "m", "forgotten": ["owl"], **evaluation(0.9, 0.8, heldout=False)})
    assert "not measured: Asked by image prototypes, %: it needs held-out images" in alone


def test_an_audit_without_quick_measures_has_no_table_of_them() -> None:
    assert list(measured(metrics(audit={"before": {}, "after": {}}))) == ["seen images", "held-out images"]


def test_a_measure_of_another_program_is_shown_as_it_was_written() -> None:
    value = {"share": 0.25, "by": [{"n": 3, "what": "owl"}, {"n": None, "what": True}]}
    full = {
        "mine": {"after": value, "before": None},
        "nothing": {"after": None},
        "on": {"mine": "seen images"},
        "seconds": {"mine": 0.1},
        "neighbours": [],
        "unmet": {"nothing": "it needs nothing"},
    }
    (asked,) = audit_tables(full)
    assert asked.measure is None
    assert (asked.name, asked.on, asked.table.title, asked.table.heads) == (
        "mine",
        "seen images",
        "mine",
        ("after",),
    )
    rows = [(row.label, *row.cells) for row in asked.table.rows]
    assert rows == [("share", "0.25"), ("by: 1: n", "3"), ("by: 1: what", "owl"), ("by: 2: what", "True")]
    report: dict[str, Any] = {"model": "m", "forgotten": ["owl"], **evaluation(0.9, 0.8), "full_audit": full}
    report["unmet"] = full["unmet"]
    table = evaluation_table(report)
    assert table.splitlines()[0] == "m; forget means owl; neighbours are none"
    assert row(table, "by: 1: n") == ["3"]
    assert table.splitlines()[-1] == "not measured: nothing: it needs nothing"


def test_a_quick_measure_of_another_program_is_a_row_too() -> None:
    both = {"before": {"mine": audit(0.5)["prototype"]}, "after": {"mine": audit(0.1)["prototype"]}}
    assert row(metrics_table(metrics(audit=both)), "mine")[:3] == ["50.0", "10.0", "-40.0"]
