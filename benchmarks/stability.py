r"""The numerical-stability audit of this library and its peers: a table and a plot for the documentation.

    python -m benchmarks.stability --table docs/tables/stability.md --plot docs/figures/stability.svg \
        [--meru PATH/meru/lorentz.py] [--hypll]

MERU's functions are read from a checkout, HypLL's from where it is installed; neither is needed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from datetime import date
from pathlib import Path

import geoopt
import torch

import riemann_unlearn as ru
from riemann_unlearn.diagnostics import Audit, audit, find, plot
from riemann_unlearn.report.text import markdown

RADII = (1e-6, 1e-4, 1e-2, 0.1, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 12.0, 15.0)


def table(audits: list[Audit]) -> str:
    """For each operation and library the worst errors, what is not finite, and where it is safe."""
    heads = (
        "operation",
        "library",
        "worst value",
        "median value",
        "worst gradient",
        "NaN or Inf",
        "safe radii",
    )
    lines = []
    for operation in dict.fromkeys(row.operation for one in audits for row in one.rows):
        for one in audits:
            rows = [row for row in one.rows if row.operation == operation]
            if not rows:
                continue
            low, high = max(r.safe_from for r in rows), min(r.safe_radius for r in rows)
            safe = f"{low:g} to {high:g}" if high and low <= high else "none"
            worst, gradient = max(r.worst for r in rows), max(r.worst_gradient for r in rows)
            median = sorted(r.median for r in rows)[len(rows) // 2]
            count = sum(r.nonfinite for r in rows)
            errors = (f"{error:.2g}" for error in (worst, median, gradient))
            lines.append((operation, one.name, *errors, count, safe))
    return markdown(heads, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--meru", help="path of MERU's lorentz.py")
    parser.add_argument("--hypll", action="store_true", help="audit HypLL's Poincaré ball")
    options = parser.parse_args()
    subjects = [
        (ru.geometry.tangent, "riemann_unlearn, tangent", None),
        (ru.Lorentz(), "riemann_unlearn.Lorentz", None),
        (geoopt.Lorentz(), "geoopt.Lorentz", None),
        (geoopt.PoincareBall(), "geoopt.PoincareBall", None),
    ]
    versions = [f"torch {torch.__version__}", f"geoopt {geoopt.__version__}"]
    if options.meru:
        subjects.append((find(options.meru), "MERU", "space"))
    if options.hypll:
        subjects.append((find("hypll.manifolds.poincare_ball.math.diffgeom"), "HypLL", "ball"))
        versions.append(f"HypLL {importlib.metadata.version('hypll')}")
    audits = [audit(thing, name=name, chart=chart, radii=RADII) for thing, name, chart in subjects]
    text = table(audits)
    head = (
        f"float32, c = 1, radii {', '.join(f'{r:g}' for r in RADII)}; {', '.join(versions)}; {date.today()}."
    )
    print(head + "\n\n" + text)
    if options.table:
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(f"{head}\n\n{text}\n", encoding="utf-8")
    if options.plot:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        plot(audits, str(options.plot))


if __name__ == "__main__":
    main()
