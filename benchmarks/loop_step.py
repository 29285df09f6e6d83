"""One whole step of unlearning with the bundled model: towers, loss, gradients, optimizer.

    python -m benchmarks.loop_step [--sizes 128 512]

*ours* is the method "hac" as it is; *plain* the same method in a space without ops: the matrix of
similarities, and the geometry's functions. B is the batch, half of it to be forgotten; D is the width of the
model's features. The loss of a step is that of three levels of captions.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import torch

import riemann_unlearn as ru
from benchmarks import hac_step
from benchmarks._process import arguments, each_alone, measure, report
from riemann_unlearn.config import RunConfig
from riemann_unlearn.spaces import Space
from riemann_unlearn.unlearning.api import _Run
from riemann_unlearn.unlearning.methods import HAC
from riemann_unlearn.unlearning.problem import Problem


class Plain(Problem):
    """A problem whose features are compared without ops."""

    @property
    def space(self) -> Space:
        """The model's, by the matrix of similarities."""
        space = self.model.space
        return hac_step.Plain(space.scale, c=space.c, min_radius=space.min_radius)


def step(peer: str, size: int) -> Callable[[], object]:
    dataset, model = ru.data.load("emoji"), ru.load("meru-emoji")
    forget = dataset.taxonomy.select(["food-fruit", "food-vegetable", "animal-mammal", "animal-bird"])
    problem = (Problem if peer == "ours" else Plain)(model, dataset, forget)
    config = RunConfig(forget=("food-fruit",), forget_batch=size // 2, retain_batch=size - size // 2)
    return _Run(problem, HAC(), config, None).driver(HAC()).take_step


def main() -> None:
    options = arguments(__doc__, (128, 512), (512,))
    if options.one:
        case = json.loads(options.one)
        torch.set_num_threads(options.threads)
        print(json.dumps(measure(step(case["peer"], case["B"]), step(case["peer"], 16), options.seconds)))
        return
    cases = [{"B": size, "peer": peer} for size in options.sizes for peer in ("plain", "ours")]
    report(options, each_alone("benchmarks.loop_step", options, cases), ("B",), "peer", "plain")


if __name__ == "__main__":
    main()
