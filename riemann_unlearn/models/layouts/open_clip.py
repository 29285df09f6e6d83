"""open_clip's names, and ours, which are those of its ``CustomTextCLIP``.

A plain ``CLIP`` has the parts of the text tower beside the image tower; a ``CoCa`` has a decoder, which
writes captions and has no part in comparing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from riemann_unlearn.models.configuration import complete
from riemann_unlearn.models.weights import State, without

_SCALARS = ("logit_scale", "logit_bias")
_FAMILIES = ("CLIP", "SigLIP")
"""Architectures of ours that open_clip has."""


def translate(config: Mapping[str, Any] | None, state: State) -> tuple[dict[str, Any], State] | None:
    """Ours from open_clip's; None without a configuration, for its names say too little of a model."""
    if config is None:
        return None
    full = complete(config)
    if "multimodal_cfg" in (config.get("model_cfg") or {}):
        state = without(state, ["text_decoder."])
    if "architecture" not in config and "positional_embedding" in state:
        state = {
            key if key.startswith(("visual.", *_SCALARS)) else f"text.{key}": value
            for key, value in state.items()
        }
    # Some trainings keep the scalars as vectors of length 1.
    for key in _SCALARS:
        if key in state and state[key].shape == (1,):
            state = {**state, key: state[key][0]}
    return full, state


def exported(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """open_clip's configuration of a model of ours, by which ``open_clip.create_model`` makes it.

    Parameters
    ----------
    config : mapping
        Of ours.

    Returns
    -------
    dict or None
        None for a family that open_clip does not have.

    Examples
    --------
    >>> exported({"architecture": "CLIP", "model_cfg": {"embed_dim": 8}, "preprocess_cfg": {"mean": 0.5}})
    {'model_cfg': {'embed_dim': 8, 'custom_text': True}, 'preprocess_cfg': {'resize_mode': 'squash', \
'interpolation': 'bilinear', 'mean': [0.5, 0.5, 0.5], 'std': [0.5, 0.5, 0.5]}}
    """
    if config["architecture"] not in _FAMILIES:
        return None
    # Names with "text." are those of its CustomTextCLIP.
    model_cfg = {**config["model_cfg"], "custom_text": True}
    if "hf_config" in model_cfg.get("text_cfg", {}):
        # It looks the architecture up by the name.
        text_cfg = model_cfg["text_cfg"]
        model_cfg["text_cfg"] = {key: value for key, value in text_cfg.items() if key != "hf_config"}
    if config["architecture"] == "SigLIP":
        model_cfg.setdefault("init_logit_bias", -10.0)  # without the key its model has no bias to load
    preprocess = {"resize_mode": "squash", "interpolation": "bilinear", **config["preprocess_cfg"]}
    for key in ("mean", "std"):
        value = preprocess.get(key, 0.5)
        preprocess[key] = [value] * 3 if isinstance(value, (int, float)) else list(value)
    return {"model_cfg": model_cfg, "preprocess_cfg": preprocess}
