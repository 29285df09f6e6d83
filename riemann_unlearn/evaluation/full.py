"""The full audit: every measure, of the untouched model, the unlearned one and the retrained oracle.

The first and the last are the two ends of every scale: a measure says little by itself and much by where
it lies between what the model was and what it would be had it never seen the forgotten.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from riemann_unlearn.data import Dataset, ImageTextData, Selection
from riemann_unlearn.evaluation.alignment import alignment
from riemann_unlearn.evaluation.audit import audit
from riemann_unlearn.evaluation.encoded import Encoded, encode
from riemann_unlearn.evaluation.hierarchy import hierarchy
from riemann_unlearn.evaluation.membership import membership
from riemann_unlearn.evaluation.neighbours import over_unlearning, siblings
from riemann_unlearn.evaluation.recovery import recovery
from riemann_unlearn.evaluation.relearning import relearning
from riemann_unlearn.evaluation.retrieval import retrieval
from riemann_unlearn.evaluation.zero_shot import zero_shot
from riemann_unlearn.models import DualEncoder

ROLES = ("before", "after", "oracle")


def full_audit(
    models: Mapping[str, DualEncoder],
    dataset: Dataset,
    selection: Selection,
    *,
    features: tuple[Tensor, Tensor | None] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Every measure, for each of ``models``.

    Parameters
    ----------
    models : mapping
        By role: "after" is the model in question; "before", the untouched one, and "oracle", one trained
        from scratch without the forgotten, where there are such.
    dataset : Dataset
    selection : Selection
        What is, or is to be, forgotten.
    features : tuple of Tensor, optional
        Features of the seen and of the held-out images by ``models["after"]``, where they are known.
    seed : int
        Decides shots, views, noise and resampling; the same for every model.
    progress : bool
        Show a progress bar.

    Returns
    -------
    dict
        ``report[measure][role]`` for the measures ``zero_shot``, ``retrieval``, ``paraphrase``,
        ``over_unlearning``, ``recovery``, ``relearning``, ``membership``, ``alignment``, ``hierarchy``;
        ``seconds`` for each of them and for ``encode``; and ``neighbours``, the names of the siblings'
        subcategories. A measure that a model or dataset does not admit is None.

    Raises
    ------
    ValueError
        When scikit-learn is not installed, "after" is missing, a role is none of the three, or the models
        are not of one geometry.
    """
    require_sklearn()
    if "after" not in models or not set(models) <= set(ROLES):
        raise ValueError(f"models must be given by role, 'after' among {ROLES}; got {sorted(models)}")
    kinds = {role: model.geometry for role, model in models.items()}
    if len(set(kinds.values())) > 1:
        raise ValueError(f"the models must share a geometry, to be compared; got {kinds}")
    roles = [role for role in ROLES if role in models]
    near = siblings(dataset.taxonomy, selection)
    by_concept = {"forget": selection.concepts, "neighbours": near, "retain": ~selection.concepts}
    subjects: dict[str, Encoded] = {}
    measures: dict[str, Callable[[Encoded], Any]] = {
        "zero_shot": lambda s: _zero_shot(s, by_concept),
        "retrieval": lambda s: retrieval(s, by_concept),
        "paraphrase": lambda s: _paraphrase(s, dataset),
        "over_unlearning": lambda s: over_unlearning(s, subjects.get("before"), seed),
        "recovery": lambda s: recovery(s, seed),
        "relearning": lambda s: relearning(s, seed),
        "membership": lambda s: membership(s, subjects.get("oracle"), seed),
        "alignment": lambda s: alignment(s, subjects.get("before")),
        "hierarchy": hierarchy,
    }
    report: dict[str, Any] = {name: {} for name in measures}
    seconds: dict[str, float] = {}
    total = len(roles) * (1 + len(measures))
    bar = tqdm(total=total, desc="audit", unit="measure", disable=None if progress else True)

    def timed(name: str, measure: Callable[[], Any]) -> Any:
        bar.set_postfix_str(name)
        started = time.perf_counter()
        result = measure()
        seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - started, 2)
        bar.update()
        return result

    with bar:
        for role in roles:
            known = features if role == "after" and features is not None else (None, None)
            subjects[role] = timed("encode", partial(encode, models[role], dataset, selection, *known))
        for name, measure in measures.items():
            for role, subject in subjects.items():
                report[name][role] = timed(name, partial(measure, subject))
    names = torch.unique(dataset.taxonomy.subcategory_of[near]).tolist()
    report["neighbours"] = [dataset.taxonomy.subcategories[i] for i in names]
    return {**report, "seconds": seconds}


def require_sklearn() -> None:
    """Raise ValueError where scikit-learn, which the probes are made with, is not installed."""
    if importlib.util.find_spec("sklearn") is None:
        raise ValueError("the full audit needs scikit-learn: pip install 'riemann-unlearn[audit]'")


def _zero_shot(subject: Encoded, by_concept: dict[str, Tensor]) -> dict[str, Any]:
    def measure(data: ImageTextData, features: Tensor) -> Any:
        groups = {name: mask[data.concept] for name, mask in by_concept.items()}
        return zero_shot(subject.model, data, groups, image_features=features)

    report = {"seen": measure(subject.seen, subject.seen_features)}
    if subject.heldout is not None and subject.heldout_features is not None:
        report["heldout"] = measure(subject.heldout, subject.heldout_features)
    return report


def _paraphrase(subject: Encoded, dataset: Dataset) -> dict[str, float | None]:
    data = Dataset(dataset.name, subject.seen, None)
    return audit(subject.model, data, subject.selection, subject.seen_features, None)["paraphrase"]
