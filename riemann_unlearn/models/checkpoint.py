"""Models on disk: one safetensors file that carries its own configuration.

A checkpoint is ``model.safetensors`` whose metadata holds the configuration, so one file is a model (with
the vocabulary's file beside it, where the tokenizer is neither open_clip's nor a bundled one). Matrices may
be stored in half precision; vectors and scalars (biases, batch norm statistics, τ, c) are always stored in
float32, where half precision could overflow or lose the curvature's last digits, and everything is computed
in float32 after loading.

A checkpoint is data, from anywhere: nothing is unpickled, run or fetched; the files that it names lie beside
it or are bundled; and what its configuration asks for is compared with the header of its weights before any
of it is built.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME
from open_clip.tokenizer import SimpleTokenizer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from riemann_unlearn.io import atomic_write
from riemann_unlearn.models.base import FAMILIES, DualEncoder
from riemann_unlearn.models.configuration import Rule, check, check_model_cfg, check_sizes, complete, one_of
from riemann_unlearn.models.wrapping import state_of, unwrap

WEIGHTS_NAME = "model.safetensors"
_COUNTER = "num_batches_tracked"
_BUNDLED = Path(__file__).parent / "bundled"

MAX_VOCABULARY = 2**26
"""Largest vocabulary in bytes, unpacked; CLIP's has 3 million. A few kB of gzip can hold gigabytes."""

_STORED = ("F64", "F32", "F16", "BF16")
"""Dtypes of weights, as safetensors calls them."""

_TOKENIZER: dict[str, Rule] = {
    # No separator of any system, no colon of a drive, no NUL, which no path may hold. ".." passes and does no
    # harm: it is a folder, and only files are found.
    "bpe_path": (
        lambda value: (
            isinstance(value, str)
            and re.fullmatch(r"[^/\\:\0]+", value) is not None
            and len(value.encode(errors="replace")) < 256
        ),  # what a file system takes
        "the name of a file beside the checkpoint, without a folder",
    ),
    "clean": one_of("lower", "whitespace", "canonicalize"),
    # They go into a regular expression as they are.
    "additional_special_tokens": (
        lambda value: (
            isinstance(value, (list, tuple))
            and all(isinstance(token, str) and re.fullmatch(r"[\w<>/ -]+", token) for token in value)
        ),
        "a list of strings of letters, digits and <>/_-",
    ),
}


@dataclass(frozen=True)
class ModelInfo:
    """A bundled model: what ``ru.load`` takes, and what it is."""

    name: str
    architecture: str
    description: str

    @property
    def path(self) -> Path:
        """Folder of the weights, the configurations and the model card."""
        return _BUNDLED / self.name


_MODELS = {
    info.name: info
    for info in (
        ModelInfo("meru-emoji", "MERU", "hyperbolic; Unicode emoji; convolutional, 56 px"),
        ModelInfo("clip-emoji", "CLIP", "Euclidean twin of meru-emoji: same towers, data and steps"),
    )
}


def list_models() -> list[ModelInfo]:
    """The bundled models.

    Examples
    --------
    >>> [info.name for info in list_models()]
    ['meru-emoji', 'clip-emoji']
    """
    return list(_MODELS.values())


def load(name_or_path: str | Path, *, device: str | torch.device | None = None) -> DualEncoder:
    """Load a model by its bundled name, or from a checkpoint file or a folder that holds one.

    Parameters
    ----------
    name_or_path : str or Path
        A name from :func:`list_models`, a ``.safetensors`` file written by :func:`save_model`, a folder with
        ``model.safetensors`` in it, such as the output of a run, or a folder as open_clip writes it, with
        ``open_clip_model.safetensors`` and ``open_clip_config.json``.
    device : str or torch.device, optional
        Where to put it; the CPU by default.

    Returns
    -------
    DualEncoder
        In evaluation mode, float32.

    Raises
    ------
    ValueError
        When there is no such model, or the file is not a checkpoint of this library, is damaged, or does not
        fit its own configuration. The message names the file and says what to do.

    Examples
    --------
    >>> load("meru-emoji").name
    'MERU'
    """
    path = _file_of(name_or_path)
    config, shapes, state = _read(path)
    try:
        model = _build(config, path.parent, shapes)
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
        The file to write. A vocabulary of the model's own goes beside it.
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
        # Counts of batches are integers, and matter only to batch norm that averages without a momentum.
        if key.endswith(_COUNTER):
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
    # Keys in order: equal configurations are written as equal bytes.
    atomic_write(path, save(tensors, {"config": json.dumps(inner.config, sort_keys=True)}))


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
        name: tuple(value.shape) for name, value in state_of(inner).items() if not name.endswith(_COUNTER)
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


def make_tokenizer(text_cfg: Mapping[str, Any], folder: Path | None) -> tuple[SimpleTokenizer, Path | None]:
    """The byte-pair tokenizer of a ``text_cfg``, and its file where it is neither open_clip's nor bundled.

    Raises
    ------
    ValueError
        For a tokenizer that would have to be fetched, a key or value that is not understood, or a vocabulary
        that is not there, not in ``folder`` itself, or not one.
    """
    for key in ("hf_tokenizer_name", "tokenizer_mode"):
        if text_cfg.get(key) is not None:
            raise ValueError(
                f"text_cfg.{key} is {text_cfg[key]!r}: Hugging Face tokenizers are not loaded by name, for "
                "they would be fetched from its hub; make the tokenizer yourself and give it to the family's "
                "class, as in riemann_unlearn.models.SigLIP(model_cfg, tokenizer, preprocess_cfg)"
            )
    arguments = text_cfg.get("tokenizer_kwargs")
    if arguments is not None and not isinstance(arguments, Mapping):
        raise ValueError(f"text_cfg.tokenizer_kwargs must be a mapping, got {type(arguments).__name__}")
    arguments = dict(arguments or {})
    check(arguments, _TOKENIZER, "text_cfg.tokenizer_kwargs.")
    vocabulary = None
    if "bpe_path" in arguments:
        vocabulary = _find_vocabulary(arguments["bpe_path"], folder)
        arguments["bpe_path"] = str(vocabulary)
    tokenizer = SimpleTokenizer(context_length=text_cfg.get("context_length", 77), **arguments)
    # A bundled file is found by its name wherever this library is, so it need not be saved beside weights.
    own = vocabulary is not None and vocabulary.parent != _BUNDLED
    return tokenizer, vocabulary if own else None


def _build(
    config: Mapping[str, Any], folder: Path | None, shapes: Mapping[str, tuple[int, ...]] | None
) -> DualEncoder:
    """A model from its configuration, compared with the shapes of its weights first where there are any."""
    config = complete(config)
    family = FAMILIES[config["architecture"]]
    model_cfg = config["model_cfg"]
    check_model_cfg(model_cfg, family.model_rules)
    # From the cheapest check to the dearest: sizes by arithmetic, then names and shapes without memory, and
    # only then a model. Each keeps the next from being asked for too much.
    if shapes is not None:
        check_sizes(model_cfg, shapes.values())
    tokenizer, vocabulary = make_tokenizer(model_cfg["text_cfg"], folder)
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
        if not name.endswith(_COUNTER)
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


def _file_of(name_or_path: str | Path) -> Path:
    """The checkpoint file that is meant."""
    path = Path(name_or_path)
    # A bundled name comes first: what it means must not depend on the working directory.
    if str(name_or_path) in _MODELS:
        return _MODELS[str(name_or_path)].path / WEIGHTS_NAME
    names = (WEIGHTS_NAME, HF_SAFE_WEIGHTS_NAME)
    for candidate in [path / name for name in names] if path.is_dir() else [path]:
        if candidate.is_file():
            return candidate
    raise ValueError(
        f"no model {str(name_or_path)!r}: it is neither a bundled model "
        f"({', '.join(_MODELS)}) nor a file or folder with {' or '.join(names)}"
    )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]], dict[str, Tensor]]:
    """Configuration, shapes and float32 weights of a checkpoint file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Counters of batches have no part in what a model computes.
            keys = [key for key in file.keys() if not key.endswith(_COUNTER)]  # noqa: SIM118
            slices = {key: file.get_slice(key) for key in keys}
            shapes = {key: tuple(entry.get_shape()) for key, entry in slices.items()}
            for key, entry in slices.items():
                if (dtype := entry.get_dtype()) not in _STORED:
                    kinds = ", ".join(_STORED)
                    raise ValueError(f"{path} cannot be loaded: {key} is stored as {dtype}, not as {kinds}")
            # The header has been checked against the file's length: no more can be read than is there.
            # A float64 too large for float32 becomes infinite here and is refused below.
            state = {key: file.get_tensor(key).float() for key in keys}
    except (SafetensorError, OSError) as error:
        raise ValueError(_unreadable(path, error)) from None
    for key, value in state.items():
        if not value.isfinite().all():
            raise ValueError(
                f"{path} cannot be used: {key} holds NaN or infinity; was it saved by a diverged run?"
            )
    config = _read_config(path, metadata)
    if "text_projection" in state:
        # open_clip's plain CLIP (not custom_text) has the text tower's parts beside the image tower.
        names = {name: name if name.startswith(("visual.", "logit_")) else f"text.{name}" for name in state}
        # Both alike: _compare looks at the shapes, load_state_dict at the weights.
        shapes = {names[name]: shape for name, shape in shapes.items()}
        state = {names[name]: value for name, value in state.items()}
    return config, shapes, state


def _read_config(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The configuration in a checkpoint, or beside it as open_clip writes it."""
    beside = path.parent / HF_CONFIG_NAME
    try:
        if "config" in metadata:
            config = json.loads(metadata["config"])
        elif beside.is_file():
            config = json.loads(beside.read_text(encoding="utf-8"))
        else:
            raise ValueError(
                f"{path} has no model configuration in its metadata, nor {HF_CONFIG_NAME} beside it; "
                "expected a file of riemann_unlearn.models.save_model, or a folder written by open_clip"
            )
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"the model configuration of {path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        kind = type(config).__name__
        raise ValueError(f"the model configuration of {path} is a {kind}, expected a mapping")
    return config


def _unreadable(path: Path, error: Exception) -> str:
    """What to do about a file that is no safetensors file."""
    with path.open("rb") as file:
        start = file.read(2)
    if start == b"PK" or start[:1] == b"\x80":  # torch.save's zip, or a bare pickle
        return (
            f"{path} looks like a file of torch.save, which is never opened here, for it can hold code; "
            "read it by torch.load(..., weights_only=True), put the weights into a model of "
            "riemann_unlearn.models.create_model, and write that with riemann_unlearn.models.save_model"
        )
    return (
        f"{path} is not a readable safetensors file ({error}); it is damaged or was cut off: "
        "copy it, or write it with riemann_unlearn.models.save_model, again"
    )


def _find_vocabulary(name: str, folder: Path | None) -> Path:
    """The file of a byte-pair vocabulary, in ``folder`` itself or bundled."""
    for place in (folder, _BUNDLED):
        if place is None or not (candidate := place / name).is_file():
            continue
        # A link is followed by whoever opens it: where it leads must lie here as well.
        if candidate.resolve().parent != place.resolve():
            raise ValueError(
                f"vocabulary file {candidate} leads out of its folder; put the file itself there"
            )
        _check_vocabulary(candidate)
        return candidate
    raise ValueError(f"vocabulary file {name!r} was found neither in {folder} nor among the bundled ones")


def _check_vocabulary(path: Path) -> None:
    try:
        with gzip.open(path) as file:
            # One byte over the limit shows that there is more, and the rest is never unpacked.
            content = file.read(MAX_VOCABULARY + 1)
        content.decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"vocabulary file {path} is not gzip-compressed UTF-8 text: {error}") from None
    if len(content) > MAX_VOCABULARY:
        raise ValueError(f"vocabulary file {path} unpacks to more than {MAX_VOCABULARY:,} bytes")
