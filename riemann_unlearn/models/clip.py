"""CLIP: features are directions, compared by the cosine of their angle."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from riemann_unlearn.models.base import DualEncoder
from riemann_unlearn.registry import register
from riemann_unlearn.spaces import Cosine


@register
class CLIP(DualEncoder):
    """Contrastive language-image model on the unit sphere (Radford et al. 2021, arXiv 2103.00020).

    Features are unit vectors and s(i, t) is their inner product. Parameters are those of
    :class:`DualEncoder`.

    Examples
    --------
    >>> import torch, riemann_unlearn as ru
    >>> model = ru.load("clip-emoji")
    >>> features = model.encode_text(model.tokenize(["red apple"]))
    >>> bool(torch.allclose(features.norm(dim=-1), torch.ones(1)))
    True
    """

    name = "CLIP"

    def encode_image(self, images: Tensor) -> Tensor:
        """Unit feature vectors of preprocessed images, shape (N, D)."""
        # Widened before it is normalized: a unit vector in half precision has two or three digits.
        return F.normalize(self.visual(images).float(), dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Unit feature vectors of token ids, shape (N, D)."""
        return F.normalize(self.text(tokens).float(), dim=-1)

    @property
    def space(self) -> Cosine:
        """Cosine similarity with scale τ."""
        return Cosine(scale=self.logit_scale.exp())
