"""The ops under torch's transforms: ``vmap`` takes each problem in turn, derivatives need a reference."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from riemann_unlearn import ops

FORGET, OWN = torch.arange(6) < 2, torch.arange(6)

OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "contrastive": lambda x, y: ops.contrastive(x, y, 5.0, 1.0, forget=FORGET).rows,
    "cones": lambda x, y: ops.cones(x, y, 1.0).outside,
    "topk": lambda x, y: ops.topk(x, y, 2, 1.0).indices,
    "ranks": lambda x, y: ops.ranks(x, y, OWN, 1.0),
}


def problems() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 3, 6, 4, generator=generator)
    return x.requires_grad_(), y


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("name", OPS)
def test_vmap_is_a_loop(name: str) -> None:
    x, y = problems()
    got, want = (
        torch.vmap(OPS[name])(x, y),
        torch.stack([OPS[name](*pair) for pair in zip(x, y, strict=True)]),
    )
    assert torch.equal(got, want)
    if got.requires_grad:
        mine, theirs = (torch.autograd.grad(value.sum(), x) for value in (got, want))
        assert torch.equal(mine[0], theirs[0])


@pytest.mark.parametrize("name", ["contrastive", "cones"])
def test_a_derivative_by_transform_is_refused_and_the_reference_has_it(name: str) -> None:
    x, y = (side[0].detach() for side in problems())
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda x: OPS[name](x, y).sum())(x)
    reference = importlib.import_module(f"riemann_unlearn.ops.{name}.definition").reference
    more = {"contrastive": (5.0, 1.0), "cones": (1.0,)}[name]

    def first(x: Tensor) -> Tensor:
        found = reference(x, y, *more)
        return (found if isinstance(found, Tensor) else found[0]).sum()

    assert torch.func.grad(first)(x).isfinite().all()
