"""Gradient ascent on the forget pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from riemann_unlearn.unlearning.methods.base import GradientMethod, Objective, setting
from riemann_unlearn.unlearning.problem import Problem, Step


@dataclass(frozen=True)
class GradientAscent(GradientMethod):
    """Climb the loss that training descended, on the forget pairs alone (Golatkar et al. 2020).

    L = -L_con(U), where each forget pair is contrasted with the whole batch. Nothing holds what is
    retained, and nothing bounds the loss: a few steps too many destroy the model.
    """

    name: ClassVar[str] = "gradient-ascent"
    description: ClassVar[str] = "Gradient ascent on the forget pairs"
    paper: ClassVar[str] = "arXiv 1911.04933"

    learning_rate: float = setting(2e-5, 1e-8, 1.0, "of Riemannian Adam")
    steps: int = setting(15, 1, 1_000_000, "optimizer steps")

    def objective(self, problem: Problem) -> Objective:
        """Minus the contrastive loss of the forget pairs."""

        def terms(step: Step) -> dict[str, Tensor]:
            return {"ascent_loss": -step.contrast(retained=False)}

        return terms
