"""An image tower in two parts: the layers that stay, and what moves behind them.

While a method moves some of the weights, every layer before the first moved one gives for an image what it
always gave. So it need not run at each step: what it gives is the *front* of an image, and a step begins
there. Where the cut lies is read off the tower's graph (:mod:`torch.fx`), so any tower that can be traced is
cut: a convolutional one, a transformer, one with connections that skip the cut.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from riemann_unlearn.models import DualEncoder


class Unsplittable(ValueError):
    """A tower cannot be cut; the message says why."""


class NothingStays(Unsplittable):
    """All that the images go through first moves."""


class SplitTower:
    """What of a tower stays, and what moves; both are made of the tower's own layers.

    ``behind(front(images))`` is what the tower gives, whatever becomes of the weights that move.

    Parameters
    ----------
    tower : Module
        In evaluation mode, or compiled from one: an image's features depend on nothing else in its batch.
    moved : iterable of nn.Parameter
        Of the tower: all that may move.
    images : Tensor, shape (N, 3, H, W)
        A few, preprocessed, on which both parts are tried. N is best a number that is no layer's size.

    Attributes
    ----------
    front : Module
        From images, shape (N, 3, H, W), to what stays of them, shape (N, K).
    behind : Module
        From there to the tower's features.
    width : int
        K.

    Raises
    ------
    NothingStays
        When the first layers move.
    Unsplittable
        When the tower cannot be traced, or the parts do not give what it gives.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> tower = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    >>> images = torch.rand(7, 3, 16, 16)
    >>> split = SplitTower(tower.eval(), tower[3].parameters(), images)
    >>> split.width
    8
    >>> bool((split.behind(split.front(images)) == tower(images)).all())
    True
    """

    def __init__(self, tower: nn.Module, moved: Iterable[nn.Parameter], images: Tensor) -> None:
        # Of a compiled tower the module inside: a graph that was compiled as a whole has no layers.
        inner = getattr(tower, "_orig_mod", tower)
        moved = set(moved).intersection(inner.parameters())
        try:
            graph = _Tracer(moved).trace(inner)
        # A tower's own code runs on stand-ins for tensors, and may fail in any way.
        except Exception as error:
            raise Unsplittable(f"it cannot be traced: {' '.join(str(error).split())}") from error
        shapes = _cut(graph, inner, moved, images)
        cut = list(shapes)
        output = next(node for node in graph.nodes if node.op == "output").args[0]
        self.front: nn.Module = _Front(_part(inner, graph, [], cut))
        self.behind: nn.Module = _Behind(_part(inner, graph, cut, output), list(shapes.values()))
        self.width = sum(map(math.prod, shapes.values()))
        # On fewer than it was cut by: what was taken for the number of images must have been it.
        self._check(inner, moved, images[1:])

    @torch.no_grad()
    def _check(self, tower: nn.Module, moved: Iterable[nn.Parameter], images: Tensor) -> None:
        """Move all that may move, in copies, and see that the parts still give what the tower gives."""
        memo: dict[int, Any] = {}
        # One memo: the copied parts hold the copied tower's weights.
        whole, behind = copy.deepcopy(tower, memo), copy.deepcopy(self.behind, memo)
        for parameter in moved:
            memo[id(parameter)].mul_(1.1).add_(0.01)
        front, expected = self.front(images), whole(images)
        try:
            found = behind(given := front.clone())
        except RuntimeError as error:
            raise Unsplittable("cut in two it does not run") from error
        # x += y is a new sum in a traced graph; x.add_(y) is not.
        if not torch.equal(front, given):
            raise Unsplittable("a layer that moves writes into what one that stays gave")
        # Layouts in memory differ, and with them the order of sums; what is cut wrongly is wrong by the step.
        if not (found - expected).norm() <= 1e-3 * expected.norm():
            raise Unsplittable("cut in two it does not give what it gives as a whole")


def with_tower(model: DualEncoder, tower: nn.Module) -> DualEncoder:
    """The same model with another image tower; all else is shared, and the model stays as it is."""
    other = copy.copy(model)
    # A shallow copy has the original's own dictionary of modules.
    other._modules = {**model._modules, "visual": tower}
    return other


class _Front(nn.Module):
    """What stays of images, in one row each."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([tensor.flatten(1) for tensor in self.layers(images)], 1)


class _Behind(nn.Module):
    """From these rows on."""

    def __init__(self, layers: nn.Module, shapes: Sequence[torch.Size]) -> None:
        super().__init__()
        self.layers, self.shapes = layers, list(shapes)

    def forward(self, rows: Tensor) -> Any:
        parts = zip(torch.split(rows, [*map(math.prod, self.shapes)], 1), self.shapes, strict=True)
        return self.layers(*(part.view(len(part), *shape) for part, shape in parts))


class _Tracer(fx.Tracer):
    """Looks into modules down to where all or nothing moves."""

    def __init__(self, moved: set[nn.Parameter]) -> None:
        super().__init__()
        self.moved = moved

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        # What stays is one piece, however it is written. What moves is looked into, since layers without
        # weights that come first in it (a pooling, say) stay too; down to layers with weights of their own.
        stays = not any(parameter in self.moved for parameter in module.parameters())
        layer = any(True for _ in module.parameters(recurse=False)) and not any(
            True for child in module.children() for _ in child.parameters()
        )
        return stays or layer or super().is_leaf_module(module, name)


def _cut(
    graph: fx.Graph, tower: nn.Module, moved: set[nn.Parameter], images: Tensor
) -> dict[fx.Node, torch.Size]:
    """The last nodes that depend on the images and on nothing that moves, with the shape of a value."""
    fed: set[fx.Node] = set()
    behind: set[fx.Node] = set()
    for node in graph.nodes:
        before = node.all_input_nodes
        if node.op == "placeholder" or fed.intersection(before):
            fed.add(node)
        # The output as well: where nothing of the tower moves, the cut is at its end.
        if behind.intersection(before) or _weights(node, tower) & moved or node.op == "output":
            behind.add(node)
    still = [node for node in graph.nodes if node in fed - behind]
    with torch.no_grad():
        values = _part(tower, graph, [], still)(images)
    shapes = {
        node: value.shape[1:]
        for node, value in zip(still, values, strict=True)
        if isinstance(value, Tensor) and value.dtype == images.dtype and value.shape[:1] == images.shape[:1]
    }
    while True:
        cut = [node for node in still if node not in behind and behind.intersection(node.users)]
        # How many images there are, say, is of a batch and not of an image. It is found again behind the cut.
        more = {node for node in cut if node not in shapes}
        # What is made of it is behind as well.
        more |= {node for node in still if behind.intersection(node.all_input_nodes)} - behind
        if not more:
            break
        behind |= more
    if all(node.op == "placeholder" for node in cut):
        raise NothingStays("its first layers move")
    return {node: shapes[node] for node in cut}


def _weights(node: fx.Node, tower: nn.Module) -> set[nn.Parameter]:
    """Those that a node computes with by itself."""
    if node.op == "call_module":
        return set(tower.get_submodule(str(node.target)).parameters())
    if node.op == "get_attr":
        value = operator.attrgetter(str(node.target))(tower)
        return {value} if isinstance(value, nn.Parameter) else set()
    return set()


def _part(
    tower: nn.Module, graph: fx.Graph, inputs: Sequence[fx.Node], outputs: fx.node.Argument
) -> fx.GraphModule:
    """The part of a graph between some nodes and others; without ``inputs``, from the graph's own on."""
    # Backwards from what is wanted: a front must not run what only the rest needs.
    needed, wanted = set[fx.Node](), list(_nodes(outputs))
    while wanted:
        node = wanted.pop()
        if node not in needed:
            needed.add(node)
            wanted += [] if node in inputs else node.all_input_nodes
    part = fx.Graph()
    known = {node: part.placeholder(node.name) for node in inputs}
    for node in graph.nodes:
        if node in needed and node not in known:
            known[node] = part.node_copy(node, known.__getitem__)
    part.output(fx.map_arg(outputs, known.__getitem__))
    return fx.GraphModule(tower, part)


def _nodes(values: fx.node.Argument) -> list[fx.Node]:
    """Those in a nest of arguments."""
    nodes: list[fx.Node] = []
    fx.map_arg(values, nodes.append)
    return nodes
