"""A contact sheet: what a request would forget, and what lies just outside."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from riemann_unlearn.io import atomic_write
from riemann_unlearn.report.figures import drawing, legible
from riemann_unlearn.unlearning.outline import Outline

ROWS, COLUMNS = 3, 8
"""Of images on either half."""


def write_sheet(outline: Outline, path: str | Path) -> None:
    """Draw the chosen images that were the last to be taken in, and below them the next that would be.

    Parameters
    ----------
    outline : Outline
    path : str or Path
        Of a PNG.

    Raises
    ------
    OSError
        When it cannot be written.
    """
    counts = outline.counts()
    inside, outside = outline.shown(ROWS * COLUMNS)
    with drawing():
        figure = Figure(figsize=(11, 10), layout="constrained", facecolor="white")
        halves: Any = figure.subfigures(2, 1)
        titles = (
            f"To be forgotten: {counts['forget']} seen images; the last taken in come first",
            f"Retained: {counts['retain']} seen images; the nearest come first",
        )
        for half, rows, title in zip(halves, (inside, outside), titles, strict=True):
            half.suptitle(title, fontsize=11)
            grid = half.subplots(ROWS, COLUMNS, squeeze=False)
            for panel in grid.flat:
                panel.set_axis_off()
            for panel, row in zip(grid.flat, rows, strict=False):
                _draw(outline, panel, row)
        buffer = io.BytesIO()
        # Without matplotlib's version, which it would write into the file.
        figure.savefig(buffer, dpi=100, format="png", metadata={"Software": None}, facecolor="white")
    atomic_write(path, buffer.getvalue())


def _draw(outline: Outline, panel: Any, row: int) -> None:
    seen = outline.dataset.seen
    # One at a time: images of a set may differ in size.
    panel.imshow(seen.images[torch.tensor([row])][0].permute(1, 2, 0).cpu().numpy())
    name = seen.taxonomy.concepts[int(seen.concept[row])].text
    short = name if len(name) <= 18 else f"{name[:17]}…"
    panel.set_title(f"{legible(short)}\n{float(outline.score[row]):.3g}", fontsize=8)
