"""l1-sparse: fine-tuning on what is retained, toward sparse weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from riemann_unlearn.unlearning.methods.base import GradientMethod, Objective, setting
from riemann_unlearn.unlearning.problem import Problem, Step


@dataclass(frozen=True)
class L1Sparse(GradientMethod):
    r"""Fine-tuning with an l1 penalty on the weights (Jia et al. 2023), which fades out over the run.

    .. math:: L = L_{con}(R) + γ (1 - n/N) \\|θ\\|_1

    at step n of N, as in the paper's linearly decreasing schedule.
    """

    name: ClassVar[str] = "l1-sparse"
    description: ClassVar[str] = "Fine-tuning on the retain pairs with an l1 penalty"
    paper: ClassVar[str] = "arXiv 2304.04934"

    learning_rate: float = setting(2e-4, 1e-8, 1.0, "of Riemannian Adam")
    steps: int = setting(100, 1, 1_000_000, "optimizer steps")
    gamma: float = setting(1e-4, 0, 1e4, "weight of the l1 penalty at the first step")

    def objective(self, problem: Problem) -> Objective:
        """The contrastive loss of the retain pairs, and the penalty."""
        weights = self.parameters(problem.model)

        def terms(step: Step) -> dict[str, Tensor]:
            # Steps are numbered from 0, so the last one still has γ/N: no step is without a penalty.
            weight = self.gamma * (1 - step.number / self.steps)
            norm = torch.stack([parameter.abs().sum() for parameter in weights]).sum()
            return {"contrastive_loss": step.contrast(retained=True), "l1_loss": weight * norm}

        return terms
