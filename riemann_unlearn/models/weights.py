"""Weights on disk, read as data: safetensors, or a file of torch.save opened with ``weights_only``.

Nothing is unpickled that could run, and what a file claims to hold is never more than is in it: both readers
hold the header against the file's length.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

State = dict[str, Tensor]
"""Tensors by name."""

BUFFERS = ("num_batches_tracked", "attn_mask", "position_ids")
"""Last parts of names of tensors that have no part in what a model computes, or are made anew with it."""

_NESTS = ("state_dict", "model")
"""Under which of its keys a training's checkpoint holds the model: open_clip's, and MERU's and its kin's."""
_WRAPPER = "module."
"""What DistributedDataParallel puts before each name."""


def read_weights(path: Path) -> tuple[State, dict[str, str]]:
    """The tensors of a file, as they are stored, and its metadata, if it has any.

    Parameters
    ----------
    path : Path
        A safetensors file, or one of ``torch.save``: a state dict, or a training's checkpoint with one under
        "state_dict" or "model". Which of the two it is, its first bytes say, whatever it is called.

    Raises
    ------
    ValueError
        When it is neither, is damaged, or holds more than data.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    # torch.save writes a zip, and wrote a bare pickle before version 1.6. The first 8 bytes of safetensors
    # are a length and may be anything; what follows them is a JSON object there, and nowhere else.
    pickled = start.startswith((b"PK", b"\x80")) and start[8:] != b"{"
    return _read_pickle(path) if pickled else _read_safetensors(path)


def floats(path: Path, state: Mapping[str, Tensor]) -> State:
    """The same in float32, without :data:`BUFFERS`.

    Raises
    ------
    ValueError
        For a tensor of another kind than floating point, and for NaN and infinity, with the tensor's name.
    """
    found = {}
    for key, value in state.items():
        if key.rpartition(".")[2] in BUFFERS:
            continue
        if value.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(
                f"{path} cannot be loaded: {key} is stored as {value.dtype}, not as floating-point numbers"
            )
        # A float64 too large for float32 becomes infinite here and is refused.
        found[key] = value.float()
        if not found[key].isfinite().all():
            raise ValueError(
                f"{path} cannot be used: {key} holds NaN or infinity; was it saved by a diverged run?"
            )
    return found


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by name."""
    return {key: tuple(value.shape) for key, value in state.items()}


def without(state: Mapping[str, Tensor], prefixes: Collection[str]) -> State:
    """The tensors whose names begin with none of ``prefixes``."""
    return {key: value for key, value in state.items() if not key.startswith(tuple(prefixes))}


def _read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            # The header has been checked against the file's length: no more can be read than is there.
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}); it is damaged or was cut off: copy it, or "
            "write it with riemann_unlearn.models.save_model, again"
        ) from None


def _read_pickle(path: Path) -> tuple[State, dict[str, str]]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path} holds more than weights, and only weights are read ({reason}); save the model's "
            "state_dict() alone, best with safetensors"
        ) from None
    # A zip that was cut off, one of TorchScript, a pickle that ends too early: torch names no types for them.
    except (RuntimeError, EOFError, OSError, KeyError, IndexError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path} cannot be read as weights ({reason}); it is damaged, or a TorchScript archive: save the "
            "model's state_dict() instead"
        ) from None
    for key in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(
            f"{path} holds a {type(content).__name__} and no weights; save a model's state_dict()"
        )
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{path} holds {key!r}, a {type(value).__name__}, among its weights; save a model's "
                "state_dict()"
            )
    # Copied by nobody: names alone change.
    if all(key.startswith(_WRAPPER) for key in content):
        content = {key.removeprefix(_WRAPPER): value for key, value in content.items()}
    return dict(content), {}
