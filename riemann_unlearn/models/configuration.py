"""What may stand in a model's configuration, and what each key means.

The format is open_clip's (``model_cfg`` and ``preprocess_cfg`` of an ``open_clip_config.json``) with two keys
of ours, "architecture" and "space". A configuration comes with a checkpoint, from anywhere: it is data. So
every key is either read or refused by name, every value is checked before anything is built from it, nothing
in it makes this library ask the network, and the only file it can name lies beside it or is bundled.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from typing import Any

import timm
from open_clip.transform import PreprocessCfg

Rule = tuple[Callable[[Any], bool], str]
"""Whether a value may stand under a key, and in words what may."""

MAX_IMAGE_SIZE = 4096
"""Largest side of an image in pixels: nothing among the weights of a convolutional tower bounds it."""


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0  # True is an int, too


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e30  # NaN compares false, huge ints do not overflow


def _is_list(value: Any, length: int, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == length and all(map(holds, value))


def _is_side(value: Any) -> bool:
    return _is_size(value) and value <= MAX_IMAGE_SIZE


def one_of(*choices: Any) -> Rule:
    """One of a few values."""
    # By type as well: 1 == True and 0 == False, so that a number would pass for a flag.
    return lambda value: any(type(value) is type(c) and value == c for c in choices), (
        "one of " + ", ".join(map(repr, choices)) if len(choices) > 1 else repr(choices[0])
    )


def optional(rule: Rule) -> Rule:
    """What a rule allows, or null."""
    return lambda value: value is None or rule[0](value), f"{rule[1]}, or null"


NUMBER: Rule = (_is_number, "a finite number")
POSITIVE: Rule = (lambda value: _is_number(value) and value > 0, "a positive finite number")
FLAG: Rule = one_of(True, False)
_SIZE: Rule = (_is_size, "a positive integer")
_ID: Rule = (lambda value: type(value) is int and value >= 0, "a token's number")
_RATE: Rule = (lambda value: _is_number(value) and 0 <= value < 1, "a number from 0 to below 1")
_PIXELS: Rule = (
    lambda value: _is_side(value) or _is_list(value, 2, _is_side),
    f"a size in pixels up to {MAX_IMAGE_SIZE}, or height and width",
)
_LAYERS: Rule = (lambda value: _is_size(value) or _is_list(value, 4, _is_size), "a number, or four (ResNet)")
_CHANNELS: Rule = (lambda value: _is_number(value) or _is_list(value, 3, _is_number), "three finite numbers")
# Positive: images are divided by them.
_SPREADS: Rule = (
    lambda value: POSITIVE[0](value) or _is_list(value, 3, POSITIVE[0]),
    "three positive finite numbers",
)
_FILL: Rule = (lambda value: type(value) is int and 0 <= value <= 255, "an integer from 0 to 255")
# open_clip's own heads are "abs_attn" and "rot_attn"; the others are handed on to timm.
_POOLS = ("avg", "", "abs_attn", "rot_attn", "avgmax", "max", "catavgmax", "fast", "token", "map")
_ACTIVATION: Rule = (
    lambda value: isinstance(value, dict) and value in ({}, {"approximate": "tanh"}, {"approximate": "none"}),
    '{"approximate": "tanh" or "none"}',
)
_NORM: Rule = (
    lambda value: isinstance(value, dict) and set(value) <= {"eps"} and all(map(POSITIVE[0], value.values())),
    '{"eps": a positive number}',
)
_HF_CONFIG: Rule = (
    # A key "auto_map" names code, which transformers would offer to run.
    lambda value: isinstance(value, Mapping) and "auto_map" not in value and "model_type" in value,
    "what transformers writes to config.json, of a model without code of its own",
)
_SINGLE: Rule = (lambda value: value is False, "false: a tower here gives one vector for each input")
_LOCAL: Rule = (lambda value: value is False, "false: a configuration does not ask for downloads")
_TIMM: Rule = (
    # A tag after the dot names pretrained weights, of which only the architecture is taken.
    lambda value: (
        isinstance(value, str)
        and re.fullmatch(r"\w+(\.\w+)?", value, re.ASCII) is not None
        and timm.is_model(value.split(".")[0])
    ),
    "the name of a model that timm has (nothing is fetched: no 'hf-hub:' or 'local-dir:')",
)

_BLOCK: dict[str, Rule] = {
    "width": _SIZE,
    "mlp_ratio": POSITIVE,
    "ls_init_value": optional(NUMBER),
    "act_kwargs": optional(_ACTIVATION),
    "norm_kwargs": optional(_NORM),
    "output_tokens": _SINGLE,
    "final_ln_after_pool": FLAG,
    "block_type": optional(one_of("default", "custom")),
    "qk_norm": FLAG,
    "scaled_cosine_attn": FLAG,
    "scale_heads": FLAG,
    "scale_attn_inner": FLAG,
    "scale_attn": FLAG,
    "scale_fc": FLAG,
}
"""Keys of a transformer, on either side; open_clip.model.CLIPVisionCfg and CLIPTextCfg say what they do."""

_VISION: dict[str, Rule] = {
    **_BLOCK,
    "layers": _LAYERS,
    "head_width": _SIZE,
    "patch_size": optional(_PIXELS),  # null: a ResNet has none
    "image_size": _PIXELS,
    "patch_dropout": _RATE,
    "attentional_pool": FLAG,
    "attn_pooler_queries": _SIZE,
    "attn_pooler_heads": _SIZE,
    "no_ln_pre": FLAG,
    "pos_embed_type": one_of("learnable", "sin_cos_2d"),
    "pool_type": one_of("tok", "avg"),
    "timm_model_name": optional(_TIMM),
    "timm_model_pretrained": _LOCAL,
    "timm_pool": one_of(*_POOLS),
    # null, as in "": timm's own last layer is the projection.
    "timm_proj": optional(one_of("linear", "mlp", "none", "")),
    "timm_proj_bias": FLAG,
    "timm_drop": _RATE,
    "timm_drop_path": optional(_RATE),
}
_TEXT: dict[str, Rule] = {
    **_BLOCK,
    "context_length": _SIZE,
    "vocab_size": _SIZE,
    "heads": _SIZE,
    "layers": _SIZE,
    "embed_cls": FLAG,
    "pad_id": _ID,
    "eos_id": _ID,
    "no_causal_mask": FLAG,
    "pool_type": one_of("argmax", "first", "last", "eos"),
    "proj_bias": FLAG,
    "proj_type": one_of("linear", "none"),
    "hf_model_name": optional((lambda value: isinstance(value, str), "the name of a model of transformers")),
    "hf_proj_type": optional(one_of("linear", "mlp")),
    "hf_pooler_type": optional(
        one_of("mean_pooler", "max_pooler", "cls_pooler", "cls_last_hidden_state_pooler")
    ),
    # Nothing pretrained is fetched, whatever stands here: the weights come with the checkpoint.
    "hf_model_pretrained": FLAG,
    # Ours: the architecture, which open_clip would look up by the name; see huggingface.with_architecture.
    "hf_config": _HF_CONFIG,
    # The tokenizer is made before, or by whoever calls the family's class; see tokenizers.make_tokenizer.
    "hf_tokenizer_name": (lambda value: True, ""),
    "tokenizer_mode": (lambda value: True, ""),
    "tokenizer_kwargs": (lambda value: True, ""),
}
_MODEL: dict[str, Rule] = {
    "embed_dim": _SIZE,
    "vision_cfg": (lambda value: isinstance(value, Mapping), "a mapping"),
    "text_cfg": (lambda value: isinstance(value, Mapping), "a mapping"),
    "quick_gelu": FLAG,
    # Whether open_clip keeps the text tower's weights under "text."; the function is the same.
    "custom_text": FLAG,
    "init_logit_scale": NUMBER,
}
_PREPROCESS: dict[str, Rule] = {
    "size": _PIXELS,
    "mode": one_of("RGB"),
    "mean": _CHANNELS,
    "std": _SPREADS,
    "interpolation": one_of("bilinear", "bicubic", "random"),
    "resize_mode": one_of("squash", "shortest", "longest"),
    "fill_color": _FILL,
}
_TOP: dict[str, Rule] = {
    "architecture": (lambda value: isinstance(value, str), "the name of a model family"),
    "model_cfg": (lambda value: isinstance(value, Mapping), "a mapping"),
    "preprocess_cfg": optional((lambda value: isinstance(value, Mapping), "a mapping")),
    "space": optional((lambda value: isinstance(value, Mapping), "a mapping")),
}


def check(
    values: Mapping[str, Any], rules: Mapping[str, Rule], where: str = "", required: Collection[str] = ()
) -> None:
    """Refuse a key without a rule, a value against its rule, and a missing key.

    Parameters
    ----------
    values, rules : mapping
        By key.
    where : str
        Put before a key in messages, such as "model_cfg.".
    required : collection of str
        Keys that must be there.

    Raises
    ------
    ValueError
        With the key, the value and what was expected.

    Examples
    --------
    >>> check({"width": -1}, {"width": POSITIVE}, "vision_cfg.")
    Traceback (most recent call last):
    ...
    ValueError: vision_cfg.width must be a positive finite number, got -1
    """
    for key in required:
        if key not in values:
            raise ValueError(
                f"the model configuration lacks {where + key!r}; it has {sorted(map(str, values))}"
            )
    for key, value in values.items():
        if key not in rules:
            raise ValueError(
                f"the model configuration's key {where + str(key)!r} is not understood here, and ignoring it "
                f"might change what the model computes; understood are {', '.join(rules)}"
            )
        accepts, expected = rules[key]
        if not accepts(value):
            raise ValueError(f"{where}{key} must be {expected}, got {reprlib.repr(value)}")


def check_model_cfg(model_cfg: Mapping[str, Any], family: Mapping[str, Rule]) -> None:
    """Check open_clip's ``model_cfg`` with the keys that a family adds; see :func:`check`."""
    check(model_cfg, {**_MODEL, **family}, "model_cfg.", required=("embed_dim", "vision_cfg", "text_cfg"))
    check(model_cfg["vision_cfg"], _VISION, "vision_cfg.")
    check(model_cfg["text_cfg"], _TEXT, "text_cfg.")


def check_preprocess_cfg(preprocess_cfg: Mapping[str, Any], model_cfg: Mapping[str, Any]) -> None:
    """Check open_clip's ``preprocess_cfg``; see :func:`check`."""
    check(preprocess_cfg, _PREPROCESS, "preprocess_cfg.")
    size = model_cfg["vision_cfg"].get("image_size", 224)
    if _pair(preprocess_cfg.get("size", size)) != _pair(size):
        raise ValueError(
            f"preprocess_cfg.size is {preprocess_cfg['size']} and vision_cfg.image_size is {size}; "
            "they must be the same"
        )


def check_space_cfg(space_cfg: Mapping[str, Any], known: Collection[str], family: str) -> None:
    """Check what defines a family's space: positive numbers under known keys; see :func:`check`."""
    if space_cfg and not known:
        raise ValueError(
            f"the space of {family} takes no {', '.join(map(repr, space_cfg))}; leave 'space' out"
        )
    check(space_cfg, dict.fromkeys(known, POSITIVE), "space.")


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of ours from one of ours or of open_clip's.

    open_clip names no family and leaves out what equals its defaults (bicubic, the shorter side to size, the
    statistics of OpenAI's images), which are not ours; both are filled in. Of a CoCa the part is taken that
    compares; its decoder is left behind.

    Raises
    ------
    ValueError
        As for :func:`check`.

    Examples
    --------
    >>> config = complete({"model_cfg": {"init_logit_bias": -10}})
    >>> config["architecture"], config["preprocess_cfg"]["interpolation"]
    ('SigLIP', 'bicubic')
    """
    check(config, _TOP, required=("model_cfg",))
    if "architecture" in config:
        # A configuration of ours leaves out what equals our defaults: open_clip's must not be filled in.
        return dict(config)
    family = "SigLIP" if config["model_cfg"].get("init_logit_bias") is not None else "CLIP"
    # null is open_clip's word for "as by default". Of what is left out the shape alone differs.
    model_cfg = {
        key: value
        for key, value in config["model_cfg"].items()
        if value is not None and key != "nonscalar_logit_scale"
    }
    if model_cfg.pop("multimodal_cfg", None) is not None:
        # A CoCa's decoder reads a tower's tokens; what is compared is the vector that comes before these.
        for tower in ("vision_cfg", "text_cfg"):
            if isinstance(model_cfg.get(tower), Mapping):
                model_cfg[tower] = {**model_cfg[tower], "output_tokens": False}
    # Without the size: the tower's own counts, and open_clip's 224 would contradict any other.
    defaults = {key: value for key, value in asdict(PreprocessCfg()).items() if key != "size"}
    given = {key: value for key, value in (config.get("preprocess_cfg") or {}).items() if value is not None}
    return {**config, "architecture": family, "model_cfg": model_cfg, "preprocess_cfg": {**defaults, **given}}


def check_sizes(model_cfg: Mapping[str, Any], shapes: Collection[tuple[int, ...]]) -> None:
    """Refuse sizes that the weights at hand cannot have, before anything is built by them.

    Each layer has a tensor of its own, and each other size is some tensor's dimension. What passes is small
    enough to be built without memory (on torch's meta device), where shapes are then compared one by one.

    Parameters
    ----------
    model_cfg : mapping
        Checked by :func:`check_model_cfg`.
    shapes : collection of tuple
        Shapes of the tensors of a checkpoint.

    Raises
    ------
    ValueError
        With the key, its value and the bound.
    """
    shapes = [shape for shape in shapes if 0 not in shape]  # an empty tensor may claim any other dimension
    largest = max((n for shape in shapes for n in shape), default=0)
    sizes = ("width", "context_length", "vocab_size", "heads", "attn_pooler_queries", "attn_pooler_heads")
    declared: dict[str, tuple[float, int]] = {"model_cfg.embed_dim": (model_cfg["embed_dim"], largest)}
    for tower in ("vision_cfg", "text_cfg"):
        cfg = model_cfg[tower]
        layers = cfg.get("layers", 1)
        total = sum(layers) if isinstance(layers, (list, tuple)) else layers
        # Every layer has a tensor of its own, so there are no more layers than tensors.
        declared[f"{tower}.layers"] = (total, len(shapes))
        for key, value in cfg.get("hf_config", {}).items():
            if "layers" in key and _is_size(value):
                declared[f"{tower}.hf_config.{key}"] = (value, len(shapes))
        # Where nothing is said open_clip's defaults hold, which are small.
        declared |= {f"{tower}.{key}": (cfg[key], largest) for key in sizes if key in cfg}
        # A hidden layer has width times ratio units, which is some tensor's dimension. The width is at least
        # 1, so the ratio alone is no larger: weaker than it could be, and enough, for shapes are compared
        # later.
        declared[f"{tower}.mlp_ratio"] = (math.ceil(cfg.get("mlp_ratio", 1)), largest)
    vision = model_cfg["vision_cfg"]
    if not vision.get("timm_model_name") and isinstance(vision.get("layers", 1), int):
        (height, width), (patch_h, patch_w) = (
            _pair(vision.get(key) or default) for key, default in (("image_size", 224), ("patch_size", 16))
        )
        # a vision transformer's positions
        declared["vision_cfg.image_size over patch_size"] = (
            (height // patch_h) * (width // patch_w),
            largest,
        )
    for key, (value, bound) in declared.items():
        if value > bound:
            raise ValueError(
                f"{key} is {value} in the configuration, which needs more than the weights at hand "
                f"({len(shapes)} tensors, the largest dimension {largest})"
            )


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
