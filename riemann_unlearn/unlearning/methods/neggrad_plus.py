"""NegGrad+: ascent on the forget pairs, held by the retain pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from riemann_unlearn.unlearning.methods.base import GradientMethod, Objective, setting
from riemann_unlearn.unlearning.problem import Problem, Step


@dataclass(frozen=True)
class NegGradPlus(GradientMethod):
    r"""NegGrad+ (Kurmanji et al. 2023): ascent on the forget pairs and descent on the retain pairs at once.

    .. math:: L = β L_{con}(R) - (1-β) L_{con}(U)
    """

    name: ClassVar[str] = "neggrad-plus"
    description: ClassVar[str] = "Gradient ascent on the forget pairs, descent on the retain pairs"
    paper: ClassVar[str] = "arXiv 2302.09880"

    learning_rate: float = setting(5e-5, 1e-8, 1.0, "of Riemannian Adam")
    steps: int = setting(100, 1, 1_000_000, "optimizer steps")
    beta: float = setting(0.95, 0, 1, "weight of the retain pairs; the forget pairs have the rest")

    def objective(self, problem: Problem) -> Objective:
        """The weighted difference of the two contrastive losses."""

        def terms(step: Step) -> dict[str, Tensor]:
            return {
                "contrastive_loss": self.beta * step.contrast(retained=True),
                "ascent_loss": (self.beta - 1) * step.contrast(retained=False),
            }

        return terms
