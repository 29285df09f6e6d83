"""Tables as text: the one layout for the terminal, and the one for Markdown.

What is in a table is decided elsewhere (:mod:`riemann_unlearn.report.tables` for results); here it is only
laid out, and nothing heavy is imported, so that ``riemann-unlearn list`` answers at once.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

LEAST_WIDTH = 8
"""Characters of a column of figures: "-100.0" with a gap of two, so that tables under each other align."""
GAP = 2
"""Blanks between two columns of words."""


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    label: str
    cells: tuple[str, ...]
    remark: str = ""
    """What stands behind the cells, such as the level of chance."""


@dataclass(frozen=True)
class Table:
    """What a reader sees, before anyone decides whether it becomes text, Markdown or HTML."""

    title: str
    heads: tuple[str, ...]
    """One for each column of cells."""
    rows: tuple[Row, ...]
    spans: tuple[str, ...] = ()
    """Names over groups of columns, each over as many."""
    corner: str = ""
    """Over the labels, such as a unit."""
    widths: tuple[int, ...] = field(default=(), compare=False)
    """Least width of each column, in characters; by default 8. For text only."""


def tables_text(tables: Sequence[Table]) -> str:
    """Tables under each other, with labels of one width, an empty line before each.

    Parameters
    ----------
    tables : sequence of Table

    Returns
    -------
    str

    Examples
    --------
    >>> print(tables_text([Table("seen images", ("forget", "retain"), (Row("recall@1", ("0.0", "83.8")),))]))
    <BLANKLINE>
    seen images   forget  retain
    recall@1         0.0    83.8
    """
    labels = [
        text for table in tables for text in (table.title, table.corner, *(r.label for r in table.rows))
    ]
    width = 1 + max(map(_width, labels), default=0)
    return "\n".join("\n" + _table_text(table, width) for table in tables)


def _table_text(table: Table, label_width: int) -> str:
    columns = [[head, *(row.cells[i] for row in table.rows)] for i, head in enumerate(table.heads)]
    least = table.widths or (LEAST_WIDTH,) * len(columns)
    widths = [
        max(low, *(GAP + _width(cell) for cell in column)) for low, column in zip(least, columns, strict=True)
    ]
    lines = []
    corner = table.title
    if table.spans:
        # The title shares its line with the spans, each centred over its columns; the heads come below.
        # A column's width includes the gap before it, so the sum of widths is where the columns end.
        each = len(widths) // len(table.spans)
        over = [sum(widths[i : i + each]) for i in range(0, len(widths), each)]
        spans = "".join(f"{_plain(span):^{width}}" for span, width in zip(table.spans, over, strict=True))
        lines.append(_left(table.title, label_width) + spans.rstrip())
        corner = table.corner
    for row in (Row(corner, table.heads), *table.rows):
        cells = "".join(_right(cell, width) for cell, width in zip(row.cells, widths, strict=True))
        remark = f"   {_plain(row.remark)}" if row.remark else ""
        lines.append(_left(row.label, label_width) + cells + remark)
    return "\n".join(lines)


def columns_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows of words in columns of one width each, as ``riemann-unlearn list`` prints them.

    Parameters
    ----------
    rows : iterable of sequence
        The cells of each row; all rows have as many.

    Returns
    -------
    str

    Examples
    --------
    >>> print(columns_text([("tilt", "masked distillation"), ("hac", "alignment calibration")]))
    tilt  masked distillation
    hac   alignment calibration
    """
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [GAP + max(map(_width, column)) for column in zip(*texts, strict=True)]
    return "\n".join("".join(map(_left, row, widths)).rstrip() for row in texts)


def markdown(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown, as the documents and the benchmarks have them.

    Parameters
    ----------
    heads : sequence of str
    rows : iterable of sequence
        As many cells as there are heads. A ``|`` in one is escaped.

    Returns
    -------
    str

    Examples
    --------
    >>> print(markdown(("method", "recall@1"), [("tilt", 83.8)]))
    | method | recall@1 |
    | --- | --- |
    | tilt | 83.8 |
    """
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |" for cells in lines)


def _left(text: str, width: int) -> str:
    return _plain(text) + " " * (width - _width(text))


def _right(text: str, width: int) -> str:
    return " " * (width - _width(text)) + _plain(text)


def _plain(text: str) -> str:
    """``text`` without what would move the cursor or turn the line round: names come from anyone's data."""
    return "".join("\N{REPLACEMENT CHARACTER}" if _steers(character) else character for character in text)


def _steers(character: str) -> bool:
    # Cc: newline, escape and their kin. The bidirectional controls change the order of what follows them.
    return unicodedata.category(character) == "Cc" or unicodedata.bidirectional(character) in (
        *("LRE", "RLE", "LRO", "RLO", "PDF"),
        *("LRI", "RLI", "FSI", "PDI"),
    )


def _width(text: str) -> int:
    """Columns of a terminal: 2 for CJK and emoji, 0 for what joins the character before it."""
    # Counted on the text as it was given: what _plain replaces becomes one mark of one column, so it must not
    # count as joined, although the bidirectional controls are of category Cf.
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    joined = sum(
        unicodedata.category(character) in ("Mn", "Me", "Cf") and not _steers(character) for character in text
    )
    return len(text) + wide - joined
