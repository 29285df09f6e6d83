"""The HTML page of a run: what was asked, before and after, and how the loss went.

The page is one file without scripts or links to anything else, so that it can be mailed and kept.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from riemann_unlearn._version import __version__
from riemann_unlearn.io import atomic_write
from riemann_unlearn.report.audit_page import AUDIT_STYLE, audit_sections
from riemann_unlearn.report.tables import metric_rows
from riemann_unlearn.unlearning.loop import HISTORY_NAME, METRICS_NAME

REPORT_NAME = "report.html"
AUDIT_NAME = "audit.json"
"""A full evaluation, as ``riemann-unlearn evaluate --audit full --output DIR`` writes it."""

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #1c2430; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #d8dee6; }
th:first-child, td:first-child { text-align: left; }
svg.bar { display: block; width: 7rem; height: .9rem; margin-left: auto; }
.before { fill: #b8c2cf; } .after { fill: #2563a8; } .chance { stroke: #c2410c; stroke-width: 1.5; }
polyline { fill: none; stroke-width: 1.5; } figcaption, .note { color: #586474; font-size: .9rem; }
figure { margin: 0 0 1.5rem; } .legend span { margin-right: 1.2rem; white-space: nowrap; }
"""
_COLOURS = ("#2563a8", "#c2410c", "#15803d", "#7e22ce", "#b8860b", "#0e7490", "#be185d", "#4d5561")


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` for the finished run or the audit in ``folder``, atomically.

    Parameters
    ----------
    folder : str or Path
        A run directory with ``metrics.json`` and ``history.jsonl``; or a folder with ``audit.json``; or one
        with all of them.

    Returns
    -------
    Path
        The file that was written.

    Raises
    ------
    ValueError
        When ``folder`` holds neither a finished run nor an audit.
    """
    metrics, history, audit = (Path(folder) / name for name in (METRICS_NAME, HISTORY_NAME, AUDIT_NAME))
    finished = metrics.is_file() and history.is_file()
    if not finished and not audit.is_file():
        raise ValueError(
            f"{folder} holds no finished run: expected {METRICS_NAME} and {HISTORY_NAME}, or {AUDIT_NAME}"
        )
    audited = json.loads(audit.read_text(encoding="utf-8")) if audit.is_file() else None
    sections = "" if audited is None else audit_sections(audited["full_audit"])
    if finished:
        records = [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]
        page = _run_page(json.loads(metrics.read_text(encoding="utf-8")), records, sections)
    else:
        page = _audit_page(audited, sections)
    path = Path(folder) / REPORT_NAME
    atomic_write(path, page)
    return path


def _audit_page(audited: Any, sections: str) -> str:
    forgotten = ", ".join(audited["forgotten"])
    body = (
        f"<p><b>{escape(audited['model'])}</b> on <b>{escape(audited['data'])}</b>; "
        f"riemann_unlearn {__version__}.</p>{sections}"
    )
    return _html(f"Audit: {forgotten}", body)


def _run_page(metrics: dict[str, Any], history: list[dict[str, Any]], sections: str) -> str:
    title = f"Forget {', '.join(metrics['forget'])}"
    tables = "".join(
        f"<h2>{escape(split.capitalize())}</h2>{_table(rows)}" for split, rows in metric_rows(metrics).items()
    )
    settings = "".join(
        f"<tr><td>{escape(name)}</td><td>{value:g}</td></tr>" for name, value in metrics["settings"].items()
    )
    body = f"""<p>Method <b>{escape(metrics["method"])}</b> on <b>{escape(metrics["model"])}</b>, data
<b>{escape(metrics["data"])}</b>; seed {metrics["seed"]}, {metrics["steps"]} steps,
{metrics["seconds"]:.0f} s; riemann_unlearn {__version__}.</p>
<p class="note">Each bar shows before (grey) and after (blue); the line marks chance. What is
forgotten should fall to chance at the level that was asked for; everything else should stay.</p>
{tables}{sections}
<h2>Loss terms</h2>{_curves(history)}
<h2>Settings</h2><table><tr><th>setting</th><th>value</th></tr>{settings}</table>
"""
    return _html(title, body)


def _html(title: str, body: str) -> str:
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<meta name="viewport" content="width=device-width"><style>{_STYLE}{AUDIT_STYLE}</style></head><body>
<h1>{escape(title)}</h1>
{body}</body></html>
"""


def _table(rows: list[tuple[str, tuple[Any, Any], tuple[Any, Any], float]]) -> str:
    head = "<tr><th></th>" + "".join(
        f"<th>{group} before</th><th>after</th><th></th>" for group in ("forget", "retain")
    )
    body = "".join(
        f"<tr><td>{escape(label)}</td>{_cells(*forget, chance)}{_cells(*retain, chance)}</tr>"
        for label, forget, retain, chance in rows
    )
    return f"<table>{head}</tr>{body}</table>"


def _cells(before: float | None, after: float | None, chance: float) -> str:
    if before is None or after is None:
        return "<td>–</td><td>–</td><td></td>"
    bar = (
        '<svg class="bar" viewBox="0 0 100 12" preserveAspectRatio="none">'
        f'<rect class="before" y="0" height="5" width="{100 * before:.1f}"/>'
        f'<rect class="after" y="6" height="5" width="{100 * after:.1f}"/>'
        f'<line class="chance" x1="{100 * chance:.1f}" x2="{100 * chance:.1f}" y2="12"/></svg>'
    )
    return f"<td>{100 * before:.1f} %</td><td>{100 * after:.1f} %</td><td>{bar}</td>"


def _curves(history: list[dict[str, Any]]) -> str:
    """Every loss term against the step, as one inline SVG."""
    names = [name for name in history[0] if name.endswith("_loss")]
    values = [record[name] for record in history for name in names]
    low, high = min(values), max(values)
    span, last = (high - low) or 1.0, max(1, len(history) - 1)

    def points(name: str) -> str:
        return " ".join(
            f"{50 + 640 * i / last:.1f},{210 - 200 * (record[name] - low) / span:.1f}"
            for i, record in enumerate(history)
        )

    lines = "".join(
        f'<polyline stroke="{colour}" points="{points(name)}"/>'
        for name, colour in zip(names, _COLOURS * len(names), strict=False)
    )
    legend = "".join(
        f'<span style="color:{colour}">■ {escape(name.removesuffix("_loss").replace("_", " "))}</span>'
        for name, colour in zip(names, _COLOURS * len(names), strict=False)
    )
    return (
        f'<figure><svg viewBox="0 0 700 235" role="img" aria-label="loss terms against the step">'
        f'<g font-size="11" fill="#586474"><text x="2" y="16">{high:.3g}</text>'
        f'<text x="2" y="212">{low:.3g}</text><text x="50" y="230">step 1</text>'
        f'<text x="690" y="230" text-anchor="end">step {len(history)}</text></g>'
        f'<path d="M50 10V210H690" fill="none" stroke="#b8c2cf"/>{lines}</svg>'
        f'<figcaption class="legend">{legend}</figcaption></figure>'
    )
