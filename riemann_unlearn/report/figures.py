"""Figures for the page: drawn by matplotlib, written as SVG that is a part of the page.

The page is one file, for the screen and for paper, in light and in dark, and two of the same run are the
same to the byte. So a figure is drawn in matplotlib's own style, whatever the reader's ``matplotlibrc``
says; black becomes the page's colour of text; texts stay texts, in the page's font; and the identifiers of
one figure are told from those of the next, which share the page with them.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from riemann_unlearn.report.tables import Measured

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREY, BLUE, ORANGE = "#8a97a8", "#3b7dc4", "#d9541e"
"""Before, after, and chance: of enough contrast on white and on near-black alike."""
_COLOURS = (BLUE, ORANGE, "#2a9d4a", "#a05cd6", "#b8860b", "#0e8fa8", "#d0458b")
_DASHES = ("-", "--", ":", "-.")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # texts stay texts: to be searched, read aloud, and shown in the page's font
    "svg.hashsalt": "riemann_unlearn",  # identifiers that are the same in every run
    "text.parse_math": False,  # a "$" in a name is a dollar
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
_MOST_POINTS = 300
"""Of a curve, about one for two pixels; more make the page heavy and the curve no clearer."""
_REFERENCE = re.compile(r'(?<=url)\(#[^)"]+\)|(?<=href=")#[^"]+')
_NO_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@contextmanager
def drawing() -> Iterator[None]:
    """Matplotlib as the page needs it, and afterwards as it was; figures are made and written inside."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        # It measures texts by its own font; the reader's browser has others for what is not in there.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


def figure_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """An SVG element for a page of HTML; called inside :func:`drawing`.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    name : str
        Begins the identifiers of this figure: letters, digits and hyphens, and unique on the page.
    title, description : str
        What a reader is told who does not see the figure. Any text; it is escaped.

    Returns
    -------
    str
        Without the declarations, metadata and namespaces that only a file of its own needs.
    """
    buffer = io.StringIO()
    # Without the date, which would make every page another.
    figure.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.05, metadata={"Date": None})
    root = ElementTree.fromstring(legible(buffer.getvalue()))
    used = {reference.strip("#()") for reference in _REFERENCE.findall(buffer.getvalue())}
    for parent in root.iter():
        # A list, for removing from what is being gone through would pass over the next one.
        for child in list(parent):
            # Its style sheet would hold for the whole page, which has one of its own.
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(key): _inline(value, name) for key, value in element.attrib.items()}
        # Most identifiers are not referred to, and some of those are not even unique.
        own = element.attrib.pop("id", None)
        if own in used:
            element.attrib["id"] = f"{name}-{own}"
    # Matplotlib's SVG has 72 units to the inch, so that the units of the viewBox are points.
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "width": f"{width:.0f}pt",
        "height": f"{height:.0f}pt",
        "role": "img",
        "aria-labelledby": f"{name}-title",
        "aria-describedby": f"{name}-desc",
        "fill": "currentColor",  # matplotlib leaves out what is black, the default
    }
    # Each is put first, so the title comes to stand before the description, where SVG wants it.
    for tag, text in (("desc", description), ("title", title)):
        child = ElementTree.Element(tag, {"id": f"{name}-{tag}"})
        child.text = legible(text)
        root.insert(0, child)
    return ElementTree.tostring(root, encoding="unicode")


def legible(text: str) -> str:
    """``text`` without the characters that XML cannot hold, or fonts: names come from anyone's data."""
    return _NO_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def _local(name: str) -> str:
    """A tag or attribute without its namespace: in HTML neither SVG nor its references have one."""
    return name.rpartition("}")[2]


def _inline(value: str, name: str) -> str:
    """A value of an attribute: black as the text's colour, references to this figure's own shapes."""
    if value.startswith("#"):
        return f"#{name}-{value[1:]}"
    return value.replace("#000000", "currentColor").replace("url(#", f"url(#{name}-")


def loss_curves(history: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Every loss term against the step; None where there is nothing to draw.

    Parameters
    ----------
    history : sequence of mapping
        One record a step; the terms are what ends in ``_loss``. A term may be missing from some steps.
    """
    from matplotlib.figure import Figure

    names = list(loss_ends(history))
    if not names:
        return None
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    window = math.ceil(len(history) / _MOST_POINTS)
    parts = [history[i : i + window] for i in range(0, len(history), window)]
    for number, name in enumerate(names):
        # Of the steps that have the term; where none has it the mean is NaN, and the line has a gap.
        values = [_mean([record[name] for record in part if name in record]) for part in parts]
        axes.plot(
            # The middle of the steps that a point is the mean of, counted from 1; the last part may be short.
            [1 + window * i + (len(part) - 1) / 2 for i, part in enumerate(parts)],
            values,
            # A line is told by its dashes too, and a single step is a dot.
            color=_COLOURS[number % len(_COLOURS)],
            linestyle=_DASHES[number // len(_COLOURS) % len(_DASHES)],
            linewidth=1.3,
            marker="." if len(parts) == 1 else "",
            label=name.removesuffix("_loss").replace("_", " "),
        )
    # Terms differ by orders of magnitude and some are negative: about linear within ±1, logarithmic beyond.
    axes.set_yscale("symlog", linthresh=1.0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("step" if window == 1 else f"step; each point is the mean of {window}")
    axes.set_ylabel("weighted term")
    figure.legend(loc="outside upper left", ncols=4)
    return figure


def loss_ends(history: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """The loss terms of a history in the order in which they first come, with their first and last values."""
    ends: dict[str, tuple[float, float]] = {}
    for record in history:
        for name, value in record.items():
            # The first value stays, the last one is overwritten; a dict keeps the place of what is set again.
            if name.endswith("_loss"):
                ends[name] = (ends.get(name, (value,))[0], value)
    return ends


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def before_after_bars(rows: Sequence[Measured]) -> Figure:
    """Before and after of every measure, for the forgotten and the retained side by side.

    Parameters
    ----------
    rows : sequence of Measured
        At least one; a share that was not measured has no bar.
    """
    from matplotlib.figure import Figure

    groups = list(rows[0].shares)
    figure = Figure(figsize=(7, 0.9 + 0.42 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, group in zip(panels, groups, strict=True):
        for which, offset, colour, label in ((0, -0.19, GREY, "before"), (1, 0.19, BLUE, "after")):
            lengths = [100 * (row.shares[group][which] or 0.0) for row in rows]
            axes.barh([i + offset for i in range(len(rows))], lengths, 0.36, color=colour, label=label)
        for i, row in enumerate(rows):
            # One line is labelled, or the legend would name it once a row.
            named = "chance" if i == 0 else None
            if row.chance is not None:
                place, ends = [100 * row.chance] * 2, [i - 0.42, i + 0.42]
                axes.plot(place, ends, color=ORANGE, linewidth=1.5, label=named)
        axes.set_title(f"{group}, %", fontsize=10, loc="left")
        axes.set_xlim(-1, 101)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(rows)), [row.label for row in rows])
    # The first row on top, as in the table; the panels share the axis.
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=len(labels))
    return figure
