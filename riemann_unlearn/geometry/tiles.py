"""Large batches a few rows at a time, so that what is computed on the way stays in the processor's cache.

The primitives make a dozen passes over their rows in float64. Over a batch that does not fit the cache, each
goes to main memory. Compiled code is one pass already, and a GPU wants whole batches: they are left alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_TILE = 2**17
"""Elements of a tile: a mebibyte of float64."""


def tiled(kernel: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """``kernel(*tensors)``, tile by tile along the first axis, which all tensors share."""
    first = tensors[0]
    # Under autograd every tile would be recorded with nodes of its own. A single vector has no rows to split,
    # and torch.cat copies what a batch of one tile need not.
    whole = (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or first.device.type != "cpu"
        or first.ndim < 2
        or first.numel() < 2 * _TILE
    )
    if whole:
        return kernel(*tensors)
    # A row longer than a tile is a tile of its own.
    rows = max(1, _TILE * first.shape[0] // first.numel())
    tiles = [torch.split(t, rows) for t in tensors]
    parts = [kernel(*tile) for tile in zip(*tiles, strict=True)]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))
