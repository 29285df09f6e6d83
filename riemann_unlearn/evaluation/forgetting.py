"""What a model knows of the forgotten and of the retained; before unlearning, and after it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from riemann_unlearn.data import Dataset
from riemann_unlearn.data import load as load_data
from riemann_unlearn.evaluation.audit import audit
from riemann_unlearn.evaluation.encoding import encode_images
from riemann_unlearn.evaluation.zero_shot import forget_and_retain, zero_shot
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.models import load as load_model


def evaluate(
    model: DualEncoder | str | Path = "meru-emoji",
    data: Dataset | str | Path = "emoji",
    *,
    forget: str | Sequence[str],
) -> dict[str, Any]:
    """What ``model`` knows of the forgotten and of the retained, on seen and held-out renderings.

    Parameters
    ----------
    model : DualEncoder, str or Path
        A model, or what :func:`riemann_unlearn.load` takes.
    data : Dataset, str or Path
        A dataset, or what :func:`riemann_unlearn.data.load` takes.
    forget : str or sequence of str
        What is, or is to be, forgotten: names, subcategories or categories of the data's taxonomy.

    Returns
    -------
    dict
        ``{"forget": metrics, "retain": metrics, "heldout": {"forget": metrics, "retain": metrics},
        "audit": measures}`` with the metrics of :func:`zero_shot` and the measures of
        :func:`riemann_unlearn.evaluation.audit`; ``heldout`` only where the dataset has such images.

    Raises
    ------
    ValueError
        For a model, dataset or concept that does not exist.

    Examples
    --------
    >>> report = evaluate("meru-emoji", "emoji", forget="food-fruit")
    >>> sorted(report)
    ['audit', 'forget', 'heldout', 'retain']
    """
    dataset = data if isinstance(data, Dataset) else load_data(data)
    selection = dataset.taxonomy.select([forget] if isinstance(forget, str) else forget)
    encoder = model if isinstance(model, DualEncoder) else load_model(model)
    seen = encode_images(encoder, dataset.seen.images)
    groups = forget_and_retain(dataset.seen, selection)
    report: dict[str, Any] = zero_shot(encoder, dataset.seen, groups, image_features=seen)
    heldout = None
    if dataset.heldout is not None:
        heldout = encode_images(encoder, dataset.heldout.images)
        groups = forget_and_retain(dataset.heldout, selection)
        report["heldout"] = zero_shot(encoder, dataset.heldout, groups, image_features=heldout)
    report["audit"] = audit(encoder, dataset, selection, seen, heldout)
    return report
