"""A whole HAC loss, forward and backward, next to the contrastive op alone: features given.

    python -m benchmarks.hac_step [--sizes 256 1024 4096] [--widths 512]

*contrastive* is the op with its InfoNCE, no masks. *HAC* has all seven terms, a quarter of the pairs to be
forgotten, without caption ids; *HAC, captions* has them, each caption twice. *plain* is the same loss in a
space without ops: the matrix of similarities, and the geometry's functions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks._process import arguments, each_alone, measure, report
from benchmarks.contrastive import MATRIX_LIMIT, features
from riemann_unlearn.losses import ContrastiveLoss, HyperbolicAlignmentCalibration
from riemann_unlearn.ops import Cones
from riemann_unlearn.ops.cones import reference
from riemann_unlearn.spaces import LorentzTangents, Space


@dataclass(frozen=True, eq=False)
class Plain(LorentzTangents):
    """Tangent vectors compared by the matrix of similarities, cones by the geometry's functions."""

    name = "plain"
    statistics = Space.statistics

    def cones(self, broad: Tensor, narrow: Tensor) -> Cones:
        """By the exterior angle and the half aperture."""
        return reference(broad, narrow, self.c, min_radius=self.min_radius)


def step(peer: str, size: int, width: int) -> Callable[[], object]:
    x, y = features(size, width)
    scale, c = torch.tensor(30.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    forget, ids = torch.arange(size) % 4 == 0, torch.arange(size) // 2
    contrastive, hac = ContrastiveLoss(), HyperbolicAlignmentCalibration()
    losses: dict[str, Callable[[], Tensor]] = {
        "contrastive": lambda: contrastive(x, y, logit_scale=scale, c=c),
        "HAC": lambda: hac(x, y, forget, logit_scale=scale, c=c),
        "HAC, captions": lambda: hac(x, y, forget, logit_scale=scale, c=c, caption_ids=ids),
        "plain": lambda: hac(x, y, forget, space=Plain(scale, c=c)),
    }
    return lambda: torch.autograd.grad(losses[peer](), [x, y, scale, c])


def main() -> None:
    options = arguments(__doc__, (64, 256, 1024, 4096), (512,))
    if options.one:
        case = json.loads(options.one)
        torch.set_num_threads(options.threads)
        peer, size, width = case["peer"], case["B"], case["D"]
        print(json.dumps(measure(step(peer, size, width), step(peer, 32, width), options.seconds)))
        return
    cases = [
        {"B": size, "D": width, "peer": peer}
        for width in options.widths
        for size in options.sizes
        for peer in ("contrastive", "HAC", "HAC, captions", "plain")
        if peer != "plain" or size <= MATRIX_LIMIT
    ]
    report(options, each_alone("benchmarks.hac_step", options, cases), ("B", "D"), "peer", "contrastive")


if __name__ == "__main__":
    main()
