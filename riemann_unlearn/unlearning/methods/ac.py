"""Alignment Calibration: the loss of arXiv 2406.03603, applied at every level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from riemann_unlearn.losses import AlignmentCalibration
from riemann_unlearn.spaces import Cosine
from riemann_unlearn.unlearning.methods.base import GradientMethod, Objective, setting
from riemann_unlearn.unlearning.problem import Problem, Step

RETIRED = {
    "epsilon": "alpha and beta are in logits now, as gamma was: multiply both by epsilon and divide by the "
    "model's logit scale, multiply every other calibration weight by epsilon, and leave epsilon out"
}
"""With it went the unit of α and β, so a file of settings from before, which has it, is not misread."""


@dataclass(frozen=True)
class AC(GradientMethod):
    """Alignment Calibration (Wang et al. 2024), without the cones and the norm regularization of HAC.

    By the similarity of the model's own space, or, if asked for, by the cosine of its features: in a
    hyperbolic space of tangent vectors that is the angle that image and caption make at the origin.
    """

    name: ClassVar[str] = "ac"
    description: ClassVar[str] = "Alignment Calibration"
    paper: ClassVar[str] = "arXiv 2406.03603"
    retired: ClassVar[Mapping[str, str]] = RETIRED

    learning_rate: float = setting(5e-5, 1e-8, 1.0, "of Riemannian Adam")
    steps: int = setting(100, 1, 1_000_000, "optimizer steps")
    alpha: float = setting(0.1, 0, 1e4, "weight of negative alignment calibration, in logits")
    beta: float = setting(0.05, 0, 1e4, "weight of positive alignment calibration, in logits")
    gamma: float = setting(0.05, 0, 1e4, "weight of performance preserving, in logits")
    # Not a bool: settings are numbers in a range, and a bool is refused.
    cosine: int = setting(0, 0, 1, "1: by cosine, whatever the model's space is")

    def objective(self, problem: Problem) -> Objective:
        """AC's terms, summed over the levels."""
        loss = AlignmentCalibration(alpha=self.alpha, beta=self.beta, gamma=self.gamma)

        def terms(step: Step) -> dict[str, Tensor]:
            # With the model's own τ: only what it multiplies is another similarity.
            return step.calibrate(loss, Cosine(scale=step.space.scale) if self.cosine else None)

        return terms
