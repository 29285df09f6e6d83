"""How a loss is told how its features compare: by a space, a manifold, or what open_clip's models give."""

from __future__ import annotations

from dataclasses import dataclass

import geoopt
import pytest
import torch

from riemann_unlearn.geometry import Lorentz, expmap0, to_ambient
from riemann_unlearn.geometry.precision import Curvature
from riemann_unlearn.losses import (
    AlignmentCalibration,
    ContrastiveLoss,
    EntailmentLoss,
    HyperbolicAlignmentCalibration,
    loss_inputs,
)
from riemann_unlearn.spaces import Cosine, LorentzTangents, OnManifold, Sigmoid, Space
from tests.losses.test_calibration import batch


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
    want = ContrastiveLoss()(images, texts, logit_scale=10.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ContrastiveLoss()(images, texts, logit_scale=10.0), want)


@pytest.mark.parametrize(
    ("said", "space"),
    [
        ({"logit_scale": torch.tensor(3.0)}, Cosine(3.0)),
        ({"logit_scale": torch.tensor(3.0), "logit_bias": torch.tensor(-2.0)}, Sigmoid(3.0, bias=-2.0)),
        ({"logit_scale": torch.tensor(3.0), "c": torch.tensor(0.7)}, LorentzTangents(3.0, c=0.7)),
    ],
)
def test_what_a_model_gives_is_enough(said: dict[str, torch.Tensor], space: Cosine) -> None:
    """open_clip's training loop: ``loss(**model(images, texts), output_dict=True)``."""
    images, texts, forget = batch()
    given = {"image_features": images, "text_features": texts, **said}
    losses = [(ContrastiveLoss(), {}), (AlignmentCalibration(), {"forget_mask": forget})]
    if space.has_cones:
        losses += [
            (EntailmentLoss(), {}),
            (HyperbolicAlignmentCalibration(), {"forget_mask": forget}),
        ]
    for loss, more in losses:
        got = loss(**given, **more, output_dict=True)
        want = loss(images, texts, **more, space=space, output_dict=True)
        assert got.keys() == want.keys()
        for name, value in want.items():
            assert torch.allclose(got[name], value, rtol=1e-6, atol=1e-7), name


def test_a_space_can_be_given_once_and_its_scale_at_each_call() -> None:
    images, texts, _ = batch()
    once = ContrastiveLoss(space=LorentzTangents(3.0, c=0.7))
    want = ContrastiveLoss()(images, texts, logit_scale=3.0, c=0.7)
    assert torch.equal(once(images, texts), want)
    other = ContrastiveLoss()(images, texts, logit_scale=5.0, c=0.2)
    assert torch.equal(once(images, texts, logit_scale=5.0, c=0.2), other)
    assert torch.equal(once(images, texts, space=LorentzTangents(5.0, c=0.2)), other)


def test_euclidean_points_are_compared_by_their_distance() -> None:
    """geoopt's ``Euclidean()`` measures each coordinate by itself."""
    images, texts, _ = batch()
    logits = -3.0 * torch.cdist(images, texts)
    own = torch.arange(8)
    both = [torch.nn.functional.cross_entropy(rows, own) for rows in (logits, logits.mT)]
    for manifold in (geoopt.Euclidean(), geoopt.Euclidean(ndim=1)):
        got = ContrastiveLoss(manifold=manifold)(images, texts, logit_scale=3.0)
        assert torch.isclose(got, sum(both) / 2)


def test_points_that_are_complex_matrices_have_a_real_loss() -> None:
    manifold = geoopt.BoundedDomain()
    torch.manual_seed(0)
    points = [manifold.random(6, 3, 3, dtype=torch.complex128).requires_grad_() for _ in range(2)]
    value = ContrastiveLoss(manifold=manifold)(*points, logit_scale=3.0)
    assert value.dtype == torch.float64
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, points))


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
    with pytest.raises(ValueError, match="'cosine' has no entailment cones"):
        HyperbolicAlignmentCalibration(space=Cosine())
    with pytest.raises(ValueError, match=r"no entailment cones; .* pass c="):
        EntailmentLoss()(images, texts, space=Sigmoid())
    with pytest.raises(ValueError, match="c belongs to the manifold"):
        AlignmentCalibration(manifold=sphere)(images, texts, forget, logit_scale=1.0, c=1.0)
    with pytest.raises(ValueError, match="pass logit_scale=, or space="):
        ContrastiveLoss()(images, texts)
    with pytest.raises(ValueError, match="pass logit_scale=, or space="):
        AlignmentCalibration(manifold=sphere)(images, texts, forget)
    with pytest.raises(ValueError, match="leave out logit_scale="):
        ContrastiveLoss()(images, texts, logit_scale=1.0, space=Cosine())
    with pytest.raises(ValueError, match="both a curvature"):
        ContrastiveLoss()(images, texts, logit_scale=1.0, c=1.0, logit_bias=0.0)
    with pytest.raises(ValueError, match="space 'cosine' has no c"):
        ContrastiveLoss(space=Cosine())(images, texts, c=1.0)
    with pytest.raises(ValueError, match="space= or manifold=, not both"):
        ContrastiveLoss(space=OnManifold(manifold=sphere), manifold=sphere)
    with pytest.raises(ValueError, match="min_radius must be positive, got 0"):
        EntailmentLoss(min_radius=0)
    with pytest.raises(ValueError, match="beta is a weight"):
        AlignmentCalibration(beta=-1.0)
    with pytest.raises(ValueError, match="omega is a weight"):
        HyperbolicAlignmentCalibration(omega=float("nan"))
    with pytest.raises(ValueError, match="must be at least 0, got -1"):
        HyperbolicAlignmentCalibration(target_radius=-1.0)
    with pytest.raises(ValueError, match="c must be positive, got 0"):
        ContrastiveLoss()(images, texts, logit_scale=1.0, c=0.0)


@dataclass(frozen=True, eq=False)
class Squared(Space):
    """Minus the squared distance, with a bias."""

    name = "squared"
    bias: Curvature = 0.0

    def pairwise(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return -torch.cdist(a, b).square()


def test_a_bias_cancels_in_a_softmax_of_ones_own() -> None:
    images, texts, _ = batch()
    plain, shifted = (ContrastiveLoss()(images, texts, space=Squared(2.0, bias=b)) for b in (0.0, -3.0))
    assert torch.isclose(plain, shifted)


def test_a_loss_is_told_all_that_its_space_is() -> None:
    """A scale would be taken for that of cosines, and a curvature for that of cones with MERU's K."""
    images, texts, _ = batch()
    own = Squared(torch.tensor(2.0), bias=torch.tensor(-1.0))
    wide = LorentzTangents(torch.tensor(2.0), c=torch.tensor(0.5), min_radius=0.4)
    for loss, space in ((ContrastiveLoss(), own), (EntailmentLoss(), wide), (ContrastiveLoss(), wide)):
        inputs = loss_inputs(space)
        assert {"logit_scale", "space"} < set(inputs)
        assert torch.equal(loss(images, texts, **inputs), loss(images, texts, space=space))
    with pytest.raises(ValueError, match="leave out logit_scale="):
        ContrastiveLoss()(images, texts, **{**loss_inputs(own), "logit_scale": torch.tensor(3.0)})
    assert set(loss_inputs(LorentzTangents(c=0.5))) == {"logit_scale", "c"}


def test_a_k_is_refused_by_a_space_whose_k_is_fixed() -> None:
    @dataclass(frozen=True, eq=False)
    class Halved(Squared):
        name = "halved"
        has_cones = True  # type: ignore[assignment]

        def tangents(self, x: torch.Tensor) -> tuple[torch.Tensor, Curvature]:
            return x / 2, 1.0

    images, texts, _ = batch()
    assert EntailmentLoss()(images, texts, space=Halved()) >= 0
    with pytest.raises(ValueError, match="the space 'halved' has no min_radius"):
        EntailmentLoss(min_radius=0.2)(images, texts, space=Halved())
