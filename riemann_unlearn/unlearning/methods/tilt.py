"""Tilted distillation: what the model knew, without what it has to forget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riemann_unlearn.evaluation.features import encode_texts
from riemann_unlearn.geometry import tangent
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.spaces import Space
from riemann_unlearn.training.schedules import cosine
from riemann_unlearn.unlearning.frozen import FrozenCopy
from riemann_unlearn.unlearning.methods.base import GradientMethod, Objective, setting
from riemann_unlearn.unlearning.problem import Problem, Step, unmet_of_captions


@dataclass(frozen=True)
class Tilt(GradientMethod):
    r"""Hold images to the frozen model's own distribution over captions, with the forgotten ones masked out.

    At each level of the taxonomy let :math:`q(t|i) ∝ \exp τ s(i,t)` be the model's distribution over *all*
    captions of the level, :math:`p` that of the model as it was, and :math:`\tilde p` the same with the
    forgotten captions :math:`F` masked out and the rest renormalized: where the mass goes, to siblings and
    to the parent, is for the model's geometry to say, and no taxonomy has to. Then

    .. math::
        L = ρ\,\mathrm{mean}_{i∈R}\,\mathrm{KL}(\tilde p\,\|\,q)
          + \mathrm{mean}_{i∈U}\,\max\Bigl(0,\; m + \log\frac{q(F|i)}{1-q(F|i)}\Bigr)
          + κ\,\mathrm{mean}_{i∈U}\,\mathrm{KL}(\tilde p\,\|\,q)

    and, once for all levels, with a mean for j over the images of a batch other than i,

    .. math::
        μ\,\mathrm{mean}_{i∈U}\,\max\Bigl(0,\;
          \log\mathrm{mean}_{j∈U} e^{τ s(i,j)} - \log\mathrm{mean}_{j∈R} e^{τ s(i,j)}\Bigr).

    and a retained image is held to where it was, i_0, in units of the curvature radius (by the chord of the
    angle where a space has no cones), for a distribution over captions lets all images drift together:

    .. math::
        σ\,\mathrm{mean}_{i∈R}\, d(i, i_0)^2.

    The second term asks that captions to be forgotten hold at most :math:`e^{-m}` of the odds, the fourth
    that a forgotten image be no nearer to the other forgotten ones than to retained ones, so that what
    no caption finds is found less by its looks. Both are exactly 0 once that is so: the objective is
    bounded, and with the forgotten gone the steps that are left repair what is retained. Only the image
    tower moves. Captions therefore stay where they are, all of them can be candidates at every step for
    the price of one matrix product, and a caption never used in unlearning means what it meant and finds
    no image any more. The tower's first layers stay as well: by default half of the weights, and most of the
    work, which is then done once for all steps.
    """

    name: ClassVar[str] = "tilt"
    description: ClassVar[str] = "Tilted distillation: the frozen model's distribution without the forgotten"
    paper: ClassVar[str] = "docs/unlearning.md"

    retain_batch: ClassVar[int] = 144

    learning_rate: float = setting(4e-4, 1e-8, 1.0, "of Riemannian Adam, at its largest")
    steps: int = setting(300, 1, 1_000_000, "optimizer steps")
    margin: float = setting(9.0, 0, 100, "m: log odds against a forgotten caption that are enough")
    retain: float = setting(20.0, 0, 1e4, "ρ: weight of the retained images' divergence")
    target: float = setting(0.1, 0, 1e4, "κ: weight of the forgotten images' divergence")
    mixing: float = setting(0.1, 0, 1e4, "μ: weight of what tells forgotten images from retained ones")
    stay: float = setting(50.0, 0, 1e4, "σ: weight of the retained images' distance from where they were")
    frozen: float = setting(
        0.52, 0, 0.99, "share of the image tower's weights, those of its first layers, that stay"
    )

    def parameters(self, model: DualEncoder) -> list[nn.Parameter]:
        """The weights of the image tower behind its first layers, in the order in which it registers them."""
        tower = list(model.visual.parameters())
        # A parameter counts itself in: one that straddles the boundary moves, and with frozen = 0 all do.
        # Scalars count and never move, as for every method.
        *_, total = up_to = list(itertools.accumulate(p.numel() for p in tower))
        return [p for p, n in zip(tower, up_to, strict=True) if p.ndim > 0 and n > self.frozen * total]

    def unmet(self, problem: Problem) -> str | None:
        """It masks captions, so it cannot forget an image whose caption is retained."""
        return unmet_of_captions(problem)

    def rate(self, step: int) -> float:
        """Linear warm-up over ten steps, times half a cosine down to zero."""
        return min(1.0, (step + 1) / 10) * cosine(self.steps)(step)

    def objective(self, problem: Problem) -> Objective:
        """The loss against the model as it is now."""
        frozen = FrozenCopy(problem)
        # Only the image tower moves, so all captions are encoded once.
        captions = [encode_texts(problem.model, level.captions) for level in problem.taxonomy.levels]
        # The copy's own τ and c: the target stays what it was whatever becomes of the model's.
        space = frozen.model.space.detached()
        further = self.further(problem)

        def terms(step: Step) -> dict[str, Tensor]:
            features, before = step.image_features, frozen.image_features(step)
            result = step.sum_over_levels(lambda level: one_level(step, level, before))
            forget = torch.stack(step.forget).any(0)
            # Detached, so that forgotten images go to the retained ones and these are not drawn to them.
            gone, kept = features[forget], features[~forget].detach()
            if min(len(gone), len(kept)) > 1:  # a forgotten image has others to be compared with
                mixing = _mixing(step.space.logits(gone, gone), step.space.logits(gone, kept))
                result["mixing_loss"] = self.mixing * mean(F.relu(mixing))
            result["stay_loss"] = self.stay * mean(_moved(space, features[~forget], before[~forget]))
            result.update(further(step, before))
            return result

        def one_level(step: Step, level: int, before: Tensor) -> dict[str, Tensor]:
            texts, gone = captions[level], problem.forgotten(level)
            logits = step.space.logits(step.image_features, texts)
            # Of a softmax, -∞ is a probability of 0 and leaves the rest renormalized.
            tilted = space.logits(before, texts).masked_fill(gone, -math.inf)
            divergence = _divergence(tilted, logits)
            forget = step.forget[level]
            result = {"retain_loss": self.retain * mean(divergence[~forget])}
            # Where nothing of a level is forgotten the odds have no numerator. They always have a
            # denominator: a selection of every concept is refused, so each level keeps some caption.
            if gone.any():
                odds = logits[forget][:, gone].logsumexp(1) - logits[forget][:, ~gone].logsumexp(1)
                result["odds_loss"] = mean(F.relu(self.margin + odds))
                result["target_loss"] = self.target * mean(divergence[forget])
            return result

        return terms

    def further(self, problem: Problem) -> Callable[[Step, Tensor], Mapping[str, Tensor]]:
        """Terms that a subclass adds, of a step and of the frozen model's image features of it; here none."""
        return lambda step, before: {}


def _divergence(target: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(target) ‖ softmax(logits)) of each row; -∞ in ``target`` is a probability of 0."""
    wanted = target.softmax(1)
    # xlogy has 0·log 0 = 0; p·log p would be NaN at every masked caption. It is constant in the model, and is
    # kept so that the term is a divergence: 0 when there is nothing left to do.
    entropy = torch.xlogy(wanted, wanted).sum(1)
    return entropy - (wanted * logits.log_softmax(1)).sum(1)


def _moved(space: Space, features: Tensor, before: Tensor) -> Tensor:
    """Squared distance of each feature from where it was, in units of the curvature radius."""
    # The towers may run under autocast, the geometry never does.
    with torch.autocast(features.device.type, enabled=False):
        if space.has_cones:
            (now, c), (then, _) = space.tangents(features), space.tangents(before)
            return torch.as_tensor(c) * tangent.dist(now, then, c).square()
        # The square of the chord between directions.
        return 2 - 2 * space.matched(features, before)


def _mixing(forgotten: Tensor, retained: Tensor) -> Tensor:
    """By how much each forgotten image is nearer to others, (U, U) logits, than to retained ones, (U, R)."""
    # An image is its own nearest, so it is left out: of the sum by -∞, of the mean by the - 1.
    others = forgotten.fill_diagonal_(-math.inf).logsumexp(1) - math.log(len(forgotten) - 1)
    return others - (retained.logsumexp(1) - math.log(retained.shape[1]))


def mean(values: Tensor) -> Tensor:
    """The mean, 0 of nothing."""
    # values.mean() of nothing is NaN, and would end the run; this is 0, with a gradient of 0.
    return values.sum() / max(1, values.numel())
