"""What a model knows of the forgotten and of the retained; before unlearning, and after it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from riemann_unlearn.data import Dataset
from riemann_unlearn.data import load as load_data
from riemann_unlearn.evaluation.audit import audit as quick_audit
from riemann_unlearn.evaluation.encoding import encode_images
from riemann_unlearn.evaluation.full import full_audit, require_sklearn
from riemann_unlearn.evaluation.neighbours import siblings
from riemann_unlearn.evaluation.zero_shot import forget_and_retain, zero_shot
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.models import load as load_model


def evaluate(
    model: DualEncoder | str | Path = "meru-emoji",
    data: Dataset | str | Path = "emoji",
    *,
    forget: str | Sequence[str],
    audit: Literal["quick", "full"] = "quick",
    before: DualEncoder | str | Path | None = None,
    oracle: DualEncoder | str | Path | None = None,
    seed: int = 0,
    progress: bool = False,
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
    audit : "quick" or "full"
        The full one also asks the features, relearning, membership inference, the alignment matrices and
        the hierarchy (``docs/audit.md``); it takes about a minute and needs scikit-learn.
    before, oracle : DualEncoder, str or Path, optional
        For the full audit: the untouched model, and one trained from scratch without the forgotten. They
        are the two ends of every scale.
    seed : int
        Of the full audit: decides shots, views, noise and resampling.
    progress : bool
        Show a progress bar of the full audit.

    Returns
    -------
    dict
        ``{"forget": metrics, "retain": metrics, "neighbours": metrics, "heldout": {the same}, "audit":
        measures}`` with the metrics of :func:`zero_shot` and the measures of
        :func:`riemann_unlearn.evaluation.audit`. Neighbours are those retained that are nearest to the
        forgotten in the taxonomy; ``heldout`` is there only where the dataset has such images. After
        a full audit also ``full_audit``, what :func:`riemann_unlearn.evaluation.full_audit` returns.

    Raises
    ------
    ValueError
        For a model, dataset or concept that does not exist, or another kind of audit.

    Examples
    --------
    >>> report = evaluate("meru-emoji", "emoji", forget="food-fruit")
    >>> sorted(report)
    ['audit', 'forget', 'heldout', 'neighbours', 'retain']
    """
    if audit not in ("quick", "full"):
        raise ValueError(f"audit must be 'quick' or 'full', got {audit!r}")
    if audit == "quick" and (before is not None or oracle is not None):
        raise ValueError("before and oracle belong to the full audit; ask for audit='full'")
    if audit == "full":
        require_sklearn()
    dataset = data if isinstance(data, Dataset) else load_data(data)
    selection = dataset.taxonomy.select([forget] if isinstance(forget, str) else forget)
    encoder = model if isinstance(model, DualEncoder) else load_model(model)
    references = {  # loaded at once: one that is missing must be known before a minute has gone by
        role: given if isinstance(given, DualEncoder) else load_model(given)
        for role, given in (("before", before), ("oracle", oracle))
        if given is not None
    }
    seen = encode_images(encoder, dataset.seen.images)
    near = siblings(dataset.taxonomy, selection)
    groups = forget_and_retain(dataset.seen, selection) | {"neighbours": near[dataset.seen.concept]}
    report: dict[str, Any] = zero_shot(encoder, dataset.seen, groups, image_features=seen)
    heldout = None
    if dataset.heldout is not None:
        heldout = encode_images(encoder, dataset.heldout.images)
        groups = forget_and_retain(dataset.heldout, selection)
        groups["neighbours"] = near[dataset.heldout.concept]
        report["heldout"] = zero_shot(encoder, dataset.heldout, groups, image_features=heldout)
    report["audit"] = quick_audit(encoder, dataset, selection, seen, heldout)
    if audit == "full":
        models = {"after": encoder, **references}
        report["full_audit"] = full_audit(
            models, dataset, selection, features=(seen, heldout), seed=seed, progress=progress
        )
    return report
