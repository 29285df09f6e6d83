"""Metrics as plain text tables, for a terminal."""

from __future__ import annotations

from typing import Any

from riemann_unlearn.report.audit_tables import audit_text

MEASURES = {
    "accuracy": "accuracy (subcategory)",
    "recall_at_1": "recall@1 (name)",
    "recall_at_5": "recall@5 (name)",
    "parent_accuracy": "accuracy (category)",
}
"""The measures of :func:`riemann_unlearn.evaluation.zero_shot`, with the level each one asks about."""

_SPLITS = {"seen images": (), "held-out images": ("heldout",)}

_AUDIT = {
    "paraphrase": ("by keywords (recall@1)", "recall_at_1"),
    "prototype": ("by image prototypes (accuracy)", "accuracy"),
}
"""The measures of :func:`riemann_unlearn.evaluation.audit`, and the measure whose chance is theirs."""


def metrics_table(metrics: dict[str, Any]) -> str:
    """Before and after of a run, in percent, with the level of chance.

    Parameters
    ----------
    metrics : dict
        As in :class:`riemann_unlearn.unlearning.UnlearningResult`.

    Returns
    -------
    str
        One line a measure, for forget and retain, for every split.
    """
    lines = [
        f"{metrics['method']} on {metrics['model']}: forget {', '.join(metrics['forget'])} "
        f"(seed {metrics['seed']}, {metrics['steps']} steps, {metrics['seconds']:.0f} s)"
    ]
    for title, rows in metric_rows(metrics).items():
        lines.append(f"\n{title:31}{'forget':^25}{'retain':^25}\n{'%':31}" + 2 * _HEADER)
        for name, forget, retain, chance in rows:
            cells = "".join(f"{_percent(b)}{_percent(a)}{_change(b, a)}" for b, a in (forget, retain))
            lines.append(f"{name:31}{cells}   chance {100 * chance:.2f}")
    return "\n".join(lines)


def metric_rows(
    metrics: dict[str, Any],
) -> dict[str, list[tuple[str, tuple[Any, Any], tuple[Any, Any], float]]]:
    """For each split: (measure, forget (before, after), retain (before, after), chance)."""
    found = {}
    for title, path in _SPLITS.items():
        before, after = metrics["before"], metrics["after"]
        for key in path:
            before, after = before.get(key), after.get(key)
        if before is None:
            continue
        found[title] = [
            (
                label,
                (before["forget"][name], after["forget"][name]),
                (before["retain"][name], after["retain"][name]),
                metrics["chance"][name],
            )
            for name, label in MEASURES.items()
        ]
    before, after = metrics["audit"]["before"], metrics["audit"]["after"]
    found["audit: asked in other ways"] = [
        (
            label,
            (before[name]["forget"], after[name]["forget"]),
            (before[name]["retain"], after[name]["retain"]),
            metrics["chance"][chance],
        )
        for name, (label, chance) in _AUDIT.items()
        if name in before
    ]
    return found


def evaluation_table(report: dict[str, Any]) -> str:
    """One evaluation, in percent.

    Parameters
    ----------
    report : dict
        As :func:`riemann_unlearn.evaluate` returns it, with ``model`` and ``forgotten`` added.
    """
    lines = [f"{report['model']}; forget means {', '.join(report['forgotten'])}"]
    for title, path in _SPLITS.items():
        part = report
        for key in path:
            part = part.get(key, {})
        if not part:
            continue
        lines.append(f"\n{title:31}{'forget':>8}{'retain':>8}")
        for name, label in MEASURES.items():
            cells = _percent(part["forget"][name]) + _percent(part["retain"][name])
            lines.append(f"{label:31}{cells}")
    lines.append(f"\n{'audit: asked in other ways':31}{'forget':>8}{'retain':>8}")
    for name, (label, _) in _AUDIT.items():
        if name in report["audit"]:
            part = report["audit"][name]
            lines.append(f"{label:31}{_percent(part['forget'])}{_percent(part['retain'])}")
    if "full_audit" in report:
        lines.append(audit_text(report["full_audit"]))
    return "\n".join(lines)


_HEADER = f"{'before':>8}{'after':>8}{'change':>9}"


def _percent(value: float | None) -> str:
    return f"{'–':>8}" if value is None else f"{100 * value:8.1f}"


def _change(before: float | None, after: float | None) -> str:
    return f"{'–':>9}" if before is None or after is None else f"{100 * (after - before):+9.1f}"
