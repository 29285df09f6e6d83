"""Fine-tuning on what is retained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from riemann_unlearn.unlearning.methods.base import GradientMethod, Objective, setting
from riemann_unlearn.unlearning.problem import Problem, Step


@dataclass(frozen=True)
class Finetune(GradientMethod):
    """Go on training with the retain pairs alone, and trust the rest to fade (catastrophic forgetting).

    L = L_con(R), summed over the levels. The weakest of all methods, and the one that costs least.
    """

    name: ClassVar[str] = "finetune"
    description: ClassVar[str] = "Fine-tuning on the retain pairs"
    paper: ClassVar[str] = "arXiv 1911.04933"

    learning_rate: float = setting(5e-5, 1e-8, 1.0, "of Riemannian Adam")
    steps: int = setting(100, 1, 1_000_000, "optimizer steps")

    def objective(self, problem: Problem) -> Objective:
        """The contrastive loss of the retain pairs."""

        def terms(step: Step) -> dict[str, Tensor]:
            return {"contrastive_loss": step.contrast(retained=True)}

        return terms
