"""The nearest of a bank, against all distances of the geometry."""

from __future__ import annotations

import sys

import pytest
import torch

import riemann_unlearn.ops.topk  # noqa: F401
from riemann_unlearn.geometry import tangent
from riemann_unlearn.ops import topk
from tests.ops.test_contrastive import D, directions

module = sys.modules["riemann_unlearn.ops.topk"]  # the package's name for it is the function


@pytest.mark.parametrize("group", [2, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("radius", [0.1, 2.0, 10.0, 50.0])
def test_it_finds_what_a_search_of_everything_finds(
    radius: float, dtype: torch.dtype, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GROUP", group)
    monkeypatch.setattr(module, "QUERIES", 16)
    monkeypatch.setattr(module, "BLOCK", 32)
    queries = (directions(40, 1) * radius).to(dtype)
    bank = (directions(150, 2) * radius * torch.linspace(0.5, 1, 150)[:, None]).to(dtype)
    everything = -tangent.dist(queries[:, None].double(), bank[None].double(), 0.7)
    want = everything.topk(5, dim=1)
    found = topk(queries, bank, 5, 0.7)
    assert torch.equal(found.indices, want.indices)
    assert torch.allclose(found.similarity.double(), want.values, rtol=1e-6)
    assert found.similarity.dtype == dtype


def test_cosines() -> None:
    queries, bank = directions(40, 1) * 3, directions(150, 2) * 2
    want = (directions(40, 1).double() @ directions(150, 2).double().mT).topk(5, dim=1)
    found = topk(queries, bank, 5)
    assert torch.equal(found.indices, want.indices)
    assert torch.allclose(found.similarity.double(), want.values, atol=1e-6)


def test_what_a_product_cannot_order_is_ordered_by_differences() -> None:
    """Five rows 1e-4 to 5e-4 from the query at radius 6, where a float32 product is off by 0.1."""
    query = directions(1, 1) * 6
    steps = torch.tensor([3.0, 1.0, 5.0, 2.0, 4.0])[:, None] * 1e-4
    bank = torch.cat([directions(50, 2) * 6, query * (1 + steps / 6)])
    found = topk(query, bank, 5, 1.0)
    assert found.indices[0].tolist() == [51, 53, 50, 54, 52]
    assert torch.allclose(-found.similarity[0], torch.arange(1, 6) * 1e-4, rtol=1e-2)


def test_the_whole_bank_and_no_queries() -> None:
    bank = directions(3, 2)
    assert topk(bank, bank, 3, 1.0).indices[:, 0].tolist() == [0, 1, 2]
    assert topk(bank[:0], bank, 2, 1.0).indices.shape == (0, 2)


def test_torch_finds_nothing_wrong_with_the_operator() -> None:
    arguments = (directions(4, 1), directions(9, 2), 2, torch.tensor(1.0), True)
    assert set(torch.library.opcheck(module._topk, arguments).values()) == {"SUCCESS"}


def test_bad_arguments_are_refused() -> None:
    x = torch.zeros(3, D)
    with pytest.raises(ValueError, match=r"got \(3, 32\) and \(3, 31\)"):
        topk(x, x[:, 1:], 1)
    with pytest.raises(ValueError, match="k must be from 1 to the bank's 3 rows, got 4"):
        topk(x, x, 4)
    broken = torch.full((3, D), torch.nan)
    with pytest.raises(ValueError, match="bank must be finite, and hold"):
        topk(torch.ones(3, D), broken, 1, 1.0)
    with pytest.raises(ValueError, match="queries must be finite, and hold"):
        topk(broken, torch.ones(3, D), 1)
    with pytest.raises(ValueError, match="c must be positive"):
        topk(x, x, 1, 0.0)
