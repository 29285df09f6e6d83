"""SigLIP: CLIP's features, with a bias beside the scale, for the sigmoid of every pair by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from riemann_unlearn.models.base import scalar
from riemann_unlearn.models.clip import CLIP
from riemann_unlearn.models.configuration import NUMBER, Rule
from riemann_unlearn.registry import register
from riemann_unlearn.spaces import Sigmoid


@register
class SigLIP(CLIP):
    """Sigmoid loss for language-image pre-training (Zhai et al. 2023, arXiv 2303.15343).

    Features are unit vectors, and the logit of a pair is τ·cos(i, t) + b with a learned bias b. Most pairs of
    a batch do not match, so b starts at -10 and τ at 10 (section 3.2 of the paper): the first loss is small.

    Parameters
    ----------
    model_cfg, tokenizer, preprocess_cfg, space_cfg
        As for :class:`DualEncoder`; ``model_cfg["init_logit_bias"]`` sets the first b.

    Attributes
    ----------
    logit_bias : Parameter
        b.
    """

    name = "SigLIP"
    model_rules: ClassVar[Mapping[str, Rule]] = {"init_logit_bias": NUMBER}
    initial_logit_scale = math.log(10)

    def __init__(
        self,
        model_cfg: Mapping[str, Any],
        tokenizer: Any,
        preprocess_cfg: Mapping[str, Any] | None = None,
        space_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model_cfg, tokenizer, preprocess_cfg, space_cfg)
        self.logit_bias = scalar(model_cfg.get("init_logit_bias", -10.0))

    @property
    def space(self) -> Sigmoid:
        """Cosine similarity with scale τ and bias b, of which each pair's sigmoid is taken."""
        return Sigmoid(scale=self.logit_scale.exp(), bias=self.logit_bias)
