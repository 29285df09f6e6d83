"""The checkpoints of MERU and HyCoCLIP, and of the CLIP that each of the two projects trained beside it.

Desai et al. 2023 (arXiv 2304.09172) and Pal et al. 2024 (arXiv 2410.06912) name their tensors alike: they
differ in the loss that they train by, and a checkpoint does not say by which. It says no sizes either: they
are read off the shapes, but for the number of heads, which no shape tells.

The image tower is timm's transformer, whose parts open_clip's has too, with two differences. Its patches have
a bias: added to every patch alike, as the positions are, it goes into these. And what projects is a layer of
its own behind the tower: its matrix, transposed, is the tower's last parameter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from riemann_unlearn.models.weights import BUFFERS, State

_HEADS = {384: 12}
"""Heads of image towers by width; else 64 units have one. The small one is MoCo v3's, with twice as many."""

_IMAGE_BLOCK = {
    "norm1": "ln_1",
    "attn.qkv.weight": "attn.in_proj_weight",
    "attn.qkv.bias": "attn.in_proj_bias",
    "attn.proj": "attn.out_proj",
    "norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_NAMES = {
    "visual.patch_embed.proj.weight": "visual.conv1.weight",
    "visual.norm.weight": "visual.ln_post.weight",
    "visual.norm.bias": "visual.ln_post.bias",
    "textual.token_embed.weight": "text.token_embedding.weight",
    "textual.posit_embed": "text.positional_embedding",
    "textual.ln_final.weight": "text.ln_final.weight",
    "textual.ln_final.bias": "text.ln_final.bias",
    "logit_scale": "logit_scale",
    "curv": "log_curvature",
    "visual_alpha": "image_log_scale",
    "textual_alpha": "text_log_scale",
}
_COMPUTED = (
    "visual.cls_token",
    "visual.pos_embed",
    "visual.patch_embed.proj.bias",
    "visual_proj.weight",
    "textual_proj.weight",
)
_CHANNELS = ("pixel_mean", "pixel_std")
_SIZES = (
    "visual.patch_embed.proj.weight",
    "visual.blocks.0.mlp.fc1.weight",
    "textual.token_embed.weight",
    "textual.posit_embed",
)
"""Tensors whose shapes say how large the model is."""


def translate(config: Mapping[str, Any] | None, state: State) -> tuple[dict[str, Any], State] | None:
    """Ours from MERU's and HyCoCLIP's; None where the names are others.

    Raises
    ------
    ValueError
        When a tensor is missing that says how large the model is.
    """
    if "visual_proj.weight" not in state or "textual_proj.weight" not in state:
        return None
    if missing := sorted({*_COMPUTED, *_CHANNELS, *_SIZES} - state.keys()):
        raise ValueError(
            f"its names are those of MERU and HyCoCLIP, but it lacks {', '.join(missing)}; expected the "
            "'model' of a checkpoint of theirs, with a vision transformer"
        )
    return _config(state), _tensors(state)


def _config(state: State) -> dict[str, Any]:
    width, _, patch, _ = state["visual.patch_embed.proj.weight"].shape
    # One position is the class token's; the others are a square.
    side = math.isqrt(state["visual.pos_embed"].shape[1] - 1)
    context, text_width = state["textual.posit_embed"].shape
    model_cfg: dict[str, Any] = {
        "embed_dim": state["visual_proj.weight"].shape[0],
        "vision_cfg": {
            "layers": _layers(state, "visual.blocks"),
            "width": width,
            "head_width": width // _HEADS.get(width, max(1, width // 64)),
            "mlp_ratio": state["visual.blocks.0.mlp.fc1.weight"].shape[0] / width,
            "patch_size": patch,
            "image_size": side * patch,
            "no_ln_pre": True,
            # Fixed: they came with the construction, and no gradient moved them.
            "pos_embed_type": "sin_cos_2d",
        },
        "text_cfg": {
            "context_length": context,
            "vocab_size": state["textual.token_embed.weight"].shape[0],
            "width": text_width,
            "heads": max(1, text_width // 64),
            "layers": _layers(state, "textual.resblocks"),
        },
    }
    mean, std = (state[key].flatten().tolist() for key in _CHANNELS)
    preprocess = {"mean": mean, "std": std, "interpolation": "bicubic", "resize_mode": "shortest"}
    found: dict[str, Any] = {"model_cfg": model_cfg, "preprocess_cfg": preprocess}
    if "curv" not in state:
        return {"architecture": "CLIP", **found}
    # Around 1 the curvature is kept in training, in all of their configurations; K is their code's default.
    model_cfg["curvature_init"] = 1.0
    return {"architecture": "MERU", **found, "space": {"min_radius": 0.1}}


def _tensors(state: State) -> State:
    """The tensors by open_clip's names; what is not known keeps its own, and is refused by it."""
    positions = state["visual.pos_embed"][0].float().clone()
    positions[1:] += state["visual.patch_embed.proj.bias"].float()
    result = {
        "visual.class_embedding": state["visual.cls_token"].flatten(),
        "visual.positional_embedding": positions,
        "visual.proj": state["visual_proj.weight"].mT,
        "text.text_projection": state["textual_proj.weight"].mT,
    }
    for key, value in state.items():
        if key not in (*_COMPUTED, *_CHANNELS) and key.rpartition(".")[2] not in BUFFERS:
            result[_name(key)] = value
    return result


def _name(key: str) -> str:
    if key.startswith("textual.resblocks."):
        return key.replace("textual.", "text.transformer.", 1)
    block = re.fullmatch(r"visual\.blocks\.(\d+)\.(.+)", key)
    if block is None:
        return _NAMES.get(key, key)
    for theirs, ours in _IMAGE_BLOCK.items():
        if block[2] == theirs or block[2].startswith(f"{theirs}."):
            return f"visual.transformer.resblocks.{block[1]}.{ours}{block[2].removeprefix(theirs)}"
    return key


def _layers(state: State, blocks: str) -> int:
    return len({key.split(".")[2] for key in state if key.startswith(f"{blocks}.")})
