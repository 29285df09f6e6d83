"""How the GPU's kernels are started, by all ops."""

from __future__ import annotations

from typing import Any

import torch

UNFUSED: dict[str, Any] = {"enable_fp_fusion": False}
"""An option of kernels that take differences: with x·a - y·b made one operation, equal rows would differ."""


def launch(kernel: Any, grid: Any, *arguments: Any, **meta: Any) -> None:
    """Run a kernel with the settings that are fastest here, or with its first where it must not be timed."""
    if torch.are_deterministic_algorithms_enabled() or not arguments[0].is_cuda:
        kernel.fn[grid](*arguments, **meta, **kernel.configs[0].all_kwargs())
    else:
        kernel[grid](*arguments, **meta)
