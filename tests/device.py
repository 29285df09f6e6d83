"""A device that is not there: the CPU under another name, which notices what is left on it or sent back.

A GPU is not always at hand, and torch's fake tensors cannot run what depends on data. Inside :class:`StandIn`
a tensor made on, or moved to, the device computes on the CPU and says that it is elsewhere; with what comes
of it that stays so. As on a real device, an operation on tensors of both kinds is an error (scalars and
indices apart), and so is what a step of unlearning must never do: to bring a tensor back (``.cpu()``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("xpu:0")
"""A device that torch knows by name, and no operator of ours has a backend for."""
_MARK = "_on_stand_in"


class StrayTensor(AssertionError):
    """Something was on the wrong device."""


def on(tensor: Tensor) -> bool:
    return getattr(tensor, _MARK, False)


class StandIn(TorchFunctionMode):
    """Tensors on :data:`DEVICE` inside."""

    def __init__(self) -> None:
        super().__init__()
        self.strict = False
        self.moved = 0

    @contextmanager
    def nothing_comes_back(self) -> Iterator[None]:
        """Moving a tensor to the CPU is an error in here."""
        self.strict, before = True, self.strict
        try:
            yield
        finally:
            self.strict = before

    def __enter__(self) -> StandIn:
        self._copied = real = nn.Parameter.__deepcopy__

        def copied(parameter: nn.Parameter, memo: Any) -> nn.Parameter:
            # Made of a marked tensor without a function that a mode hears of.
            result = real(parameter, memo)
            setattr(result, _MARK, on(parameter))
            return result

        nn.Parameter.__deepcopy__ = copied  # type: ignore[method-assign]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        nn.Parameter.__deepcopy__ = self._copied  # type: ignore[method-assign]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return DEVICE if on(args[0]) else func(*args)
        name = (resolve_name(func) or getattr(func, "__name__", "")).rpartition(".")[2]
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        if name == "__deepcopy__":  # of one tensor; the others are those that were copied before
            tensors = [args[0]]
        here = any(map(on, tensors))
        target = _target(name, args, kwargs)
        if target is not None:
            return self._placed(name, func, args, kwargs, target, here)
        # Backward runs on what autograd saved, which has lost its mark.
        if here and name not in ("backward", "grad", "__set__"):
            _check(name, args, tensors)
        result = func(*args, **kwargs)
        if name == "__set__" and len(args) == 2 and isinstance(args[1], Tensor):
            setattr(args[0], _MARK, on(args[1]))
        return tree_map(_mark, result) if here else result

    def _placed(self, name: str, func: Any, args: Any, kwargs: Any, target: torch.device, here: bool) -> Any:
        """A call that says where its result is to be."""
        there = target.type == DEVICE.type
        if here and not there and self.strict:
            raise StrayTensor(f"{name} brings a tensor back to the CPU")
        args = tuple(torch.device("cpu") if _is_device(x) else x for x in args)
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        result = func(*args, **kwargs)
        if name in ("to", "cpu") and here != there:
            # A new tensor, as from a real transfer: nothing written to it is seen on the other side.
            result = result.clone() if result is args[0] else result
            self.moved += 1
        if there:
            return tree_map(_mark, result)
        if isinstance(result, Tensor) and here:
            setattr(result, _MARK, False)
        return result


def _mark(value: Any) -> Any:
    if isinstance(value, Tensor):
        setattr(value, _MARK, True)
    return value


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device) or (isinstance(value, str) and value in ("cpu", "xpu", "xpu:0"))


def _target(name: str, args: Any, kwargs: Any) -> torch.device | None:
    """Where a call wants its result to be; None where it says nothing of it."""
    if name == "cpu":
        return torch.device("cpu")
    if kwargs.get("device") is not None:
        return torch.device(kwargs["device"])
    if name == "to":
        for value in args[1:]:
            if isinstance(value, Tensor):
                return DEVICE if on(value) else torch.device("cpu")
            if _is_device(value):
                return torch.device(value)
    return None


def _check(name: str, args: Any, tensors: list[Tensor]) -> None:
    """Raise where a real device would: tensors of two devices, unless one is a scalar."""
    if name in ("__getitem__", "__setitem__", "index_select") and not on(args[0]):
        raise StrayTensor(f"{name}: a tensor of the CPU is indexed by one of the device")
    if name in ("copy_", "_has_compatible_shallow_copy_type"):
        return
    # A number of no axis goes along with any device, and so does an index.
    stray = [t for t in tensors if not on(t) and t.ndim > 0]
    if name in ("__getitem__", "__setitem__") or not stray:
        return
    raise StrayTensor(f"{name} of tensors on both devices; of shape {tuple(stray[0].shape)} on the CPU")
