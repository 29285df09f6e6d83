"""What is shown of a run, an evaluation and an audit, as tables; for the terminal and for the page alike.

The words of a row come from where its figures do: levels from the data's taxonomy, whose names stand in
what was measured, and everything else from the measures themselves. So data of any number of levels, and a
third party's measure, are shown like ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from riemann_unlearn.evaluation.measures.base import ROLE_NAMES, ROLES, Measure, chosen_measures, percent
from riemann_unlearn.evaluation.subject import HELDOUT, SEEN
from riemann_unlearn.report.text import Row, Table, markdown, tables_text

GROUPS = ("forget", "retain")
_SPLITS = {SEEN: None, HELDOUT: "heldout"}
_ASKED_OTHERWISE = "audit: asked in other ways"
_RUN_WIDTHS = (8, 8, 9) * len(GROUPS)
"""Of before, after and change; the change stands a little apart."""


@dataclass(frozen=True)
class Measured:
    """One measure of a run."""

    label: str
    shares: Mapping[str, tuple[float | None, float | None]]
    """Before and after, by group, each in [0, 1]; None for a group without images."""
    chance: float | None
    """What a guess scores, where that is known."""
    on: str = ""
    """The images it was measured on, where the table's title does not say it."""
    images: Mapping[str, int | None] = field(default_factory=dict)
    """By group, how many images the shares are of, where that is known."""


@dataclass(frozen=True)
class Asked:
    """One measure of a full audit, of every model it could be measured of."""

    name: str
    table: Table
    on: str
    """The images it was measured on."""
    measure: Measure | None
    """None where no measure of that name is registered here: the audit is of another program."""
    values: Mapping[str, Any]
    """By role."""


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """Before and after of a run, in percent, with the level of chance.

    Parameters
    ----------
    metrics : mapping
        As in :class:`riemann_unlearn.unlearning.UnlearningResult`.

    Returns
    -------
    str
        One line a measure, for forget and retain, for every split; then what was not measured, and why.
    """
    steps = f"{metrics['steps']} steps, " if metrics["steps"] else ""
    head = (
        f"{metrics['method']} on {metrics['model']}: forget {', '.join(metrics['forget'])} "
        f"(seed {metrics['seed']}, {steps}{metrics['seconds']:.0f} s)"
    )
    tables = [run_table(title, rows) for title, rows in measured(metrics).items()]
    return _text(head, tables, _places(metrics["on"]), not_measured(metrics["unmet"]))


def evaluation_table(report: Mapping[str, Any]) -> str:
    """One evaluation, in percent, and the tables of its full audit where it has one.

    Parameters
    ----------
    report : mapping
        As :func:`riemann_unlearn.evaluate` returns it, with ``model`` and ``forgotten`` added.
    """
    head = f"{report['model']}; forget means {', '.join(report['forgotten'])}"
    # One model is a run that changed nothing, of which only one side is shown.
    twice = {"before": report["audit"], "after": report["audit"]}
    once = measured({"before": report, "after": report, "audit": twice})
    tables = [
        Table(
            title,
            GROUPS,
            tuple(
                Row(
                    one.label, tuple(percent(one.shares[group][0], one.images.get(group)) for group in GROUPS)
                )
                for one in rows
            ),
        )
        for title, rows in once.items()
    ]
    places = _places(report["on"])
    said = ""
    if "full_audit" in report:
        said = verdict_text(report["full_audit"])
        head += f"; neighbours are {', '.join(report['full_audit']['neighbours']) or 'none'}"
        audit = audit_tables(report["full_audit"])
        tables += [asked.table for asked in audit]
        places |= {asked.table.title: asked.on for asked in audit}
    return _text("\n".join(filter(None, (head, said))), tables, places, not_measured(report["unmet"]))


def measured(metrics: Mapping[str, Any]) -> dict[str, list[Measured]]:
    """What was measured in a run before and after, under the title of each table.

    Parameters
    ----------
    metrics : mapping
        As in ``metrics.json``. Its names of levels decide what rows there are.
    """
    before, after, chance = metrics["before"], metrics["after"], metrics.get("chance", {})
    result = {}
    for title, split in _SPLITS.items():
        # Groups of the seen images stand at the top of a measurement, those of the held-out under a name.
        first, last = (part if split is None else part.get(split) for part in (before, after))
        if first is None or last is None:
            continue
        result[title] = [
            Measured(
                label,
                {group: (_at(first[group], path), _at(last[group], path)) for group in GROUPS},
                _at(chance, path) if chance else None,
                # Beside the share, in the figures of its level.
                images={group: _at(first[group], path[:-1]).get("images") for group in GROUPS},
            )
            for label, path in _zero_shot_rows(first[GROUPS[0]])
        ]
    first, last = metrics["audit"]["before"], metrics["audit"]["after"]
    asked = [
        Measured(
            _called(name),
            {group: (first[name][group], last[name][group]) for group in GROUPS},
            chance.get(name),
            metrics.get("on", {}).get(name, ""),
            # A third party's measure need not say.
            first[name].get("images", {}),
        )
        for name in first
        if name in last
    ]
    return result | ({_ASKED_OTHERWISE: asked} if asked else {})


def run_table(title: str, rows: Sequence[Measured]) -> Table:
    """Before, after and change of each group in percent, and the level of chance.

    Parameters
    ----------
    title : str
    rows : sequence of Measured
    """
    lines = []
    for row in rows:
        cells = []
        for group in GROUPS:
            before, after = row.shares[group]
            # Of the shares, not of the rounded figures beside it: the last digit may differ from theirs.
            change = "–" if before is None or after is None else f"{100 * (after - before):+.1f}"
            cells += [percent(before), percent(after), change]
        remark = "" if row.chance is None else f"chance {100 * row.chance:.2f}"
        lines.append(Row(row.label, tuple(cells), remark))
    heads = ("before", "after", "change") * len(GROUPS)
    return Table(title, heads, tuple(lines), spans=GROUPS, corner="%", widths=_RUN_WIDTHS)


def audit_tables(full: Mapping[str, Any]) -> list[Asked]:
    """The tables of a full audit, one column a model.

    Parameters
    ----------
    full : mapping
        As :func:`riemann_unlearn.evaluate` returns it under ``full_audit``.

    Returns
    -------
    list of Asked
        Without the measures that could not be made of any model; :func:`not_measured` has them. A measure
        that is not registered here, a third party's read back from a file, is shown as it was written.

    Raises
    ------
    ValueError
        For an audit that an older version wrote.
    """
    known = chosen_measures()
    result = []
    for name, of_roles in full.items():
        # Measures are told from the other keys by their form, not by name: a third party's has any name.
        if not isinstance(of_roles, Mapping) or not set(of_roles) <= set(ROLES):
            continue  # what is said of all measures, such as the seconds that each took
        values = {role: of_roles[role] for role in ROLES if of_roles.get(role) is not None}
        measure = known.get(name)
        try:
            columns = {
                role: _written(value) if measure is None else measure.rows(value)
                for role, value in values.items()
            }
        except KeyError as missing:
            raise ValueError(
                f"what the audit holds of {name!r} lacks {missing}: an older version wrote it; make the "
                "audit again"
            ) from None
        # What no model has a figure for is no row.
        # A dict for a set that keeps its order: a row stands where the first model that has it puts it.
        labels = dict.fromkeys(
            label for rows in columns.values() for label, cell in rows.items() if cell != "–"
        )
        rows = tuple(Row(label, tuple(rows.get(label, "–") for rows in columns.values())) for label in labels)
        if rows:
            title = name if measure is None else measure.title
            table = Table(title, tuple(ROLE_NAMES[role] for role in values), rows)
            result.append(Asked(name, table, full["on"].get(name, ""), measure, values))
    return result


def verdict_text(full: Mapping[str, Any]) -> str:
    """What a full audit comes to, in a sentence; "" where it cannot be said at all."""
    # An audit that an older version wrote has none.
    reached = full.get("verdict")
    return "" if reached is None else str(reached["sentence"])


def not_measured(unmet: Mapping[str, str]) -> dict[str, str]:
    """What could not be measured, by its title, and why.

    Parameters
    ----------
    unmet : mapping
        Reasons by the measure's name, as an evaluation has them.
    """
    known = chosen_measures()
    return {known[name].title if name in known else name: reason for name, reason in unmet.items()}


def measures_table() -> str:
    """All registered measures as a Markdown table; ``docs/audit.md`` holds it."""
    rows = []
    for measure in chosen_measures().values():
        paper = re.sub(r"arXiv (\d+\.\d+)", r"[\1](https://arxiv.org/abs/\1)", measure.paper)
        words = (measure.title, measure.range, measure.guess or "–", measure.reading, paper or "–")
        rows.append((f"`{measure.name}`", *words))
    heads = ("measure", "asks", "range", "a guess scores", "how to read it", "after")
    return markdown(heads, rows) + "\n"


def _zero_shot_rows(shares: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
    """The rows that a group's zero-shot measures make: the label, and where the share is.

    First the level above the most specific, which most concepts are asked for at; then the most specific, in
    two strengths; then what is more general.
    """
    if "levels" not in shares:
        raise ValueError("the metrics name no levels: an older version wrote them; make the run again")
    first, *above = shares["levels"]
    own = [
        (f"recall@1 ({first})", ("levels", first, "accuracy")),
        (f"recall@5 ({first})", ("levels", first, "recall_at_5")),
    ]
    over = [(f"accuracy ({level})", ("levels", level, "accuracy")) for level in above]
    return [*over[:1], *own, *over[1:]]


def _at(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        value = value[key]
    return value


def _written(value: Any) -> dict[str, str]:
    """Rows of a value of an unknown measure: each number or text, under the keys that lead to it."""
    if isinstance(value, Mapping):
        parts = {name: _written(part) for name, part in value.items()}
        return {
            ": ".join(filter(None, (name, label))): cell
            for name, part in parts.items()
            for label, cell in part.items()
        }
    if isinstance(value, list):
        return _written({str(number): part for number, part in enumerate(value, 1)})
    return {"": f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)}


def _places(on: Mapping[str, str]) -> dict[str, str]:
    """What the measures beside zero-shot accuracy were made on, by their rows' labels."""
    return {_called(name): place for name, place in on.items()}


def _called(name: str) -> str:
    """What a measure's row is called beside those of zero-shot accuracy; its name if it is not known here."""
    measure = chosen_measures().get(name)
    return name if measure is None else measure.label or measure.title


def _text(head: str, tables: Sequence[Table], places: Mapping[str, str], unmet: Mapping[str, str]) -> str:
    by_place: dict[str, list[str]] = {}
    for title, place in places.items():
        by_place.setdefault(place, []).append(title)
    lines = [f"\nmeasured on {place}: {'; '.join(titles)}" for place, titles in by_place.items() if place]
    lines += [f"\nnot measured: {title}: {reason}" for title, reason in unmet.items()]
    return "\n".join([head, *([tables_text(tables)] if tables else []), *lines])
