"""Time of the geometry, forward and backward, beside the formulas other libraries use.

    python -m benchmarks.geometry [--rows 4096] [--dim 512] [--compile] [--device cuda] [--json FILE]

*textbook* is the formula of the literature in plain torch, float32, on space components: acosh of a clamped
inner product, acos of a clamped cosine, norms with a floor. That is what MERU and its kin run. *geoopt* is
``geoopt.Lorentz`` on ambient points. Every figure is the median of repeated runs in one process.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import geoopt
import torch
from torch import Tensor
from torch.nn.functional import pad

from riemann_unlearn import geometry as g
from riemann_unlearn.geometry import tangent

EPS = 1e-8


def textbook_inner(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    times = torch.sqrt(1 / c + (x * x).sum(-1)) * torch.sqrt(1 / c + (y * y).sum(-1))
    return (x * y).sum(-1) - times


def textbook_dist(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return torch.acosh((-c * textbook_inner(x, y, c)).clamp(min=1 + EPS)) / c.sqrt()


def textbook_expmap0(v: Tensor, c: Tensor) -> Tensor:
    r = c.sqrt() * v.norm(dim=-1, keepdim=True)
    return torch.sinh(r.clamp(min=EPS)) * v / r.clamp(min=EPS)


def textbook_logmap0(x: Tensor, c: Tensor) -> Tensor:
    time = torch.sqrt(1 + c * (x * x).sum(-1, keepdim=True))
    return torch.acosh(time.clamp(min=1 + EPS)) * x / (c.sqrt() * x.norm(dim=-1, keepdim=True)).clamp(min=EPS)


def textbook_half_aperture(x: Tensor, c: Tensor) -> Tensor:
    return torch.asin((0.2 / (x.norm(dim=-1) * c.sqrt() + EPS)).clamp(-1 + EPS, 1 - EPS))


def textbook_exterior_angle(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    t1, t2 = torch.sqrt(1 / c + (x * x).sum(-1)), torch.sqrt(1 / c + (y * y).sum(-1))
    inner = c * ((x * y).sum(-1) - t1 * t2)
    below = x.norm(dim=-1) * torch.sqrt((inner**2 - 1).clamp(min=EPS))
    return torch.acos(((t2 + inner * t1) / (below + EPS)).clamp(-1 + EPS, 1 - EPS))


def textbook_tangent_dist(v: Tensor, w: Tensor, c: Tensor) -> Tensor:
    return textbook_dist(textbook_expmap0(v, c), textbook_expmap0(w, c), c)


def textbook_tangent_angle(v: Tensor, w: Tensor, c: Tensor) -> Tensor:
    return textbook_exterior_angle(textbook_expmap0(v, c), textbook_expmap0(w, c), c)


def cases(rows: int, dim: int, device: str) -> dict[str, tuple[tuple[Tensor, ...], dict[str, Callable]]]:
    """For each operation its inputs and the functions that compute it."""
    torch.manual_seed(0)
    c = torch.tensor(1.0, device=device)
    v, w = (torch.randn(rows, dim, device=device) / dim**0.5 for _ in range(2))
    x, y = g.expmap0(v, 1.0), g.expmap0(w, 1.0)
    p, q = g.to_ambient(x, 1.0), g.to_ambient(y, 1.0)
    ours, theirs = g.Lorentz().to(device), geoopt.Lorentz().to(device)
    u0 = pad(v, (1, 0))
    u = ours.proju(p, q)
    space = {
        "tangent.dist": ((v, w, c), tangent.dist, textbook_tangent_dist),
        "tangent.exterior_angle": ((v, w, c), tangent.exterior_angle, textbook_tangent_angle),
        "dist": ((x, y, c), g.dist, textbook_dist),
        "exterior_angle": ((x, y, c), g.exterior_angle, textbook_exterior_angle),
        "half_aperture": ((x, c), g.half_aperture, textbook_half_aperture),
        "expmap0": ((v, c), g.expmap0, textbook_expmap0),
        "logmap0": ((x, c), g.logmap0, textbook_logmap0),
    }
    table = {name: (inputs, {"ours": f, "textbook": h}) for name, (inputs, f, h) in space.items()}
    methods = {
        "dist": (p, q),
        "expmap0": (u0,),
        "logmap0": (p,),
        "expmap": (p, u),
        "logmap": (p, q),
        "transp": (p, q, u),
    }
    for name, inputs in methods.items():
        functions = {"ours": getattr(ours, name), "geoopt": getattr(theirs, name)}
        table[f"Lorentz.{name}"] = (inputs, functions)
    return table


def measure(function: Callable, inputs: tuple[Tensor, ...], *, seconds: float) -> float:
    """Median milliseconds of one forward and backward."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    device = leaves[0].device

    def once() -> float:
        start = time.perf_counter()
        value = function(*leaves)
        torch.autograd.grad(value, leaves, torch.ones_like(value), allow_unused=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1e3 * (time.perf_counter() - start)

    for _ in range(3):
        once()
    runs: list[float] = []
    while sum(runs) < 1e3 * seconds or len(runs) < 5:
        runs.append(once())
    return statistics.median(runs)


def processor() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return names[0].partition(": ")[2] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=0.5, help="spent on each figure")
    parser.add_argument("--compile", action="store_true", help="compile every function first")
    parser.add_argument("--only", help="operations whose name contains this")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    where = {
        "torch": torch.__version__,
        "geoopt": geoopt.__version__,
        "threads": torch.get_num_threads(),
        "machine": torch.cuda.get_device_name() if options.device == "cuda" else processor(),
        "rows": options.rows,
        "dim": options.dim,
        "compiled": options.compile,
    }
    print("  ".join(f"{key}={value}" for key, value in where.items()))
    results = {}
    for name, (inputs, functions) in cases(options.rows, options.dim, options.device).items():
        if options.only and options.only not in name:
            continue
        row = {}
        for library, function in functions.items():
            if options.compile:
                function = torch.compile(function, fullgraph=library == "ours")
            row[library] = measure(function, inputs, seconds=options.seconds)
        results[name] = row
        (_, ours), (peer, theirs) = row.items()
        print(f"{name:26s} ours {ours:9.3f} ms   {peer:9s} {theirs:9.3f} ms   ratio {ours / theirs:5.2f}")
    if options.json:
        options.json.write_text(json.dumps({"where": where, "milliseconds": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
