"""Hyperbolic Alignment Calibration: the loss of arXiv 2503.15166, applied at every level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from riemann_unlearn.losses import HyperbolicAlignmentCalibration
from riemann_unlearn.unlearning.methods.ac import RETIRED
from riemann_unlearn.unlearning.methods.base import GradientMethod, Objective, setting
from riemann_unlearn.unlearning.problem import Problem, Step


@dataclass(frozen=True)
class HAC(GradientMethod):
    """Alignment Calibration on the hyperboloid, with entailment calibration and norm regularization.

    The loss is :class:`riemann_unlearn.losses.HyperbolicAlignmentCalibration`, summed over the levels
    of the taxonomy. A pair is a forget pair at the levels that are to be forgotten and a retain pair
    above them: with all fruit forgotten, an apple unlearns "red apple" and "fruit", and keeps "food and
    drink".
    """

    name: ClassVar[str] = "hac"
    description: ClassVar[str] = "Hyperbolic Alignment Calibration"
    paper: ClassVar[str] = "arXiv 2503.15166"
    retired: ClassVar[Mapping[str, str]] = RETIRED

    learning_rate: float = setting(5e-5, 1e-8, 1.0, "of Riemannian Adam")
    steps: int = setting(100, 1, 1_000_000, "optimizer steps")
    alpha: float = setting(0.1, 0, 1e4, "weight of negative alignment calibration, in logits")
    beta: float = setting(0.05, 0, 1e4, "weight of positive alignment calibration, in logits")
    gamma: float = setting(0.05, 0, 1e4, "weight of performance preserving, in logits")
    omega: float = setting(1.0, 0, 1e4, "weight of entailment calibration")
    eta: float = setting(1.0, 0, 1e4, "weight of norm regularization")
    entailment_weight: float = setting(0.2, 0, 1e4, "weight of the retain pairs' entailment")

    def unmet(self, problem: Problem) -> str | None:
        """It needs entailment cones."""
        if problem.space.has_cones:
            return None
        return (
            f"it needs a model whose space has entailment cones, and that of {type(problem.model).__name__} "
            f"({problem.space.name!r}) has none"
        )

    def weights(self) -> dict[str, Any]:
        """The settings that are the loss's: all but the optimizer's."""
        # By exclusion: a weight that is added as a field reaches the loss, or is refused by it.
        return {
            name: value for name, value in self.settings().items() if name not in ("learning_rate", "steps")
        }

    def objective(self, problem: Problem) -> Objective:
        """HAC's terms, summed over the levels."""
        loss = HyperbolicAlignmentCalibration(**self.weights())

        def terms(step: Step) -> dict[str, Tensor]:
            return step.calibrate(loss)

        return terms
