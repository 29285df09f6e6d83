"""Models that something is wrapped around: torch.compile, DataParallel, DistributedDataParallel."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from riemann_unlearn.models.base import DualEncoder

_COMPILED = "_orig_mod"
"""Under what name torch.compile keeps the module that it compiles."""
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrap(model: nn.Module) -> DualEncoder:
    """The model itself, out of ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``.

    It shares its parameters with what it is taken out of. Compiled towers inside a model stay compiled.

    Raises
    ------
    TypeError
        When there is no :class:`DualEncoder` inside.

    Examples
    --------
    >>> import torch, riemann_unlearn as ru
    >>> model = ru.load("clip-emoji")
    >>> unwrap(torch.nn.DataParallel(model)) is model
    True
    """
    inner: Any = model
    # Wrappers nest in any order, as in DistributedDataParallel around torch.compile.
    while not isinstance(inner, DualEncoder):
        inner = inner.module if isinstance(inner, _PARALLEL) else getattr(inner, _COMPILED, None)
        if inner is None:
            raise TypeError(
                f"expected a model of this library (riemann_unlearn.models.DualEncoder), compiled or in "
                f"DataParallel or not, got {type(model).__name__}"
            )
    return inner


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and buffers by the names that they have where nothing is compiled or wrapped.

    Raises
    ------
    TypeError
        As for :func:`unwrap`.
    """
    model = unwrap(model)
    wrapped = set()
    # With duplicates: state_dict lists a module that is held under two names twice, and both need renaming.
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _PARALLEL):
            wrapped.add(f"{name}.module")
        elif hasattr(module, _COMPILED):
            wrapped.add(f"{name}.{_COMPILED}")

    def plain(name: str) -> str:
        parts = name.split(".")
        # Only where a wrapper is: a tower may have a part of its own called "module".
        kept = [part for i, part in enumerate(parts) if ".".join(parts[: i + 1]) not in wrapped]
        return ".".join(kept)

    return {plain(name): value for name, value in model.state_dict().items()}
