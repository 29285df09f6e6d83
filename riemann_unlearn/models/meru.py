"""MERU: features are tangent vectors of a hyperboloid, compared by geodesic distance.

Encoders return tangent vectors at the origin, not points: points lose their digits with the radius (float32:
beyond sqrt(c)·|v| of about 8), tangent vectors do not, and every loss and metric of this library starts from
them. :meth:`MERU.lift` gives the point when one is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from riemann_unlearn.geometry import expmap0
from riemann_unlearn.models.base import MAX_LOGIT_SCALE, DualEncoder, scalar
from riemann_unlearn.models.checkpoint import convert
from riemann_unlearn.models.configuration import POSITIVE, Rule
from riemann_unlearn.models.wrapping import unwrap
from riemann_unlearn.registry import register
from riemann_unlearn.spaces import LorentzTangents


@register
class MERU(DualEncoder):
    """Contrastive language-image model on the hyperboloid (Desai et al. 2023, arXiv 2304.09172).

    A feature v stands for the point ``expmap0(v)`` of the Lorentz model of curvature -c, and
    s(i, t) = -d(i, t). Three scalars are learned beside the towers: the curvature magnitude c, kept in
    [c₀/10, 10·c₀], and one scale for each modality, exp(α) ≤ 1, started at D^(-1/2) so that the
    embeddings start near the origin.

    Parameters
    ----------
    model_cfg, tokenizer, preprocess_cfg
        As for :class:`DualEncoder`; ``model_cfg["curvature_init"]`` sets c₀ (1 by default).
    space_cfg : mapping, optional
        ``min_radius`` is the K of the entailment cones, 0.1 by default.

    Examples
    --------
    >>> import riemann_unlearn as ru
    >>> model = ru.load("meru-emoji")
    >>> v = model.encode_text(model.tokenize(["red apple", "fruit"]))   # tangent at the origin
    >>> x = model.lift(v)                                               # points, space components
    >>> v.shape == x.shape
    True
    >>> model.space.min_radius
    0.1
    """

    name = "MERU"
    model_rules: ClassVar[Mapping[str, Rule]] = {"curvature_init": POSITIVE}
    space_defaults: ClassVar[Mapping[str, float]] = {"min_radius": 0.1}

    def __init__(
        self,
        model_cfg: Mapping[str, Any],
        tokenizer: Any,
        preprocess_cfg: Mapping[str, Any] | None = None,
        space_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model_cfg, tokenizer, preprocess_cfg, space_cfg)
        curvature = float(model_cfg.get("curvature_init", 1.0))
        self.log_curvature = scalar(math.log(curvature))
        # Around the c₀ of the configuration and not around a c that is loaded: the range stays the same when
        # training goes on from a checkpoint.
        self._log_curvature_range = (math.log(curvature / 10), math.log(curvature * 10))
        # D entries of size 1 then make a vector of length 1, whatever D is.
        scale = -0.5 * math.log(model_cfg["embed_dim"])
        self.image_log_scale = scalar(scale)
        self.text_log_scale = scalar(scale)

    @classmethod
    @torch.no_grad()
    def from_clip(
        cls,
        model: nn.Module,
        images: Tensor | Sequence[Tensor],
        texts: Sequence[str],
        *,
        image_radius: float = 0.4,
        text_radius: float = 0.25,
        curvature: float = 1.0,
    ) -> MERU:
        r"""Lift a model of directions into hyperbolic space.

        A CLIP compares the directions of what its towers emit; here their lengths mean something too: what is
        general lies near the origin. So both scales are set by a sample of the data, such that captions lie
        nearer to it than images do; τ stays. Directions are those of before, and so nearly are the ranks of
        captions for an image; which caption is in whose cone, a short training must teach
        (:func:`riemann_unlearn.training.train`, with this model as its ``start``: objective "contrastive", or
        "tree" for the ladder of a taxonomy).

        Parameters
        ----------
        model : DualEncoder
            A :class:`CLIP`, a :class:`SigLIP`, compiled or wrapped or not. It stays as it is.
        images : Tensor or sequence of Tensor
            As :meth:`preprocess` takes them; some dozens will do.
        texts : sequence of str
            Captions of the same kind as those that the model is to be used with.
        image_radius, text_radius : float
            Mean of sqrt(c)·\|v\| over the images and the texts.
        curvature : float
            c, which training keeps within a tenth and ten times the ``curvature_init`` of the configuration.

        Returns
        -------
        MERU
            On the model's device, in evaluation mode.

        Raises
        ------
        ValueError
            For no images or texts, a radius that is not positive, a curvature outside the range that training
            keeps it in, and for features so short that they would have to be blown up.

        Examples
        --------
        >>> import torch, riemann_unlearn as ru
        >>> clip = ru.load("clip-emoji")
        >>> noise = torch.rand(8, 3, 56, 56, generator=torch.Generator().manual_seed(0))
        >>> meru = ru.models.MERU.from_clip(clip, noise, ["red apple", "owl"])
        >>> round(meru.encode_text(meru.tokenize(["red apple", "owl"])).norm(dim=-1).mean().item(), 4)
        0.25
        """
        inner = unwrap(model)
        lifted: Any = convert(inner, cls).eval()
        for name, radius in (("image_radius", image_radius), ("text_radius", text_radius)):
            if not 0 < radius < math.inf:
                raise ValueError(f"{name} must be a positive number, got {radius}")
        low, high = (math.exp(bound) for bound in lifted._log_curvature_range)
        if not low <= curvature <= high:
            raise ValueError(f"curvature must be from {low:g} to {high:g}, got {curvature}")
        if not len(images) or not len(texts):
            raise ValueError("lifting needs images and texts, by which the scales are set; got none")
        lifted.logit_scale.copy_(inner.logit_scale.clamp(max=math.log(MAX_LOGIT_SCALE)))
        lifted.log_curvature.fill_(math.log(curvature))
        lengths = {
            "image": lifted.visual(lifted.preprocess(images)).float().norm(dim=-1).mean().item(),
            "text": lifted.text(lifted.tokenize(texts)).float().norm(dim=-1).mean().item(),
        }
        scales = (lifted.image_log_scale, image_radius), (lifted.text_log_scale, text_radius)
        for (kind, length), (scale, radius) in zip(lengths.items(), scales, strict=True):
            # A radius is sqrt(c) times a length, and a scale may shrink what a tower emits, not blow it up.
            if not length * math.sqrt(curvature) >= radius:
                raise ValueError(
                    f"{kind} features have a mean length of {length:.3g}, too short for a radius of "
                    f"{radius}; ask for a smaller {kind}_radius"
                )
            scale.fill_(math.log(radius / (length * math.sqrt(curvature))))
        result: MERU = lifted
        return result

    @property
    def curvature(self) -> Tensor:
        """Curvature magnitude c; the space has sectional curvature -c."""
        return self.log_curvature.exp()

    @property
    def space(self) -> LorentzTangents:
        """Tangent vectors at the origin, with c, τ and K."""
        return LorentzTangents(
            c=self.curvature, scale=self.logit_scale.exp(), min_radius=self.config["space"]["min_radius"]
        )

    def encode_image(self, images: Tensor) -> Tensor:
        """Tangent vectors at the origin, shape (N, D), float32."""
        # Widened before it is scaled: a tensor without axes does not widen what it is multiplied with, and
        # under autocast the product would be rounded to half precision.
        features: Tensor = self.visual(images).float() * self.image_log_scale.exp()
        return features

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Tangent vectors at the origin, shape (N, D), float32."""
        features: Tensor = self.text(tokens).float() * self.text_log_scale.exp()
        return features

    def lift(self, features: Tensor) -> Tensor:
        """Space components of the points that tangent ``features`` stand for, in float32."""
        # The space components alone: the time component is sqrt(1/c + |x|²).
        return expmap0(features.float(), self.curvature)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keep τ ≤ 100, c in [c₀/10, 10·c₀] and both feature scales ≤ 1."""
        super().clamp_()
        self.log_curvature.clamp_(*self._log_curvature_range)
        # exp(0) = 1: a scale may shrink what a tower emits, not blow it up.
        self.image_log_scale.clamp_(max=0.0)
        self.text_log_scale.clamp_(max=0.0)
