"""The two dual encoders: CLIP on the sphere, MERU on the hyperboloid.

Both wrap a pair of open_clip towers. A tower emits a Euclidean vector; what that vector means is
the geometry's business:

- :class:`CLIP` compares directions: ``s(i, t) = cos(i, t)``.
- :class:`MERU` (Desai et al., "Hyperbolic Image-Text Representations", ICML 2023,
  arXiv 2304.09172) reads it as a tangent vector ``v`` at the origin of the Lorentz model of
  curvature ``-c``, the point being ``expmap0(v)``, and compares by ``s(i, t) = -d(i, t)``.

Encoders return tangent vectors, not points: points lose their digits with the radius
(float32: beyond sqrt(c)·|v| of about 8), tangent vectors do not, and every loss and metric of this
library starts from them. :meth:`MERU.lift` gives the point when one is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riemann_unlearn import ops
from riemann_unlearn.geometry import expmap0, tangent

MAX_LOGIT_SCALE = 100.0
"""Largest logit scale τ, as in CLIP (Radford et al. 2021, section 2.5)."""


class DualEncoder(nn.Module):
    """An image tower and a text tower with a similarity between what they emit.

    Parameters
    ----------
    model_cfg : mapping
        open_clip's model configuration: ``embed_dim``, ``vision_cfg``, ``text_cfg``.
    tokenizer : callable
        Turns a list of strings into token ids, shape (N, context_length); open_clip's tokenizers do.
    preprocess_cfg : mapping, optional
        ``mean`` and ``std`` of the three channels (images in [0, 1]).

    Attributes
    ----------
    geometry : str
        "euclidean" (cosine similarity) or "hyperbolic" (negative geodesic distance).
    logit_scale : Parameter
        Logarithm of τ.
    """

    geometry: ClassVar[str]

    def __init__(
        self,
        model_cfg: Mapping[str, Any],
        tokenizer: Any,
        preprocess_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        preprocess_cfg = preprocess_cfg or {"mean": [0.5] * 3, "std": [0.5] * 3}
        towers = open_clip.CustomTextCLIP(
            model_cfg["embed_dim"], dict(model_cfg["vision_cfg"]), dict(model_cfg["text_cfg"])
        )
        if tokenizer.vocab_size != towers.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens and the text tower expects "
                f"{towers.vocab_size}; set text_cfg.vocab_size to the tokenizer's"
            )
        self.config = {"model_cfg": dict(model_cfg), "preprocess_cfg": dict(preprocess_cfg)}
        # Convolutions on CPUs and on tensor cores run faster with channels innermost.
        self.visual: nn.Module = towers.visual.to(memory_format=torch.channels_last)
        self.text: nn.Module = towers.text
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.tokenizer = tokenizer
        self.mean: Tensor
        self.std: Tensor
        size = model_cfg["vision_cfg"]["image_size"]
        self.image_size: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)
        self.register_buffer("mean", torch.tensor(preprocess_cfg["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess_cfg["std"]).view(3, 1, 1), persistent=False)

    def preprocess(self, images: Tensor) -> Tensor:
        """Resize to the tower's size and normalize.

        Parameters
        ----------
        images : Tensor, shape (N, 3, H, W)
            uint8 in [0, 255], or floating point in [0, 1].

        Returns
        -------
        Tensor, shape (N, 3, *image_size)
        """
        images = images.to(self.mean.device)
        if not images.is_floating_point():
            images = images.to(self.mean.dtype) / 255
        if tuple(images.shape[-2:]) != self.image_size:
            images = F.interpolate(images, self.image_size, mode="bilinear", antialias=True)
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids of ``texts``, shape (N, context_length), on the model's device."""
        tokens: Tensor = self.tokenizer(list(texts))
        return tokens.to(self.mean.device)

    def encode_image(self, images: Tensor) -> Tensor:
        """Features of preprocessed images, shape (N, D)."""
        raise NotImplementedError

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Features of token ids, shape (N, D)."""
        raise NotImplementedError

    def similarity(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Pairwise s(i, t), shape (N, M); larger is more similar."""
        raise NotImplementedError

    @torch.no_grad()
    def ranks(self, features: Tensor, bank: Tensor, own: Tensor) -> Tensor:
        """How many other rows of ``bank`` are at least as similar to each feature as row ``own``, shape (N,).

        A subclass with a similarity of its own gets this from the matrix of it.

        Raises
        ------
        ValueError
            For a similarity that is NaN.
        """
        similarity = self.similarity(features, bank)
        if similarity.isnan().any():
            raise ValueError("the model's similarities contain NaN")
        return (similarity >= similarity.gather(1, own[:, None])).sum(1) - 1

    @torch.no_grad()
    def nearest(self, features: Tensor, bank: Tensor, k: int) -> Tensor:
        """The rows of ``bank`` most similar to each feature, the most similar first, shape (N, k)."""
        return self.similarity(features, bank).topk(k, dim=1).indices

    @torch.no_grad()
    def transform_image_features_(self, matrix: Tensor) -> None:
        """Fold a linear map of the image tower's output into the weights of its last layer.

        Parameters
        ----------
        matrix : Tensor, shape (D, D)
            v becomes ``matrix @ v``, before :class:`CLIP` normalizes and :class:`MERU` scales it.

        Raises
        ------
        ValueError
            When the tower does not end in a linear layer to D features.
        """
        tower: Any = self.visual
        if isinstance(projection := getattr(tower, "proj", None), nn.Parameter):  # open_clip's ViT: x @ proj
            projection.copy_(projection.double() @ matrix.double().mT)
            return
        linear = [module for module in tower.modules() if isinstance(module, nn.Linear)]
        if not linear or linear[-1].out_features != len(matrix):
            raise ValueError(
                f"the image tower does not end in a linear layer to {len(matrix)} features, "
                "so a map of them cannot be folded into it"
            )
        linear[-1].weight.copy_(matrix.double() @ linear[-1].weight.double())
        if linear[-1].bias is not None:
            linear[-1].bias.copy_(matrix.double() @ linear[-1].bias.double())

    @property
    def curvature(self) -> Tensor | None:
        """Curvature magnitude c > 0 of the embedding space, None for a Euclidean one."""
        return None

    @torch.no_grad()
    def clamp_(self) -> None:
        """Put the scalar parameters back into their range; call it after each optimizer step."""
        self.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))

    def forward(self, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Features of both towers, with τ as ``logit_scale`` (open_clip's output dictionary)."""
        return {
            "image_features": self.encode_image(images),
            "text_features": self.encode_text(tokens),
            "logit_scale": self.logit_scale.exp(),
        }


class CLIP(DualEncoder):
    """Contrastive language-image model on the unit sphere (Radford et al. 2021).

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

    geometry = "euclidean"

    def encode_image(self, images: Tensor) -> Tensor:
        """Unit feature vectors of preprocessed images, shape (N, D)."""
        return F.normalize(self.visual(images).float(), dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Unit feature vectors of token ids, shape (N, D)."""
        return F.normalize(self.text(tokens).float(), dim=-1)

    def similarity(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Cosine similarity, shape (N, M), in [-1, 1]."""
        return image_features @ text_features.mT

    def ranks(self, features: Tensor, bank: Tensor, own: Tensor) -> Tensor:
        """As :meth:`DualEncoder.ranks`, without the matrix."""
        return ops.ranks(features, bank, own)

    def nearest(self, features: Tensor, bank: Tensor, k: int) -> Tensor:
        """As :meth:`DualEncoder.nearest`, without the matrix."""
        return ops.topk(features, bank, k).indices


class MERU(DualEncoder):
    """Contrastive language-image model on the hyperboloid (Desai et al. 2023, arXiv 2304.09172).

    Three scalars are learned beside the towers: the curvature magnitude c, kept in
    [c₀/10, 10·c₀], and one scale for each modality, exp(α) ≤ 1, started at D^(-1/2) so that the
    embeddings start near the origin.

    Parameters
    ----------
    model_cfg, tokenizer, preprocess_cfg
        As for :class:`DualEncoder`; ``model_cfg["curvature_init"]`` sets c₀ (1 by default).

    Examples
    --------
    >>> import riemann_unlearn as ru
    >>> model = ru.load("meru-emoji")
    >>> v = model.encode_text(model.tokenize(["red apple", "fruit"]))   # tangent at the origin
    >>> x = model.lift(v)                                               # points, space components
    >>> v.shape == x.shape
    True
    """

    geometry = "hyperbolic"

    def __init__(
        self,
        model_cfg: Mapping[str, Any],
        tokenizer: Any,
        preprocess_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model_cfg, tokenizer, preprocess_cfg)
        curvature = float(model_cfg.get("curvature_init", 1.0))
        if not curvature > 0:
            raise ValueError(f"curvature_init must be positive, got {curvature}")
        self.log_curvature = nn.Parameter(torch.tensor(math.log(curvature)))
        self._log_curvature_range = (math.log(curvature / 10), math.log(curvature * 10))
        scale = -0.5 * math.log(model_cfg["embed_dim"])
        self.image_log_scale = nn.Parameter(torch.tensor(scale))
        self.text_log_scale = nn.Parameter(torch.tensor(scale))

    @property
    def curvature(self) -> Tensor:
        """Curvature magnitude c; the space has sectional curvature -c."""
        return self.log_curvature.exp()

    def encode_image(self, images: Tensor) -> Tensor:
        """Tangent vectors at the origin, shape (N, D), float32."""
        features: Tensor = self.visual(images).float() * self.image_log_scale.exp()
        return features

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Tangent vectors at the origin, shape (N, D), float32."""
        features: Tensor = self.text(tokens).float() * self.text_log_scale.exp()
        return features

    def lift(self, features: Tensor) -> Tensor:
        """Space components of the points that tangent ``features`` stand for, in float32."""
        return expmap0(features.float(), self.curvature)

    def similarity(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Negative geodesic distance, shape (N, M)."""
        return -tangent.cdist(image_features, text_features, self.curvature)

    def ranks(self, features: Tensor, bank: Tensor, own: Tensor) -> Tensor:
        """As :meth:`DualEncoder.ranks`, without the matrix."""
        return ops.ranks(features, bank, own, self.curvature)

    def nearest(self, features: Tensor, bank: Tensor, k: int) -> Tensor:
        """As :meth:`DualEncoder.nearest`, without the matrix."""
        return ops.topk(features, bank, k, self.curvature).indices

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keep τ ≤ 100, c in [c₀/10, 10·c₀] and both feature scales ≤ 1."""
        super().clamp_()
        self.log_curvature.clamp_(*self._log_curvature_range)
        self.image_log_scale.clamp_(max=0.0)
        self.text_log_scale.clamp_(max=0.0)
