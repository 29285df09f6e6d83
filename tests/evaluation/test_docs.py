from __future__ import annotations

from pathlib import Path

from riemann_unlearn.evaluation.measures.relearning import Relearning
from riemann_unlearn.evaluation.verdict import OVER_CHANCE, OVER_ORACLE, SHOTS
from riemann_unlearn.report.tables import measures_table

AUDIT = Path(__file__).parents[2] / "docs" / "audit.md"


def test_the_table_of_measures_is_that_of_the_registry() -> None:
    assert measures_table() in AUDIT.read_text(encoding="utf-8")


def test_the_attack_is_told_as_it_is_made() -> None:
    text, attack = AUDIT.read_text(encoding="utf-8"), Relearning()
    text = " ".join(text.split())
    assert attack.rates == (2e-4, 1e-3, 3e-3)
    assert "2·10⁻⁴, 10⁻³ and 3·10⁻³" in text
    assert attack.steps == (10, 40, 120)
    assert "10, 40 and 120 steps" in text
    assert attack.shots == (0, 1, 4, 16)
    assert "n = 0, 1, 4, 16" in text
    assert attack.frozen == 0.25
    assert "first quarter of its weights" in text


def test_the_verdicts_are_told_as_they_are_given() -> None:
    text = " ".join(AUDIT.read_text(encoding="utf-8").split())
    assert "chance + 1 point" in text
    assert (OVER_CHANCE, OVER_ORACLE, SHOTS) == (0.01, 0.02, (1, 4, 16))
    assert "the oracle's + 2 points" in text
