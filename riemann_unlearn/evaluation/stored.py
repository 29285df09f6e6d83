"""Image towers of which only the last layers move: what goes into these is computed once for many copies.

An attack takes thousands of small steps from the same model on the same few images. Where it moves the last
layers alone, the first ones give the same at every step of every attack, and on a convolutional tower they
are most of the work (four fifths and more on the bundled models). So each image goes through them once.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from riemann_unlearn.models import DualEncoder

Encode = Callable[[Tensor], Tensor]
"""Features of stored images by their rows."""
_IMAGES = ""
"""Among the names of layers, what the tower itself is given."""


class StoredImages:
    """What a model's first layers make of some images, and copies of the model that go on from there.

    Parameters
    ----------
    model : DualEncoder
        It is copied, and stays as it is.
    chunks : iterable of Tensor, shape (B, 3, *model.image_size)
        Preprocessed images, in the order of their rows; not all of them need be in memory at once.
    frozen : float
        Share of the image tower's weights, those of its first layers, that no copy will move.

    Attributes
    ----------
    moved : list of str
        Names of the parameters that a copy may move, in the order in which the model has them.

    Examples
    --------
    >>> import torch, riemann_unlearn as ru
    >>> model = ru.load("meru-emoji").eval()
    >>> images = model.preprocess(torch.rand(3, 3, 56, 56))
    >>> stored = StoredImages(model, [images], frozen=0.25)
    >>> other, encode = stored.copy()
    >>> with torch.no_grad():
    ...     bool((encode(torch.tensor([2, 0])) - model.encode_image(images[[2, 0]])).abs().max() < 1e-6)
    True
    """

    def __init__(self, model: DualEncoder, chunks: Iterable[Tensor], *, frozen: float) -> None:
        self._model = copy.deepcopy(model).eval().requires_grad_(False)
        # Of a compiled tower the module inside: a graph that was compiled as a whole asks no layer.
        inner = getattr(self._model.visual, "_orig_mod", self._model.visual)
        self._model.visual = inner
        self.moved = _behind(inner, frozen)
        names = list(_unmoved(inner, set(self.moved)))
        self.moved = [f"visual.{name}" for name in self.moved]
        first, chunks = _peek(chunks)
        self._empty, self._kept = self._needed(first[:2], names)
        pieces: dict[str, list[Tensor]] = {name: [] for name in self._kept}
        for chunk in chunks:
            given = self._run(chunk, self._kept)[1]
            for name, some in pieces.items():
                some.append(given[name])
        self._kept = {name: torch.cat(some) for name, some in pieces.items()}

    def copy(self) -> tuple[DualEncoder, Encode]:
        """The model again, in evaluation mode, and what encodes stored images by its layers as they are then.

        Of its parameters those in :attr:`moved` ask for gradients.
        """
        model = copy.deepcopy(self._model)
        parameters = dict(model.named_parameters())
        for name in self.moved:
            parameters[name].requires_grad_(True)
        return model, _replay(model, self._empty, self._kept)

    def _needed(self, probe: Tensor, names: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the layers give of no image, and what of them has to be kept for the features to be the same.

        Of a chain of layers it is the last one's, with a shortcut more than that. Nothing says which a tower
        is, so it is tried: without one of them, NaN stands in its place, and the features tell.
        """
        features, given = self._run(probe, names)
        empty = {name: value[:0] for name, value in given.items()}
        rows = torch.arange(len(probe), device=probe.device)
        kept = dict(given)
        for name in given:
            without = {other: value for other, value in kept.items() if other != name}
            if torch.equal(_replay(copy.deepcopy(self._model), empty, without)(rows), features):
                kept = without
        return empty, kept

    @torch.no_grad()
    def _run(self, images: Tensor, names: Iterable[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Features of images, and what some layers gave on the way, in the order in which they were asked."""
        given: dict[str, list[Any]] = {_IMAGES: [images]}

        def remember(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
            # A copy, for what comes next may write into it.
            given.setdefault(name, []).append(output.clone() if isinstance(output, Tensor) else None)

        with ExitStack() as hooks:
            for name in names:
                if name != _IMAGES:
                    layer = self._model.visual.get_submodule(name)
                    hooks.enter_context(layer.register_forward_hook(partial(remember, name)))
            features = self._model.encode_image(images)
        # A layer that gives something else, has no row an image, or is asked twice, is run again instead.
        whole = {
            name: values[0]
            for name, values in given.items()
            if len(values) == 1 and isinstance(values[0], Tensor) and values[0].shape[:1] == images.shape[:1]
        }
        return features, whole


def _replay(model: DualEncoder, empty: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> Encode:
    """Change ``model`` so that some layers give what was kept of them, or NaN; ``empty`` has their shapes."""
    asked = torch.empty(0, dtype=torch.long)

    def give(name: str, *_: Any, **__: Any) -> Tensor:
        if name in kept:
            return kept[name][asked]
        # Whole, not expanded: what comes next may write into it.
        return empty[name].new_full((len(asked), *empty[name].shape[1:]), torch.nan)

    for name in empty:
        if name != _IMAGES:
            # On the instance and not by another module in its place: towers read attributes of their layers.
            model.visual.get_submodule(name).forward = partial(give, name)

    def encode(rows: Tensor) -> Tensor:
        nonlocal asked
        asked = rows
        return model.encode_image(give(_IMAGES))

    return encode


def _behind(tower: nn.Module, frozen: float) -> list[str]:
    """Names of the weights behind the first ``frozen`` of them, in the order of their registration."""
    sizes = {name: parameter.numel() for name, parameter in tower.named_parameters()}
    up_to = dict(zip(sizes, itertools.accumulate(sizes.values()), strict=True))
    bound = frozen * sum(sizes.values())
    # A scalar belongs to the space, which no attack moves.
    return [name for name, p in tower.named_parameters() if p.ndim > 0 and up_to[name] > bound]


def _unmoved(module: nn.Module, moved: set[str], prefix: str = "") -> Iterator[str]:
    """Names of the largest parts of a tower that have weights and none that moves."""
    for name, child in module.named_children():
        path = prefix + name
        weights = {f"{path}.{weight}" for weight, _ in child.named_parameters()}
        # A list of layers is called by nobody; its layers are.
        called = not isinstance(child, (nn.ModuleList, nn.ModuleDict))
        if weights and not weights & moved and called:
            yield path
        else:
            yield from _unmoved(child, moved, f"{path}.")


def _peek(chunks: Iterable[Tensor]) -> tuple[Tensor, Iterable[Tensor]]:
    """The first of some chunks, and all of them."""
    rest = iter(chunks)
    first = next(rest)
    return first, itertools.chain([first], rest)
