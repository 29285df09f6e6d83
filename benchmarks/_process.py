"""What the op benchmarks share: each measurement in a process of its own, with its time and peak memory."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]


def arguments(description: str | None, sizes: Sequence[int], widths: Sequence[int]) -> argparse.Namespace:
    """The options every op benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=sizes)
    parser.add_argument("--widths", type=int, nargs="+", default=widths)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each measurement is repeated")
    parser.add_argument("--meru", metavar="PATH", help="a checkout of facebookresearch/meru to compare with")
    parser.add_argument("--geoopt", metavar="PATH", help="a checkout of geoopt with Lorentz.cdist")
    parser.add_argument("--output", type=Path, help="write PATH.md and, with matplotlib, PATH.svg")
    parser.add_argument("--one", metavar="JSON", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(step: Callable[[], object], small: Callable[[], object], seconds: float) -> Row:
    """Best time of ``step``, and by how much it raised the process's peak of resident memory.

    ``small`` runs first: the code and the threads a first step loads are not its memory.
    """
    small()
    gc.collect()
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    started = time.perf_counter()
    step()
    times = [time.perf_counter() - started]
    peak = _memory("VmHWM")
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return {"ms": min(times) * 1e3, "mib": max(0.0, peak - before) / 1024}


def each_alone(module: str, options: argparse.Namespace, cases: Sequence[Row]) -> list[Row]:
    """Run the cases one after the other, each in a fresh interpreter, and print them as they come."""
    rows = []
    for case in cases:
        command = [sys.executable, "-W", "ignore", "-m", module, "--one", json.dumps(case)]
        command += ["--threads", str(options.threads), "--seconds", str(options.seconds)]
        # A checkout is found ahead of what is installed, and only by the peer it belongs to.
        checkout = getattr(options, case["peer"].lower(), None)
        paths = [checkout] if checkout else []
        paths += [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(f"{case} failed:\n{done.stderr[-2000:]}")
        row = {**case, **json.loads(done.stdout.splitlines()[-1])}
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def table(rows: Sequence[Row], keys: Sequence[str], column: str, floor: str) -> str:
    """Markdown: a line for each setting of ``keys``, a column for each ``column``; times over the floor's."""
    # Not above: a case is measured in a process of its own, whose memory counts.
    from riemann_unlearn.report.text import markdown

    columns = list(dict.fromkeys(row[column] for row in rows))
    lines = []
    for setting in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        found = {row[column]: row for row in rows if tuple(row[key] for key in keys) == setting}
        cells = []
        for name in columns:
            if name not in found:
                cells.append("–")
                continue
            cell = f"{found[name]['ms']:.3g} ms"
            if name != floor and floor in found:
                cell += f", {found[name]['ms'] / found[floor]['ms']:.2f}×"
            cells.append(cell + ("" if name == floor else f", +{found[name]['mib']:.0f} MiB"))
        lines.append([*(f"{value:,}" for value in setting), *cells])
    return markdown([*keys, *columns], lines)


def report(
    options: argparse.Namespace, rows: Sequence[Row], keys: Sequence[str], column: str, floor: str
) -> None:
    """Print the table and the machine; with ``--output`` write both, and a plot."""
    text = table(rows, keys, column, floor) + "\n\n" + machine(options.threads)
    print(text)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        lists = (f"--{name} " + " ".join(map(str, getattr(options, name))) for name in ("sizes", "widths"))
        command = (
            f"python -m benchmarks.{Path(sys.argv[0]).stem} {' '.join(lists)} --threads {options.threads}"
        )
        options.output.with_suffix(".md").write_text(f"`{command}`\n\n{text}\n", encoding="utf-8")
        _plot(options.output.with_suffix(".svg"), rows, keys, column)


def machine(threads: int) -> str:
    """One line that says where the figures come from."""
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    return (
        f"{time.strftime('%Y-%m-%d')}, {cpu}, {torch.backends.cpu.get_cpu_capability()}, {threads} threads, "
        f"torch {torch.__version__}, Python {platform.python_version()}; best time of repeated "
        "steps; memory is the rise of the process's peak over what it held before the step."
    )


def _memory(entry: str) -> int:
    """An entry of the process's status, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(entry + ":"):
            return int(line.split()[1])
    raise LookupError(entry)


def _plot(path: Path, rows: Sequence[Row], keys: Sequence[str], column: str) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "riemann_unlearn"
    from matplotlib import pyplot

    size, *rest = keys
    others = list(dict.fromkeys(tuple(row[key] for key in rest) for row in rows))
    figure, axes = pyplot.subplots(2, len(others), figsize=(4.2 * len(others), 6), squeeze=False)
    for k, other in enumerate(others):
        for name in dict.fromkeys(row[column] for row in rows):
            chosen = [r for r in rows if r[column] == name and tuple(r[key] for key in rest) == other]
            sizes = [row[size] for row in chosen]
            axes[0, k].loglog(sizes, [row["ms"] for row in chosen], "o-", label=name)
            axes[1, k].loglog(sizes, [max(row["mib"], 0.1) for row in chosen], "o-")
        axes[0, k].set_title(", ".join(f"{key} = {value}" for key, value in zip(rest, other, strict=True)))
        axes[1, k].set_xlabel(size)
    axes[0, 0].set_ylabel("ms")
    axes[1, 0].set_ylabel("MiB more")
    axes[0, 0].legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
