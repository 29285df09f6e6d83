"""Methods against concepts and seeds: what is forgotten and what it costs, as JSON lines and a table.

    python -m benchmarks.unlearning --output docs/data/unlearning.jsonl

One line a run. A run that is already in the file is not run again, so an interrupted benchmark goes on where
it stopped; --table prints the table of what is there and runs nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODELS = {"hac": "meru-emoji", "ac": "clip-emoji"}
"""The model a method is run on: each in its paper's geometry."""
COLUMNS = (
    ("forget accuracy", "forget", "accuracy"),
    ("forget recall@1", "forget", "recall_at_1"),
    ("forget category", "forget", "parent_accuracy"),
    ("retain accuracy", "retain", "accuracy"),
    ("retain recall@1", "retain", "recall_at_1"),
    ("retain category", "retain", "parent_accuracy"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.unlearning", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--methods", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--forget", nargs="+", default=["food-fruit"], help="each one a run of its own")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("unlearning.jsonl"))
    parser.add_argument("--table", action="store_true", help="print the table of what is there, run nothing")
    options = parser.parse_args(arguments)
    rows = _read(options.output)
    done = {(row["method"], tuple(row["forget"]), row["seed"]) for row in rows}
    if not options.table:
        for method, forget, seed in itertools.product(options.methods, options.forget, options.seeds):
            if (method, (forget,), seed) not in done:
                rows.append(_run(method, forget, seed))
                options.output.parent.mkdir(parents=True, exist_ok=True)
                with options.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))
    return 0


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


def _run(method: str, forget: str, seed: int) -> dict[str, Any]:
    import torch

    import riemann_unlearn as ru

    metrics = ru.unlearn(MODELS[method], forget=forget, method=method, seed=seed).metrics
    versions = {"riemann_unlearn": ru.__version__, "torch": torch.__version__}
    return {
        **metrics,
        "versions": versions,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Before and after in percent, the mean over seeds with the extremes where they differ, as Markdown."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["model"], ", ".join(row["forget"])), []).append(row)
    head = ("method", "model", "forget", "seeds", "split", *(title for title, _, _ in COLUMNS))
    lines = [_line(head), _line(["---"] * len(head))]
    for key, runs in groups.items():
        for split, title in ((None, "seen"), ("heldout", "held-out")):
            cells = [_cell(runs, split, group, measure) for _, group, measure in COLUMNS]
            lines.append(_line([*key, str(len(runs)), title, *cells]))
    return "\n".join(lines)


def _cell(runs: list[dict[str, Any]], split: str | None, group: str, measure: str) -> str:
    def value(run: dict[str, Any], time: str) -> float:
        part = run[time][split] if split else run[time]
        return float(100 * part[group][measure])

    after = [value(run, "after") for run in runs]
    spread = "" if max(after) - min(after) < 0.05 else f" ({min(after):.1f}–{max(after):.1f})"
    return f"{value(runs[0], 'before'):.1f} → {statistics.mean(after):.1f}{spread}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
