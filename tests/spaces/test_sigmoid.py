"""SigLIP's loss, against open_clip's."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from open_clip.loss import SigLipLoss
from torch.nn.functional import logsigmoid, normalize

from riemann_unlearn.losses import ContrastiveLoss
from riemann_unlearn.spaces import Cosine, Sigmoid, Space, sum_softplus


@pytest.mark.parametrize("bias", [-10.0, 0.0, 3.0])
def test_the_loss_is_open_clips(bias: float) -> None:
    """Value and all gradients; open_clip too divides by the rows, not by the pairs."""
    generator = torch.Generator().manual_seed(0)
    features = [normalize(torch.randn(12, 8, dtype=torch.float64, generator=generator), dim=-1) for _ in "it"]
    inputs = [*features, torch.tensor(10.0).double(), torch.tensor(bias).double()]
    mine, theirs = ([v.clone().requires_grad_() for v in inputs] for _ in range(2))
    got = ContrastiveLoss()(*mine[:2], logit_scale=mine[2], logit_bias=mine[3])
    want = SigLipLoss()(*theirs)
    assert torch.isclose(got, want, rtol=1e-12)
    # Ours normalizes what already is unit vectors, so its gradient has no part along them.
    slopes, expected = torch.autograd.grad(got, mine), torch.autograd.grad(want, theirs)
    for slope, other, unit in zip(slopes[:2], expected[:2], features, strict=True):
        assert torch.allclose(slope, other - (other * unit).sum(-1, keepdim=True) * unit)
    for slope, other in zip(slopes[2:], expected[2:], strict=True):
        assert torch.isclose(slope, other, rtol=1e-10)


def test_a_logit_far_out_costs_what_it_is() -> None:
    """Softplus by itself neither overflows nor rounds the far pairs to nothing."""
    v = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    far = Sigmoid(1e4, bias=0.0).statistics(v, -v)
    assert far.rows.tolist() == [1e4, 1e4]
    assert ((far.rows + far.columns) / 2 - 1e4 * far.matched).tolist() == [2e4, 2e4]


def test_it_ranks_as_cosines_do() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(20, 8, generator=generator) for _ in range(2))
    own = torch.arange(20)
    assert torch.equal(Sigmoid(5.0, bias=-3.0).ranks(a, b, own), Cosine().ranks(a, b, own))
    assert torch.equal(Sigmoid(5.0, bias=-3.0).nearest(a, b, 4), Cosine().nearest(a, b, 4))


def test_pairs_are_judged_one_by_one_by_any_similarity() -> None:
    """Of a third party's space: a pairwise, a bias, and whose normalizer it has."""

    @dataclass(frozen=True, eq=False)
    class Judged(Space):
        name = "judged"
        bias: float = -2.0

        def pairwise(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return -torch.cdist(a, b)

        def normalizer(self, logits: torch.Tensor, among: torch.Tensor, dim: int) -> torch.Tensor:
            return sum_softplus(logits, among, dim)

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(6, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    space = Judged(3.0)
    signs = 2 * torch.eye(6, dtype=torch.float64) - 1
    want = -logsigmoid(signs * space.logits(a, b)).sum(1).mean()
    assert torch.isclose(ContrastiveLoss()(a, b, space=space), want, rtol=1e-12)
