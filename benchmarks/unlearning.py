"""Methods against numbers of concepts and seeds: what is forgotten and what it costs.

    python -m benchmarks.unlearning --output docs/data/unlearning.jsonl
    python -m benchmarks.unlearning --output docs/data/unlearning.jsonl --table --plot FILE.png

One JSON line a run. A run that is already in the file is not run again, so an interrupted benchmark goes on
where it stopped; --table prints the tables of what is there and runs nothing.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks._rows import append, key, label, line, read, settings

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
EUCLIDEAN = ("ac", "nullspace")
"""Methods that are run on the Euclidean model, in their papers' geometry; --model names another."""

Value = Callable[[dict[str, Any]], float]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.unlearning", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--methods", nargs="+", help="default: tilt hac ac; in tables and plots, all")
    parser.add_argument("--model", help="model of every run (default: meru-emoji, or clip-emoji for ac)")
    parser.add_argument("--concepts", nargs="+", type=int, default=[1, 3, 5, 10], metavar="N")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the methods")
    parser.add_argument("--output", type=Path, default=Path("unlearning.jsonl"))
    parser.add_argument("--table", action="store_true", help="print the tables of what is there, run nothing")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="forget against retain, as .png or .svg")
    options = parser.parse_args(arguments)
    if not all(1 <= count <= len(CONCEPTS) for count in options.concepts):
        parser.error(f"--concepts must be from 1 to {len(CONCEPTS)}")
    methods = options.methods or METHODS
    rows = read(options.output)
    done = {key(row) for row in rows}
    asked = () if options.table else itertools.product(options.concepts, options.seeds, methods)
    for count, seed, method in asked:
        model = options.model or ("clip-emoji" if method in EUCLIDEAN else "meru-emoji")
        run = {
            "method": method,
            "settings": settings(method, options.set),
            "model": model,
            "forget": list(CONCEPTS[:count]),
            "seed": seed,
        }
        if key(run) not in done:
            rows.append(_run(**run))
            append(options.output, rows[-1])
    shown = [row for row in rows if not options.methods or row["method"] in options.methods]
    print(tables(shown))
    if options.plot:
        plot(shown, options.plot)
    return 0


def _run(**asked: Any) -> dict[str, Any]:
    import torch

    import riemann_unlearn as ru

    metrics = ru.unlearn(**asked).metrics
    versions = {"riemann_unlearn": ru.__version__, "torch": torch.__version__}
    return {
        **metrics,
        "versions": versions,
        "machine": platform.machine(),
        "threads": min(torch.get_num_threads(), len(os.sched_getaffinity(0))),
    }


def _zero_shot(group: str, measure: str) -> Callable[[str | None], Callable[[str], Value]]:
    """The value of a measure of a run, given the split and the time."""

    def value(split: str | None) -> Callable[[str], Value]:
        def at(time: str) -> Value:
            return lambda run: (run[time][split] if split else run[time])[group][measure]

        return at

    return value


COLUMNS = {
    "forget accuracy": _zero_shot("forget", "accuracy"),
    "forget recall@1": _zero_shot("forget", "recall_at_1"),
    "their category": _zero_shot("forget", "parent_accuracy"),
    "retain accuracy": _zero_shot("retain", "accuracy"),
    "retain recall@1": _zero_shot("retain", "recall_at_1"),
    "neighbours' accuracy": _zero_shot("neighbours", "accuracy"),
}


def tables(rows: list[dict[str, Any]]) -> str:
    """Before → after in percent, means over seeds, as Markdown: seen images, held-out ones, the audit."""
    parts = []
    for split, title in ((None, "Seen images"), ("heldout", "Held-out images")):
        columns = {name: of(split) for name, of in COLUMNS.items()}
        parts.append(_table(title, columns, rows))
    asked = {
        f"{group} by {what}": lambda time, what=what, group=group: lambda run: run["audit"][time][what][group]
        for what, group in itertools.product(("paraphrase", "prototype"), ("forget", "retain"))
    }
    parts.append(_table("Asked in other ways", asked, rows))
    return "\n\n".join(parts)


def _table(title: str, columns: dict[str, Callable[[str], Value]], rows: list[dict[str, Any]]) -> str:
    lines = [f"**{title}**\n", line(("concepts", "method", "model", "seeds", *columns))]
    lines.append(line(["---"] * (4 + len(columns))))
    for (count, method, model), runs in _groups(rows).items():
        cells = [_cell(runs, of("before"), of("after")) for of in columns.values()]
        lines.append(line([str(count), method, model, str(len(runs)), *cells]))
    return "\n".join(lines)


def _groups(rows: list[dict[str, Any]]) -> dict[tuple[int, str, str], list[dict[str, Any]]]:
    groups: dict[tuple[int, str, str], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: len(row["forget"])):
        groups.setdefault((len(row["forget"]), label(row), row["model"]), []).append(row)
    return groups


def _cell(runs: list[dict[str, Any]], before: Value, after: Value) -> str:
    values = [100 * after(run) for run in runs]
    spread = "" if max(values) - min(values) < 0.05 else f" ({min(values):.1f}–{max(values):.1f})"
    return f"{100 * before(runs[0]):.1f} → {statistics.mean(values):.1f}{spread}"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """What is left of the forgotten against what retaining cost; the colour is their category's accuracy."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    markers = dict(zip(dict.fromkeys(map(label, rows)), itertools.cycle("o^sDvP*X<>pHd"), strict=False))
    for method, marker in markers.items():
        runs = [row for row in rows if label(row) == method]
        points = axes.scatter(
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
            label=method,
            edgecolors="black",
            linewidths=0.5,
        )
    axes.set_xlabel("change of retained recall@1, points (right is better)")
    axes.set_ylabel("recall@1 of the forgotten, % (lower is better)")
    axes.legend(title="larger: more concepts")
    figure.colorbar(points, label="their category still recognized, %")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
