"""The HTML page of a run or of an audit: what was asked, before and after, and how the loss went.

The page is one file without scripts or links to anything else, so that it can be mailed and kept. It is
made of what the folder holds and of nothing else. How it looks is in ``templates/``; here is what it says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import starmap
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from riemann_unlearn._version import __version__
from riemann_unlearn.evaluation.verdict import READING
from riemann_unlearn.io import atomic_write
from riemann_unlearn.report.figures import before_after_bars, drawing, figure_svg, loss_curves, loss_ends
from riemann_unlearn.report.tables import (
    Asked,
    Measured,
    audit_tables,
    measured,
    not_measured,
    run_table,
    verdict_text,
)
from riemann_unlearn.report.text import Row, Table
from riemann_unlearn.runs import HISTORY_NAME, METRICS_NAME

REPORT_NAME = "report.html"
AUDIT_NAME = "audit.json"
"""A full evaluation, as ``riemann-unlearn evaluate --audit full --output DIR`` writes it."""

_READING = (
    "What is forgotten should fall to chance at the level that was asked for; everything else should stay."
)


@dataclass(frozen=True)
class Section:
    """A part of the page, each of whose own parts may be missing."""

    title: str
    on: str = ""
    """The images that it is measured on."""
    texts: tuple[str, ...] = ()
    table: Table | None = None
    svg: Markup | None = None
    caption: str = ""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why something was not measured, by its title."""
    paper: str = ""


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` for the finished run or the audit in ``folder``, atomically.

    Parameters
    ----------
    folder : str or Path
        A run directory with ``metrics.json`` and, if the method takes steps, ``history.jsonl``; or a folder
        with ``audit.json``; or one with all of them.

    Returns
    -------
    Path
        The file that was written.

    Raises
    ------
    ValueError
        When ``folder`` holds neither a finished run nor an audit, or one of them cannot be read.
    """
    folder = Path(folder)
    metrics, audit = (_read(folder / name) for name in (METRICS_NAME, AUDIT_NAME))
    if metrics is None and audit is None:
        raise ValueError(
            f"{folder} holds no finished run: expected {METRICS_NAME}, or {AUDIT_NAME} of an audit"
        )
    history = _read(folder / HISTORY_NAME, lines=True) or []
    # Measures draw with matplotlib's settings of that moment, so the whole page is made in here.
    with drawing():
        page = _audit_page(audit) if metrics is None else _run_page(metrics, history, audit)
    path = folder / REPORT_NAME
    # A lone surrogate, which JSON can write and UTF-8 cannot, is shown as what it is.
    atomic_write(path, page.encode("utf-8", "backslashreplace"))
    return path


def _read(path: Path, *, lines: bool = False) -> Any:
    """The JSON in a file, or of each of its lines; None without the file."""
    if not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    except ValueError as error:  # of the encoding, or of JSON
        raise ValueError(
            f"{path} cannot be read ({error}); it should be as it was written by a run"
        ) from None


def _run_page(
    metrics: Mapping[str, Any], history: list[dict[str, Any]], audit: Mapping[str, Any] | None
) -> str:
    facts = {
        "method": metrics["method"],
        "model": metrics["model"],
        "data": metrics["data"],
        "seed": metrics["seed"],
        "steps": metrics["steps"],
        "seconds": f"{metrics['seconds']:.0f}",
        **(_neighbours(audit) if audit is not None else {}),
    }
    # The verdict first: it is what the rest bears out.
    sections = [] if audit is None else _verdict(audit)
    sections += [
        _split(number, title, rows) for number, (title, rows) in enumerate(measured(metrics).items())
    ]
    if audit is None:
        # With an audit its own list stands instead, which has the quick measures' reasons too.
        sections += _unmeasured(not_measured(metrics["unmet"]))
    else:
        sections += _audit(audit)
    sections += [*_loss(history), *_settings(metrics["settings"])]
    return _html(f"Forget {', '.join(metrics['forget'])}", facts, sections)


def _audit_page(audit: Mapping[str, Any]) -> str:
    facts = {"model": audit["model"], "data": audit["data"], **_neighbours(audit)}
    return _html(f"Audit: {', '.join(audit['forgotten'])}", facts, [*_verdict(audit), *_audit(audit)])


def _neighbours(audit: Mapping[str, Any]) -> dict[str, str]:
    """What "neighbours" in the tables of an audit means."""
    return {"neighbours": ", ".join(audit["full_audit"]["neighbours"]) or "none"}


def _split(number: int, title: str, rows: list[Measured]) -> Section:
    """Before and after of one part of the data, or of the short audit."""
    table = run_table(title, rows)
    name = f"bars-{number}"
    described = f"Bars of the table above: before in grey, after in blue; {len(rows)} measures."
    svg = _svg(before_after_bars(rows), name, f"{title}: before and after", described)
    # How to read them stands once, above the first table.
    texts = [_READING] if number == 0 else []
    texts += [f"{row.label} is measured on {row.on}." for row in rows if row.on]
    return Section(title.capitalize(), texts=tuple(texts), table=table, svg=svg)


def _verdict(report: Mapping[str, Any]) -> list[Section]:
    """Whether it is hidden or gone, in a sentence."""
    sentence = verdict_text(report["full_audit"])
    return [Section("Hidden, or gone?", texts=(sentence, READING))] if sentence else []


def _audit(report: Mapping[str, Any]) -> list[Section]:
    full = report["full_audit"]
    return [*starmap(_asked, enumerate(audit_tables(full))), *_unmeasured(not_measured(report["unmet"]))]


def _asked(number: int, asked: Asked) -> Section:
    """A measure's table, and its figure where it draws one."""
    if asked.measure is None:
        texts: tuple[str, ...] = (
            "No measure of this name is registered here; these are the values as they were written.",
        )
        return Section(asked.table.title, asked.on, texts, asked.table)
    measure = asked.measure
    figure = measure.figure(asked.values)
    return Section(
        measure.title,
        asked.on,
        (measure.reading,),
        asked.table,
        None if figure is None else _svg(figure, f"measure-{number}", measure.title, measure.reading),
        paper=measure.paper,
    )


def _unmeasured(reasons: Mapping[str, str]) -> list[Section]:
    return [Section("Not measured", reasons=reasons)] if reasons else []


def _loss(history: list[dict[str, Any]]) -> list[Section]:
    """The curves of the loss terms; nothing for a method that takes no steps."""
    figure = loss_curves(history)
    if figure is None:
        return []
    ends = "; ".join(
        f"{name} from {first:.3g} to {last:.3g}" for name, (first, last) in loss_ends(history).items()
    )
    title = "Loss terms"
    return [Section(title, svg=_svg(figure, "loss", title, f"{len(history)} steps: {ends}."))]


def _settings(settings: Mapping[str, Any]) -> list[Section]:
    rows = tuple(
        # Booleans are numbers to Python, not to a reader.
        Row(name, (f"{value:g}" if isinstance(value, float) else str(value),))
        for name, value in settings.items()
    )
    return [Section("Settings", table=Table("Settings", ("value",), rows, corner="setting"))] if rows else []


def _svg(figure: Figure, name: str, title: str, description: str) -> Markup:
    """A figure as markup, which is the only one that the templates take as it is."""
    return Markup(figure_svg(figure, name, title, description))


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("riemann_unlearn.report"),
        autoescape=True,  # of every template, whatever its file is called
        # A name that a template misspells is an error, not a blank.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _html(title: str, facts: Mapping[str, Any], sections: list[Section]) -> str:
    template = _environment().get_template("page.html")
    facts = {**facts, "riemann_unlearn": __version__}
    return template.render(title=title, facts=facts, sections=sections, version=__version__) + "\n"
