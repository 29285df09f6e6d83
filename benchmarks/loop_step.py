"""One whole step of unlearning with the bundled model: towers, loss, gradients, optimizer.

    python -m benchmarks.loop_step [--sizes 128 512]

*ours* is the method "hac" as it is; *plain* the same method in a space without ops: the matrix of
similarities, and the geometry's functions. B is the batch, half of it to be forgotten; D is the width of the
model's features. The loss of a step is that of three levels of captions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

import riemann_unlearn as ru
from benchmarks import hac_step
from benchmarks._process import arguments, each_alone, measure, report
from riemann_unlearn.config import RunConfig
from riemann_unlearn.spaces import Space
from riemann_unlearn.unlearning import Problem, Step
from riemann_unlearn.unlearning.api import _Run
from riemann_unlearn.unlearning.methods import HAC, Objective


class PlainStep(Step):
    """A step whose features are compared without ops."""

    @property
    def space(self) -> Space:
        """The model's, by its plain formulas."""
        own = self.problem.space
        return hac_step.Plain(own.scale, c=own.c, min_radius=own.min_radius)


@dataclass(frozen=True)
class Plain(HAC):
    """HAC of such steps."""

    def objective(self, problem: Problem) -> Objective:
        """As HAC's own, by name."""
        terms = super().objective(problem)

        def plain(step: Step) -> Mapping[str, Tensor]:
            return terms(PlainStep(step.problem, step.batch, step.number))

        return plain


def step(peer: str, size: int) -> Callable[[], object]:
    dataset, model = ru.data.load("emoji"), ru.load("meru-emoji")
    selection = dataset.taxonomy.select(["food-fruit", "food-vegetable", "animal-mammal", "animal-bird"])
    config = RunConfig(forget=("food-fruit",), forget_batch=size // 2, retain_batch=size - size // 2)
    method = HAC() if peer == "ours" else Plain()
    return _Run(Problem(model, dataset, selection), method, config, None).driver(method).take_step


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
