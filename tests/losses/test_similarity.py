"""How features are compared, and what the losses refuse."""

from __future__ import annotations

import geoopt
import pytest
import torch

from riemann_unlearn.geometry import Lorentz, expmap0, tangent, to_ambient
from riemann_unlearn.losses import (
    AlignmentCalibration,
    ContrastiveLoss,
    EntailmentLoss,
    HyperbolicAlignmentCalibration,
    functional,
)
from riemann_unlearn.losses.similarity import OnManifold, similarity
from tests.losses.test_calibration import batch


def test_poincare_points_are_lifted_to_the_rim() -> None:
    """A tangent vector at the ball's centre is twice as long in its metric."""
    c = 0.7
    ball = OnManifold(geoopt.PoincareBall(c=c).double())
    v, _, _ = batch()
    for r in (1e-8, 1.0, 12.0):
        v = torch.nn.functional.normalize(v, dim=-1) * r
        n = torch.linalg.vector_norm(v, dim=-1, keepdim=True) * c**0.5
        lifted, curvature = ball.tangents(v * torch.tanh(n / 2) / n, None)
        assert torch.allclose(lifted, v, rtol=1e-5)
        assert torch.isclose(curvature, torch.tensor(c).double())
    edge = torch.tensor([[0.0, 0.0], [1 / c**0.5, 0.0], [0.0, -2.0]], requires_grad=True)
    lifted, _ = ball.tangents(edge, None)
    assert lifted.isfinite().all()
    assert torch.autograd.grad(lifted.sum(), edge)[0].isfinite().all()


def test_ours_and_geoopts_lorentz_give_the_same_loss() -> None:
    images, texts, forget = batch()
    points = [to_ambient(expmap0(v, 0.5), 0.5) for v in (images, texts)]
    values = [
        HyperbolicAlignmentCalibration(manifold=manifold)(*points, forget, logit_scale=2.0)
        for manifold in (Lorentz(2.0).double(), geoopt.Lorentz(2.0).double())
    ]
    assert torch.equal(*values)


def test_cosine_is_not_rounded_by_autocast() -> None:
    images, texts, _ = batch()
    images, texts = images.float(), texts.float()
    want = ContrastiveLoss(geometry="euclidean")(images, texts, logit_scale=10.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ContrastiveLoss(geometry="euclidean")(images, texts, logit_scale=10.0), want)


def test_without_retain_pairs_there_is_no_radius_to_hold() -> None:
    images, texts, _ = batch()
    images.requires_grad_()
    term = functional.norm_regularization(images, texts, 1.0, torch.ones(8, dtype=torch.bool))
    assert term.item() == 0.0
    assert torch.autograd.grad(term, images)[0].abs().max() == 0.0
    to_origin = functional.norm_regularization(images, texts, 1.0, torch.ones(8, dtype=torch.bool), "origin")
    assert to_origin > 0


def test_one_forget_pair_has_no_negatives() -> None:
    images, texts, _ = batch()
    one = torch.arange(8) == 3
    s = -tangent.cdist(images, texts, 1.0).requires_grad_()
    term = functional.negative_alignment(s, one)
    assert term.item() == 0.0
    assert torch.autograd.grad(term, s)[0].abs().max() == 0.0


def test_equal_captions_are_no_negatives() -> None:
    """A duplicated pair costs log 2 unless the losses are told that its caption is the same."""
    v = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-9.0, 0.0]])
    loss = ContrastiveLoss()
    ids = torch.tensor([0, 0, 1])
    assert loss(v, v, logit_scale=10.0, c=1.0).item() == pytest.approx(0.6931 * 2 / 3, abs=1e-3)
    assert loss(v, v, logit_scale=10.0, c=1.0, caption_ids=ids).item() == pytest.approx(0.0, abs=1e-6)


def test_settings_and_arguments_that_mean_nothing_are_refused() -> None:
    images, texts, forget = batch()
    sphere = geoopt.Sphere()
    with pytest.raises(ValueError, match="Sphere has no entailment cones"):
        EntailmentLoss(manifold=sphere)
    with pytest.raises(ValueError, match="Sphere has no entailment cones"):
        OnManifold(sphere).tangents(images, None)
    with pytest.raises(ValueError, match="no entailment cones"):
        similarity("euclidean", None).tangents(images, None)
    with pytest.raises(ValueError, match="c belongs to the manifold"):
        AlignmentCalibration(manifold=sphere)(images, texts, forget, logit_scale=1.0, c=1.0)
    with pytest.raises(ValueError, match="min_radius must be positive, got 0"):
        EntailmentLoss(min_radius=0)
    with pytest.raises(ValueError, match="beta is a weight"):
        AlignmentCalibration(beta=-1.0)
    with pytest.raises(ValueError, match="omega is a weight"):
        HyperbolicAlignmentCalibration(omega=float("nan"))
    with pytest.raises(ValueError, match="must be at least 0, got -1"):
        HyperbolicAlignmentCalibration(target_radius=-1.0)
    with pytest.raises(ValueError, match="or a number, got 'sky'"):
        functional.norm_regularization(images, texts, 1.0, forget, "sky")
    with pytest.raises(ValueError, match="c must be positive, got 0"):
        ContrastiveLoss()(images, texts, logit_scale=1.0, c=0.0)
