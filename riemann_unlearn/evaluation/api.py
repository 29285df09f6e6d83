"""What a model knows of the forgotten and of the retained: :func:`evaluate`, and the audit of several models.

An audit asks every measure of the untouched model, the unlearned one and the retrained oracle. The first and
the last are the two ends of every scale: a measure says little by itself and much by where it lies between
what the model was and what it would be had it never seen the forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from tqdm import tqdm

from riemann_unlearn.data import Dataset, Selection, Taxonomy
from riemann_unlearn.data import load as load_data
from riemann_unlearn.evaluation.features import warn_of_shared
from riemann_unlearn.evaluation.measures.base import (
    ROLES,
    Measure,
    chosen_measures,
    require_packages,
)
from riemann_unlearn.evaluation.measures.zero_shot import ZeroShot
from riemann_unlearn.evaluation.subject import MOST_SEEN, Subject, encode
from riemann_unlearn.evaluation.verdict import verdict
from riemann_unlearn.models import DualEncoder, unwrap
from riemann_unlearn.models import load as load_model
from riemann_unlearn.training.driver import as_device

Result = TypeVar("Result")

_RESERVED = ("on", "unmet", "chance", "seconds", "neighbours", "verdict")
"""Keys of a full audit that are no measures."""


def list_measures() -> list[str]:
    """Names of the measures, in the order of the audit's tables.

    Examples
    --------
    >>> list_measures()[:3]
    ['zero_shot', 'over_unlearning', 'retrieval']
    """
    return list(chosen_measures())


def evaluate(
    model: nn.Module | str | Path = "meru-emoji",
    data: Dataset | str | Path = "emoji",
    *,
    forget: str | Sequence[str],
    audit: Literal["quick", "full"] = "quick",
    before: nn.Module | str | Path | None = None,
    oracle: nn.Module | str | Path | None = None,
    measures: Sequence[str | Measure] | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """What ``model`` knows of the forgotten and of the retained, on seen and held-out images.

    Parameters
    ----------
    model : DualEncoder, str or Path
        A model (perhaps compiled, or wrapped for several devices), or what :func:`riemann_unlearn.load`
        takes.
    data : Dataset, str or Path
        A dataset, or what :func:`riemann_unlearn.data.load` takes.
    forget : str or sequence of str
        What is, or is to be, forgotten: labels of any level of the data's taxonomy.
    audit : "quick" or "full"
        The full one also asks the features, relearning, membership inference, the alignment matrices and
        the hierarchy (``docs/audit.md``); it takes minutes and needs scikit-learn.
    before, oracle : DualEncoder, str or Path, optional
        For the full audit: the untouched model, and one trained from scratch without the forgotten. They
        are the two ends of every scale.
    measures : sequence of str or Measure, optional
        Names (:func:`list_measures`) or instances, asked in place of those that the audit has by itself.
    seed : int
        Of the audit: decides shots, views, noise and resampling.
    device : torch.device or str, optional
        Where to compute; models are moved there, and stay there. By default each stays where it is.
    progress : bool
        Show a progress bar of the full audit.

    Returns
    -------
    dict
        - ``forget``, ``retain``, ``neighbours``: what :func:`zero_shot` gives for those seen images,
          accuracy being that of the most specific level asked for in ``forget``. Neighbours are those
          retained that are nearest to the forgotten in the taxonomy.
        - ``heldout``: the same of the held-out images, where there are such.
        - ``audit``: the value of each measure of the quick audit; ``on``: what each was measured on;
          ``unmet``: why those that are missing could not be measured.
        - ``full_audit``: after a full one, what :func:`full_audit` returns. ``unmet`` has its reasons too.

    Raises
    ------
    ValueError
        For a model, dataset, concept, measure or device that does not exist, or another kind of audit.

    Warns
    -----
    UserWarning
        When captions read the same to the model, as those that differ beyond the tokens that it reads.

    Examples
    --------
    >>> report = evaluate("meru-emoji", "emoji", forget="food-fruit")
    >>> sorted(report)
    ['audit', 'forget', 'heldout', 'neighbours', 'on', 'retain', 'unmet']
    """
    if audit not in ("quick", "full"):
        raise ValueError(f"audit must be 'quick' or 'full', got {audit!r}")
    if audit == "quick" and (before is not None or oracle is not None):
        raise ValueError("before and oracle belong to the full audit; ask for audit='full'")
    # All that can be refused is refused at once, not after a minute.
    asked = _checked(chosen_measures(measures, quick=audit == "quick"))
    device = None if device is None else as_device(device)
    dataset = load_data(data)
    selection = dataset.select([forget] if isinstance(forget, str) else forget)
    models = {
        role: _encoder(given, device)
        for role, given in (("before", before), ("after", model), ("oracle", oracle))
        if given is not None
    }
    _check_spaces(models)
    # Of all seen images: the figures of a run are of everything it was to forget. Audits look at fewer.
    subject = encode(models["after"], dataset, selection)
    warn_of_shared(subject.captions)
    # A full audit has the quick one's figures as well, whatever measures it was given itself.
    report = quick_audit(subject, asked if audit == "quick" else None, seed)
    if audit == "full":
        report["full_audit"] = _full_audit(models, dataset, selection, asked, subject, seed, progress)
        report["unmet"] = {**report["unmet"], **report["full_audit"]["unmet"]}
    return report


def quick_audit(
    subject: Subject, measures: Mapping[str, Measure] | None = None, seed: int = 0
) -> dict[str, Any]:
    """:func:`evaluate` of a model whose features are known, without the full audit.

    Parameters
    ----------
    subject : Subject
    measures : mapping of str to Measure, optional
        Those to ask, by name; by default those of the quick audit.
    seed : int
    """
    parts = ZeroShot().compute(subject, {})
    report: dict[str, Any] = dict(parts["seen"])
    if "heldout" in parts:
        report["heldout"] = parts["heldout"]
    asked = chosen_measures(quick=True) if measures is None else measures
    result = _measure({"after": subject}, asked, seed, lambda name, work: work())
    report["audit"] = {name: result[name]["after"] for name in asked if name not in result["unmet"]}
    report["on"], report["unmet"] = result["on"], result["unmet"]
    return report


def full_audit(
    models: Mapping[str, DualEncoder],
    dataset: Dataset,
    selection: Selection,
    *,
    measures: Sequence[str | Measure] | None = None,
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
    measures : sequence of str or Measure, optional
        Names or instances; by default all that are registered.
    seed : int
        Decides shots, views, noise and resampling; the same for every model.
    progress : bool
        Show a progress bar.

    Returns
    -------
    dict
        ``report[measure][role]``, None where the measure could not be made; ``on``, what each measure was
        made on; ``unmet``, why those that are None could not be; ``chance``, what a guess scores, where that
        can be said; ``seconds`` for each measure and for ``encode``; ``neighbours``, the names of the
        siblings' labels at the level that probes ask at; and ``verdict``, what it comes to
        (:mod:`riemann_unlearn.evaluation.verdict`), None where zero-shot accuracy was not asked for.

    Raises
    ------
    ValueError
        When a package is not installed, "after" is missing, a role is none of the three, or the models
        are not of one kind of space.
    """
    if "after" not in models or not set(models) <= set(ROLES):
        raise ValueError(f"models must be given by role, 'after' among {ROLES}; got {sorted(models)}")
    asked = _checked(chosen_measures(measures))
    _check_spaces(models)
    return _full_audit(models, dataset, selection, asked, None, seed, progress)


def chance(taxonomy: Taxonomy, selection: Selection) -> dict[str, Any]:
    """What a guess scores: in the form of one group's metrics, and for each measure of the quick audit.

    Parameters
    ----------
    taxonomy : Taxonomy
    selection : Selection
        Says at which level ``accuracy`` is asked.
    """
    quick = chosen_measures(quick=True)
    return {
        **ZeroShot().chance(taxonomy, selection),
        **{name: measure.chance(taxonomy, selection) for name, measure in quick.items()},
    }


def _full_audit(
    models: Mapping[str, DualEncoder],
    dataset: Dataset,
    selection: Selection,
    measures: Mapping[str, Measure],
    after: Subject | None,
    seed: int,
    progress: bool,
) -> dict[str, Any]:
    """``after`` is the subject of ``models["after"]``, where it was encoded already."""
    roles = [role for role in ROLES if role in models]
    seconds: dict[str, float] = {}
    total = len(roles) * (1 + len(measures))
    bar = tqdm(total=total, desc="audit", unit="measure", disable=None if progress else True)

    def timed(name: str, work: Callable[[], Result]) -> Result:
        bar.set_postfix_str(name)
        started = time.perf_counter()
        result = work()
        seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - started, 2)
        bar.update()
        return result

    def made(role: str) -> Subject:
        # What evaluate has encoded is not encoded again: features of some images are some of the features.
        if role == "after" and after is not None:
            return after.at_most(MOST_SEEN)
        return encode(models[role], dataset, selection, most_seen=MOST_SEEN)

    # First every model, then the measures: one may compare a model with any other.
    with bar:
        subjects = {role: timed("encode", lambda role=role: made(role)) for role in roles}  # type: ignore[misc]
        # evaluate has warned of the same captions already, when it encoded them.
        if after is None:
            warn_of_shared(subjects["after"].captions)
        report = _measure(subjects, measures, seed, timed)
    taxonomy = dataset.taxonomy
    near = torch.unique(taxonomy.ancestor(taxonomy.grouping)[subjects["after"].neighbours.cpu()])
    report["neighbours"] = [taxonomy.levels[taxonomy.grouping].labels[i] for i in near.tolist()]
    reached = verdict(report)
    return {**report, "seconds": seconds, "verdict": None if reached is None else reached.to_dict()}


def _measure(
    subjects: Mapping[str, Subject],
    measures: Mapping[str, Measure],
    seed: int,
    timed: Callable[[str, Callable[[], Any]], Any],
) -> dict[str, Any]:
    """Values by measure and role, with what they were made on, and why some were not made."""
    report: dict[str, Any] = {name: {} for name in measures}
    unmet: dict[str, str] = {}
    for name, measure in measures.items():
        for role, subject in subjects.items():
            reason = measure.unmet(subject, subjects)
            if reason is not None:
                # Timed although nothing is done: the bar counts every measure of every model.
                report[name][role] = timed(name, lambda: None)
                # Data and selection are the same for all models, so the first one's reason is everyone's.
                unmet.setdefault(name, reason)
            else:
                report[name][role] = timed(
                    name,
                    lambda measure=measure, subject=subject: measure.compute(subject, subjects, seed),  # type: ignore[misc]
                )
    # The subjects are gone when a report is read: what only they can tell is written down beside the values.
    after = subjects["after"]
    report["on"] = {name: measure.on(after) for name, measure in measures.items() if name not in unmet}
    report["unmet"] = unmet
    report["chance"] = {
        name: measure.chance(after.taxonomy, after.selection) for name, measure in measures.items()
    }
    return report


def _checked(measures: dict[str, Measure]) -> dict[str, Measure]:
    """``measures``, whose packages are installed and whose names are free."""
    require_packages(measures.values())
    if taken := sorted(set(_RESERVED) & set(measures)):
        raise ValueError(f"a measure cannot be called {taken[0]!r}; that is a key of the audit's own")
    return measures


def _check_spaces(models: Mapping[str, DualEncoder]) -> None:
    kinds = {role: model.space.name for role, model in models.items()}
    if len(set(kinds.values())) > 1:
        raise ValueError(f"the models must share a kind of space, to be compared; got {kinds}")


def _encoder(model: nn.Module | str | Path, device: torch.device | str | None) -> DualEncoder:
    """A loaded or unwrapped model, on the device asked for."""
    encoder = unwrap(model) if isinstance(model, nn.Module) else load_model(model)
    return encoder if device is None else encoder.to(device)
