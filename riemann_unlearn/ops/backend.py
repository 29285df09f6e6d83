"""Which implementation of an op serves which tensors: the records, and the one place that reads them.

An op has several implementations: one in plain torch that serves everything, others that are faster where
they can run. Each is a :class:`Backend`, a record of where that is, registered beside the op that it is of. A
third party adds one in the same way::

    register(Backend("ranks", "xpu", "my_package.ranks", devices=("xpu",), available=torch.xpu.is_available))

:func:`choose` takes the last one registered that serves, so the general ones come first.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from riemann_unlearn.geometry.precision import Curvature, sqrt_c
from riemann_unlearn.registry import Registry

FLOATS = (torch.float32, torch.float64)
"""What features are computed in; half precision is widened before an op looks at it."""

HALVES = (torch.float16, torch.bfloat16)
"""What a bank may be kept in: an op that reads it a block at a time widens that."""

ANY: tuple[str, ...] = ()
"""Every device."""


class _Backends(Registry["Backend"]):
    # What was chosen before may not be what is chosen now.
    def add(self, name: str, entry: Backend) -> None:
        super().add(name, entry)
        choose.cache_clear()


BACKENDS = _Backends("backend", home="riemann_unlearn.ops")
"""Backends by name, "op/kind", from the most general to the most particular."""


@dataclass(frozen=True, eq=False)
class Backend:
    """One implementation of one op.

    Parameters
    ----------
    op : str
        What it computes: "contrastive", "cones", "topk", "ranks", or "polar", which the others share.
    kind : str
        How: "reference", "torch", "tiled", "numba", "triton", or a third party's own word.
    module : str or None
        Where its functions are; imported when it is first used. None: the op does it itself, by torch.
    devices : tuple of str
        Types of the devices that it serves; :data:`ANY` for all.
    dtypes : tuple of torch.dtype
        Of the features.
    derivatives : int
        How often its results can be differentiated: 0 for indices, 1 where the backward pass is written by
        hand. 2 says plain torch, through which autograd goes by itself; that runs outside the operator that
        torch knows the others by.
    available : callable
        Whether what it needs is installed; asked when an op first runs.
    """

    registry: ClassVar[Registry[Backend]] = BACKENDS

    op: str
    kind: str
    module: str | None
    devices: tuple[str, ...] = ANY
    dtypes: tuple[torch.dtype, ...] = FLOATS
    derivatives: int = 0
    available: Callable[[], bool] = lambda: True

    @property
    def name(self) -> str:
        """Under which it is filed."""
        return f"{self.op}/{self.kind}"

    def serves(self, device: str, dtype: torch.dtype) -> bool:
        """Whether it can run on such features."""
        return (not self.devices or device in self.devices) and dtype in self.dtypes and self.available()

    def load(self) -> Any:
        """Its module, or None."""
        return None if self.module is None else importlib.import_module(self.module)


@functools.cache
def choose(op: str, device: str, dtype: torch.dtype) -> Backend:
    """The backend of ``op`` for features of a dtype on a type of device.

    Raises
    ------
    ValueError
        When none serves.
    """
    # Only the op's own entries are asked whether they are available: that may import a package.
    serving = [entry for entry in BACKENDS.values() if entry.op == op and entry.serves(device, dtype)]
    if not serving:
        raise ValueError(f"no backend of {op!r} serves features of {dtype} on {device!r}")
    # Entries are filed from the general to the particular, so that the last is the fastest, or the user's
    # own.
    return serving[-1]


# The registry and the imports behind ``available`` are nothing that torch.compile could trace.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def derivatives(op: str, device: str, dtype: torch.dtype) -> int:
    """How often the results of what serves can be differentiated; a constant in a compiled graph."""
    return choose(op, device, dtype).derivatives


def implementation(op: str, like: Tensor) -> Any:
    """The module that serves features like these."""
    return choose(op, like.device.type, like.dtype).load()


def backend(device: torch.device | str = "cpu") -> str:
    """What the ops run on ``device``.

    Returns
    -------
    str
        "numba": tiles that stay in the caches, with compiled passes between their matrix products. "tiled":
        the same with torch operations, where numba cannot be imported. "triton": the vendor's products and
        Triton kernels between them. "reference": plain torch, with the whole matrix.

    Examples
    --------
    >>> backend("cpu")
    'numba'
    """
    return choose("contrastive", torch.device(device).type, torch.float32).kind


@functools.cache
def has_numba() -> bool:
    """Whether numba can be imported; importing it takes a while, so it is asked only when an op runs."""
    try:
        # Imported, not only looked for: numba that is installed may refuse the numpy beside it.
        importlib.import_module("numba")
    except ImportError:
        return False
    return True


def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def as_scalar(value: Curvature, like: Tensor, *, curvature: bool = False) -> Tensor:
    """A number, or a tensor of one element, as a tensor without dimensions on the device of ``like``.

    Raises
    ------
    ValueError
        For a number that should be a curvature magnitude and is not positive.
    """
    if isinstance(value, Tensor):
        return value.to(like.device).reshape(())
    if curvature:
        sqrt_c(value, like)
    # float64, whatever the features are: a curvature that were rounded to float32 would move all radii.
    return torch.tensor(value, dtype=torch.float64, device=like.device)
