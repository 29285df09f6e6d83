"""A run in one picture: held-out images with what they were called before and after, and the figures."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riemann_unlearn.data import Dataset, ImageTextData
from riemann_unlearn.data import load as load_data
from riemann_unlearn.data.captions import name_caption
from riemann_unlearn.evaluation.encoding import encode_images, encode_texts
from riemann_unlearn.io import atomic_write
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.models import load as load_model
from riemann_unlearn.unlearning.loop import METRICS_NAME

SHOWN = 4
"""Images of either kind in the picture."""
_GREY, _BLUE, _ORANGE = "#b8c2cf", "#2563a8", "#c2410c"


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
    shown = _shown(dataset, metrics["forget"])
    before, after = (_called(load_model(model), shown) for model in (metrics["model"], run))
    atomic_write(path, _draw(metrics, shown, before, after, heldout=dataset.heldout is not None))


def _shown(dataset: Dataset, forget: list[str]) -> ImageTextData:
    """Forgotten images first, then retained ones, at even steps through each."""
    data = dataset.heldout or dataset.seen
    chosen = dataset.taxonomy.select(forget).concepts[data.concept]
    return data.subset(torch.cat([_evenly(rows.nonzero()[:, 0]) for rows in (chosen, ~chosen)]))


def _evenly(rows: Tensor) -> Tensor:
    count = min(SHOWN, len(rows))
    return rows[(torch.arange(count) + 0.5).mul(len(rows) / max(1, count)).long()]


@torch.no_grad()
def _called(model: DualEncoder, data: ImageTextData) -> list[str]:
    """The nearest of all names for each image."""
    names = [name_caption(concept) for concept in data.taxonomy.concepts]
    similarity = model.similarity(encode_images(model, data.images), encode_texts(model, names))
    return [names[i] for i in similarity.argmax(1).tolist()]


def _draw(
    metrics: dict[str, Any], shown: ImageTextData, before: list[str], after: list[str], heldout: bool
) -> bytes:
    from matplotlib.figure import Figure

    concepts = shown.taxonomy.concepts
    chosen = shown.taxonomy.select(metrics["forget"]).concepts[shown.concept]
    figure = Figure(figsize=(12, 5), layout="constrained")
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
        panel.imshow(shown.images[i].permute(1, 2, 0).numpy())
        panel.set_title(_short(concepts[int(shown.concept[i])].name), fontsize=10, fontweight="bold")
        caption = f"before: {_short(before[i])}\nafter: {_short(after[i])}"
        panel.set_xlabel(caption, fontsize=9, color=_ORANGE if forgotten else _BLUE)
    kind = "held-out renderings" if heldout else "images"
    left.suptitle(f"Forgotten: {', '.join(metrics['forget'])} (top)   ·   retained (bottom)", fontsize=11)
    _bars(right.subplots(), metrics, heldout)
    right.suptitle(f"{metrics['method']} on {metrics['model']}, {kind}", fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _bars(axes: Any, metrics: dict[str, Any], heldout: bool) -> None:
    parts = [metrics[time]["heldout"] if heldout else metrics[time] for time in ("before", "after")]
    rows = [
        ("forgotten:\nsubcategory", "forget", "accuracy"),
        ("forgotten:\ncategory", "forget", "parent_accuracy"),
        ("retained:\nsubcategory", "retain", "accuracy"),
        ("retained:\nname in top 5", "retain", "recall_at_5"),
    ]
    for offset, part, colour, label in ((-0.2, parts[0], _GREY, "before"), (0.2, parts[1], _BLUE, "after")):
        heights = [100 * (part[group][measure] or 0.0) for _, group, measure in rows]
        bars = axes.bar([i + offset for i in range(len(rows))], heights, 0.38, color=colour, label=label)
        axes.bar_label(bars, fmt="%.0f", fontsize=9)
    for i, (_, _, measure) in enumerate(rows):
        chance = 100 * metrics["chance"][measure]
        axes.plot([i - 0.42, i + 0.42], [chance, chance], color=_ORANGE, label="chance" if i == 0 else None)
    axes.set_xticks(range(len(rows)), [label for label, _, _ in rows], fontsize=9)
    axes.set_ylabel("%")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
