"""The losses, which never hold the matrix of similarities, against their terms computed from it."""

from __future__ import annotations

import geoopt
import pytest
import torch
from torch import Tensor

from riemann_unlearn.losses import (
    AlignmentCalibration,
    ContrastiveLoss,
    HyperbolicAlignmentCalibration,
    functional,
)
from riemann_unlearn.losses.similarity import Cosine, Hyperbolic, OnManifold, Similarity
from tests.losses.test_calibration import IDS, batch

ONES = {"alpha": 1.0, "beta": 1.0, "gamma": 1.0}


def similarity_terms(
    images: Tensor, texts: Tensor, forget: Tensor, geometry: Similarity, c: float | None, ids: Tensor | None
) -> dict[str, Tensor]:
    s = functional.similarities(images, texts, geometry, c)
    return {
        "contrastive_loss": functional.contrastive(s, 3.0, ~forget, ids),
        "negative_alignment_loss": functional.negative_alignment(s, forget, ids),
        "positive_alignment_loss": functional.positive_alignment(s, forget),
        "performance_loss": functional.performance(s, 3.0, forget),
    }


@pytest.mark.parametrize("ids", [None, IDS])
@pytest.mark.parametrize("target", ["retain", "origin", 2.5])
def test_hac(ids: Tensor | None, target: str | float) -> None:
    images, texts, forget = batch()
    loss = HyperbolicAlignmentCalibration(**ONES, entailment_weight=1.0, target_radius=target)
    got = loss(images, texts, forget, logit_scale=3.0, c=0.7, caption_ids=ids, output_dict=True)
    want = similarity_terms(images, texts, forget, Hyperbolic(), 0.7, ids) | {
        "entailment_loss": functional.entailment(images, texts, 0.7, ~forget),
        "cone_exit_loss": functional.cone_exit(images, texts, 0.7, forget),
        "norm_loss": functional.norm_regularization(images, texts, 0.7, forget, target),
    }
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert torch.isclose(got[name], value, rtol=1e-10, atol=1e-12), name


@pytest.mark.parametrize("ids", [None, IDS])
def test_ac_in_cosines_and_on_manifolds(ids: Tensor | None) -> None:
    images, texts, forget = batch()
    sphere, ball = geoopt.Sphere(), geoopt.PoincareBall(c=0.7).double()
    for loss, geometry, lift in (
        (AlignmentCalibration(**ONES), Cosine(), lambda v: v),
        (AlignmentCalibration(**ONES, manifold=sphere), OnManifold(sphere), sphere.projx),
        (AlignmentCalibration(**ONES, manifold=ball), OnManifold(ball), ball.expmap0),
    ):
        x, y = lift(images), lift(texts)
        got = loss(x, y, forget, logit_scale=3.0, caption_ids=ids, output_dict=True)
        for name, value in similarity_terms(x, y, forget, geometry, None, ids).items():
            assert torch.isclose(got[name], value, rtol=1e-10, atol=1e-12), name


def test_contrastive_over_everything() -> None:
    images, texts, _ = batch()
    s = functional.similarities(images, texts, Hyperbolic(), 0.7)
    got = ContrastiveLoss()(images, texts, logit_scale=3.0, c=0.7)
    assert torch.isclose(got, functional.contrastive(s, 3.0))


def test_results_have_the_precision_of_the_features() -> None:
    images, texts, forget = batch()
    loss = HyperbolicAlignmentCalibration()
    for dtype, want in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.half, torch.float32),
    ):
        sides = images.to(dtype), texts.to(dtype)
        terms = loss(*sides, forget, logit_scale=torch.tensor(3.0), c=0.7, output_dict=True)
        assert {term.dtype for term in terms.values()} == {want}
