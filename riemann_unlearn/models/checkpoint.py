"""Models to and from disk: one safetensors file that carries its own configuration.

A checkpoint is ``model.safetensors`` whose metadata holds the configuration, so one file is a model (with
the vocabulary's file beside it, where the tokenizer is neither open_clip's nor a bundled one). Matrices may
be stored in half precision; vectors and scalars (biases, batch norm statistics, τ, c) are always stored in
float32, where half precision could overflow or lose the curvature's last digits, and everything is computed
in float32 after loading.

What others wrote is read as well: where it lies, :mod:`.origins` says; how it is stored, :mod:`.weights`;
whose names it has, :mod:`.layouts`.

A checkpoint is data, from anywhere: nothing in it is run or makes this library ask the network; the files
that it names lie beside it or are bundled; and what its configuration asks for is compared with the shapes of
its weights before any of it is built.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from open_clip.constants import HF_CONFIG_NAME
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import save
from torch import Tensor, nn

from riemann_unlearn.io import atomic_write
from riemann_unlearn.models.base import FAMILIES, DualEncoder
from riemann_unlearn.models.configuration import check_model_cfg, check_sizes, complete
from riemann_unlearn.models.huggingface import with_architecture
from riemann_unlearn.models.layouts import translate
from riemann_unlearn.models.layouts.open_clip import exported
from riemann_unlearn.models.origins import WEIGHTS_NAME, as_config, find, read_config
from riemann_unlearn.models.tokenizers import make_tokenizer
from riemann_unlearn.models.weights import BUFFERS, floats, read_weights, shapes_of
from riemann_unlearn.models.wrapping import state_of, unwrap


def load(name_or_path: str | Path, *, device: str | torch.device | None = None) -> DualEncoder:
    """Load a model by its name, or from its folder, its file of weights or its configuration.

    Parameters
    ----------
    name_or_path : str or Path
        A bundled name from :func:`list_models`; ``open_clip:ARCHITECTURE/TAG`` as open_clip lists them, such
        as ``open_clip:ViT-B-32/laion2b_s34b_b79k``, or with a file of weights in the tag's place;
        ``hf-hub:OWNER/NAME``; a folder with weights in it, such as the output of a run, or one of open_clip's
        with ``open_clip_config.json``; a file of weights, safetensors or of ``torch.save``; a configuration
        with the weights beside it. The network is asked for the two names only, and only for what is not in
        this machine's cache.
    device : str or torch.device, optional
        Where to put it; the CPU by default.

    Returns
    -------
    DualEncoder
        In evaluation mode, float32.

    Raises
    ------
    ValueError
        When there is no such model, or it is not one that can be built, is damaged, or does not fit its own
        configuration. The message names the file and says what to do.

    Examples
    --------
    >>> load("meru-emoji").name
    'MERU'
    """
    origin = find(name_or_path)
    path = origin.weights
    config, state = _read(path, origin.config)
    try:
        model = _build(config, origin.folder, shapes_of(state), hub=origin.hub)
    except ValueError as error:
        raise ValueError(f"{path} cannot be loaded: {error}") from error
    # What is missing or too much, _compare has refused; counters of batches stay as they are.
    model.load_state_dict(state, strict=False)
    for name, value in model.scalars().items():
        # τ and c are exponentials, which overflow for parameters that are still finite.
        if not math.isfinite(value) or (name in ("logit_scale", "c") and value <= 0):
            raise ValueError(f"{path} cannot be used: its {name} is {value}")
    return model.eval().to(device)


def create_model(config: Mapping[str, Any], folder: Path | None = None) -> DualEncoder:
    """A freshly initialized model from a configuration.

    Parameters
    ----------
    config : mapping
        ``{"architecture": name, "model_cfg": {...}, "preprocess_cfg": {...}, "space": {...}}``: a name from
        ``FAMILIES`` such as "MERU", "CLIP" or "SigLIP"; the next two as in open_clip's
        ``open_clip_config.json``; the last what defines the family's space, such as ``min_radius``, the K of
        MERU's cones. Without "architecture" the configuration is open_clip's, and read with its defaults.
    folder : Path, optional
        Where the file ``text_cfg.tokenizer_kwargs.bpe_path`` is looked for first; the bundled vocabularies
        come next.

    Raises
    ------
    ValueError
        For an unknown architecture, a key or a value that is not understood, or a vocabulary file that cannot
        be found.

    Examples
    --------
    >>> vision = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16}
    >>> text = {"layers": 1, "width": 32, "heads": 2, "context_length": 16}
    >>> model_cfg = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    >>> config = {"architecture": "MERU", "model_cfg": model_cfg, "space": {"min_radius": 0.2}}
    >>> create_model(config).space.min_radius
    0.2
    """
    return _build(config, folder, None)


def convert(model: nn.Module, family: str | type[DualEncoder]) -> DualEncoder:
    """A model of another family on the same towers: their weights, preprocessing and tokenizer.

    What is learned beside the towers (τ, a curvature, a bias) begins anew, for it means something else there;
    what only the other family has in its configuration is left behind.

    Parameters
    ----------
    model : DualEncoder
        Compiled or wrapped or not. It stays as it is: weights are copied.
    family : str or class
        A name from ``FAMILIES``, or a family, registered or not.

    Returns
    -------
    DualEncoder
        On the model's device, and in its mode.

    Examples
    --------
    >>> convert(load("clip-emoji"), "MERU").space.name
    'lorentz'
    """
    inner = unwrap(model)
    target = FAMILIES[family] if isinstance(family, str) else family
    config, left = inner.config, inner.model_rules.keys() - target.model_rules.keys()
    model_cfg = {key: value for key, value in config["model_cfg"].items() if key not in left}
    space = {key: value for key, value in config.get("space", {}).items() if key in target.space_defaults}
    result = target(model_cfg, inner.tokenizer, config["preprocess_cfg"], space)
    result.vocabulary = inner.vocabulary
    # Towers of one model_cfg have the same names and shapes in every family. What else the new model has is
    # missing here on purpose and keeps its first value; hence strict=False.
    towers = {key: value for key, value in state_of(inner).items() if key.startswith(("visual.", "text."))}
    result.load_state_dict(towers, strict=False)
    return result.to(inner.device).train(inner.training)


def save_model(model: nn.Module, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write ``model`` and its configuration to one safetensors file, atomically.

    Parameters
    ----------
    model : DualEncoder
        Compiled or wrapped or not: what is written is the same.
    path : str or Path
        The file to write. A vocabulary of the model's own goes beside it. With the name
        ``model.safetensors`` a CLIP or a SigLIP gets an ``open_clip_config.json`` there as well:
        ``open_clip.create_model("local-dir:FOLDER")`` then makes the same model.
    dtype : torch.dtype
        How matrices are stored; vectors and scalars are always float32.

    Raises
    ------
    ValueError
        For a dtype that cannot hold the weights, and when another vocabulary of the same name lies there.
    """
    if not dtype.is_floating_point:
        raise ValueError(f"weights are stored in a floating-point dtype, got {dtype}")
    inner, path = unwrap(model), Path(path)
    tensors: dict[str, Tensor] = {}
    for key, value in state_of(inner).items():
        # Counts of batches are integers; nothing here reads them, but open_clip looks for all that it has.
        if not value.is_floating_point():
            tensors[key] = value.detach().cpu().clone()
            continue
        # Vectors and scalars are few: half precision would save next to nothing and cost digits of τ and c.
        stored = value.detach().to("cpu", dtype if value.ndim > 1 else torch.float32)
        # Only what the narrower dtype did is refused here: float16 ends at 65504. A diverged model is written
        # as it is, to be looked at; load says what is wrong with it.
        if not stored.isfinite().all() and value.isfinite().all():
            raise ValueError(f"{key} has values too large for {stored.dtype}; save the model in float32")
        # A copy, for safetensors takes no two tensors that share memory, as tied weights do.
        tensors[key] = stored.contiguous().clone()
    # The vocabulary first: where a checkpoint is, what it names is there too, also after a crash in between.
    if inner.vocabulary is not None:
        beside, content = path.parent / inner.vocabulary.name, inner.vocabulary.read_bytes()
        if not beside.exists():
            atomic_write(beside, content)
        elif beside.read_bytes() != content:
            raise ValueError(f"another vocabulary lies at {beside}; save the model to another folder")
    if isinstance(inner.tokenizer, HFTokenizer):
        inner.tokenizer.save_pretrained(path.parent)
    # Keys in order: equal configurations are written as equal bytes.
    atomic_write(path, save(tensors, {"config": json.dumps(inner.config, sort_keys=True)}))
    # Beside a name of its own it would speak for whatever else lies in the folder.
    if path.name == WEIGHTS_NAME and (theirs := exported(inner.config)) is not None:
        atomic_write(path.parent / HF_CONFIG_NAME, json.dumps(theirs, indent=2) + "\n")


def check_saveable(model: nn.Module) -> None:
    """Refuse a model whose weights are not those of its configuration: :func:`load` could not read it back.

    Raises
    ------
    ValueError
        For a model with parametrizations, adapters or masks of pruning on its layers.
    """
    inner = unwrap(model)
    family = FAMILIES.get(inner.config["architecture"])
    if family is None:
        return  # nobody but its author knows how it is built
    config = inner.config
    arguments = (config["model_cfg"], inner.tokenizer, config.get("preprocess_cfg"), config.get("space"))
    shapes = {
        name: tuple(value.shape)
        for name, value in state_of(inner).items()
        if name.rpartition(".")[2] not in BUFFERS
    }
    try:
        check_sizes(config["model_cfg"], shapes.values())  # a configuration of a million layers is not built
        with torch.device("meta"):
            skeleton = family(*arguments)
        _compare(skeleton, shapes)
    except ValueError as error:
        raise ValueError(
            f"the model cannot be saved: {error}. Take what was added to its layers off again, as "
            "torch.nn.utils.parametrize.remove_parametrizations does"
        ) from None


def _build(
    config: Mapping[str, Any],
    folder: Path | None,
    shapes: Mapping[str, tuple[int, ...]] | None,
    *,
    hub: bool = False,
) -> DualEncoder:
    """A model from its configuration, compared with the shapes of its weights first where there are any."""
    config = complete(config)
    family = FAMILIES[config["architecture"]]
    model_cfg = config["model_cfg"]
    check_model_cfg(model_cfg, family.model_rules)
    text_cfg = with_architecture(model_cfg["text_cfg"], folder, hub=hub)
    model_cfg = {**model_cfg, "text_cfg": text_cfg}
    # From the cheapest check to the dearest: sizes by arithmetic, then names and shapes without memory, and
    # only then a model. Each keeps the next from being asked for too much.
    if shapes is not None:
        check_sizes(model_cfg, shapes.values())
    tokenizer, vocabulary = make_tokenizer(model_cfg["text_cfg"], folder, hub=hub)
    arguments = (model_cfg, tokenizer, config.get("preprocess_cfg"), config.get("space"))
    if shapes is not None:
        with torch.device("meta"):  # no memory is taken, and no random number drawn
            skeleton = family(*arguments)
        _compare(skeleton, shapes)
    model = family(*arguments)
    model.vocabulary = vocabulary
    return model


def _compare(skeleton: DualEncoder, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse weights that are not, by name and shape, those of the model."""
    wanted = {
        name: tuple(value.shape)
        for name, value in skeleton.state_dict().items()
        if name.rpartition(".")[2] not in BUFFERS
    }
    missing, unexpected = sorted(wanted.keys() - shapes), sorted(shapes.keys() - wanted.keys())
    if missing or unexpected:
        raise ValueError(
            "its weights do not fit its own configuration: "
            f"missing {missing[:3]}, unexpected {unexpected[:3]}"
        )
    for name, shape in wanted.items():
        if shapes[name] != shape:
            raise ValueError(
                f"its weights do not fit its own configuration: {name} has shape {shapes[name]} and the "
                f"configuration asks for {shape}"
            )


def _read(path: Path, config: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and float32 weights of a file, by the names that they have here."""
    state, metadata = read_weights(path)
    beside = path.parent / HF_CONFIG_NAME
    if config is None and "config" in metadata:
        config = as_config(metadata["config"], path)
    elif config is None and beside.is_file():
        config = read_config(beside)
    # Of another layout's names some tensors are left out, or become others: so what is left is checked.
    try:
        found = translate(config, state)
    except ValueError as error:
        raise ValueError(f"{path} cannot be loaded: {error}") from error
    if found is None:
        raise ValueError(
            f"{path} has no model configuration in its metadata, nor {HF_CONFIG_NAME} beside it; where "
            f"open_clip wrote it, name its architecture, as in open_clip:ViT-B-32/{path}"
        )
    return found[0], floats(path, found[1])
