"""Made-up results of runs and evaluations, in the form that they are written in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LEVELS = ("name", "subcategory", "category")


def group(value: float | None, levels: Sequence[str] = LEVELS) -> dict[str, Any]:
    one = {"accuracy": value, "recall_at_5": value}
    aliases = dict.fromkeys(("accuracy", "recall_at_1", "recall_at_5", "parent_accuracy"), value)
    return {**aliases, "levels": {level: dict(one) for level in levels}}


def part(forget: float | None, retain: float | None, levels: Sequence[str] = LEVELS) -> dict[str, Any]:
    groups = {"forget": forget, "retain": retain, "neighbours": retain}
    return {name: group(value, levels) for name, value in groups.items()}


def audit(value: float) -> dict[str, Any]:
    return {name: {"forget": value, "retain": 0.4} for name in ("paraphrase", "prototype")}


def evaluation(
    forget: float, retain: float, *, heldout: bool = True, levels: Sequence[str] = LEVELS
) -> dict[str, Any]:
    """As evaluate gives it; what needs held-out images is unmet without them."""
    made = audit(forget)
    unmet = {}
    if not heldout:
        del made["prototype"]
        unmet["prototype"] = "it needs held-out images"
    return {
        **part(forget, retain, levels),
        **({"heldout": part(None, retain - 0.3, levels)} if heldout else {}),
        "audit": made,
        "on": {"paraphrase": "seen images"},
        "unmet": unmet,
    }


def metrics(*, heldout: bool = True, levels: Sequence[str] = LEVELS, **changes: Any) -> dict[str, Any]:
    before = evaluation(0.9, 0.8, heldout=heldout, levels=levels)
    after = evaluation(0.0, 0.75, heldout=heldout, levels=levels)
    audits = {"before": before.pop("audit"), "after": after.pop("audit")}
    aside = {name: after.pop(name) for name in ("on", "unmet") if before.pop(name) is not None}
    return {
        "method": "hac",
        "model": "meru<b>",
        "data": "emoji",
        "forget": ["food & drink"],
        "seed": 0,
        "steps": 2,
        "seconds": 3.2,
        "settings": {"alpha": 1.0},
        "chance": {**group(0.01, levels), "paraphrase": 0.02, "prototype": None},
        "before": before,
        "after": after,
        "audit": audits,
        **aside,
        **changes,
    }


HISTORY = [
    {"step": 1, "loss": 3.0, "a_loss": 1.0, "b_loss": 2.0},
    {"step": 2, "loss": 1.5, "a_loss": 1.0, "b_loss": 0.5},
]


def finished_run(
    folder: Path, metrics: dict[str, Any], history: Sequence[dict[str, Any]] | None = HISTORY
) -> Path:
    (folder / "metrics.json").write_text(json.dumps(metrics))
    if history is not None:
        (folder / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in history))
    return folder
