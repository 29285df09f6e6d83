"""Time of one optimizer step: ours and geoopt's as multiples of torch's Adam.

    python -m benchmarks.optimizer_step [--seconds 2] [--json]

Three problems: every parameter of open_clip's ViT-B-32 (no manifold), 256 Lorentz tensors of 64×33, and one
Lorentz table of 100,000×65. The steps of all optimizers are interleaved, so that a busy machine is busy for
all of them alike, and the median of each is reported. Gradients are fixed: what is timed is ``step()``.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import geoopt
import torch
from torch import Tensor

import riemann_unlearn as ru
from riemann_unlearn.optim import RiemannianAdam


def vit_b_32() -> list[Tensor]:
    """The 302 tensors of open_clip's ViT-B-32."""
    import open_clip

    model = open_clip.create_model("ViT-B-32", pretrained=None)
    return [p.detach() for p in model.parameters()]


def lorentz(count: int, rows: int, width: int) -> list[Tensor]:
    manifold = ru.Lorentz()
    generator = torch.Generator().manual_seed(0)
    return [
        manifold.expmap0(torch.randn(rows, width, generator=generator) / width**0.5).detach()
        for _ in range(count)
    ]


def parameters(points: list[Tensor], manifold: geoopt.Manifold | None) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for tensor in points:
        p = torch.nn.Parameter(tensor.clone())
        if manifold is not None:
            p = geoopt.ManifoldParameter(manifold.projx(tensor), manifold)
        p.grad = torch.randn(tensor.shape, generator=generator) * 1e-2
        made.append(p)
    return made


PROBLEMS: list[tuple[str, Callable[[], list[Tensor]], str, float]] = [
    ("ViT-B-32, 302 Euclidean tensors", vit_b_32, "fused", 1.1),
    ("256 Lorentz tensors of 64×33", lambda: lorentz(256, 64, 33), "foreach", 2.5),
    ("one Lorentz table of 100,000×65", lambda: lorentz(1, 100_000, 65), "fused", 2.5),
]


def contenders(points: list[Tensor], baseline: str, on_manifold: bool) -> dict[str, torch.optim.Optimizer]:
    """Optimizers by name; torch's comes first."""
    lr = 1e-4
    found: dict[str, torch.optim.Optimizer] = {
        f"torch Adam, {baseline}": torch.optim.Adam(parameters(points, None), lr=lr, **{baseline: True}),
        "ours": RiemannianAdam(parameters(points, ru.Lorentz() if on_manifold else None), lr=lr),
    }
    theirs = parameters(points, geoopt.Lorentz() if on_manifold else None)
    found["geoopt"] = geoopt.optim.RiemannianAdam(theirs, lr=lr)
    return found


def measure(optimizers: dict[str, torch.optim.Optimizer], seconds: float) -> dict[str, float]:
    """Median seconds of a step, from interleaved rounds."""
    for optimizer in optimizers.values():  # states are made, and kernels compiled, outside the timing
        optimizer.step()
        optimizer.step()
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    started = time.perf_counter()
    while time.perf_counter() - started < seconds * len(optimizers) or len(times["ours"]) < 5:
        for name, optimizer in optimizers.items():
            before = time.perf_counter()
            optimizer.step()
            times[name].append(time.perf_counter() - before)
    return {name: statistics.median(each) for name, each in times.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print what it finds; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each optimizer (default: 2)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    for name, make, baseline, target in PROBLEMS:
        found = measure(contenders(make(), baseline, "Lorentz" in name), options.seconds)
        base = next(iter(found.values()))
        rows += [
            {"problem": name, "optimizer": which, "ms": 1e3 * t, "ratio": t / base, "target": target}
            for which, t in found.items()
        ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return 0
    print(
        f"torch {torch.__version__}, geoopt {geoopt.__version__}, {torch.get_num_threads()} threads, ", end=""
    )
    print(f"{platform.processor() or platform.machine()}\n")
    print("| problem | optimizer | ms a step | × torch | ours is held to |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        held = f"≤ {row['target']}" if row["optimizer"] == "ours" else ""
        print(f"| {row['problem']} | {row['optimizer']} | {row['ms']:.2f} | {row['ratio']:.2f} | {held} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
