"""What the families of models have in common: two open_clip towers, and a space for what they emit.

A tower emits a Euclidean vector; what that vector means is the family's business. A family is one class in
one file: it says what its features are (:meth:`DualEncoder.encode_image`, :meth:`DualEncoder.encode_text`)
and in which space they are compared (:attr:`DualEncoder.space`); everything else is here::

    @ru.register
    class Spherical(ru.models.DualEncoder):
        name = "Spherical"

        def encode_image(self, images): return F.normalize(self.visual(images).float(), dim=-1)
        def encode_text(self, tokens): return F.normalize(self.text(tokens).float(), dim=-1)

        @property
        def space(self): return ru.spaces.Cosine(scale=self.logit_scale.exp())

    model = ru.models.create_model({"architecture": "Spherical", "model_cfg": {...}})
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import open_clip
import torch
from torch import Tensor, nn

from riemann_unlearn.losses import loss_inputs
from riemann_unlearn.models.configuration import Rule, check_model_cfg, check_preprocess_cfg, check_space_cfg
from riemann_unlearn.models.huggingface import as_open_clip_wants_it
from riemann_unlearn.models.modes import evaluating
from riemann_unlearn.models.preprocess import fit
from riemann_unlearn.registry import Registry
from riemann_unlearn.spaces import Space

MAX_LOGIT_SCALE = 100.0
"""Largest logit scale τ, as in CLIP (Radford et al. 2021, section 2.5)."""

FAMILIES: Registry[type[DualEncoder]] = Registry("architecture", home="riemann_unlearn.models")
"""The model families by name, which is the "architecture" of a configuration."""


class DualEncoder(nn.Module, ABC):
    """An image tower and a text tower, and the space in which what they emit is compared.

    Parameters
    ----------
    model_cfg : mapping
        open_clip's model configuration: ``embed_dim``, ``vision_cfg``, ``text_cfg``, ``quick_gelu``, and what
        the family adds to it (:attr:`model_rules`).
    tokenizer : callable
        Turns a list of strings into token ids, shape (N, context_length); open_clip's tokenizers do.
    preprocess_cfg : mapping, optional
        ``mean`` and ``std`` of the three channels (images in [0, 1]; 0.5 by default), ``resize_mode``
        ("squash" by default, "shortest" or "longest"), ``interpolation`` ("bilinear" by default or
        "bicubic") and ``fill_color``, as open_clip understands them.
    space_cfg : mapping, optional
        What defines the space beside the learned parameters, such as K (``min_radius``); see
        :attr:`space_defaults`.

    Attributes
    ----------
    config : dict
        What :func:`riemann_unlearn.models.create_model` makes the same model from; saved with the weights.
    logit_scale : Parameter
        Logarithm of τ.
    vocabulary : Path or None
        The tokenizer's file, where it is neither open_clip's nor a bundled one; saved beside the weights.

    Raises
    ------
    ValueError
        For a key or a value that is not understood, and a tokenizer that does not fit the text tower.
    """

    registry: ClassVar[Registry[type[DualEncoder]]] = FAMILIES
    name: ClassVar[str]
    model_rules: ClassVar[Mapping[str, Rule]] = {}
    """Keys of ``model_cfg`` that the family adds to open_clip's, and what may stand there."""
    space_defaults: ClassVar[Mapping[str, float]] = {}
    """Keys of ``space_cfg`` and their defaults; all are positive numbers."""

    # CLIP's first temperature, 0.07 (Radford et al. 2021, section 2.5), of which τ is the inverse.
    initial_logit_scale: ClassVar[float] = math.log(1 / 0.07)
    vocabulary: Path | None = None

    def __init__(
        self,
        model_cfg: Mapping[str, Any],
        tokenizer: Any,
        preprocess_cfg: Mapping[str, Any] | None = None,
        space_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        preprocess_cfg = preprocess_cfg or {"mean": [0.5] * 3, "std": [0.5] * 3}
        # All of it before the towers: they take memory by the sizes in a file that may come from anywhere.
        check_model_cfg(model_cfg, self.model_rules)
        check_preprocess_cfg(preprocess_cfg, model_cfg)
        check_space_cfg(space_cfg or {}, self.space_defaults, self.name)
        towers = _towers(model_cfg)
        _check_tokenizer(tokenizer, towers)
        # A copy: the caller's dictionary may change, this model's configuration may not.
        self.config: dict[str, Any] = copy.deepcopy(
            {
                "architecture": self.name,
                "model_cfg": dict(model_cfg),
                "preprocess_cfg": dict(preprocess_cfg),
            }
        )
        if self.space_defaults:
            self.config["space"] = {**self.space_defaults, **(space_cfg or {})}
        # Convolutions on CPUs and on tensor cores run faster with channels innermost. Parameters are float32
        # whatever torch's default dtype is: it is what checkpoints hold and what the losses are proved for.
        self.visual: nn.Module = towers.visual.to(torch.float32, memory_format=torch.channels_last)
        self.text: nn.Module = towers.text.to(torch.float32)
        # Of open_clip's model only the towers are kept, and not its scalars: they are the family's business.
        self.logit_scale = scalar(model_cfg.get("init_logit_scale", self.initial_logit_scale))
        self.tokenizer = tokenizer
        # 224 is open_clip's default; 0.5, below, is this class's.
        size = model_cfg["vision_cfg"].get("image_size", 224)
        self.image_size: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)
        for key in ("mean", "std"):
            value = preprocess_cfg.get(key, 0.5)
            channels = [value] * 3 if isinstance(value, (int, float)) else value
            buffer = torch.tensor(channels, dtype=torch.float32).view(3, 1, 1)
            # Buffers, so that they move with the model. Not saved: the configuration in the checkpoint has
            # them, and a second copy could disagree with it.
            self.register_buffer(key, buffer, persistent=False)
        self.mean: Tensor
        self.std: Tensor

    @abstractmethod
    def encode_image(self, images: Tensor) -> Tensor:
        """Features of preprocessed images, shape (N, D), float32."""

    @abstractmethod
    def encode_text(self, tokens: Tensor) -> Tensor:
        """Features of token ids, shape (N, D), float32."""

    @property
    @abstractmethod
    def space(self) -> Space:
        """How features are compared, made anew from the parameters as they are, so that gradients flow."""

    def loss_inputs(self) -> dict[str, Any]:
        """What a loss takes beside the features, by the name of its argument.

        τ, bias and curvature where these say how features compare, else the space too; see
        :func:`riemann_unlearn.losses.loss_inputs`.
        """
        return loss_inputs(self.space)

    def scalars(self) -> dict[str, float]:
        """The numbers among :meth:`loss_inputs`, as they are now."""
        inputs = {name: value for name, value in self.loss_inputs().items() if not isinstance(value, Space)}
        return {name: torch.as_tensor(value).item() for name, value in inputs.items()}

    @property
    def device(self) -> torch.device:
        """Where the parameters are, and where images and tokens are brought."""
        return self.mean.device

    def preprocess(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Bring images to the tower's size, each by itself, and normalize them.

        Parameters
        ----------
        images : Tensor, shape (N, 3, H, W), or sequence of Tensor, shape (3, h, w)
            uint8 in [0, 255], or floating point in [0, 1]. Images of a sequence may differ in size.

        Returns
        -------
        Tensor, shape (N, 3, *image_size)
            float32, on the model's device.

        Raises
        ------
        TypeError
            For another dtype.
        ValueError
            For another shape.
        """
        return ((self.resize(images) - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def resize(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Bring images to the tower's size in the model's own way: :meth:`preprocess` without normalizing.

        Parameters and errors are those of :meth:`preprocess`.

        Returns
        -------
        Tensor, shape (N, 3, *image_size)
            float32 in [0, 1], on the model's device.
        """
        if not isinstance(images, Tensor):
            # Images of one size could go together; alone, each is the same to the bit whatever is beside it.
            return torch.cat(
                [self.mean.new_empty(0, 3, *self.image_size), *(self.resize(i[None]) for i in images)]
            )
        if images.ndim != 4 or images.shape[1] != 3:
            shape = tuple(images.shape)
            raise ValueError(f"images must have shape (N, 3, H, W), or be a list of (3, H, W); got {shape}")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise TypeError(
                f"images must be uint8 in [0, 255] or floating point in [0, 1], got {images.dtype}"
            )
        if images.is_floating_point():
            images = images.to(self.mean)
        # Bytes stay what they are until they fit: on a CPU they are resized as open_clip resizes them.
        fitted = fit(images, self.image_size, self.config["preprocess_cfg"])
        return fitted.to(self.mean) / 255 if fitted.dtype == torch.uint8 else fitted.to(self.mean)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids of ``texts``, shape (N, context_length), on the model's device."""
        tokens: Tensor = self.tokenizer(list(texts))
        return tokens.to(self.device)

    def forward(self, images: Tensor, tokens: Tensor) -> dict[str, Any]:
        """Features of both towers and :meth:`loss_inputs`: open_clip's output dictionary.

        A loss takes it by name: ``loss(**model(images, tokens), output_dict=True)``.
        """
        return {
            "image_features": self.encode_image(images),
            "text_features": self.encode_text(tokens),
            **self.loss_inputs(),
        }

    @torch.no_grad()
    def clamp_(self) -> None:
        """Put the scalar parameters back into their range; call it after each optimizer step."""
        self.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))

    @torch.no_grad()
    def transform_image_features_(self, matrix: Tensor) -> None:
        """Fold a linear map of the image tower's output into the weights of its last layer.

        Parameters
        ----------
        matrix : Tensor, shape (D, D)
            The tower's output v becomes ``matrix @ v``, before a family normalizes or scales it.

        Raises
        ------
        ValueError
            When the tower does not end in a linear layer to D features; it stays as it was.
        """
        # In float64 the folded weights are rounded once, when they are copied into the float32 parameters.
        matrix = matrix.to(self.device, torch.float64)
        error = ValueError(
            f"the image tower does not end in a linear layer to {len(matrix)} features, "
            "so a map of them cannot be folded into it"
        )
        tower: Any = self.visual
        if isinstance(projection := getattr(tower, "proj", None), nn.Parameter):  # open_clip's ViT: x @ proj
            last: list[Tensor] = [projection]
            # M (x P)ᵀ = (x (P Mᵀ))ᵀ: rows are features here, so the map comes in from the right, transposed.
            folded = [projection.double() @ matrix.mT]
        else:
            linear = [module for module in tower.modules() if isinstance(module, nn.Linear)]
            if not linear or linear[-1].out_features != len(matrix):
                raise error
            last = [p for p in (linear[-1].weight, linear[-1].bias) if p is not None]
            # M (W x + b) = (M W) x + M b: the bias goes through the map as well.
            folded = [matrix @ parameter.double() for parameter in last]
        # The layer that comes last by name need not be the last that is run (a residual sum or a norm may
        # follow), so the tower itself is asked whether the map arrived.
        height, width = self.image_size
        ramp = torch.linspace(-1, 1, 3 * height * width, device=self.device, dtype=self.mean.dtype)
        # Fixed images and no random ones: the caller's random numbers stay the same, and so does the answer.
        probe = torch.stack([ramp, ramp.sin()]).view(2, 3, height, width)
        # Dropout is off, and batch norm neither moves nor looks at the probe: all difference is the map's.
        with evaluating(self):
            before = tower(probe).double()
            # Copies, for the new values go into the same tensors: an optimizer and wrappers hold these.
            kept = [parameter.clone() for parameter in last]
            _copy(folded, last)
            after = tower(probe).double()
        # A map may take nearly all of these two images' features away: what is left is held against what was.
        # Asked as "not <=", NaN counts as a failure too, and the weights go back.
        if not (after - before @ matrix.mT).norm() <= 1e-4 * before.norm() * max(1.0, matrix.norm()):
            _copy(kept, last)
            raise error


def _copy(values: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
    for value, parameter in zip(values, parameters, strict=True):
        parameter.copy_(value)


def scalar(value: float) -> nn.Parameter:
    """A learned number, float32 whatever torch's default dtype is."""
    return nn.Parameter(torch.tensor(value, dtype=torch.float32))


def _towers(model_cfg: Mapping[str, Any]) -> Any:
    """open_clip's towers, freshly initialized."""
    try:
        with as_open_clip_wants_it(model_cfg["text_cfg"]) as text_cfg:
            return open_clip.CustomTextCLIP(
                model_cfg["embed_dim"],
                # Copies, for nothing promises that open_clip leaves what it is given as it is.
                copy.deepcopy(dict(model_cfg["vision_cfg"])),
                copy.deepcopy(text_cfg),
                quick_gelu=model_cfg.get("quick_gelu", False),
            )
    # Each key is right by itself; what their combination breaks (heads that do not divide a width, a pooling
    # that a timm model does not have) torch, timm and open_clip say in errors of many types.
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"no towers can be built from this model_cfg: {reason}") from error


def _check_tokenizer(tokenizer: Any, towers: Any) -> None:
    # A tokenizer that does not say its size is taken at its word. A token beyond the tower's table would fail
    # only where it first occurs, and on a GPU as an assertion on the device.
    size = getattr(tokenizer, "vocab_size", towers.vocab_size)
    if size != towers.vocab_size:
        raise ValueError(
            f"the tokenizer has {size} tokens and the text tower expects "
            f"{towers.vocab_size}; set text_cfg.vocab_size to the tokenizer's"
        )
    # open_clip would find no such token, and take the first of every text.
    end = getattr(tokenizer, "eot_token_id", getattr(towers.text, "eos_id", None))
    if getattr(towers.text, "pool_type", None) == "eos" and end != towers.text.eos_id:
        raise ValueError(
            f"text_cfg.eos_id is {towers.text.eos_id} and the tokenizer ends a text with {end}; "
            "with pool_type 'eos' they must be the same"
        )
