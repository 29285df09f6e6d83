"""What a run of tilt takes and misses, by what of the tower moves, in how many steps, of how many views.

    python -m benchmarks.minute --output docs/data/minute.jsonl
    python -m benchmarks.minute --output docs/data/minute.jsonl --table

On two concepts outside the tables of benchmarks.unlearning, whose bars are those here. Seconds are of the
processor and of the whole run, evaluations included. One JSON line a run; one that is in the file is not run
again.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._rows import append, read
from benchmarks.search import CONCEPTS
from benchmarks.unlearning import AUDIT, IMAGES
from riemann_unlearn.report.text import markdown

ASKED = ("model", "frozen", "steps", "views", "forget", "seed")
"""What tells a run from others."""
SHOWN = (
    ("forget accuracy", "seen", ("forget", "accuracy"), False),
    ("forget recall@1", "seen", ("forget", "recall_at_1"), False),
    ("by paraphrase", "audit", ("paraphrase", "forget"), False),
    ("retain accuracy", "seen", ("retain", "accuracy"), True),
    ("retain recall@1", "seen", ("retain", "recall_at_1"), True),
    ("held out: forget accuracy", "heldout", ("forget", "accuracy"), False),
    ("retain accuracy", "heldout", ("retain", "accuracy"), True),
    ("retain recall@1", "heldout", ("retain", "recall_at_1"), True),
)
"""Columns: the title, the part of the metrics, what of it, and whether the change since before is shown."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.minute", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="meru-emoji")
    parser.add_argument("--frozen", nargs="+", type=float, default=[0.12, 0.25, 0.52], metavar="SHARE")
    parser.add_argument("--steps", nargs="+", type=int, default=[150, 300, 600], metavar="N")
    parser.add_argument("--views", nargs="+", type=int, default=[1, 4], metavar="N")
    parser.add_argument("--forget", nargs="+", default=list(CONCEPTS), help="one run for each")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output", type=Path, default=Path("minute.jsonl"))
    parser.add_argument("--table", action="store_true", help="print the table of what is there, run nothing")
    options = parser.parse_args(arguments)
    rows = read(options.output)
    done = [_asked(row) for row in rows]
    grid = (
        ()
        if options.table
        else itertools.product(
            [options.model], options.frozen, options.steps, options.views, options.forget, options.seeds
        )
    )
    for values in grid:
        if values not in done:
            rows.append(_run(**dict(zip(ASKED, values, strict=True))))
            append(options.output, rows[-1])
    print(table(rows))
    return 0


def _asked(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ASKED)


def _run(model: str, frozen: float, steps: int, views: int, forget: str, seed: int) -> dict[str, Any]:
    import torch

    import riemann_unlearn as ru

    started = time.process_time()
    settings = {"frozen": frozen, "steps": steps}
    metrics = ru.unlearn(model, forget=forget, settings=settings, views=views, seed=seed).metrics
    asked = dict(zip(ASKED, (model, frozen, steps, views, forget, seed), strict=True))
    return {
        **metrics,
        **asked,
        "seconds": round(time.process_time() - started, 1),
        "versions": {"riemann_unlearn": ru.__version__, "torch": torch.__version__},
        "threads": torch.get_num_threads(),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Means over concepts and seeds in percent, *retain* as changes in points; and the bars missed."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(_asked(row)[:4], []).append(row)
    heads = [
        "model",
        "frozen",
        "steps",
        "views",
        "runs",
        "seconds",
        *(column[0] for column in SHOWN),
        "missed",
    ]
    lines = [
        [
            *group,
            len(runs),
            f"{statistics.mean(run['seconds'] for run in runs):.0f}",
            *(_shown(runs, column) for column in SHOWN),
            ", ".join(dict.fromkeys(name for run in runs for name in missed(run))) or "none",
        ]
        for group, runs in groups.items()
    ]
    return markdown(heads, lines)


def _shown(runs: Sequence[Mapping[str, Any]], column: tuple[str, str, tuple[str, str], bool]) -> str:
    _, part, keys, change = column
    pairs = [_before_and_after(run, part, keys) for run in runs]
    values = [pair[1] - change * pair[0] for pair in pairs if pair is not None]
    return f"{statistics.mean(values):.1f}" if values else "–"


def _before_and_after(run: Mapping[str, Any], part: str, keys: tuple[str, str]) -> tuple[float, float] | None:
    """A share in percent; None where it could not be measured, such as one by keywords that there are not."""
    times = [run["audit"][when] if part == "audit" else run[when] for when in ("before", "after")]
    if part == "heldout":
        times = [time["heldout"] for time in times]
    before, after = (time.get(keys[0], {}).get(keys[1]) for time in times)
    return None if before is None or after is None else (100 * before, 100 * after)


def missed(run: Mapping[str, Any]) -> Iterator[str]:
    """The bars of benchmarks.unlearning that a run misses."""
    for part, columns in (("seen", IMAGES), ("heldout", IMAGES), ("audit", AUDIT)):
        for column in columns:
            pair = _before_and_after(run, part, column.keys)
            if pair is not None and not column.holds(*pair, 100 * run["chance"][column.chance]):
                yield f"{column.name} held out" if part == "heldout" else column.name


if __name__ == "__main__":
    sys.exit(main())
