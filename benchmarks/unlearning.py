"""Methods against numbers of concepts and seeds: what is forgotten and what it costs.

Each method has the settings that benchmarks.search found for it, with the same effort for all of them.

    python -m benchmarks.unlearning --output docs/data/unlearning.jsonl
    python -m benchmarks.unlearning --output docs/data/unlearning.jsonl --table --plot FILE.png

One JSON line a run. A run that is already in the file is not run again, and one that was interrupted has left
a folder beside the file, so an interrupted benchmark goes on where it stopped; --table prints the tables of
what is there and runs nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import os
import platform
import shutil
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._rows import append, key, label, read, settings
from riemann_unlearn.report.text import markdown

CONCEPTS = (
    "food-fruit",
    "animal-bird",
    "musical-instrument",
    "sport",
    "transport-water",
    "plant-flower",
    "heart",
    "zodiac",
    "tool",
    "clothing",
)
"""Subcategories of the emoji; n concepts are the first n of them. From eight categories of the nine."""
METHODS = ("tilt", "hac", "ac")
ORACLE = "retrain"
"""What others are compared with, and held to no bar itself."""
EUCLIDEAN = ("ac", "nullspace")
"""Methods that are run on the Euclidean model, in their papers' geometry; --model names another."""
MODEL_HELP = "model of every run (default: meru-emoji, but clip-emoji for ac and nullspace)"
TUNED = Path(__file__).parents[1] / "docs" / "tables" / "tuned.json"
"""The settings that benchmarks.search found, by model and method."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.unlearning", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--methods", nargs="+", help="default: tilt hac ac; in tables and plots, all")
    parser.add_argument("--model", help=MODEL_HELP)
    parser.add_argument("--concepts", nargs="+", type=int, default=[1, 3, 5, 10], metavar="N")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="change settings")
    parser.add_argument("--tuned", type=Path, default=TUNED, help="settings found by benchmarks.search")
    parser.add_argument("--defaults", action="store_true", help="run the methods at their defaults instead")
    parser.add_argument("--output", type=Path, default=Path("unlearning.jsonl"))
    parser.add_argument("--table", action="store_true", help="print the tables of what is there, run nothing")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="forget against retain, as .png or .svg")
    options = parser.parse_args(arguments)
    if not all(1 <= count <= len(CONCEPTS) for count in options.concepts):
        parser.error(f"--concepts must be from 1 to {len(CONCEPTS)}")
    methods = options.methods or METHODS
    search = not options.defaults and options.tuned.is_file()
    tuned = json.loads(options.tuned.read_text("utf-8")) if search else {}
    models = {method: options.model or home(method) for method in methods}
    # The oracle is trained as its model was, and nothing of it is to be tuned.
    untuned = [name for name in methods if name != ORACLE and name not in tuned.get(models[name], {})]
    if untuned and not options.defaults and not options.table:
        parser.error(
            f"{options.tuned} has no settings of {untuned[0]} for {models[untuned[0]]}; search for them "
            "(python -m benchmarks.search), or run all at their --defaults: tuned and untuned do not compare"
        )
    rows = read(options.output)
    done = {key(row) for row in rows}
    asked = () if options.table else itertools.product(options.concepts, options.seeds, methods)
    for count, seed, method in asked:
        found = {} if method == ORACLE else tuned.get(models[method], {}).get(method, {})
        run = {
            "method": method,
            "settings": settings(method, options.set, found),
            "model": models[method],
            "forget": list(CONCEPTS[:count]),
            "seed": seed,
        }
        if key(run) not in done:
            folder = options.output.with_name(f"{options.output.name}.{_digest(run)}")
            rows.append({**_run(folder, **run), "tuned": bool(found) and not options.set})
            append(options.output, rows[-1])
            shutil.rmtree(folder)
    shown = comparable(row for row in rows if not options.methods or row["method"] in options.methods)
    print(tables(shown))
    if options.plot:
        plot(shown, options.plot)
    return 0


def comparable(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tuned runs and the oracle's, or, where nothing is tuned, all: no table has both."""
    rows = list(rows)
    tuned = [row for row in rows if row.get("tuned") or row["method"] == ORACLE]
    return tuned if any(row.get("tuned") for row in tuned) else rows


def home(method: str) -> str:
    """The bundled model that a method is run on."""
    return "clip-emoji" if method in EUCLIDEAN else "meru-emoji"


def _digest(run: Mapping[str, Any]) -> str:
    """A name for what tells a run from others."""
    return hashlib.blake2s(repr(key(run)).encode(), digest_size=4).hexdigest()


def _run(folder: Path, **asked: Any) -> dict[str, Any]:
    """Do a run in a folder, or go on with the one in it."""
    import torch

    import riemann_unlearn as ru

    metrics = ru.unlearn(**asked, output=folder, resume=folder.is_dir()).metrics
    versions = {"riemann_unlearn": ru.__version__, "torch": torch.__version__}
    return {
        **metrics,
        "versions": versions,
        "machine": platform.machine(),
        "threads": min(torch.get_num_threads(), len(os.sched_getaffinity(0))),
    }


@dataclass(frozen=True)
class Column:
    """A measure of the tables, and the bar it is held to, in points."""

    name: str
    keys: tuple[str, str]
    """Where it is, in what was measured on a split or by the audit."""
    above_chance: float = math.inf
    """At most so much."""
    may_lose: float = math.inf
    """Since before."""
    chance: str = "accuracy"
    """Of which measure."""

    def missed(self, before: float, after: float, chance: float) -> float:
        """By how many points a method misses the bar, all in percent; 0 where it keeps to it."""
        return max(0.0, after - (chance + self.above_chance), before - self.may_lose - after)

    def holds(self, before: float, after: float, chance: float) -> bool:
        """Whether a method keeps to the bar."""
        return self.missed(before, after, chance) == 0


IMAGES = (
    Column("forget accuracy", ("forget", "accuracy"), above_chance=1),
    Column("forget recall@1", ("forget", "recall_at_1")),
    Column("their category", ("forget", "parent_accuracy"), may_lose=5),
    Column("retain accuracy", ("retain", "accuracy"), may_lose=1),
    Column("retain recall@1", ("retain", "recall_at_1"), may_lose=1),
    Column("neighbours' accuracy", ("neighbours", "accuracy"), may_lose=3),
)
AUDIT = (
    Column("forget by paraphrase", ("paraphrase", "forget"), above_chance=2, chance="recall_at_1"),
    Column("retain by paraphrase", ("paraphrase", "retain")),
    Column("forget by prototype", ("prototype", "forget")),
    Column("retain by prototype", ("prototype", "retain")),
)


def tables(rows: list[dict[str, Any]]) -> str:
    """Before → after in percent, means over seeds, as Markdown; ✗ is a bar that a method misses."""
    parts = (
        _table("Seen images", IMAGES, rows, lambda run, time: run[time]),
        _table("Held-out images", IMAGES, rows, lambda run, time: run[time]["heldout"]),
        _table("Asked in other ways", AUDIT, rows, lambda run, time: run["audit"][time]),
    )
    return "\n\n".join(parts)


Part = Callable[[dict[str, Any], str], dict[str, Any]]
"""What was measured in a run, "before" or "after"."""


def _table(title: str, columns: Sequence[Column], rows: list[dict[str, Any]], part: Part) -> str:
    heads = ["concepts", "method", "model", "seeds", *(column.name for column in columns)]
    lines = [
        [*group, len(runs), *(_cell(column, runs, part) for column in columns)]
        for group, runs in _groups(rows).items()
    ]
    return f"**{title}**\n\n{markdown(heads, lines)}"


def _groups(rows: list[dict[str, Any]]) -> dict[tuple[int, str, str], list[dict[str, Any]]]:
    groups: dict[tuple[int, str, str], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (len(row["forget"]), row["method"] == ORACLE)):
        groups.setdefault((len(row["forget"]), label(row), row["model"]), []).append(row)
    return groups


def _cell(column: Column, runs: list[dict[str, Any]], part: Part) -> str:
    group, measure = column.keys
    shares = [
        part(run, time).get(group, {}).get(measure)
        for run, time in [(runs[0], "before"), *((run, "after") for run in runs)]
    ]
    if None in shares:  # data without keywords are asked for by none
        return "–"
    before, *values = (100 * share for share in shares)
    mean = statistics.mean(values)
    spread = "" if max(values) - min(values) < 0.05 else f" ({min(values):.1f}–{max(values):.1f})"
    held = runs[0]["method"] == ORACLE or column.holds(before, mean, 100 * runs[0]["chance"][column.chance])
    return f"{before:.1f} → {mean:.1f}{spread}{'' if held else ' ✗'}"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """What is left of the forgotten against what retaining cost; the colour is their category's accuracy."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 6), layout="constrained")
    corner = axes.inset_axes((0.05, 0.55, 0.45, 0.42), xlim=(-3.2, 1.2), ylim=(-0.6, 3.6))
    axes.indicate_inset_zoom(corner)
    markers = dict(zip(dict.fromkeys(map(label, rows)), itertools.cycle("o^sDvP*X<>pHd"), strict=False))
    for (method, marker), view in itertools.product(markers.items(), (axes, corner)):
        runs = [row for row in rows if label(row) == method]
        points = view.scatter(
            [
                100 * (run["after"]["retain"]["recall_at_1"] - run["before"]["retain"]["recall_at_1"])
                for run in runs
            ],
            [100 * run["after"]["forget"]["recall_at_1"] for run in runs],
            c=[100 * run["after"]["forget"]["parent_accuracy"] for run in runs],
            s=[25 + 12 * len(run["forget"]) for run in runs],
            vmin=0,
            vmax=100,
            marker=marker,
            label=method if view is axes else None,
            edgecolors="black",
            linewidths=0.5,
        )
    axes.set_xlabel("change of retained recall@1, points (right is better)")
    axes.set_ylabel("recall@1 of the forgotten, % (lower is better)")
    figure.legend(title="larger: more concepts", loc="outside lower center", ncols=4)
    figure.colorbar(points, ax=axes, label="their category still recognized, %")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
