"""Exterior angle, half aperture and both hinges of a batch of pairs, forward and backward.

    python -m benchmarks.cones [--sizes 1024 4096 16384] [--widths 64 512] [--meru PATH]

*floor* is reading both features and writing both gradients: four passes of B×D numbers, and one more read of
the features. *plain* is the geometry's functions, *MERU* its own, from a checkout.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks._process import arguments, each_alone, measure, report
from benchmarks.contrastive import features
from riemann_unlearn.ops import cones
from riemann_unlearn.ops.cones import reference


def step(peer: str, size: int, width: int) -> Callable[[], object]:
    x, y = features(size, width)
    c = torch.tensor(1.0, requires_grad=True)
    if peer == "floor":
        a, b = x.detach(), y.detach()
        out = [torch.empty_like(a), torch.empty_like(a)]

        def passes() -> None:
            a.sum(), b.sum()
            torch.add(a, b, out=out[0])
            torch.sub(a, b, out=out[1])

        return passes
    if peer == "MERU":
        lorentz = importlib.import_module("meru.lorentz")

        def outside() -> Tensor:
            image, text = (lorentz.exp_map0(v, c) for v in (x, y))
            return lorentz.oxy_angle(text, image, c) - lorentz.half_aperture(text, c)
    else:
        op = cones if peer == "ours" else reference

        def outside() -> Tensor:
            return op(y, x, c).outside

    def loss() -> Tensor:
        angle = outside()
        return angle.clamp(min=0).mean() + (-angle).clamp(min=0).mean()

    return lambda: torch.autograd.grad(loss(), [x, y, c])


def main() -> None:
    options = arguments(__doc__, (1024, 4096, 16384), (64, 512))
    if options.one:
        case = json.loads(options.one)
        torch.set_num_threads(options.threads)
        peer, size, width = case["peer"], case["B"], case["D"]
        print(json.dumps(measure(step(peer, size, width), step(peer, 32, width), options.seconds)))
        return
    peers = ["floor", "ours", "plain", *(["MERU"] if options.meru else [])]
    cases = [
        {"B": size, "D": width, "peer": peer}
        for width in options.widths
        for size in options.sizes
        for peer in peers
    ]
    report(options, each_alone("benchmarks.cones", options, cases), ("B", "D"), "peer", "floor")


if __name__ == "__main__":
    main()
