"""HySAC's checkpoint: a CLIP by transformers' names, with corrections of low rank, and MERU's scalars.

Poppi et al. 2025 (arXiv 2503.12127) start from OpenAI's CLIP, move it by LoRA (Hu et al. 2021) alone, and
keep both apart: a layer's ``base_layer``, and the two narrow matrices B and A of ``lora_B`` and ``lora_A``.
Here they become one, W + (α/R) B A, with α = 1 as in their code. Queries, keys and values, three layers
there, are stacked into one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import open_clip
import torch
from torch import Tensor

from riemann_unlearn.models.weights import BUFFERS, State

_ALPHA = 1.0
"""LoRA's α, which their checkpoint does not say."""

_PEFT = "base_model.model."
_ENDS = {
    "vision_model.embeddings.class_embedding": "class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "positional_embedding",
    # The misspelling is transformers'.
    "vision_model.pre_layrnorm.": "ln_pre.",
    "vision_model.post_layernorm.": "ln_post.",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.": "ln_final.",
}
_BLOCK = {
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "self_attn.out_proj.": "attn.out_proj.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}
_SCALARS = {
    "logit_scale": "logit_scale",
    "curv": "log_curvature",
    "visual_alpha": "image_log_scale",
    "textual_alpha": "text_log_scale",
}
_UNUSED = ("pixel_mean", "pixel_std")
"""Statistics that their model has and does not look at: images come normalized as CLIP's are."""


def translate(config: Mapping[str, Any] | None, state: State) -> tuple[dict[str, Any], State] | None:
    """Ours from HySAC's; None where the names are others.

    Raises
    ------
    ValueError
        When a tensor is missing that says how large the model is.
    """
    if not any(key.startswith(f"visual.{_PEFT}vision_model.") for key in state):
        return None
    plain = {key.replace(_PEFT, "", 1): value for key, value in state.items()}
    merged = _merged({key: value for key, value in plain.items() if key.rpartition(".")[2] not in BUFFERS})
    try:
        return _config(merged), _tensors(merged)
    except KeyError as error:
        raise ValueError(f"its names are those of HySAC, but it lacks {error.args[0]}") from None


def _merged(state: State) -> State:
    """Each matrix with its correction added."""
    result: State = {}
    for key, value in state.items():
        if ".lora_" in key:
            continue
        name = key.replace(".base_layer.", ".")
        stem = key.removesuffix(".base_layer.weight")
        down, up = (state.get(f"{stem}.lora_{which}.default.weight") for which in "AB")
        if stem != key and down is not None and up is not None:
            rank = len(down)
            # A convolution's too: its kernel is a matrix with one row for each output.
            product = up.float().reshape(-1, rank) @ down.float().reshape(rank, -1)
            value = value.float() + _ALPHA / rank * product.view(value.shape)
        result[name] = value
    return result


def _config(state: State) -> dict[str, Any]:
    kernel = state["visual.vision_model.embeddings.patch_embedding.weight"]
    patches = len(state["visual.vision_model.embeddings.position_embedding.weight"]) - 1
    vocabulary, text_width = state["textual.text_model.embeddings.token_embedding.weight"].shape
    width, _, patch, _ = kernel.shape
    hidden = len(state["visual.vision_model.encoder.layers.0.mlp.fc1.weight"])
    vision_cfg = {
        "layers": _layers(state, "visual.vision_model"),
        "width": width,
        "head_width": min(64, width),
        "mlp_ratio": hidden / width,
        "patch_size": patch,
        "image_size": math.isqrt(patches) * patch,
    }
    text_cfg = {
        "context_length": len(state["textual.text_model.embeddings.position_embedding.weight"]),
        "vocab_size": vocabulary,
        "width": text_width,
        "heads": max(1, text_width // 64),
        "layers": _layers(state, "textual.text_model"),
    }
    embed_dim = len(state["visual.visual_projection.weight"])
    towers = {"embed_dim": embed_dim, "vision_cfg": vision_cfg, "text_cfg": text_cfg}
    preprocess = {
        "mean": list(open_clip.OPENAI_DATASET_MEAN),
        "std": list(open_clip.OPENAI_DATASET_STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    return {
        "architecture": "MERU",
        "model_cfg": {**towers, "quick_gelu": True, "curvature_init": 1.0},
        "preprocess_cfg": preprocess,
        "space": {"min_radius": 0.1},
    }


def _tensors(state: State) -> State:
    result = {
        "visual.proj": state["visual.visual_projection.weight"].mT,
        "text.text_projection": state["textual.text_projection.weight"].mT,
    }
    projections = {"visual.visual_projection.weight", "textual.text_projection.weight", *_UNUSED}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        attention = re.fullmatch(r"(.+)\.self_attn\.([qkv])_proj\.(weight|bias)", key)
        if attention is not None:
            name = _name(f"{attention[1]}.attn.in_proj_{attention[3]}")
            parts.setdefault(name, {})[attention[2]] = value
        elif key not in projections:
            result[_name(key)] = value
    for name, part in parts.items():
        result[name] = torch.cat([part[which] for which in "qkv"])
    return result


def _name(key: str) -> str:
    if key in _SCALARS:
        return _SCALARS[key]
    tower, _, rest = key.partition(".")
    here = {"visual": "visual.", "textual": "text."}.get(tower, f"{tower}.")
    if block := re.fullmatch(r"\w+_model\.encoder\.layers\.(\d+)\.(.+)", rest):
        return f"{here}transformer.resblocks.{block[1]}.{_renamed(block[2], _BLOCK)}"
    return here + _renamed(rest, _ENDS)


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for theirs, ours in names.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _layers(state: State, tower: str) -> int:
    start = f"{tower}.encoder.layers."
    return len({key.removeprefix(start).split(".")[0] for key in state if key.startswith(start)})
