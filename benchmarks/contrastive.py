"""Time and memory of a hyperbolic contrastive step, forward and backward, as the batch grows.

    python -m benchmarks.contrastive [--sizes 256 1024 4096] [--widths 64 512] [--meru PATH] [--geoopt PATH]

*floor* is what no gradient can do without: three matrix products of B×B×D. *plain* is the same op in plain
torch, with the matrix (``riemann_unlearn.ops.contrastive.reference``). *MERU* and *geoopt* are their own
functions, from checkouts; nothing of theirs is part of this package. The loss is the symmetric InfoNCE, with
gradients to both features, τ and the curvature. Those that hold the matrix stop at B = 8,192.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable

import geoopt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, pad

from benchmarks._process import arguments, each_alone, measure, report
from riemann_unlearn.geometry.precision import Curvature
from riemann_unlearn.losses import functional
from riemann_unlearn.ops import contrastive

MATRIX_LIMIT = 8192


def features(size: int, width: int) -> tuple[Tensor, Tensor]:
    """Features as a trained MERU has them: lengths around 1, pairs nearer than the rest."""
    generator = torch.Generator().manual_seed(0)
    x, noise = (normalize(torch.randn(size, width, generator=generator), dim=-1) for _ in range(2))
    y = normalize(x + noise, dim=-1)
    return x.requires_grad_(), (1.2 * y).requires_grad_()


def info_nce(logits: Tensor) -> Tensor:
    labels = torch.arange(len(logits))
    return (cross_entropy(logits, labels) + cross_entropy(logits.mT, labels)) / 2


def step(peer: str, size: int, width: int) -> Callable[[], object]:
    """One step of a peer."""
    x, y = features(size, width)
    scale, c = torch.tensor(30.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    if peer == "floor":
        square, a, b = torch.empty(size, size), x.detach(), y.detach()
        out = torch.empty(size, width)

        def products() -> None:
            torch.mm(a, b.mT, out=square)
            torch.mm(square, b, out=out)
            torch.mm(square.mT, a, out=out)

        return products
    if peer in ("ours", "plain"):
        if peer == "plain":
            from riemann_unlearn.ops.contrastive import reference as op
        else:
            op = contrastive

        def loss() -> Tensor:
            return functional.contrastive(op(x, y, scale, c), scale)
    elif peer == "MERU":
        lorentz = importlib.import_module("meru.lorentz")

        def loss() -> Tensor:
            points = (lorentz.exp_map0(v, c) for v in (x, y))
            return info_nce(-scale * lorentz.pairwise_dist(*points, c))
    else:
        manifold = geoopt.Lorentz(k=1.0, learnable=True)
        c = manifold.k

        def loss() -> Tensor:
            points = (manifold.expmap0(pad(v, (1, 0))) for v in (x, y))
            return info_nce(-scale * manifold.cdist(*points))

    inputs: list[Curvature] = [x, y, scale, c]
    return lambda: torch.autograd.grad(loss(), inputs)


def main() -> None:
    options = arguments(__doc__, (256, 1024, 4096, 8192, 16384), (64, 512))
    if options.one:
        case = json.loads(options.one)
        torch.set_num_threads(options.threads)
        peer, size, width = case["peer"], case["B"], case["D"]
        print(json.dumps(measure(step(peer, size, width), step(peer, 32, width), options.seconds)))
        return
    peers = [
        "floor",
        "ours",
        "plain",
        *(name for name in ("MERU", "geoopt") if getattr(options, name.lower())),
    ]
    cases = [
        {"B": size, "D": width, "peer": peer}
        for width in options.widths
        for size in options.sizes
        for peer in peers
        if peer == "ours" or size <= MATRIX_LIMIT or (peer == "floor" and size <= 16384)
    ]
    report(options, each_alone("benchmarks.contrastive", options, cases), ("B", "D"), "peer", "floor")


if __name__ == "__main__":
    main()
