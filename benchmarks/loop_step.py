"""One whole step of unlearning with the bundled model: towers, loss, gradients, optimizer.

    python -m benchmarks.loop_step [--sizes 128 512]

*ours* is the method "hac" as it is; *plain* the same method with the terms of
:mod:`riemann_unlearn.losses.functional`, each on the matrix of similarities. B is the batch, half of it to be
forgotten; D is the width of the model's features. The loss of a step is that of three levels of captions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import riemann_unlearn as ru
from benchmarks._process import arguments, each_alone, measure, report
from riemann_unlearn.losses import functional
from riemann_unlearn.losses.similarity import Hyperbolic
from riemann_unlearn.unlearning.loop import RunConfig, _Run
from riemann_unlearn.unlearning.methods.base import Objective, Problem, Step
from riemann_unlearn.unlearning.methods.hac import HAC


@dataclass(frozen=True)
class Plain(HAC):
    """HAC on the matrix of similarities."""

    def objective(self, problem: Problem) -> Objective:
        """As the op's, by name."""
        outer = self.epsilon

        def one_level(step: Step, level: str) -> dict[str, Tensor]:
            images, texts, forget = step.image_features, step.text_features[level], step.forget[level]
            ids, scale = step.batch.pairings[level].caption_ids, step.model.logit_scale.exp()
            s = functional.similarities(images, texts, Hyperbolic(), step.model.curvature)
            cones = (images, texts, step.model.curvature)
            return {
                "contrastive_loss": functional.contrastive(s, scale, ~forget, ids),
                "negative_alignment_loss": outer * self.alpha * functional.negative_alignment(s, forget, ids),
                "positive_alignment_loss": outer * self.beta * functional.positive_alignment(s, forget),
                "performance_loss": outer * self.gamma * functional.performance(s, scale, forget),
                "entailment_loss": self.entailment_weight * functional.entailment(*cones, ~forget),
                "cone_exit_loss": outer * self.omega * functional.cone_exit(*cones, forget),
                "norm_loss": outer * self.eta * functional.norm_regularization(*cones, forget),
            }

        return lambda step: step.sum_over_levels(partial(one_level, step))


def step(peer: str, size: int) -> Callable[[], object]:
    dataset, model = ru.data.load("emoji"), ru.load("meru-emoji")
    selection = dataset.taxonomy.select(["food-fruit", "food-vegetable", "animal-mammal", "animal-bird"])
    config = RunConfig(forget=("food-fruit",), forget_batch=size // 2, retain_batch=size - size // 2)
    method = HAC() if peer == "ours" else Plain()
    return partial(_Run(model, dataset, selection, method, config)._step, method.learning_rate)


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
