"""Hidden, or gone? What a full audit comes to, in one word and one sentence.

All of it is asked of held-out images of the forgotten, and each answer stands beside the retrained oracle's.

==========================  ============================================================================
verdict                     what holds
==========================  ============================================================================
known                       its captions still find it: accuracy above chance + 1 point
hidden                      no caption finds it, but something else does
gone                        ... nor do a linear probe, nearest neighbours or prototypes in the features,
                            fine-tuning on retained images alone, or how familiar its class looks (AUC):
                            each at most the oracle's + 2 points
gone as if never seen       ... nor does the worst relearning from 1, 4 or 16 images of it: at most the
                            oracle's + 2 points, so that it is as in a model that never saw it
==========================  ============================================================================

Without an oracle what no caption finds is hidden at least, and whether it is more cannot be said: a good
feature space holds images of an apple together whether or not the word was ever learned. Bounds are on the
figures themselves, and of 20 images one is five points, so the figures' intervals stand beside them. Pooled
over several concepts (:func:`pooled`), they stand on all images of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from riemann_unlearn.evaluation.intervals import over_groups, wilson
from riemann_unlearn.evaluation.measures.base import ROLES, percent

KNOWN, HIDDEN, GONE, UNSEEN = "known", "hidden", "gone", "gone as if never seen"
VERDICTS = (KNOWN, HIDDEN, GONE, UNSEEN)
"""From least to most that is forgotten."""
OVER_CHANCE = 0.01
"""By so much of a share captions may find the forgotten more often than a guess does."""
OVER_ORACLE = 0.02
"""By so much of a share anything else may find it more often than in the retrained model."""
SHOTS = (1, 4, 16)
"""Images of each forgotten class that relearning is asked with for :data:`UNSEEN`."""
READING = (
    "Hidden: no caption finds it. Gone: nor do a linear probe, nearest neighbours, prototypes, fine-tuning "
    "on retained images alone or how familiar its class looks, beyond a retrained model + "
    f"{100 * OVER_ORACLE:g} points. As in a model that never saw it: nor does the worst relearning from "
    f"{SHOTS[0]}, {SHOTS[1]} or {SHOTS[2]} images."
)
"""The verdicts in words, for whoever reads one."""
_CAPTIONS = "by its captions"


@dataclass(frozen=True)
class Trace:
    """One way to find the forgotten, and how often each model's is found by it."""

    name: str
    """In words that follow "found"."""
    kind: str
    """The verdict that it can stand in the way of: :data:`GONE` or :data:`UNSEEN`."""
    shares: Mapping[str, float]
    """By role."""
    images: int
    """Forgotten images that the shares are of."""

    @property
    def excess(self) -> float | None:
        """What is found in the model in question beyond the oracle; None without one."""
        return self.shares["after"] - self.shares["oracle"] if "oracle" in self.shares else None

    @property
    def left(self) -> bool:
        """Whether the model in question keeps more of it than an oracle may."""
        # A bound of 2 points is one: 0.32 - 0.30 is a little more than 0.02 in binary.
        return self.excess is not None and self.excess > OVER_ORACLE + 1e-9


@dataclass(frozen=True)
class Verdict:
    """What an audit comes to."""

    verdict: str | None
    """One of :data:`VERDICTS`, or None where the audit cannot say."""
    sentence: str
    """The verdict with its figures, for a reader."""
    captions: Trace
    chance: float
    """What a guess scores by captions."""
    traces: tuple[Trace, ...]

    def to_dict(self) -> dict[str, Any]:
        """As a report holds it: plain values."""
        return asdict(self)


def verdict(full: Mapping[str, Any]) -> Verdict | None:
    """What a full audit comes to.

    Parameters
    ----------
    full : mapping
        As :func:`riemann_unlearn.full_audit` returns it, or read back from JSON.

    Returns
    -------
    Verdict or None
        None where the audit was not asked what the forgotten's captions find.
    """
    captions = _captions(full)
    if captions is None:
        return None
    return _judged(captions, full["chance"]["zero_shot"]["accuracy"], _traces(full), _missing(full))


def pooled(audits: Sequence[Mapping[str, Any]]) -> Verdict:
    """What full audits of several concepts come to together.

    Each share is that of all images of all audits, and its interval Wilson's; what it lies above the oracle's
    has an interval over concepts in :func:`excess_over_concepts`.

    Parameters
    ----------
    audits : sequence of mapping
        Full audits of models of the same roles, each of another concept (or run).

    Raises
    ------
    ValueError
        When there is none, or one was not asked what the forgotten's captions find.
    """
    verdicts = _verdicts(audits)
    chances = [(one.chance, one.captions.images) for one in verdicts]
    chance = sum(p * n for p, n in chances) / sum(n for _, n in chances)
    missing = {name: reason for audit in audits for name, reason in _missing(audit).items()}
    traces = [_sum(same) for same in _alike(verdicts)]
    return _judged(_sum([one.captions for one in verdicts]), chance, tuple(traces), missing)


def excess_over_concepts(audits: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float, float]]:
    """By the name of a trace, what is found beyond the oracle and its 95 % interval over concepts.

    A bootstrap that draws whole audits anew, for images of one concept are found or not together.

    Parameters
    ----------
    audits : sequence of mapping
        As for :func:`pooled`, with an oracle.
    """
    result = {}
    for same in _alike(_verdicts(audits)):
        values = [trace.excess for trace in same]
        weights = [float(trace.images) for trace in same]
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            mean = sum(v * w for v, w in zip(known, weights, strict=True)) / sum(weights)
            result[same[0].name] = (mean, *over_groups(known, weights))
    return result


def _verdicts(audits: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    verdicts = [found for audit in audits if (found := verdict(audit)) is not None]
    if not audits or len(verdicts) < len(audits):
        raise ValueError(
            f"expected full audits with the measure 'zero_shot', got {len(verdicts)} of {len(audits)} with it"
        )
    return verdicts


def _alike(verdicts: Sequence[Verdict]) -> list[list[Trace]]:
    """For each trace that all audits have, that of each."""
    named = [{trace.name: trace for trace in one.traces} for one in verdicts]
    return [[one[name] for one in named] for name in named[0] if all(name in one for one in named)]


def _sum(traces: Sequence[Trace]) -> Trace:
    """One way to find the forgotten, of the images of all of several."""
    first, images = traces[0], sum(trace.images for trace in traces)
    roles = [role for role in first.shares if all(role in trace.shares for trace in traces)]
    shares = {role: sum(t.shares[role] * t.images for t in traces) / images for role in roles}
    return Trace(first.name, first.kind, shares, images)


def _judged(captions: Trace, chance: float, traces: tuple[Trace, ...], missing: Mapping[str, str]) -> Verdict:
    found = f"its captions find {_share(captions, 'after')} of {captions.images} images"
    bound = f"in a retrained model + {100 * OVER_ORACLE:g} points"
    left = [trace for trace in traces if trace.left]
    word: str | None
    if captions.shares["after"] > chance + OVER_CHANCE + 1e-9:
        word, sentence = KNOWN, f"Known: {found}, and a guess {percent(chance)} %."
    elif "oracle" not in captions.shares or missing:
        reason = "no retrained model was there to be held against (--oracle)"
        if "oracle" in captions.shares:
            reason = "not all was measured: " + "; ".join(f"{name}: {why}" for name, why in missing.items())
        word, sentence = None, f"Hidden at least: {found}; whether it is gone cannot be said, for {reason}."
    elif left:
        word = HIDDEN if any(trace.kind == GONE for trace in left) else GONE
        head = {HIDDEN: "Hidden, not gone", GONE: "Gone from the features, but it comes back"}[word]
        told = "; ".join(map(_told, left))
        sentence = f"{head}: {found}, but more than {bound} is found {told}."
    else:
        word = UNSEEN
        most = max(traces, key=lambda trace: trace.excess or 0.0)
        sentence = (
            f"Gone, as in a model that never saw it: {found}, and no more than {bound} is found in any other "
            f"way; the most {_told(most)}."
        )
    return Verdict(word, sentence, captions, chance, traces)


def _told(trace: Trace) -> str:
    """A trace with its figures and their intervals."""
    return f"{trace.name}, {_share(trace, 'after')} (retrained {_share(trace, 'oracle')}) of {trace.images}"


def _share(trace: Trace, role: str) -> str:
    """Such as "70.0 % [48.1, 85.5]"."""
    share = trace.shares[role]
    low, high = wilson(share, trace.images)
    return f"{100 * share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _captions(full: Mapping[str, Any]) -> Trace | None:
    """What the forgotten's captions find, at the level that was asked for."""
    values = _values(full, "zero_shot")
    if "after" not in values:
        return None
    # Held-out images, where there are such.
    part = "heldout" if "heldout" in values["after"] else "seen"
    groups = {role: value[part]["forget"] for role, value in values.items()}
    if groups["after"]["accuracy"] is None:
        return None
    shares = {role: group["accuracy"] for role, group in groups.items()}
    return Trace(_CAPTIONS, KNOWN, shares, groups["after"]["images"])


def _traces(full: Mapping[str, Any]) -> tuple[Trace, ...]:
    """All other ways that were asked."""
    traces = []
    recovery = _values(full, "recovery")
    for key, name in (
        ("linear_probe", "by a linear probe"),
        ("knn", "by nearest neighbours"),
        ("prototype", "by prototypes"),
    ):
        shares = {role: value[key]["recall"] for role, value in recovery.items()}
        if "after" in shares:
            traces.append(Trace(name, GONE, shares, recovery["after"]["images"]))
    relearning = _values(full, "relearning")
    if "after" in relearning:
        for place, shots in enumerate(relearning["after"]["shots"]):
            words = "on retained images alone" if shots == 0 else f"on {shots} image{'s' * (shots > 1)} of it"
            if shots == 0 or shots in SHOTS:
                shares = {role: value["accuracy"][place] for role, value in relearning.items()}
                kind = UNSEEN if shots else GONE
                images = relearning["after"]["images"]
                traces.append(Trace(f"after fine-tuning {words}", kind, shares, images))
    membership = _values(full, "membership")
    shares = {role: value["class_membership"]["auc"][0] for role, value in membership.items()}
    if "after" in shares:
        # The share of pairs of a retained and a forgotten image in which the former looks more familiar. Its
        # variance is at most that of a share of so many images as there are of the rarer kind.
        told = membership["after"]["class_membership"]
        images = min(told["members"], told["nonmembers"])
        traces.append(Trace("by how unfamiliar its class looks (AUC, in %)", GONE, shares, images))
    return tuple(traces)


def _missing(full: Mapping[str, Any]) -> dict[str, str]:
    """Of the measures that traces are of, those that were not made, and why."""
    asked = ("recovery", "relearning", "membership")
    unmet = full["unmet"]
    return {name: unmet.get(name, "not asked for") for name in asked if "after" not in _values(full, name)}


def _values(full: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A measure's values by role, of the models that it was made of."""
    values = full.get(name, {})
    return {role: values[role] for role in ROLES if values.get(role) is not None}
