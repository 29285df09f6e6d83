"""Relabelling: what is to be forgotten is trained with captions of something else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from riemann_unlearn.losses import ContrastiveLoss
from riemann_unlearn.unlearning.methods.base import GradientMethod, Objective, setting
from riemann_unlearn.unlearning.problem import Problem, Step


@dataclass(frozen=True)
class RandomCaptions(GradientMethod):
    """Train forget images with the captions of random retain pairs of the batch (Golatkar et al. 2020).

    L = L_con(B'), with B' the batch in which every pair that is to be forgotten at a level has the caption of
    a random retained pair at that level instead of its own.
    """

    name: ClassVar[str] = "random-captions"
    description: ClassVar[str] = "Training with random captions for the forget images"
    paper: ClassVar[str] = "arXiv 1911.04933"

    learning_rate: float = setting(5e-5, 1e-8, 1.0, "of Riemannian Adam")
    steps: int = setting(100, 1, 1_000_000, "optimizer steps")

    def objective(self, problem: Problem) -> Objective:
        """The contrastive loss of the relabelled batch."""
        loss = ContrastiveLoss()

        def terms(step: Step) -> dict[str, Tensor]:
            # Of the step's number and of nothing carried along: a resumed run draws the same, with no state
            # to keep. One generator for all levels: one for each would repeat the same draws at every level.
            generator = torch.Generator().manual_seed(step.number)
            return step.sum_over_levels(lambda level: one_level(step, level, generator))

        def one_level(step: Step, level: int, generator: torch.Generator) -> dict[str, Tensor]:
            forget, ids = step.forget[level], step.caption_ids[level]
            source = torch.arange(len(forget), device=forget.device)
            retained = (~forget).nonzero()[:, 0]
            if len(retained):  # else there is nothing to take a caption from
                # Drawn on the CPU, so that a seed means the same on every device.
                count = len(forget) - len(retained)
                drawn = torch.randint(len(retained), (count,), generator=generator).to(forget.device)
                source[forget] = retained[drawn]
            # The ids move with the captions: images that were given one caption are not negatives.
            return loss(  # type: ignore[no-any-return]
                step.image_features,
                step.text_features[level][source],
                space=step.space,
                caption_ids=ids[source],
                output_dict=True,
            )

        return terms
