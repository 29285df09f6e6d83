"""Forgetting by generalizing beside its rivals: a row a method and concept, and the hypotheses' verdicts.

    python -m benchmarks.generalize --output docs/data/generalize.jsonl
    python -m benchmarks.generalize --output docs/data/generalize.jsonl --verdicts
    python -m benchmarks.generalize --methods oracle --concepts food-fruit --model runs/without-fruit

What is asked, and what refutes it, is in docs/hypotheses.md. One JSON line a run; a run that is in the file
is not run again, and one that was interrupted goes on from the folder that it left beside the file. "before"
and "oracle" are no methods: the model is looked at as it is given, in the latter case one that never saw the
concept.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

import riemann_unlearn as ru
from benchmarks._rows import append, key, read, settings
from benchmarks.unlearning import IMAGES, _digest, _run
from riemann_unlearn.data import Dataset
from riemann_unlearn.data.zone import Zone
from riemann_unlearn.evaluation.features import encode_texts
from riemann_unlearn.evaluation.intervals import wilson
from riemann_unlearn.evaluation.measures.base import Measure, percent
from riemann_unlearn.evaluation.measures.landing import Landing
from riemann_unlearn.evaluation.measures.recovery import Recovery
from riemann_unlearn.evaluation.measures.relearning import Relearning
from riemann_unlearn.evaluation.subject import HELDOUT, SEEN, Part, Subject, evenly
from riemann_unlearn.losses import ContrastiveLoss
from riemann_unlearn.report.text import markdown
from riemann_unlearn.unlearning import GradientMethod, Problem, Step, setting
from riemann_unlearn.unlearning.methods import Objective
from riemann_unlearn.unlearning.methods.generalize import Generalize, Home
from riemann_unlearn.unlearning.methods.tilt import Tilt, mean

CONCEPTS = ("food-fruit", "animal-bird", "musical-instrument")
UNCHANGED = ("before", "oracle")
METHODS = (
    *UNCHANGED, "tilt", "generalize", "distance-only", "random-parent", "no-siblings", "relabel", "hac",
)  # fmt: skip
SHOTS = (0, 1, 4, 16)
"""Images of the forgotten that a relearning attack has."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generalize", description=str(__doc__).split("\n")[0]
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="NAME")
    parser.add_argument("--model", default="meru-emoji")
    parser.add_argument("--data", default="emoji")
    parser.add_argument("--concepts", nargs="+", default=list(CONCEPTS), help="each forgotten by itself")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--seen", type=int, metavar="N", help="of the retained seen images, work with N at even steps"
    )
    parser.add_argument("--steps", type=int, default=400, help="of all methods but hac, which has its own")
    parser.add_argument(
        "--no-relearning", action="store_true", help="leave out the attack, which takes longest"
    )
    parser.add_argument("--output", type=Path, default=Path("generalize.jsonl"))
    parser.add_argument("--table", action="store_true", help="print the table of what is there, run nothing")
    parser.add_argument("--verdicts", action="store_true", help="print the hypotheses' verdicts, run nothing")
    options = parser.parse_args(arguments)
    rows = read(options.output)
    if not (options.table or options.verdicts):
        for run in _runs(options):
            if _key(run) not in set(map(_key, rows)):
                rows.append(_row(options.output, run, not options.no_relearning))
                append(options.output, rows[-1])
    print(verdicts(rows, options.model) if options.verdicts else table(rows))
    return 0


def _runs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What is asked for, concept by concept, so that an interrupted benchmark has whole rows of a table."""
    runs = []
    for concept in options.concepts:
        for seed in options.seeds:
            for method in options.methods:
                own = {}
                if method not in UNCHANGED:
                    changes = [] if method == "hac" else [f"steps={options.steps}"]
                    own = settings(method, changes)
                run = {"method": method, "settings": own, "model": options.model, "forget": [concept]}
                runs.append({**run, "seed": seed, "data": options.data, "seen": options.seen})
    return runs


def _key(run: Mapping[str, Any]) -> tuple[Any, ...]:
    return *key(run), run["seen"]


def _data(run: Mapping[str, Any]) -> Dataset:
    """The dataset, with so many of the retained seen images as are asked for."""
    data = ru.data.load(run["data"])
    if run["seen"] is None:
        return data
    gone = data.taxonomy.select(run["forget"]).concepts[data.seen.concept]
    rows = torch.cat([gone.nonzero()[:, 0], evenly((~gone).nonzero()[:, 0], run["seen"])]).sort().values
    return replace(data, seen=data.seen.subset(rows))


def _row(output: Path, run: Mapping[str, Any], relearning: bool) -> dict[str, Any]:
    """A run and what is measured of the model that it leaves."""
    folder = output.with_name(f"{output.name}.{_digest(run)}")
    data = _data(run)
    if run["method"] in UNCHANGED:
        model = ru.load(run["model"])
        result = dict(run)
    else:
        asked = {name: value for name, value in run.items() if name != "seen"}
        result = {**_run(folder, **{**asked, "data": data}), "seen": run["seen"]}
        model = ru.load(folder)
    measures = [Landing(), Recovery(), SiblingPrecision(), *([Relearning(shots=SHOTS)] if relearning else [])]
    report = ru.evaluate(model, data, forget=run["forget"], audit="full", measures=measures)
    audit = report["full_audit"]
    # Of the model as it is, under the names that a run's metrics have, so that every row has them.
    kept = ("forget", "retain", "neighbours", "heldout")
    result["after"] = {name: report[name] for name in kept if name in report}
    result["full_audit"] = {
        measure.name: None if audit[measure.name] is None else audit[measure.name]["after"]
        for measure in measures
    }
    shutil.rmtree(folder, ignore_errors=True)
    return result


# Rivals. Registered, so that runs name them and are resumed by name; no part of the library.


@ru.register
@dataclass(frozen=True)
class DistanceOnly(Tilt):
    """The same aim by distances: one softmax over the captions of all levels, the mass on the parent's.

    Retained images are held to the frozen model's distribution over all captions, and forgotten ones to the
    parent's caption alone, in the place of tilt's terms of each level.
    """

    name: ClassVar[str] = "distance-only"
    description: ClassVar[str] = "Tilted distillation of one softmax over all levels, towards the parent"

    def further(self, problem: Problem) -> Callable[[Step, Tensor], Mapping[str, Tensor]]:
        """Under the names of the terms of each level, whose place they take."""
        levels, space = problem.taxonomy.levels, problem.space.detached()
        captions = torch.cat([encode_texts(problem.model, level.captions) for level in levels])
        gone = torch.cat([problem.forgotten(level) for level in problem.levels])
        # Of each concept, the caption of its lowest retained label; -1 where even the topmost goes.
        home = torch.full_like(problem.taxonomy.ancestor(0), -1, device=gone.device)
        for depth in reversed(problem.levels):
            label = problem.taxonomy.ancestor(depth).to(gone.device)
            kept = ~problem.forgotten(depth)[label]
            home[kept] = sum(len(level) for level in levels[:depth]) + label[kept]

        def terms(step: Step, before: Tensor) -> dict[str, Tensor]:
            forget = torch.stack(step.forget).any(0)
            logits = space.logits(step.image_features, captions)
            target = space.logits(before, captions).masked_fill(gone, -math.inf).softmax(1)
            divergence = (torch.xlogy(target, target) - target * logits.log_softmax(1)).sum(1)
            odds = logits[forget][:, gone].logsumexp(1) - logits[forget][:, ~gone].logsumexp(1)
            parent = home[step.caption_ids[0]][forget]
            to_parent = F.cross_entropy(logits[forget], parent, ignore_index=-1, reduction="none")
            return {
                # Tilt's is a sum over the levels.
                "retain_loss": self.retain * len(levels) * mean(divergence[~forget]),
                "odds_loss": mean(F.relu(self.margin + odds)),
                "target_loss": mean(to_parent),
            }

        return terms


@ru.register
@dataclass(frozen=True)
class Relabel(GradientMethod):
    """Contrastive training in which every forgotten caption is its lowest retained label's instead."""

    name: ClassVar[str] = "relabel"
    description: ClassVar[str] = "Training with the parent's caption for the forget images"
    learning_rate: float = setting(5e-5, 1e-8, 1.0, "of Riemannian Adam")
    steps: int = setting(400, 1, 1_000_000, "optimizer steps")

    def objective(self, problem: Problem) -> Objective:
        """The contrastive loss of the relabelled batch."""
        loss = ContrastiveLoss()

        def terms(step: Step) -> dict[str, Tensor]:
            texts, ids = list(step.text_features), list(step.caption_ids)
            # From the top down: a label takes over what its parent was given, so the lowest retained one's.
            for depth in reversed(problem.levels[:-1]):
                gone, size = step.forget[depth], len(problem.taxonomy.levels[depth])
                texts[depth] = torch.where(gone[:, None], texts[depth + 1], texts[depth])
                # Numbered behind this level's own, so that no two labels share an id.
                ids[depth] = torch.where(gone, size + ids[depth + 1], ids[depth])
            losses = [
                loss(step.image_features, texts[depth], space=step.space, caption_ids=ids[depth])
                for depth in problem.levels
            ]
            return {"contrastive_loss": torch.stack(losses).sum()}

        return terms


@ru.register
@dataclass(frozen=True)
class RandomParent(Generalize):
    """Into the zone of another label of the parent's level, drawn at random."""

    name: ClassVar[str] = "random-parent"
    description: ClassVar[str] = "Generalizing to a parent drawn at random"

    def home(self, problem: Problem, zone: Zone, parent: int, concepts: Tensor) -> Home:
        """The zone of another parent, for the same concepts."""
        others = [label for label in torch.unique(zone.parent).tolist() if label != parent]
        if not others:
            raise ValueError("there is no other parent to draw, for everything has the same")
        drawn = torch.randint(len(others), (), generator=torch.Generator().manual_seed(parent))
        return super().home(problem, zone, others[int(drawn)], concepts)


@ru.register
@dataclass(frozen=True)
class NoSiblings(Generalize):
    """Out of the forgotten labels' cones alone."""

    name: ClassVar[str] = "no-siblings"
    description: ClassVar[str] = "Generalizing without a term for the siblings"

    def children(self, problem: Problem, zone: Zone, parent: int) -> Tensor:
        """Captions of those children that are forgotten."""
        labels = (zone.parent == parent).nonzero()[:, 0]
        # The order is that of the labels where there are no more than the method looks at.
        return super().children(problem, zone, parent)[problem.forgotten(zone.depth)[labels]]


@dataclass(frozen=True)
class SiblingPrecision(Measure):
    """Of the n images deepest in a sibling's cone, n being the number of its own, which are its own.

    By the exterior angle less the aperture, so no threshold decides; the forgotten are among the images.
    """

    name: ClassVar[str] = "sibling_precision"
    title: ClassVar[str] = "Precision of the siblings' cones"
    reading: ClassVar[str] = "Share of the images deepest in the siblings' cones that belong there."

    def unmet(self, subject: Subject, references: Mapping[str, Subject]) -> str | None:
        """It needs cones."""
        if not subject.space.has_cones:
            return "the model's space has no entailment cones"
        return None

    @torch.no_grad()
    def compute(self, subject: Subject, references: Mapping[str, Subject], seed: int = 0) -> Any:
        """By part, how many images were asked for, how many belong there, and how many are forgotten."""
        return {part.what: self._counts(subject, part) for part in subject.parts}

    def _counts(self, subject: Subject, part: Part) -> dict[str, int]:
        depth = subject.selection.level
        own, gone = part.labels(depth), subject.selection.forgotten[depth]
        zone = Zone.of(subject.taxonomy, depth, own.device)
        siblings = (zone.children(gone.nonzero()[:, 0]).any(0) & ~gone).nonzero()[:, 0]
        captions = subject.captions[depth].features[siblings]
        outside = [subject.space.outside(some, captions) for some in torch.split(part.features, 256)]
        counts = {"own": 0, "forgotten": 0, "asked": 0}
        for column, label in zip(torch.cat(outside).mT, siblings.tolist(), strict=True):
            mine = own == label
            first = column.argsort(stable=True)[: int(mine.sum())]
            counts["own"] += int(mine[first].sum())
            counts["forgotten"] += int(part.forgotten[first].sum())
            counts["asked"] += len(first)
        return counts

    def rows(self, value: Any) -> dict[str, str]:
        """By part, the share that belongs there."""
        return {what: percent(counts["own"] / max(1, counts["asked"])) for what, counts in value.items()}


# The table.

Count = tuple[int, int]
"""How many of how many."""


def count(row: Mapping[str, Any], what: str, share: str) -> Count:
    """Of the forgotten images of a part, those of which the measure of landing gives a share."""
    landing = row["full_audit"]["landing"]
    figures = None if landing is None else landing["parts"].get(what, {}).get("forget")
    if figures is None or figures[share] is None:
        return 0, 0
    return round(figures[share] * figures["images"]), figures["images"]


def precise(row: Mapping[str, Any], what: str) -> Count:
    """Of the images deepest in the siblings' cones, those that belong there."""
    counts = (row["full_audit"]["sibling_precision"] or {}).get(what)
    return (counts["own"], counts["asked"]) if counts else (0, 0)


def probed(row: Mapping[str, Any], by: str) -> Count:
    """Of the forgotten held-out images, those that a probe of frozen features finds."""
    recovery = row["full_audit"]["recovery"]
    return (round(recovery[by]["recall"] * recovery["images"]), recovery["images"]) if recovery else (0, 0)


def relearned(row: Mapping[str, Any], shots: int) -> Count:
    """Of the forgotten held-out images, those that the attack brings back with so many."""
    value = row["full_audit"].get("relearning")
    if not value or shots not in value["shots"]:
        return 0, 0
    return round(value["accuracy"][value["shots"].index(shots)] * value["images"]), value["images"]


COLUMNS: dict[str, Callable[[Mapping[str, Any]], Count]] = {
    **{
        f"{heading}, {short}": partial(count, what=what, share=share)
        for heading, share in (
            ("landed", "landed"),
            ("in its own cone", "own"),
            ("its parent's", "parent"),
            ("a sibling's", "sibling"),
            ("a foreign one", "foreign"),
        )
        for short, what in (("seen", SEEN), ("held out", HELDOUT))
    },
    "sibling precision, seen": partial(precise, what=SEEN),
    "held out": partial(precise, what=HELDOUT),
    "probe": partial(probed, by="linear_probe"),
    "k-NN": partial(probed, by="knn"),
    "prototypes": partial(probed, by="prototype"),
    **{f"relearned from {shots}": partial(relearned, shots=shots) for shots in SHOTS},
}
"""By heading, what is counted."""


def missed(row: Mapping[str, Any]) -> list[str]:
    """The bars of the benchmark of unlearning that a run does not keep to."""
    if "before" not in row:
        return []
    names = []
    for what, times in (("", row), ("held out: ", {t: row[t]["heldout"] for t in ("before", "after")})):
        for column in IMAGES:
            group, measure = column.keys
            before, after = (100 * times[time].get(group, {}).get(measure, 0) for time in ("before", "after"))
            if not column.holds(before, after, 100 * row["chance"].get(column.chance, 1)):
                names.append(f"{what}{column.name} {after - before:+.1f}")
    return names


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row for each run, then one for each method with the counts of all its runs put together."""
    heads = ["method", "model", "concept", "seed", *COLUMNS, "radius, forgotten / neighbours", "bars missed"]
    lines = [
        [row["method"], row["model"], *row["forget"], row["seed"], *map(_percent, _counts([row])),
         _radii(row), "; ".join(missed(row)) or "–"]
        for row in rows
    ]  # fmt: skip
    pooled = [
        [*group, len(runs), *map(_with_interval, _counts(runs))] for group, runs in _by_method(rows).items()
    ]
    return f"{markdown(heads, lines)}\n\n{markdown(['method', 'model', 'runs', *COLUMNS], pooled)}"


def _by_method(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["model"]), []).append(row)
    return groups


def _counts(rows: Sequence[Mapping[str, Any]]) -> list[Count]:
    return [pool(rows, counted) for counted in COLUMNS.values()]


def pool(rows: Sequence[Mapping[str, Any]], counted: Callable[[Mapping[str, Any]], Count]) -> Count:
    """The counts of several runs put together."""
    hits, asked = zip(*map(counted, rows), strict=True) if rows else ((), ())
    return sum(hits), sum(asked)


def _percent(counted: Count) -> str:
    return percent(counted[0] / counted[1]) if counted[1] else "–"


def _with_interval(counted: Count) -> str:
    return percent(counted[0] / counted[1], counted[1]) if counted[1] else "–"


def _radii(row: Mapping[str, Any]) -> str:
    landing = row["full_audit"]["landing"]
    if landing is None:
        return "–"
    groups = landing["parts"].get(HELDOUT, landing["parts"][SEEN])
    return " / ".join("–" if g is None else f"{g['radius']:.2f}" for g in groups.values())


# The verdicts.


def difference(a: Count, b: Count) -> tuple[float, float, float]:
    """The difference of two shares, with its 95 % interval (Newcombe 1998, method 10)."""
    p, q = a[0] / a[1], b[0] / b[1]
    (low_a, high_a), (low_b, high_b) = wilson(p, a[1]), wilson(q, b[1])
    return (
        p - q,
        p - q - math.hypot(p - low_a, high_b - q),
        p - q + math.hypot(high_a - p, q - low_b),
    )


Verdict = tuple[bool | None, str]
"""Whether a hypothesis stands, None where the runs that decide it are missing; and the figures."""

LANDED, PRECISE = partial(count, what=HELDOUT, share="landed"), partial(precise, what=HELDOUT)
TRACES = ("probe", "prototypes", *(f"relearned from {shots}" for shots in SHOTS))


def verdicts(rows: Sequence[Mapping[str, Any]], model: str) -> str:
    """Every hypothesis of docs/hypotheses.md, whether it stands, and what decides it."""
    by_method = _by_method(rows)

    def of(method: str) -> list[Mapping[str, Any]]:
        return by_method.get((method, model), [])

    flat = [row for (method, other), runs in by_method.items() for row in runs
            if method == "generalize" and other != model]  # fmt: skip
    ours = of("generalize")
    decided = {
        "lands with the parent": _lands(ours, of("distance-only")),
        "siblings stay clean": _above(ours, {name: of(name) for name in ("tilt", "distance-only")}, PRECISE),
        "no trace": _no_trace(ours, of("tilt"), of("oracle")),
        "the rest is retained": _retained(ours, of("tilt")),
        "the hierarchy is the cause": _all(
            _above(ours, {"random-parent": of("random-parent"), "a flat model": flat}, counted)
            for counted in (LANDED, PRECISE)
        ),
    }
    words = {True: "stands", False: "**fallen**", None: "not decided"}
    lines = [
        [number, name, words[verdict], figures]
        for number, (name, (verdict, figures)) in enumerate(decided.items(), start=1)
    ]
    return markdown(("", "hypothesis", "verdict", "figures"), lines)


Rows = Sequence[Mapping[str, Any]]


def _lands(ours: Rows, rival: Rows) -> Verdict:
    seen, heldout = pool(ours, partial(count, what=SEEN, share="landed")), pool(ours, LANDED)
    other = pool(rival, LANDED)
    if not (seen[1] and heldout[1] and other[1]):
        return None, "no runs of generalize or distance-only"
    ahead = difference(heldout, other)
    stands = seen[0] / seen[1] >= 0.9 and heldout[0] / heldout[1] >= 0.75 and ahead[0] >= 0.1
    figures = (
        f"seen {_with_interval(seen)}, held out {_with_interval(heldout)}; distance-only {_points(ahead)}"
    )
    return stands, figures


def _above(ours: Rows, rivals: Mapping[str, Rows], counted: Callable[[Mapping[str, Any]], Count]) -> Verdict:
    """Whether a share is larger than every rival's, the interval of each difference above 0."""
    mine, others = pool(ours, counted), {name: pool(rows, counted) for name, rows in rivals.items()}
    known = {name: difference(mine, other) for name, other in others.items() if mine[1] and other[1]}
    figures = f"{_with_interval(mine)}; " + ", ".join(f"{name} {_points(d)}" for name, d in known.items())
    if any(low <= 0 for _, low, _ in known.values()):
        return False, figures
    return (True if len(known) == len(rivals) else None), figures


def _no_trace(ours: Rows, tilt: Rows, oracle: Rows) -> Verdict:
    over, figures = [], []
    for name in TRACES:
        mine, *others = (pool(rows, COLUMNS[name]) for rows in (ours, tilt, oracle))
        known = [hits / asked for hits, asked in others if asked]
        if not (mine[1] and known):
            return None, "no runs of generalize, or of neither tilt nor the oracle"
        # The better of the two is the one that leaves less.
        over.append(mine[0] / mine[1] - min(known) > 0.02)
        figures.append(f"{name} {_percent(mine)} against {percent(min(known))}")
    return not any(over), ("" if oracle else "no oracle: ") + ", ".join(figures)


def _retained(ours: Rows, tilt: Rows) -> Verdict:
    if not (ours and tilt):
        return None, "no runs of generalize or tilt"

    def bars(rows: Rows) -> set[tuple[str, str]]:
        # Without the amounts: a bar that both miss is missed by both.
        return {(*row["forget"], name.rpartition(" ")[0]) for row in rows for name in missed(row)}

    more = sorted(bars(ours) - bars(tilt))
    return not more, "; ".join(
        f"{concept}: {name}" for concept, name in more
    ) or "none that tilt does not miss"


def _all(parts: Iterable[Verdict]) -> Verdict:
    found, figures = zip(*parts, strict=True)
    verdict = False if False in found else None if None in found else True
    return verdict, "; ".join(figures)


def _points(interval: tuple[float, float, float]) -> str:
    return "{:+.1f} [{:+.1f}, {:+.1f}] points".format(*(100 * value for value in interval))


if __name__ == "__main__":
    sys.exit(main())
