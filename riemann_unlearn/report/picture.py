"""A run in one picture: held-out images with what they were called before and after, and the figures."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from riemann_unlearn.data import Dataset, Samples, Selection
from riemann_unlearn.data import load as load_data
from riemann_unlearn.evaluation.features import encode_images, encode_texts, nearest
from riemann_unlearn.evaluation.subject import HELDOUT, SEEN, evenly
from riemann_unlearn.io import atomic_write
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.models import load as load_model
from riemann_unlearn.report.figures import BLUE, GREY, ORANGE, drawing, legible
from riemann_unlearn.report.tables import measured
from riemann_unlearn.runs import METRICS_NAME

SHOWN = 4
"""Images of either kind in the picture."""


def write_picture(run: str | Path, path: str | Path) -> None:
    """Draw the finished run in folder ``run`` into the PNG file ``path``, atomically.

    Left: images at even steps through the held-out forgotten and retained ones (so they are not chosen),
    each with the nearest of all names before and after. Right: accuracy on held-out images.

    Parameters
    ----------
    run : str or Path
        A run directory with ``metrics.json`` and ``model.safetensors``.
    path : str or Path
        The PNG file to write.

    Raises
    ------
    ValueError
        When ``run`` holds no finished run, or the model or data it started from are not there any more.
    """
    metrics_file = Path(run) / METRICS_NAME
    if not metrics_file.is_file():
        raise ValueError(f"{run} holds no finished run: expected {METRICS_NAME}")
    metrics = json.loads(metrics_file.read_text(encoding="utf-8"))
    dataset = load_data(metrics["data"])
    selection = dataset.select(metrics["forget"])
    shown = _shown(dataset, selection)
    chosen = shown.chosen(selection)
    # One after the other, so that only one model is held at a time.
    before, after = (_called(load_model(model), shown) for model in (metrics["model"], run))
    with drawing():
        split = SEEN if dataset.heldout is None else HELDOUT
        atomic_write(path, _draw(metrics, shown, chosen, before, after, split))


def _shown(dataset: Dataset, selection: Selection) -> Samples:
    """Forgotten images first, then retained ones, at even steps through each."""
    data = dataset.heldout or dataset.seen
    chosen = data.chosen(selection)
    return data.subset(torch.cat([evenly(rows.nonzero()[:, 0], SHOWN) for rows in (chosen, ~chosen)]))


@torch.no_grad()
def _called(model: DualEncoder, data: Samples) -> list[str]:
    """The label of the most specific level whose caption is nearest to each image."""
    level = data.taxonomy.levels[0]
    texts = encode_texts(model, level.captions)
    best = nearest(model.space, encode_images(model, data.images), texts, 1)[:, 0]
    return [level.labels[i] for i in best.tolist()]


def _draw(
    metrics: Mapping[str, Any],
    shown: Samples,
    chosen: Tensor,
    before: list[str],
    after: list[str],
    split: str,
) -> bytes:
    concepts = shown.taxonomy.concepts
    figure = Figure(figsize=(12, 5), layout="constrained", facecolor="white")
    halves: Any = figure.subfigures(1, 2, width_ratios=[3, 2])
    left, right = halves
    grid = left.subplots(2, SHOWN, squeeze=False)
    for panel in grid.flat:
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    position = {True: 0, False: 0}
    for i, forgotten in enumerate(chosen.tolist()):
        panel = grid[0 if forgotten else 1][position[forgotten]]
        position[forgotten] += 1
        # One at a time: images of a set may differ in size.
        panel.imshow(shown.images[torch.tensor([i])][0].permute(1, 2, 0).cpu().numpy())
        panel.set_title(_short(concepts[int(shown.concept[i])].name), fontsize=10, fontweight="bold")
        caption = f"before: {_short(before[i])}\nafter: {_short(after[i])}"
        panel.set_xlabel(caption, fontsize=9, color=ORANGE if forgotten else BLUE)
    asked = _short(", ".join(metrics["forget"]), 60)
    left.suptitle(f"Forgotten: {asked} (top)   ·   retained (bottom)", fontsize=11)
    _bars(right.subplots(), metrics, split)
    right.suptitle(f"{metrics['method']} on {_short(metrics['model'], 40)}, {split}", fontsize=11)
    buffer = io.BytesIO()
    # Without matplotlib's version, which it would write into the file.
    figure.savefig(buffer, dpi=110, format="png", metadata={"Software": None}, facecolor="white")
    return buffer.getvalue()


def _bars(axes: Axes, metrics: Mapping[str, Any], split: str) -> None:
    """The forgotten at the level that probes ask at and the one above; the retained there and by name."""
    rows = measured(metrics)[split]
    # As in the table: that level, two of names, and what is above; with one level there are only the names.
    shown = [("forget", rows[0]), *(("forget", row) for row in rows[3:4]), ("retain", rows[0])]
    if len(rows) > 2:
        shown.append(("retain", rows[2]))
    for which, offset, colour, label in ((0, -0.2, GREY, "before"), (1, 0.2, BLUE, "after")):
        heights = [100 * (row.shares[group][which] or 0.0) for group, row in shown]
        bars = axes.bar([i + offset for i in range(len(shown))], heights, 0.38, color=colour, label=label)
        axes.bar_label(bars, fmt="%.0f", fontsize=9)
    for i, (_, row) in enumerate(shown):
        if row.chance is not None:
            named = "chance" if i == 0 else None
            axes.plot([i - 0.42, i + 0.42], [100 * row.chance] * 2, color=ORANGE, label=named)
    names = {"forget": "forgotten", "retain": "retained"}
    axes.set_xticks(
        range(len(shown)),
        [f"{names[group]}:\n{row.label.replace(' (', chr(10) + '(')}" for group, row in shown],
        fontsize=9,
    )
    axes.set_ylabel("%")
    axes.legend(frameon=False, fontsize=9)


def _short(name: str, most: int = 18) -> str:
    return legible(name if len(name) <= most else name[: most - 1] + "…")
