"""Models on disk: one safetensors file that carries its own configuration.

A checkpoint is ``model.safetensors`` whose metadata holds the open_clip-style configuration, so that
one file is a model. Matrices may be stored in half precision; vectors and scalars (biases, batch
norm statistics, τ, c) are always stored in float32, where half precision could overflow or lose the
curvature's last digits, and everything is computed in float32 after loading. Nothing is ever
unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from riemann_unlearn.io import atomic_write
from riemann_unlearn.models.encoder import CLIP, MERU, DualEncoder

WEIGHTS_NAME = "model.safetensors"
_BUNDLED = Path(__file__).parent / "bundled"
_ARCHITECTURES: dict[str, type[DualEncoder]] = {"CLIP": CLIP, "MERU": MERU}


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


def load(name_or_path: str | Path) -> DualEncoder:
    """Load a model by its bundled name, or from a checkpoint file or a folder that holds one.

    Parameters
    ----------
    name_or_path : str or Path
        A name from :func:`list_models`, a ``.safetensors`` file written by :func:`save_model`, or a
        folder with ``model.safetensors`` in it, such as the output of a run.

    Returns
    -------
    DualEncoder
        In evaluation mode, float32, on the CPU.

    Raises
    ------
    ValueError
        When there is no such model, or the file is not a checkpoint of this library.

    Examples
    --------
    >>> load("meru-emoji").geometry
    'hyperbolic'
    """
    path = Path(name_or_path)
    if str(name_or_path) in _MODELS:
        path = _MODELS[str(name_or_path)].path / WEIGHTS_NAME
    elif path.is_dir():
        path = path / WEIGHTS_NAME
    if not path.is_file():
        raise ValueError(
            f"no model {str(name_or_path)!r}: it is neither a bundled model "
            f"({', '.join(_MODELS)}) nor a file or folder with {WEIGHTS_NAME}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from None
    if "config" not in metadata:
        raise ValueError(
            f"{path} has no model configuration in its metadata; "
            "expected a file written by riemann_unlearn.models.save_model"
        )
    model = create_model(json.loads(metadata["config"]), folder=path.parent)
    counters = {key for key in model.state_dict() if key.endswith("num_batches_tracked")}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if (wrong := sorted(set(missing) - counters)) or unexpected:
        raise ValueError(
            f"{path} does not fit its own configuration: "
            f"missing {wrong[:3]}, unexpected {sorted(unexpected)[:3]}"
        )
    return model.eval()


def create_model(config: Mapping[str, Any], folder: Path | None = None) -> DualEncoder:
    """A freshly initialized model from an open_clip-style configuration.

    Parameters
    ----------
    config : mapping
        ``{"architecture": "MERU" or "CLIP", "model_cfg": {...}, "preprocess_cfg": {...}}``, the two
        latter as in open_clip's ``open_clip_config.json``.
    folder : Path, optional
        Where a relative ``text_cfg.tokenizer_kwargs.bpe_path`` is looked for first; the bundled
        vocabularies come next.

    Raises
    ------
    ValueError
        For an unknown architecture, a missing key, or a vocabulary file that cannot be found.
    """
    for key in ("architecture", "model_cfg"):
        if key not in config:
            raise ValueError(f"the model configuration lacks {key!r}; it has {sorted(config)}")
    if (name := config["architecture"]) not in _ARCHITECTURES:
        raise ValueError(f"architecture {name!r} is not one of {', '.join(_ARCHITECTURES)}")
    text_cfg = config["model_cfg"]["text_cfg"]
    arguments = dict(text_cfg.get("tokenizer_kwargs") or {})
    if "bpe_path" in arguments:
        arguments["bpe_path"] = str(_find_vocabulary(arguments["bpe_path"], folder))
    tokenizer = SimpleTokenizer(context_length=text_cfg["context_length"], **arguments)
    model = _ARCHITECTURES[name](config["model_cfg"], tokenizer, config.get("preprocess_cfg"))
    model.config["architecture"] = name
    return model


def save_model(model: DualEncoder, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write ``model`` and its configuration to one safetensors file, atomically.

    Parameters
    ----------
    model : DualEncoder
    path : str or Path
        The file to write.
    dtype : torch.dtype
        How matrices are stored; vectors and scalars are always float32.
    """
    tensors: dict[str, Tensor] = {
        key: value.detach().cpu().to(dtype if value.ndim > 1 else torch.float32).contiguous()
        for key, value in model.state_dict().items()
        if not key.endswith("num_batches_tracked")  # has no part in what the model computes
    }
    atomic_write(path, save(tensors, {"config": json.dumps(model.config, sort_keys=True)}))


def _find_vocabulary(bpe_path: str, folder: Path | None) -> Path:
    for candidate in ([folder / bpe_path] if folder else []) + [_BUNDLED / bpe_path]:
        if candidate.is_file():
            return candidate
    raise ValueError(f"vocabulary file {bpe_path!r} was found neither in {folder} nor among the bundled ones")
