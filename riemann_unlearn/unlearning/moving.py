"""Which weights of a model may move: all, a tower, its last blocks, or corrections of low rank.

What does not move takes no part in the backward pass: it keeps no gradients, and what only it would need is
not kept by the forward pass either.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from riemann_unlearn.models import DualEncoder

_BLOCKS = (
    "transformer.resblocks",  # open_clip's transformers
    "trunk.blocks",  # timm's transformers
    "trunk.stages",  # its convolutional networks
    "trunk.layers",  # its Swin
    "transformer.encoder.layer",  # Hugging Face's BERT and its kin
)
"""Where a tower has the list of its blocks."""
_STAGE = re.compile(r"(?:trunk\.)?layer\d+")
"""A ResNet's stages, which are in no list."""
_PROJECTIONS = ("proj", "text_projection")
"""Parameters of a tower itself that come last; its others are embeddings, which come first."""


@contextmanager
def moving(
    model: DualEncoder, parameters: Sequence[nn.Parameter], train: str
) -> Iterator[list[nn.Parameter]]:
    """Let only part of the parameters move, for a while.

    Parameters
    ----------
    model : DualEncoder
    parameters : sequence of Parameter
        Those that may move at all: a method's. What needs no gradient, such as fixed positions, never moves.
    train : str
        "all" of them; "image" or "text", those of a tower; "last-N", those of the last N blocks of each tower
        and of what comes after these; "lora:R", none of them, but for each matrix of a linear layer among
        them a correction of rank R, which is added to it in the end.

    Yields
    ------
    list of Parameter
        What moves. Everything else needs no gradient inside; afterwards all is as it was.

    Raises
    ------
    ValueError
        When nothing would move, with what could.

    Examples
    --------
    >>> import riemann_unlearn as ru
    >>> model = ru.load("clip-emoji")
    >>> with moving(model, list(model.parameters()), "lora:2") as moved:
    ...     sum(p.numel() for p in moved) < sum(p.numel() for p in model.text.parameters()) / 10
    True
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    corrected: list[tuple[nn.Module, str]] = []
    if train.startswith("lora:"):
        corrected = _matrices(model, parameters)
        moved: list[nn.Parameter] = []
    else:
        moved = _chosen(model, parameters, train)
    if not moved and not corrected:
        raise ValueError(
            f"train={train!r} leaves nothing to move of the {len(parameters)} tensors that the method moves; "
            "choose another part, such as 'all', or another method"
        )
    for module, name in corrected:
        rank = int(train.removeprefix("lora:"))
        correction = LowRank(getattr(module, name), rank)
        parametrize.register_parametrization(module, name, correction)
        moved += [correction.up, correction.down]
    needed = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in needed:
        parameter.requires_grad_(False)
    for parameter in moved:
        parameter.requires_grad_(True)
    try:
        yield moved
    finally:
        for parameter, before in needed:
            parameter.requires_grad_(before)
        for module, name in corrected:
            # The sum takes the place of the matrix: what is saved is a model like any other.
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)


class LowRank(nn.Module):
    """A matrix plus the product of two narrow ones (Hu et al. 2021, arXiv 2106.09685).

    Parameters
    ----------
    weight : Tensor, shape (M, N)
    rank : int
        R: ``up`` is (M, R) and starts at 0, so that nothing changes at first; ``down`` is (R, N).
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.up = nn.Parameter(weight.new_zeros(rows, rank))
        # Drawn without torch's global generator, which belongs to the caller, and by the shape alone: a run
        # that is resumed has its checkpoint's anyway, and one that is repeated starts from the same.
        generator = torch.Generator().manual_seed(rows * 65537 + columns)
        draw = torch.randn(rank, columns, generator=generator, dtype=torch.float32)
        self.down = nn.Parameter((draw * columns**-0.5).to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        """The corrected matrix."""
        return torch.addmm(weight, self.up, self.down)


def _matrices(model: DualEncoder, parameters: Sequence[nn.Parameter]) -> list[tuple[nn.Module, str]]:
    """Where the matrices of linear layers are, of attention's three in one too."""
    among = set(parameters)
    places = []
    for module in model.modules():
        name = "in_proj_weight" if isinstance(module, nn.MultiheadAttention) else "weight"
        known = isinstance(module, (nn.Linear, nn.MultiheadAttention))
        if known and getattr(module, name) is not None and getattr(module, name) in among:
            places.append((module, name))
    return places


def _chosen(model: DualEncoder, parameters: Sequence[nn.Parameter], train: str) -> list[nn.Parameter]:
    towers: dict[str, nn.Module] = {"image": model.visual, "text": model.text}
    if train == "all":
        return list(parameters)
    if train in towers:
        allowed = set(towers[train].parameters())
    else:
        count = int(train.removeprefix("last-"))
        among = set(parameters)
        # A tower of which the method moves nothing need not have blocks that are known.
        allowed = {
            parameter
            for name, tower in towers.items()
            if among & set(tower.parameters())
            for parameter in _last(tower, name, count)
        }
    return [parameter for parameter in parameters if parameter in allowed]


def _last(tower: nn.Module, name: str, count: int) -> set[nn.Parameter]:
    """Parameters of the last blocks of a tower, and of all that comes after these."""
    tower = getattr(tower, "_orig_mod", tower)  # compiled
    blocks = _block_paths(tower, name)
    if count > len(blocks):
        raise ValueError(
            f"train='last-{count}' asks for more than the {len(blocks)} blocks of the {name} tower"
        )
    wanted = tuple(f"{path}." for path in blocks[-count:])
    # Modules are registered in the order in which they run, in all of these towers: from the first of the
    # wanted blocks on, everything is theirs or comes after them.
    order = [(f"{path}.", module) for path, module in tower.named_modules() if path]
    first = next(i for i, (path, _) in enumerate(order) if path.startswith(wanted))
    chosen = {parameter for _, module in order[first:] for parameter in module.parameters(recurse=False)}
    for key in _PROJECTIONS:
        if isinstance(value := getattr(tower, key, None), nn.Parameter):
            chosen.add(value)
    return chosen


def _block_paths(tower: Any, name: str) -> list[str]:
    for path in _BLOCKS:
        try:
            return [f"{path}.{key}" for key, _ in tower.get_submodule(path).named_children()]
        except AttributeError:
            continue
    if stages := [path for path, _ in tower.named_modules() if _STAGE.fullmatch(path)]:
        return stages
    raise ValueError(
        f"train='last-N' needs a tower whose blocks are known, and the {name} tower ({type(tower).__name__}) "
        f"has none of {', '.join(_BLOCKS)}; choose image, text, lora:R or all"
    )
