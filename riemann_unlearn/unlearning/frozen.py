"""The model as it was, beside the one that moves: a copy that computes nothing twice."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
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

    The model itself is touched by forward hooks alone, and by those only inside :meth:`following`. In the
    copy a module stands in the place of each such layer (:class:`Recall`), so the copy is a model like any
    other: it can be saved, copied, compiled, and asked from several threads.

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
        # Copied first: its parameters are others, so that what moves can be told in the live model alone.
        self.model = copy.deepcopy(model).requires_grad_(False)
        # Of a compiled tower the module inside: a graph that was compiled as a whole asks no layer.
        live, own = (_uncompiled(tower) for tower in (model.visual, self.model.visual))
        self.model.visual = own
        self._layers: list[tuple[nn.Module, Recall]] = []
        for path, layer in list(_unmoved(live, set(moved))):
            parent = own.get_submodule(".".join(path[:-1]))
            twin = parent.get_submodule(path[-1])
            recall = RecallSequence(twin) if isinstance(twin, nn.Sequential) else Recall(twin)
            parent.register_module(path[-1], recall)
            self._layers.append((layer, recall))

    @contextmanager
    def following(self) -> Iterator[None]:
        """Remember what the model's unmoved layers give in here."""
        with ExitStack() as hooks:
            for layer, recall in self._layers:
                hooks.enter_context(layer.register_forward_hook(recall.remember))
            yield


class Recall(nn.Module):
    """A layer that is not run again for the input that its twin in another model had just now.

    Attributes that it lacks are the layer's: towers read them.

    Parameters
    ----------
    layer : Module
        Whose twin's forward hook is :meth:`remember`.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        # One tuple, replaced as a whole: a thread beside this one sees the old or the new, never a mixture,
        # and takes neither unless its own input is the remembered one.
        self.known: tuple[Tensor, Tensor, int] | None = None
        self.train(layer.training)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Not self.layer: of an object that has none yet, this method would ask itself without end.
            return getattr(super().__getattr__("layer"), name)

    def remember(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """A forward hook for the twin."""
        tensors = len(inputs) == 1 and isinstance(inputs[0], Tensor) and isinstance(output, Tensor)
        # detach copies nothing and shares the version counter: a later write into the output is seen by it. A
        # write into the input is seen by the comparison with what the copy is given.
        self.known = (inputs[0].detach(), output.detach(), output._version) if tensors else None

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the twin gave, if it was asked the same; else what the layer gives."""
        # Read once: another thread may replace it between the test and the use.
        known = self.known
        if known is not None and len(inputs) == 1 and not options:
            before, output, version = known
            # A residual sum may have been written into the output since.
            if output._version == version and torch.equal(inputs[0], before):
                return output
        return self.layer(*inputs, **options)


class RecallSequence(Recall):
    """The same for a sequence of layers, which a tower may also go through one by one."""

    layer: nn.Sequential

    def __len__(self) -> int:
        return len(self.layer)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.layer)

    def __getitem__(self, index: int | slice) -> nn.Module:
        return self.layer[index]


def _unmoved(
    module: nn.Module, moved: set[nn.Parameter], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], nn.Module]]:
    """The largest parts of a module that have weights and none that moves, with the way to them."""
    for name, child in module.named_children():
        weights = set(child.parameters())
        # A list of layers is called by nobody; its layers are.
        called = not isinstance(child, (nn.ModuleList, nn.ModuleDict))
        if weights and not weights & moved and called:
            yield (*path, name), child
        else:
            yield from _unmoved(child, moved, (*path, name))


def _uncompiled(module: nn.Module) -> nn.Module:
    """The module that torch.compile was given, or the module itself."""
    inner = getattr(module, "_orig_mod", module)
    return inner if isinstance(inner, nn.Module) else module
