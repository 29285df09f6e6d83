"""The figures of a full audit in tables, one column a model; for the terminal and for the page alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ROLE_NAMES = {"before": "before", "after": "after", "oracle": "retrained"}
"""What the models of :func:`riemann_unlearn.evaluation.full_audit` are called in print."""
_SPLITS = {"seen": "seen", "heldout": "held out"}
_GROUPS = ("forget", "neighbours", "retain")


@dataclass(frozen=True)
class AuditTable:
    """One family of measures."""

    family: str
    """The measure of the report that it is of."""
    title: str
    reading: str
    """How to read it, in a sentence or two."""
    columns: list[str]
    """Roles, in the order before, after, oracle."""
    rows: list[tuple[str, list[str]]]


def audit_tables(full: dict[str, Any]) -> list[AuditTable]:
    """The tables of a full audit.

    Parameters
    ----------
    full : dict
        As :func:`riemann_unlearn.evaluation.full_audit` returns it.

    Returns
    -------
    list of AuditTable
        Without the families that the models or the dataset do not admit.
    """
    near = ", ".join(full["neighbours"]) or "none"
    families: list[tuple[str, str, str, Callable[[Any], dict[str, str]]]] = [
        (
            "zero_shot",
            "What it knows, %",
            f"Forget should fall to chance; neighbours ({near}) and retain should stay.",
            _zero_shot,
        ),
        (
            "over_unlearning",
            "Around the forgotten",
            "OU@ε: how far the retained classes moved for forgotten images under invisible noise; "
            "0 is not at all.",
            lambda value: {"OU@ε, nats": _number(value, 3)},
        ),
        (
            "retrieval",
            "Retrieval, held-out images, %",
            "The forgotten should be found in neither direction.",
            _retrieval,
        ),
        (
            "paraphrase",
            "Asked by keywords, %",
            "Recall@1 by descriptions that no unlearning used.",
            lambda value: {group: _percent(value[group]) for group in ("forget", "retain")},
        ),
        (
            "recovery",
            "In the features still",
            "What is found in frozen image features without any text. Above the retrained model's: hidden, "
            "not gone.",
            _recovery,
        ),
        (
            "relearning",
            "Does it come back, %",
            "Accuracy on the forgotten after fine-tuning on a few of its images. Above the retrained "
            "model's: it remembered.",
            _relearning,
        ),
        (
            "membership",
            "Membership inference",
            "AUC [95 % interval]; true-positive rate at 1 % false positives; share of the forgotten called "
            "non-members. Read against the retrained model.",
            _membership,
        ),
        (
            "alignment",
            "Alignment Calibration's audit",
            "Similarity lost since before: by matched forgotten pairs (forgetting score), by other forgotten "
            "pairs, and by matched retained pairs, which should be near 0.",
            _alignment,
        ),
        (
            "hierarchy",
            "Hierarchy",
            "Median radii in units of 1/√c, and the share of pairs outside their entailment cone.",
            _hierarchy,
        ),
    ]
    tables = []
    for family, title, reading, rows_of in families:
        found = {role: rows_of(value) for role, value in full[family].items() if value is not None}
        labels = list(dict.fromkeys(label for rows in found.values() for label in rows))
        rows = [(label, [rows.get(label, "–") for rows in found.values()]) for label in labels]
        rows = [(label, cells) for label, cells in rows if set(cells) != {"–"}]
        if rows:
            tables.append(AuditTable(family, title, reading, list(found), rows))
    return tables


def audit_text(full: dict[str, Any]) -> str:
    """The same as plain text."""
    lines: list[str] = []
    for table in audit_tables(full):
        width = max(12, *(2 + len(cell) for _, cells in table.rows for cell in cells))
        lines.append(
            f"\n{table.title:45}" + "".join(f"{ROLE_NAMES[role]:>{width}}" for role in table.columns)
        )
        lines += [
            f"{label:45}" + "".join(f"{cell:>{width}}" for cell in cells) for label, cells in table.rows
        ]
    return "\n".join(lines)


def _zero_shot(value: dict[str, Any]) -> dict[str, str]:
    asked = [(group, "accuracy", "accuracy") for group in _GROUPS]
    asked += [("forget", "parent_accuracy", "parent accuracy"), ("neighbours", "recall_at_1", "recall@1")]
    asked += [("retain", "recall_at_1", "recall@1"), ("retain", "parent_accuracy", "parent accuracy")]
    return {
        f"{group}: {label}, {_SPLITS[split]}": _percent(part[group][name])
        for split, part in value.items()
        for group, name, label in asked
    }


def _retrieval(value: dict[str, Any]) -> dict[str, str]:
    return {
        f"{group}: {direction.replace('_', ' ')}, recall@{k}": _percent(value[group][f"{direction}_at_{k}"])
        for group in _GROUPS
        for direction in ("image_to_text", "text_to_image")
        for k in (1, 5)
    }


def _recovery(value: dict[str, Any]) -> dict[str, str]:
    few = value["few_shot_prototype"]
    return {
        "linear probe: recall of the forgotten, %": _percent(value["linear_probe"]["recall"]),
        "linear probe: accuracy on the retained, %": _percent(value["linear_probe"]["retain_accuracy"]),
        "forgotten against retained: ROC-AUC": _number(value["linear_probe"]["roc_auc"], 3),
        "forgotten against retained: balanced acc., %": _percent(value["linear_probe"]["balanced_accuracy"]),
        "k-NN: recall of the forgotten, %": _percent(value["knn"]["recall"]),
        "prototypes: recall of the forgotten, %": _percent(value["prototype"]["recall"]),
        **{
            f"prototypes, {_shots(n)}: recall, %": _percent(recall)
            for n, recall in zip(few["shots"], few["recall"], strict=True)
        },
        "chance of a recall, %": _percent(value["chance"]),
    }


def _relearning(value: dict[str, Any]) -> dict[str, str]:
    after = zip(value["shots"], value["accuracy"], strict=True)
    return {"no shot": _percent(value["start"]), **{_shots(n): _percent(accuracy) for n, accuracy in after}}


def _membership(value: dict[str, Any]) -> dict[str, str]:
    rows = {}
    for name, attack in value.items():
        if isinstance(attack, dict):
            label = name.replace("_", " ")
            rows[f"{label}: AUC"] = _interval(attack["auc"])
            rows[f"{label}: TPR at 1 % FPR"] = _interval(attack["tpr"])
            if "nonmember_rate" in attack:
                rows[f"{label}: called non-members, %"] = _percent(attack["nonmember_rate"])
    return rows


def _alignment(value: dict[str, Any]) -> dict[str, str]:
    scores = {
        "forgetting_score": "forgetting score",
        "negative_gap": "gap of unmatched forgotten pairs",
        "retain_gap": "gap of matched retained pairs",
    }
    return {label: _number(value[name], 3) for name, label in scores.items() if name in value}


def _hierarchy(value: dict[str, Any]) -> dict[str, str]:
    rows = {}
    for kind, groups in value["radii"].items():
        for group, quantiles in groups.items():
            rows[f"radius of {kind}, {group}"] = "–" if quantiles is None else _number(quantiles[2], 3)
    for pair, groups in value["violations"].items():
        for group, violation in groups.items():
            rows[f"outside: {pair}, {group}, %"] = _percent(violation["share"])
    return rows


def _shots(n: int) -> str:
    return f"{n} shot" if n == 1 else f"{n} shots"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _interval(triple: list[float]) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*triple)
