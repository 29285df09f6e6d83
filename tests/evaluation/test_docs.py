from __future__ import annotations

from pathlib import Path

from riemann_unlearn.evaluation.measures.relearning import Relearning
from riemann_unlearn.report.tables import measures_table

AUDIT = Path(__file__).parents[2] / "docs" / "audit.md"


def test_the_table_of_measures_is_that_of_the_registry() -> None:
    assert measures_table() in AUDIT.read_text(encoding="utf-8")


def test_the_attack_is_told_as_it_is_made() -> None:
    text, attack = AUDIT.read_text(encoding="utf-8"), Relearning()
    assert attack.learning_rate == 2e-4
    assert "2·10⁻⁴" in text
    assert attack.steps == (2, 5, 10)
    assert attack.shots == (1, 2, 4, 8, 16)
    assert "n = 1, 2, 4, 8, 16" in " ".join(text.split())
