"""Hidden, or gone: what audits find of ten concepts after forgetting, beside models that never saw them.

    python -m benchmarks.gone --output docs/data/gone.jsonl --cache runs/gone
    python -m benchmarks.gone --output docs/data/gone.jsonl --counts 10 --methods tilt --set mixing=1
    python -m benchmarks.gone --output docs/data/gone.jsonl --table

One JSON line is the audit of one model of some concepts: "before", the untouched model; "oracle", trained
from scratch by the method "retrain", whose defaults are the bundled models' recipe, without any of the ten;
or a method. Each of the ten is forgotten in exactly one run of a count, so whatever the count, a figure of
the tables stands on all held-out images of all ten. A model that never saw any of the ten stands for the
oracle of each: for fewer than ten it has seen a little less than it might have. What is in the file or the
cache is not made again, and what was interrupted is gone on with.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._rows import append, key, label, read, settings
from benchmarks.unlearning import CONCEPTS, ORACLE
from riemann_unlearn.config import RunConfig
from riemann_unlearn.report.text import markdown

MEASURES = ("zero_shot", "recovery", "relearning", "membership")
"""Those that a verdict is made of."""
REFERENCES = ("before", "oracle")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gone", description=__doc__.split("\n")[0])
    usual = RunConfig.described("method").default
    parser.add_argument("--methods", nargs="+", default=[usual], help=f"default: {usual}")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the methods")
    parser.add_argument("--model", default="meru-emoji", help="a bundled model (default: meru-emoji)")
    parser.add_argument(
        "--counts", nargs="+", type=int, default=[10], metavar="N", help="concepts forgotten at once (10)"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--cache", type=Path, default=Path("runs/gone"), help="of trained models and runs")
    parser.add_argument("--output", type=Path, default=Path("gone.jsonl"))
    parser.add_argument("--table", action="store_true", help="print the tables of what is there, run nothing")
    options = parser.parse_args(arguments)
    if not all(1 <= count <= len(CONCEPTS) for count in options.counts):
        parser.error(f"--counts must be from 1 to {len(CONCEPTS)}")
    rows = read(options.output)
    done = {key(row) for row in rows}
    asked = () if options.table else itertools.product(options.seeds, options.counts)
    for seed, count in asked:
        # The oracle last: it takes longest, and tables of the others can be had without it.
        runs: list[tuple[str, dict[str, float], int]] = [("before", {}, 0)]
        runs += [(method, settings(method, options.set), seed) for method in options.methods]
        runs += [("oracle", settings(ORACLE), seed)]
        for (method, changed, own_seed), forget in itertools.product(runs, groups(count)):
            run = {
                "model": options.model,
                "method": method,
                "settings": changed,
                "forget": list(forget),
                "seed": own_seed,
            }
            if key(run) not in done:
                row = _audited(run, options.cache)
                append(options.output, row)
                rows.append(row)
                done.add(key(row))
    print(tables(rows))
    return 0


def groups(count: int) -> list[tuple[str, ...]]:
    """The ten concepts, so many at a time.

    Examples
    --------
    >>> [len(group) for group in groups(3)]
    [3, 3, 3, 1]
    """
    return [CONCEPTS[first : first + count] for first in range(0, len(CONCEPTS), count)]


def _audited(run: Mapping[str, Any], cache: Path) -> dict[str, Any]:
    """The line of a run: the model is made, if it is not there, and audited."""
    import torch

    import riemann_unlearn as ru
    from riemann_unlearn.evaluation import full_audit

    dataset, spent = ru.data.load("emoji"), {}
    model = ru.load(run["model"])
    if run["method"] != "before":
        # One oracle for all, which has seen none of the ten.
        wanted = {**run, "method": ORACLE, "forget": list(CONCEPTS)} if run["method"] == "oracle" else run
        folder = cache / f"{wanted['method']}-{_digest(wanted)}"
        metrics = _forgotten(wanted, folder)
        model, spent = ru.load(folder), {"seconds": metrics["seconds"], "steps": metrics["steps"]}
    started = time.perf_counter()
    selection = dataset.taxonomy.select(run["forget"])
    full = full_audit({"after": model.eval()}, dataset, selection, measures=MEASURES, progress=True)
    return {
        **run,
        **spent,
        "audit": {name: full[name]["after"] for name in MEASURES},
        "chance": full["chance"],
        "audit_seconds": round(time.perf_counter() - started, 1),
        "versions": {"riemann_unlearn": ru.__version__, "torch": torch.__version__},
        "machine": platform.machine(),
        "threads": min(torch.get_num_threads(), len(os.sched_getaffinity(0))),
    }


def _forgotten(run: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Metrics of the run in a folder; it is made, or gone on with, where it is not finished."""
    import riemann_unlearn as ru
    from riemann_unlearn.runs import CHECKPOINT_NAME, CONFIG_NAME, METRICS_NAME

    # A checkpoint goes last of all: one that is there is of a run that is not finished.
    if not (folder / METRICS_NAME).is_file() or (folder / CHECKPOINT_NAME).is_file():
        ru.unlearn(**run, output=folder, resume=(folder / CONFIG_NAME).is_file())
    metrics: dict[str, Any] = json.loads((folder / METRICS_NAME).read_text("utf-8"))
    return metrics


def _digest(run: Mapping[str, Any]) -> str:
    """A name for what tells a run from others."""
    return hashlib.blake2s(repr(key(run)).encode(), digest_size=4).hexdigest()


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """What is found of the ten concepts, pooled, what of it is beyond an oracle, and what is retained."""
    parts = []
    for (model, count), runs in _cells(rows).items():
        first = next(iter(runs.values()))["verdict"]
        ways = [first.captions.name, *(trace.name for trace in first.traces)]
        found, beyond, kept = [], [], []
        for (name, seed), of in runs.items():
            reached = of["verdict"]
            traces = {trace.name: trace for trace in (reached.captions, *reached.traces)}
            verdict = reached.verdict or "cannot say"
            found.append([name, seed, reached.captions.images, *(_pair(traces[w]) for w in ways), verdict])
            if of["excess"]:
                beyond.append([name, seed, *(_difference(of["excess"][way]) for way in ways[1:])])
            kept.append([name, seed, *of["retained"]])
        heads = ["method", "seed"]
        parts += [
            f"**{model}, {count} at a time: found of the forgotten, %, [95 %, Wilson], (retrained)**",
            markdown([*heads, "images", *ways, "verdict"], found),
            "Found beyond the retrained model, points, [95 %, bootstrap over runs]:",
            markdown([*heads, *ways[1:]], beyond),
            "Retained, before → after, %:",
            markdown([*heads, *(title for title, _ in RETAINED), "seconds a run"], kept),
        ]
    return "\n\n".join(parts)


RETAINED = (
    ("retain accuracy, seen", ("seen", "accuracy")),
    ("retain recall@1, seen", ("seen", "recall_at_1")),
    ("retain accuracy, held out", ("heldout", "accuracy")),
    ("retain recall@1, held out", ("heldout", "recall_at_1")),
)
"""What the method costs, and where it stands in an audit."""


def _cells(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], dict[tuple[str, int], dict[str, Any]]]:
    """By model and number of concepts at a time, by method and seed, what their audits come to together."""
    from riemann_unlearn.evaluation.verdict import excess_over_concepts, pooled

    by_key = {key(row): row for row in rows}
    # Whatever recipe it is by; the last one, if there are several.
    oracles = {(r["model"], tuple(r["forget"]), r["seed"]): r for r in rows if r["method"] == "oracle"}
    found: dict[tuple[str, int], dict[tuple[str, int], dict[str, Any]]] = {}
    # The first row of a method and its settings speaks for all of the same.
    kinds = {(row["model"], label(row), row["seed"]): row for row in rows if row["method"] not in REFERENCES}
    for (model, name, seed), row in kinds.items():
        for count in range(1, len(CONCEPTS) + 1):
            runs = [{**row, "forget": list(forget)} for forget in groups(count)]
            lines = [
                {
                    "before": by_key.get(key({**run, "method": "before", "settings": {}, "seed": 0})),
                    "after": by_key.get(key(run)),
                    "oracle": oracles.get((model, tuple(run["forget"]), seed)),
                }
                for run in runs
            ]
            # All ten, or the figures would be of fewer images than they say; an oracle may be still to come.
            if any(line["before"] is None or line["after"] is None for line in lines):
                continue
            audits = [_full(line) for line in lines]
            found.setdefault((model, count), {})[name, seed] = {
                "verdict": pooled(audits),
                "excess": excess_over_concepts(audits),
                "retained": _retained(lines),
            }
    return found


def _full(line: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Any]:
    """A full audit, as if all its models had been audited together."""
    there = {role: row for role, row in line.items() if row is not None}
    return {
        **{name: {role: row["audit"][name] for role, row in there.items()} for name in MEASURES},
        "chance": there["after"]["chance"],
        "unmet": {},
    }


def _retained(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Means over runs of what is retained, and of their seconds."""
    cells = []
    for _, (part, figure) in RETAINED:
        before, after = (
            statistics.mean(100 * line[role]["audit"]["zero_shot"][part]["retain"][figure] for line in lines)
            for role in ("before", "after")
        )
        cells.append(f"{before:.1f} → {after:.1f}")
    seconds = [line["after"]["seconds"] for line in lines if "seconds" in line["after"]]
    return [*cells, f"{statistics.mean(seconds):.0f}" if seconds else "–"]


def _pair(trace: Any) -> str:
    """What is found after, with its interval, and in the retrained model."""
    from riemann_unlearn.evaluation.intervals import wilson

    low, high = (100 * end for end in wilson(trace.shares["after"], trace.images))
    told = f"{100 * trace.shares['after']:.1f} [{low:.0f}, {high:.0f}]"
    return told + (f" ({100 * trace.shares['oracle']:.1f})" if "oracle" in trace.shares else "")


def _difference(value: tuple[float, float, float]) -> str:
    mean, low, high = (100 * figure for figure in value)
    return f"{mean:+.1f} [{low:+.0f}, {high:+.0f}]"


if __name__ == "__main__":
    sys.exit(main())
