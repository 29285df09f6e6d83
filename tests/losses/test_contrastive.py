from __future__ import annotations

import pytest
import torch

from riemann_unlearn.losses import ContrastiveLoss, EntailmentLoss
from tests.losses import reference
from tests.losses.test_calibration import IDS, batch


@pytest.mark.parametrize("ids", [None, IDS])
@pytest.mark.parametrize("c", [0.7, None])
def test_contrastive_matches_the_slow_reference(c: float | None, ids: torch.Tensor | None) -> None:
    images, texts, _ = batch()
    similarity = reference.hyperbolic if c else reference.cosine
    known = (torch.arange(8) if ids is None else ids).tolist()
    want = reference.terms(images.tolist(), texts.tolist(), [False] * 8, known, 5.0, 0.7, similarity)
    got = ContrastiveLoss()(images, texts, logit_scale=5.0, c=c, caption_ids=ids, output_dict=True)
    assert got["contrastive_loss"].item() == pytest.approx(want["contrastive_loss"], rel=1e-9)


def test_entailment_matches_the_slow_reference() -> None:
    images, texts, _ = batch()
    want = reference.terms(
        images.tolist(), texts.tolist(), [False] * 8, list(range(8)), 1.0, 0.7, reference.hyperbolic
    )
    got = EntailmentLoss()(images, texts, c=0.7, output_dict=True)["entailment_loss"]
    assert got.item() == pytest.approx(want["entailment_loss"], rel=1e-9)
    assert got > 0


def test_gradients_match_differences() -> None:
    images, texts, _ = batch()
    inputs = (images.requires_grad_(), texts.requires_grad_())
    c = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)

    def value(i: torch.Tensor, t: torch.Tensor, k: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return ContrastiveLoss()(i, t, logit_scale=s, c=k, caption_ids=IDS)

    assert torch.autograd.gradcheck(value, (*inputs, c, scale))
    assert torch.autograd.gradcheck(lambda i, t, k: EntailmentLoss()(i, t, c=k), (*inputs, c))


def test_autocast_does_not_touch_the_geometry() -> None:
    images, texts, _ = batch()
    images, texts = images.bfloat16(), texts.bfloat16()
    want = ContrastiveLoss()(images.float(), texts.float(), logit_scale=5.0, c=0.7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isclose(ContrastiveLoss()(images, texts, logit_scale=5.0, c=0.7), want)


def test_matched_pairs_that_coincide_are_at_distance_zero() -> None:
    """The pairwise matrix product alone would leave 0.1 at this radius."""
    v = torch.nn.functional.normalize(torch.randn(16, 64), dim=-1) * 6
    loss = ContrastiveLoss()(v, v, logit_scale=100.0, c=1.0)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
