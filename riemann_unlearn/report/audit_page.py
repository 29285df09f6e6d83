"""The full audit as a part of the HTML page: each family's table with its figures."""

from __future__ import annotations

from html import escape
from typing import Any

from riemann_unlearn.report.audit_tables import ROLE_NAMES, AuditTable, audit_tables
from riemann_unlearn.report.figures import bounds_of, heat_map, radii_chart, shots_chart, traversal_chart

AUDIT_STYLE = """
section { border-top: 2px solid #e5e9ef; margin-top: 2rem; } section p { color: #586474; max-width: 46rem; }
section td:not(:first-child), section th:not(:first-child) { width: 9rem; }
.charts { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 1rem 2rem; margin-top: 1rem; }
@media (max-width: 40rem) { .charts { grid-template-columns: minmax(0, 1fr); } }
.chart { grid-column: span 2; }
.wide { grid-column: 1 / -1; } .axis { fill: #586474; font-size: 11px; }
.grid { stroke: #e5e9ef; fill: none; } path.chance { fill: none; stroke-dasharray: 4 3; }
svg.matrix { border: 1px solid #d8dee6; } svg.matrix image { image-rendering: pixelated; }
svg.matrix path { stroke: #1c2430; stroke-width: .08; }
.walk { display: grid; grid-template-columns: 7rem 1fr; gap: .5rem; margin: .6rem 0; font-size: .85rem; }
.way { display: flex; align-items: center; margin: .15rem 0; } .role { flex: 0 0 5rem; color: var(--role); }
.strip { display: flex; flex: 1; background: #f2f4f7; border-radius: 3px; overflow: hidden; height: 1.5rem; }
.met { border-left: 3px solid var(--role); background: #fff; padding: 0 .3rem; overflow: hidden;
       white-space: nowrap; text-overflow: ellipsis; }
"""


def audit_sections(full: dict[str, Any]) -> str:
    """HTML of a full audit.

    Parameters
    ----------
    full : dict
        As :func:`riemann_unlearn.evaluation.full_audit` returns it.
    """
    return "".join(_section(table, full[table.family]) for table in audit_tables(full))


def _section(table: AuditTable, values: dict[str, Any]) -> str:
    head = "".join(f"<th>{ROLE_NAMES[role]}</th>" for role in table.columns)
    body = "".join(
        f"<tr><td>{escape(label)}</td>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for label, cells in table.rows
    )
    present = {role: value for role, value in values.items() if value is not None}
    figures = _figures(table.family, present)
    charts = f'<div class="charts">{figures}</div>' if figures else ""
    return (
        f"<section><h2>{escape(table.title)}</h2><p>{escape(table.reading)}</p>"
        f"<table><tr><th></th>{head}</tr>{body}</table>{charts}</section>"
    )


def _figures(family: str, values: dict[str, Any]) -> str:
    if family == "recovery":
        few = {role: value["few_shot_prototype"] for role, value in values.items()}
        curves = {role: (value["shots"], value["recall"]) for role, value in few.items() if value["shots"]}
        chance = next(iter(values.values()))["chance"]
        return shots_chart("Recall by few-shot prototypes", curves, chance) if curves else ""
    if family == "relearning":
        curves = {
            role: ([0, *value["shots"]], [value["start"], *value["accuracy"]])
            for role, value in values.items()
        }
        return shots_chart("Accuracy on the forgotten after fine-tuning", curves, None)
    if family == "alignment":
        return _alignment(values)
    if family == "hierarchy":
        return radii_chart({role: value["radii"] for role, value in values.items()}) + traversal_chart(
            {role: value["traversals"] for role, value in values.items()}
        )
    return ""


def _alignment(values: dict[str, Any]) -> str:
    """The alignment matrices on one scale, then the gaps on another."""
    parts = []
    for kind, name in (("matrix", "alignment"), ("gap", "gap since before")):
        matrices = {role: value[kind] for role, value in values.items() if kind in value}
        if matrices:
            bounds = bounds_of(list(matrices.values()))
            parts += [
                heat_map(
                    f"{ROLE_NAMES[role]}: {name}",
                    matrix,
                    values[role]["forgotten"],
                    bounds,
                    signed=kind == "gap",
                )
                for role, matrix in matrices.items()
            ]
    return "".join(parts)
