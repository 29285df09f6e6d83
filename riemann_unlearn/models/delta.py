"""What became of a model, without the model: the weights that differ from those of another one.

A run that moves the last blocks, or corrections of low rank, changes little of a large model. What it changed
is written alone, to be put on the same model again. A matrix whose change is of low rank is kept as two
narrow ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from riemann_unlearn.io import atomic_write
from riemann_unlearn.models.weights import BUFFERS, floats, read_weights
from riemann_unlearn.models.wrapping import state_of

_BASE = "delta_of"
"""Key of the metadata that says by its weights which model the delta is of."""
_WIDTHS = (8, 32, 128, 512)
"""Ranks that a change is tried for, one after the other."""
_UP, _DOWN = "/up", "/down"
"""Ends of the names of two factors; no tensor's own name has a slash."""


@torch.no_grad()
def save_delta(model: nn.Module, base: nn.Module, path: str | Path) -> None:
    r"""Write what differs between two models of one configuration.

    A matrix W of M rows and N columns whose change has a low rank R, with 2 R (M + N) at most M N, is kept as
    the two factors of its change. What is below :math:`ε\,\|W\|_F`, with ε float32's, is what rounding left
    behind and no rank: put together again, a matrix is off by about that.

    Parameters
    ----------
    model, base : DualEncoder
        Compiled or wrapped or not; neither is changed.
    path : str or Path
        The file to write, safetensors.

    Raises
    ------
    ValueError
        When the models do not have the same weights by name and shape.

    Examples
    --------
    >>> import tempfile, riemann_unlearn as ru
    >>> base, model = ru.load("clip-emoji"), ru.load("clip-emoji")
    >>> _ = torch.nn.init.zeros_(model.text.ln_final.bias)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_delta(model, base, f"{folder}/delta.safetensors")
    ...     apply_delta(base, f"{folder}/delta.safetensors")
    >>> bool((base.text.ln_final.bias == 0).all())
    True
    """
    before, after = _weights(base), _weights(model)
    _check_same({key: value.shape for key, value in after.items()}, before)
    tensors: dict[str, Tensor] = {}
    for key, value in after.items():
        if torch.equal(value, before[key]):
            continue
        factors = _factors(value, before[key]) if value.ndim == 2 else None
        if factors is None:
            tensors[key] = value.contiguous().clone()
        else:
            tensors[key + _UP], tensors[key + _DOWN] = factors
    atomic_write(Path(path), save(tensors, {_BASE: _fingerprint(before)}))


@torch.no_grad()
def apply_delta(model: nn.Module, path: str | Path) -> None:
    """Change a model, in place, as the one was that a delta is of.

    Parameters
    ----------
    model : DualEncoder
        With the weights that the delta was taken from.
    path : str or Path
        A file of :func:`save_delta`.

    Raises
    ------
    ValueError
        When it is none, or of another model; the model is as it was then.
    """
    path = Path(path)
    state, metadata = read_weights(path)
    if _BASE not in metadata:
        raise ValueError(f"{path} is no delta; expected a file of riemann_unlearn.models.save_delta")
    own = _weights(model)
    if metadata[_BASE] != _fingerprint(own):
        raise ValueError(
            f"{path} was taken from a model with other weights; put it on the model that it was taken from"
        )
    tensors = floats(path, state)
    changed = {key: value for key, value in tensors.items() if not key.endswith((_UP, _DOWN))}
    for key in [key.removesuffix(_UP) for key in tensors if key.endswith(_UP)]:
        up, down = tensors[key + _UP], tensors.get(key + _DOWN)
        if key not in own or down is None or not _fit(up, down, own[key]):
            raise ValueError(f"{path} is damaged: the factors of {key} do not fit each other")
        changed[key] = (own[key].double() + up.double() @ down.double()).float()
    _check_same({key: value.shape for key, value in changed.items()}, own, whole=False)
    for key, value in state_of(model).items():
        if key in changed:
            value.copy_(changed[key])


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {
        key: value.detach().cpu()
        for key, value in state_of(model).items()
        if key.rpartition(".")[2] not in BUFFERS
    }


def _factors(after: Tensor, before: Tensor) -> tuple[Tensor, Tensor] | None:
    """Two narrow matrices whose product is the change; None where it is of no low rank."""
    # In float64: the change is the small difference of large numbers.
    change = after.double() - before.double()
    # Each entry was rounded once, by half an ulp at most: this bounds what that left in the whole matrix.
    rounding = torch.finfo(torch.float32).eps * float(after.double().norm())
    generator = torch.Generator().manual_seed(0)
    for width in _WIDTHS:
        if 2 * width * sum(change.shape) > change.numel():
            return None
        # What a matrix of rank R makes of more than R random vectors spans all that it makes of any (Halko,
        # Martinsson and Tropp 2011, arXiv 0909.4061): no singular value of the large matrix is needed.
        probes = torch.randn(change.shape[1], width, generator=generator, dtype=torch.float64)
        basis = torch.linalg.qr(change @ probes).Q
        rest = basis.mT @ change
        if float((change - basis @ rest).norm()) <= rounding:
            u, sizes, v = torch.linalg.svd(rest, full_matrices=False)
            rank = max(1, int((sizes > rounding).sum()))
            return (basis @ u[:, :rank] * sizes[:rank]).float().contiguous(), v[:rank].float().contiguous()
    return None


def _fit(up: Tensor, down: Tensor, own: Tensor) -> bool:
    if not up.ndim == down.ndim == 2:
        return False
    return up.shape[1] == len(down) and (len(up), down.shape[1]) == tuple(own.shape)


def _check_same(shapes: Mapping[str, torch.Size], own: Mapping[str, Tensor], *, whole: bool = True) -> None:
    wrong = [key for key, shape in shapes.items() if key not in own or own[key].shape != shape]
    if whole:
        wrong += own.keys() - shapes.keys()
    if wrong:
        raise ValueError(
            f"the models are of different kinds: {sorted(wrong)[0]} is not in both, or has two shapes; take "
            "two of one configuration"
        )


def _fingerprint(state: Mapping[str, Tensor]) -> str:
    """A number that stands for weights: of all their bytes, by name."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].contiguous().numpy().tobytes())
    return digest.hexdigest()
