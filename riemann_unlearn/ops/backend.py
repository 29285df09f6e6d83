"""Which implementation serves a device: one decision for all ops."""

from __future__ import annotations

import torch


def backend(device: torch.device | str = "cpu") -> str:
    """What the ops run on ``device``.

    Returns
    -------
    str
        "tiled": torch operations on tiles that stay in the caches; nothing is compiled. "reference": plain
        torch, with the whole matrix.

    Examples
    --------
    >>> backend("cpu")
    'tiled'
    """
    return "tiled" if torch.device(device).type == "cpu" else "reference"
