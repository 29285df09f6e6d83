"""The model as it was, beside the one that moves: a copy that computes nothing twice."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from riemann_unlearn.models import DualEncoder


class FrozenCopy:
    """A model as it is now, to hold against what it becomes.

    Layers of the image tower that do not move give the same in both models, as long as what goes into them
    is the same. So they run once: what they gave in the model, inside :meth:`following`, the copy takes
    over when it is shown the same images next. Convolutions give the same bits either way; attention
    rounds differently where no gradient is asked for.

    Parameters
    ----------
    model : DualEncoder
        In evaluation mode: layers that draw at random give nothing twice.
    moved : iterable of nn.Parameter
        Of the model: all that may move.

    Examples
    --------
    >>> import torch, riemann_unlearn as ru
    >>> model = ru.load("meru-emoji").eval()
    >>> frozen = FrozenCopy(model, moved=[model.visual.head.proj.weight])
    >>> images = torch.rand(2, 3, 56, 56)
    >>> with frozen.following():
    ...     now = model.encode_image(images)
    >>> bool((frozen.model.encode_image(images) == now).all())
    True
    """

    def __init__(self, model: DualEncoder, moved: Iterable[nn.Parameter]) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._layers: list[tuple[nn.Module, _Recall]] = []
        for name, layer in _unmoved(model.visual, set(moved)):
            own = self.model.visual.get_submodule(name)
            recall = _Recall(own.forward)
            # Not another module in its place: towers read attributes of their layers.
            own.forward = recall
            self._layers.append((layer, recall))

    @contextmanager
    def following(self) -> Iterator[None]:
        """Remember what the model's unmoved layers give in here."""
        with ExitStack() as hooks:
            for layer, recall in self._layers:
                hooks.enter_context(layer.register_forward_hook(recall.remember))
            yield


def _unmoved(
    module: nn.Module, moved: set[nn.Parameter], prefix: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    """The largest parts of a module that have weights and none that moves, with their names."""
    for name, child in module.named_children():
        weights = set(child.parameters())
        if weights and not weights & moved:
            yield prefix + name, child
        else:
            yield from _unmoved(child, moved, f"{prefix}{name}.")


class _Recall:
    """The forward of a layer, which is not run again for the input that another such layer had just now."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward
        self.known: tuple[Tensor, Tensor, int] | None = None

    def remember(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """A forward hook for the other layer."""
        tensors = len(inputs) == 1 and isinstance(inputs[0], Tensor) and isinstance(output, Tensor)
        self.known = (inputs[0].detach(), output.detach(), output._version) if tensors else None

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if self.known is not None and len(inputs) == 1 and not options:
            before, output, version = self.known
            # A residual sum may have been written into the output since.
            if output._version == version and torch.equal(inputs[0], before):
                return output
        return self.forward(*inputs, **options)
