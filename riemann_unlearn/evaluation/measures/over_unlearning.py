"""Over-unlearning: what became of the retained classes *around* the forgotten images?

*OU@ε* (Ha, Park and Yoon 2025, arXiv 2506.01318) is the divergence between the two models' distributions over
the retained captions, the forgotten ones masked out, at forgotten images moved by noise of at most ε. Here
the noise is uniform; the paper also drives it to the old decision boundary.

    OU@ε = mean_x KL( p_before(· | x + δ, retained) ‖ p_after(· | x + δ, retained) )      in nats, ≥ 0
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from riemann_unlearn.evaluation.features import encode_images
from riemann_unlearn.evaluation.measures.base import Measure, missing, number
from riemann_unlearn.evaluation.subject import Subject, evenly
from riemann_unlearn.registry import register


@register
@dataclass(frozen=True)
class OverUnlearning(Measure):
    """OU@ε, against the untouched model."""

    name: ClassVar[str] = "over_unlearning"
    title: ClassVar[str] = "Around the forgotten"
    reading: ClassVar[str] = (
        "OU@ε: how far the retained classes moved for forgotten images under invisible noise; 0 is not at "
        "all. An oracle's is not 0 either."
    )
    range: ClassVar[str] = "≥ 0, nats"
    paper: ClassVar[str] = "Ha et al. 2025, arXiv 2506.01318"
    order: ClassVar[int] = 20

    epsilon: float = 8 / 255
    """Largest change of a pixel, of a range of 1; the customary bound of an invisible change."""
    most_images: int = 128

    def unmet(self, subject: Subject, references: Mapping[str, Subject]) -> str | None:
        """It needs the untouched model, a forgotten image and two retained classes."""
        if "before" not in references:
            return "it needs the untouched model, which was not given (before=...)"
        reason = missing([subject.test])
        if reason is None and int(_kept(subject).sum()) < 2:
            return "it needs two retained classes"
        return reason

    def compute(self, subject: Subject, references: Mapping[str, Subject], seed: int = 0) -> float:
        """OU@ε in nats; 0 when nothing changed."""
        before, part = references["before"], subject.test
        rows = evenly(part.forgotten.nonzero()[:, 0], self.most_images)
        generator = torch.Generator().manual_seed(seed)
        # Image by image, for they may differ in size.
        images = [self._noisy(image, generator) for image in part.images(rows)]
        # Both are asked about the same noisy images; otherwise the noise itself would count as a change.
        first, second = (_log_probabilities(one, images) for one in (before, subject))
        # kl_div(input, target) is KL(target ‖ input), in this order. batchmean is the mean over images; mean
        # would divide by the captions too. Rounding may take a divergence of nothing below 0.
        return max(0.0, F.kl_div(second, first, log_target=True, reduction="batchmean").item())

    def rows(self, value: Any) -> dict[str, str]:
        """The one figure."""
        return {"OU@ε, nats": number(value, 3)}

    def _noisy(self, image: Tensor, generator: torch.Generator) -> Tensor:
        pixels = image.to(torch.float32) / 255
        noise = torch.rand(pixels.shape, generator=generator, dtype=pixels.dtype).to(pixels.device)
        return (pixels + (2 * noise - 1) * self.epsilon).clamp(0, 1)


def _kept(subject: Subject) -> Tensor:
    """Labels of the level that probes ask at of which something is retained."""
    return ~subject.selection.forgotten[subject.taxonomy.grouping]


@torch.no_grad()
def _log_probabilities(subject: Subject, images: list[Tensor]) -> Tensor:
    """Of the retained labels, for each image."""
    # The forgotten captions are left out before the softmax, which is to mask and renormalize.
    texts = subject.captions[subject.taxonomy.grouping].features[_kept(subject)]
    return F.log_softmax(subject.space.logits(encode_images(subject.model, images), texts), dim=-1)
