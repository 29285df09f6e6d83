"""Relabelling: what is to be forgotten is trained with captions of something else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from riemann_unlearn.losses import ContrastiveLoss
from riemann_unlearn.unlearning.methods.base import GradientMethod, Objective, Problem, Step, setting


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
        loss = ContrastiveLoss(geometry=problem.model.geometry)

        def terms(step: Step) -> dict[str, Tensor]:
            generator = torch.Generator().manual_seed(step.number)
            return step.sum_over_levels(lambda level: one_level(step, level, generator))

        def one_level(step: Step, level: str, generator: torch.Generator) -> dict[str, Tensor]:
            forget = step.forget[level].cpu()
            source = torch.arange(len(forget))
            retained = (~forget).nonzero()[:, 0]
            drawn = torch.randint(len(retained), (int(forget.sum()),), generator=generator)
            source[forget] = retained[drawn]
            return loss(  # type: ignore[no-any-return]
                step.image_features,
                step.text_features[level][source],
                logit_scale=step.model.logit_scale.exp(),
                c=step.model.curvature,
                caption_ids=step.batch.pairings[level].caption_ids[source],
                output_dict=True,
            )

        return terms
