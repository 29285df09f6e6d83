"""The nearest of a bank, against all distances of the geometry."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from riemann_unlearn.geometry import tangent
from riemann_unlearn.ops import TopK
from riemann_unlearn.ops import topk as on_any_device
from riemann_unlearn.ops.topk import blocks, op
from tests.ops.test_contrastive import D, directions

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, GPU])]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def topk(queries: Tensor, bank: Tensor, k: int, c: float | None = None, *, device: torch.device) -> TopK:
    """What is found on a device."""
    return TopK(*(t.cpu() for t in on_any_device(queries.to(device), bank.to(device), k, c)))


@pytest.mark.parametrize("group", [2, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("radius", [0.1, 2.0, 10.0, 50.0])
def test_it_finds_what_a_search_of_everything_finds(
    radius: float,
    dtype: torch.dtype,
    group: int,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocks, "GROUP", group)
    monkeypatch.setattr(blocks, "QUERIES", 16)
    monkeypatch.setattr(blocks, "BLOCK", 32)
    queries = (directions(40, 1) * radius).to(dtype)
    bank = (directions(150, 2) * radius * torch.linspace(0.5, 1, 150)[:, None]).to(dtype)
    everything = -tangent.dist(queries[:, None].double(), bank[None].double(), 0.7)
    want = everything.topk(5, dim=1)
    found = topk(queries, bank, 5, 0.7, device=device)
    assert torch.equal(found.indices, want.indices)
    assert torch.allclose(found.similarity.double(), want.values, rtol=1e-6)
    assert found.similarity.dtype == dtype


def test_cosines(device: torch.device) -> None:
    queries, bank = directions(40, 1) * 3, directions(150, 2) * 2
    want = (directions(40, 1).double() @ directions(150, 2).double().mT).topk(5, dim=1)
    found = topk(queries, bank, 5, device=device)
    assert torch.equal(found.indices, want.indices)
    assert torch.allclose(found.similarity.double(), want.values, atol=1e-6)


def test_what_a_product_cannot_order_is_ordered_by_differences(device: torch.device) -> None:
    """Five rows 1e-4 to 5e-4 from the query at radius 6, where a float32 product is off by 0.1."""
    query = directions(1, 1) * 6
    steps = torch.tensor([3.0, 1.0, 5.0, 2.0, 4.0])[:, None] * 1e-4
    bank = torch.cat([directions(50, 2) * 6, query * (1 + steps / 6)])
    found = topk(query, bank, 5, 1.0, device=device)
    assert found.indices[0].tolist() == [51, 53, 50, 54, 52]
    assert torch.allclose(-found.similarity[0], torch.arange(1, 6) * 1e-4, rtol=1e-2)


def test_the_whole_bank_and_no_queries(device: torch.device) -> None:
    bank = directions(3, 2)
    assert topk(bank, bank, 3, 1.0, device=device).indices[:, 0].tolist() == [0, 1, 2]
    assert topk(bank[:0], bank, 2, 1.0, device=device).indices.shape == (0, 2)


@pytest.mark.parametrize("radius", [1e-4, 1.0, 50.0])
def test_equal_rows_are_at_no_distance(radius: float, device: torch.device) -> None:
    rows = directions(150, 1) * radius
    found = topk(rows, rows, 1, 1.0, device=device)
    assert found.indices[:, 0].tolist() == list(range(150))
    assert found.similarity.abs().max() == 0


def test_a_bank_of_half_precision_is_read_as_it_is(device: torch.device) -> None:
    queries, bank = directions(5, 1), directions(90, 2).half()
    found, want = (topk(queries, rows, 4, 1.0, device=device) for rows in (bank, bank.float()))
    assert torch.equal(found.indices, want.indices)
    assert torch.equal(found.similarity, want.similarity)


def test_torch_finds_nothing_wrong_with_the_operator() -> None:
    arguments = (directions(4, 1), directions(9, 2), 2, torch.tensor(1.0), True)
    assert set(torch.library.opcheck(op._topk, arguments).values()) == {"SUCCESS"}


def test_bad_arguments_are_refused() -> None:
    x = torch.zeros(3, D)
    with pytest.raises(ValueError, match=r"got \(3, 32\) and \(3, 31\)"):
        on_any_device(x, x[:, 1:], 1)
    with pytest.raises(ValueError, match="k must be from 1 to the bank's 3 rows, got 4"):
        on_any_device(x, x, 4)
    broken = torch.full((3, D), torch.nan)
    with pytest.raises(ValueError, match="bank must be finite, and hold"):
        on_any_device(torch.ones(3, D), broken, 1, 1.0)
    with pytest.raises(ValueError, match="queries must be finite, and hold"):
        on_any_device(broken, torch.ones(3, D), 1)
    with pytest.raises(ValueError, match="c must be positive"):
        on_any_device(x, x, 1, 0.0)
