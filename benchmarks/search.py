"""One search for every method: as many runs, steps and images for each, on concepts that no table is of.

    python -m benchmarks.search --output docs/tables/search.jsonl --tuned docs/tables/tuned.json
    python -m benchmarks.search --output docs/tables/search.jsonl --table

A method's first run is that of its defaults; the others are points of a Sobol sequence in its space below. A
fifth of the seen images takes no part in a run, and says which settings are best: those with the fewest
points beyond the bars that benchmarks.unlearning marks (Column.missed, summed), in the mean over the
concepts. One JSON line a run; one that is in the file is not run again. What was found, --tuned, is what
benchmarks.unlearning runs the methods with.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.quasirandom import SobolEngine

import riemann_unlearn as ru
from benchmarks import unlearning
from benchmarks._rows import append, key, read, settings
from riemann_unlearn.config import RunConfig
from riemann_unlearn.data import Dataset
from riemann_unlearn.evaluation import chance
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.report.text import markdown
from riemann_unlearn.training.driver import Diverged
from riemann_unlearn.unlearning import DirectMethod, GradientMethod, Method, Problem, create_method
from riemann_unlearn.unlearning.api import _Run

CONCEPTS = ("animal-marine", "transport-air")
"""Of the size of the tables' concepts, each with neighbours among those, and none of them."""

Space = Mapping[str, tuple[float, float]]

RATE = (1e-5, 1e-3)
"""Of Riemannian Adam, for every method that has steps."""
TILT = {
    "learning_rate": RATE,
    "margin": (3.0, 12.0),
    "retain": (5.0, 80.0),
    "target": (0.02, 0.5),
    "mixing": (0.02, 1.0),
}
CALIBRATION = {"learning_rate": RATE, "alpha+gamma": (0.01, 2.0), "beta": (0.01, 1.0)}
"""α = γ, as the authors of AC have it; they searched 0.4 to 2, and ours before were 0.01."""
SPACES: dict[str, Space] = {
    "tilt": TILT,
    "generalize": {**TILT, "zone": (1.0, 30.0), "clearance": (0.02, 0.5)},
    "hac": {
        **CALIBRATION,
        "omega": (0.1, 30.0),
        "eta": (0.1, 100.0),
        "entailment_weight": (0.02, 2.0),
    },
    "ac": CALIBRATION,
    "finetune": {"learning_rate": RATE},
    "l1-sparse": {"learning_rate": RATE, "gamma": (1e-6, 1e-3)},
    "gradient-ascent": {"learning_rate": (1e-7, 1e-4)},
    "neggrad-plus": {"learning_rate": RATE, "beta": (0.5, 0.999)},
    "random-captions": {"learning_rate": RATE},
    "nullspace": {"rank": (1, 64), "strength": (0.3, 1.0)},
}
"""What of each method is searched, and from where to where, evenly in the logarithm; ``a+b`` are one number.

Steps are not among them, for they are the budget; whatever a method has besides stays at its default."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__.split("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=SPACES, default=list(SPACES))
    parser.add_argument("--model", help=unlearning.MODEL_HELP)
    parser.add_argument("--runs", type=int, default=8, help="settings tried of each method")
    parser.add_argument("--steps", type=int, default=100, help="of each run; none of a closed form")
    parser.add_argument("--batch", type=int, nargs=2, default=(32, 96), metavar=("FORGET", "RETAIN"))
    parser.add_argument("--output", type=Path, default=Path("search.jsonl"), help="a line for each run")
    parser.add_argument("--tuned", type=Path, help="write the best settings of each method here, as JSON")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, run nothing")
    options = parser.parse_args(arguments)
    rows = read(options.output)
    if not options.table:
        bench = _Bench(options.batch)
        # One trial of every method before the next: an interrupted search has given all of them the same.
        for number in range(options.runs):
            for method in options.methods:
                trial = trials(method, options.runs, options.steps)[number]
                model = options.model or unlearning.home(method)
                for concept in CONCEPTS:
                    asked = {
                        "method": method,
                        "trial": number,
                        "settings": trial,
                        "model": model,
                        "forget": [concept],
                        "seed": 0,
                    }
                    if key(asked) not in map(key, rows):
                        rows.append(bench.run(asked))
                        append(options.output, rows[-1])
    if options.tuned:
        options.tuned.write_text(json.dumps(tuned(rows), indent=2) + "\n", encoding="utf-8")
    print(table(rows))
    return 0


def trials(method: str, count: int, steps: int) -> list[dict[str, float]]:
    """The first settings that are tried of a method; of a larger count the first are the same."""
    first: dict[str, float] = settings(method)
    if "steps" in first:
        first["steps"] = steps
    space = SPACES[method]
    engine = SobolEngine(len(space), scramble=True, seed=0)  # type: ignore[no-untyped-call]
    points = engine.draw(count - 1).tolist() if count > 1 else []
    return [first, *({**first, **_settings(space, first, point)} for point in points)]


def _settings(space: Space, usual: Mapping[str, float], point: Iterable[float]) -> dict[str, float]:
    """The settings at a point of the unit cube."""
    found = {}
    for (names, (low, high)), share in zip(space.items(), point, strict=True):
        for name in names.split("+"):
            # Three digits: what is written into a table is what was run.
            value = float(f"{low * (high / low) ** share:.3g}")
            found[name] = round(value) if isinstance(usual[name], int) else value
    return found


class _Bench:
    """Data and models, loaded once, and what was measured before."""

    def __init__(self, batch: Sequence[int]) -> None:
        self.batch = tuple(batch)
        self.train, self.validation = split(ru.data.load("emoji"))
        self.models: dict[str, DualEncoder] = {}
        self.before: dict[tuple[str, ...], dict[str, Any]] = {}

    def run(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The line of a run: what it was and what the validation part says, before and after."""
        name, forget = asked["model"], asked["forget"]
        if name not in self.models:
            self.models[name] = ru.load(name)
        # Once for all settings that are tried.
        problem_of = name, *forget
        if problem_of not in self.before:
            self.before[problem_of] = self._measure(self.models[name], forget)
        encoder, start = copy.deepcopy(self.models[name]).eval(), time.perf_counter()
        problem = Problem(encoder, self.train, self.train.taxonomy.select(forget))
        rules = create_method(asked["method"], asked["settings"])
        try:
            self._unlearn(problem, rules, asked["seed"])
            after = self._measure(encoder, forget)
        except Diverged:
            after = None
        return {
            **asked,
            "batch": self.batch,
            "seconds": round(time.perf_counter() - start, 1),
            "chance": chance(problem.taxonomy, problem.selection),
            "before": self.before[problem_of],
            "after": after,
        }

    def _unlearn(self, problem: Problem, rules: Method, seed: int) -> None:
        """As ``ru.unlearn`` does, which would measure all images before and after: most of the time."""
        if isinstance(rules, GradientMethod):
            forgotten, retained = self.batch
            config = RunConfig(("",), seed=seed, forget_batch=forgotten, retain_batch=retained)
            _Run(problem, rules, config, None).driver(rules).run()
        elif isinstance(rules, DirectMethod):
            rules.apply(problem, seed=seed, folder=None, progress=False)

    def _measure(self, model: DualEncoder, forget: Sequence[str]) -> dict[str, Any]:
        report = ru.evaluate(model, self.validation, forget=forget, measures=["zero_shot"])
        return {group: report[group] for group in ("forget", "neighbours", "retain")}


def split(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """What is unlearned with, four fifths of the seen images, and what says how well."""
    share = torch.rand(len(dataset.seen), generator=torch.Generator().manual_seed(0))
    held = share < 0.2
    parts = (dataset.seen.subset(~held), dataset.seen.subset(held))
    return Dataset(dataset.name, parts[0], None), Dataset(dataset.name, parts[1], None)


def missed(row: Mapping[str, Any]) -> float:
    """By how many points a run misses the bars of the tables, summed over them."""
    if row["after"] is None:
        return math.inf
    points = 0.0
    for column in unlearning.IMAGES:
        group, measure = column.keys
        before, after = (100 * row[when][group][measure] for when in ("before", "after"))
        points += column.missed(before, after, 100 * row["chance"][column.chance])
    return points


@dataclass(frozen=True)
class Trial:
    """Settings of a method that were tried with all concepts."""

    runs: tuple[Mapping[str, Any], ...]

    @property
    def settings(self) -> dict[str, float]:
        """Those of each of its runs."""
        return dict(self.runs[0]["settings"])

    @property
    def missed(self) -> float:
        """Points missed, in the mean over the concepts."""
        return statistics.mean(map(missed, self.runs))

    @property
    def rank(self) -> tuple[float, float]:
        """Smaller is better; where no bar is missed the names that are left of the forgotten decide."""
        return self.missed, statistics.mean(map(_left, self.runs))


def _left(run: Mapping[str, Any]) -> float:
    """Recall@1 of the forgotten, less that of the rest."""
    if run["after"] is None:
        return math.inf
    forget, retain = (run["after"][group]["recall_at_1"] for group in ("forget", "retain"))
    return float(forget - retain)


def ranked(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], list[Trial]]:
    """By model and method what was tried with all concepts, best first."""
    runs: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        tried = runs.setdefault((row["model"], row["method"]), {})
        tried.setdefault(json.dumps(row["settings"]), []).append(row)
    return {
        group: sorted(
            (Trial(tuple(some)) for some in tried.values() if len(some) == len(CONCEPTS)),
            key=lambda trial: trial.rank,
        )
        for group, tried in runs.items()
    }


def tuned(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """The best settings by model and method."""
    best: dict[str, dict[str, dict[str, float]]] = {}
    for (model, method), found in ranked(rows).items():
        if found:
            best.setdefault(model, {})[method] = found[0].settings
    return best


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The best of each method, and what its defaults missed, as Markdown; in percent, means over concepts."""
    heads = ["method", "model", "tried", "best", "points missed", "by the defaults"]
    lines = []
    for (model, method), found in ranked(rows).items():
        for best in found[:1]:
            names = [name for part in SPACES[method] for name in part.split("+")]
            first = [trial for trial in found if trial.runs[0]["trial"] == 0]
            lines.append(
                [
                    *(method, model, len(found)),
                    ", ".join(f"{name} {best.settings[name]:g}" for name in names),
                    f"{best.missed:.1f}",
                    f"{first[0].missed:.1f}" if first else "–",
                    *(_arrow(best.runs, *column.keys) for column in unlearning.IMAGES),
                ]
            )
    return markdown([*heads, *(column.name for column in unlearning.IMAGES)], lines)


def _arrow(runs: Sequence[Mapping[str, Any]], group: str, measure: str) -> str:
    """A share before and after, in percent."""
    if any(run["after"] is None for run in runs):
        return "–"
    before, after = (
        statistics.mean(100 * run[when][group][measure] for run in runs) for when in ("before", "after")
    )
    return f"{before:.1f} → {after:.1f}"


if __name__ == "__main__":
    sys.exit(main())
