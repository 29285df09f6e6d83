"""Ranks among a bank, against all distances of the geometry."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from riemann_unlearn.geometry import tangent
from riemann_unlearn.ops import ranks as on_any_device
from riemann_unlearn.ops.ranks import blocks, op
from tests.ops.test_contrastive import D, directions
from tests.ops.test_topk import DEVICES


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def ranks(
    queries: Tensor, bank: Tensor, own: Tensor, c: float | None = None, *, device: torch.device
) -> Tensor:
    """What is counted on a device."""
    return on_any_device(*(t.to(device) for t in (queries, bank, own)), c).cpu()


OWN = torch.arange(75) * 2


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "QUERIES", 16)
    monkeypatch.setattr(blocks, "BLOCK", 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("radius", [0.0, 1e-4, 0.1, 2.0, 10.0, 50.0, 300.0])
def test_it_counts_what_a_search_of_everything_counts(
    radius: float, dtype: torch.dtype, device: torch.device
) -> None:
    queries = (directions(75, 1) * radius).to(dtype)
    bank = (directions(150, 2) * radius * torch.linspace(0.5, 1, 150)[:, None]).to(dtype)
    bank[100:] = bank[:50]  # each own row but the last few has a double
    everything = tangent.dist(queries[:, None].double(), bank[None].double(), 0.7)
    want = (everything <= everything.gather(1, OWN[:, None])).sum(1) - 1
    assert torch.equal(ranks(queries, bank, OWN, 0.7, device=device), want)


def test_what_a_product_cannot_order_is_ordered_by_differences(device: torch.device) -> None:
    """Rows 1e-4 to 5e-4 from the query at radius 6, where a float32 product is off by 0.1."""
    query = directions(1, 1) * 6
    steps = torch.tensor([3.0, 1.0, 5.0, 2.0, 4.0])[:, None] * 1e-4
    bank = torch.cat([directions(50, 2) * 6, query * (1 + steps / 6)])
    found = ranks(query.expand(5, D), bank, torch.arange(50, 55), 1.0, device=device)
    assert found.tolist() == [2, 0, 4, 1, 3]


def test_cosines_and_their_ties(device: torch.device) -> None:
    queries, bank = directions(75, 1) * 3, directions(150, 2) * 2
    bank[100:] = bank[:50]
    everything = directions(75, 1).double() @ (bank / 2).double().mT
    everything[:, 100:] = everything[:, :50]
    want = (everything >= everything.gather(1, OWN[:, None])).sum(1) - 1
    assert torch.equal(ranks(queries, bank, OWN, device=device), want)


def test_what_is_no_number_counts_against_the_query(device: torch.device) -> None:
    bank = directions(6, 2)
    bank[4] = torch.nan
    assert ranks(bank[:2], bank, torch.arange(2), 1.0, device=device).tolist() == [1, 1]
    assert ranks(bank[4:5], bank, torch.tensor([0]), 1.0, device=device).tolist() == [5]
    assert ranks(bank[:0], bank, torch.arange(0), device=device).shape == (0,)


def test_torch_finds_nothing_wrong_with_the_operator() -> None:
    arguments = (directions(4, 1), directions(9, 2), torch.arange(4), torch.tensor(1.0), True)
    assert set(torch.library.opcheck(op._ranks, arguments).values()) == {"SUCCESS"}


def test_bad_arguments_are_refused() -> None:
    x = torch.zeros(3, D)
    with pytest.raises(ValueError, match=r"got \(3, 32\) and \(3, 31\)"):
        on_any_device(x, x[:, 1:], torch.arange(3))
    with pytest.raises(ValueError, match=r"own must be integers of shape \(3,\), got torch.int64 of \(2,\)"):
        on_any_device(x, x, torch.arange(2))
    with pytest.raises(ValueError, match="c must be positive"):
        on_any_device(x, x, torch.arange(3), 0.0)
