"""The losses, which never hold the matrix of similarities, against their terms computed from it."""

from __future__ import annotations

import dataclasses

import geoopt
import pytest
import torch
from torch import Tensor

from riemann_unlearn.geometry import tangent
from riemann_unlearn.losses import (
    AlignmentCalibration,
    ContrastiveLoss,
    HyperbolicAlignmentCalibration,
    functional,
)
from riemann_unlearn.ops import Cones, from_similarities
from riemann_unlearn.spaces import Cosine, LorentzTangents, OnManifold, Space
from tests.losses.test_calibration import IDS, batch

ONES = {"alpha": 1.0, "beta": 1.0, "gamma": 1.0}


def similarity_terms(
    images: Tensor, texts: Tensor, forget: Tensor, space: Space, ids: Tensor | None
) -> dict[str, Tensor]:
    s = torch.diagonal_scatter(space.pairwise(images, texts), space.matched(images, texts))
    statistics = from_similarities(s, space.scale, forget=forget, caption_ids=ids)
    return {
        "contrastive_loss": functional.contrastive(statistics, space.scale, pairs=~forget),
        "negative_alignment_loss": functional.negative_alignment(statistics, space.scale),
        "positive_alignment_loss": functional.positive_alignment(statistics, forget, space.scale),
        "performance_loss": functional.performance(statistics, forget),
    }


def elementwise_cones(texts: Tensor, images: Tensor, c: float) -> Cones:
    angle = tangent.exterior_angle(texts, images, c) - tangent.half_aperture(texts, c)
    return Cones(angle, *(c**0.5 * v.norm(dim=-1) for v in (texts, images)))


@pytest.mark.parametrize("ids", [None, IDS])
@pytest.mark.parametrize("target", ["retain", "origin", 2.5])
def test_hac(ids: Tensor | None, target: str | float) -> None:
    images, texts, forget = batch()
    loss = HyperbolicAlignmentCalibration(**ONES, entailment_weight=1.0, target_radius=target)
    got = loss(images, texts, forget, logit_scale=3.0, c=0.7, caption_ids=ids, output_dict=True)
    cones = elementwise_cones(texts, images, 0.7)
    radii = cones.narrow_radius, cones.broad_radius
    want = similarity_terms(images, texts, forget, LorentzTangents(3.0, c=0.7), ids) | {
        "entailment_loss": functional.entailment(cones, ~forget),
        "cone_exit_loss": functional.cone_exit(cones, forget),
        "norm_loss": functional.norm_regularization(radii, forget, target),
    }
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert torch.isclose(got[name], value, rtol=1e-10, atol=1e-12), name


@pytest.mark.parametrize("ids", [None, IDS])
def test_ac_in_cosines_and_on_manifolds(ids: Tensor | None) -> None:
    images, texts, forget = batch()
    sphere, ball = geoopt.Sphere(), geoopt.PoincareBall(c=0.7).double()
    for loss, space, lift in (
        (AlignmentCalibration(**ONES), Cosine(3.0), lambda v: v),
        (AlignmentCalibration(**ONES, manifold=sphere), OnManifold(3.0, manifold=sphere), sphere.projx),
        (AlignmentCalibration(**ONES, manifold=ball), OnManifold(3.0, manifold=ball), ball.expmap0),
    ):
        x, y = lift(images), lift(texts)
        got = loss(x, y, forget, logit_scale=3.0, caption_ids=ids, output_dict=True)
        for name, value in similarity_terms(x, y, forget, space, ids).items():
            assert torch.isclose(got[name], value, rtol=1e-10, atol=1e-12), name


def test_contrastive_over_everything_is_cross_entropy_both_ways() -> None:
    images, texts, _ = batch()
    space = LorentzTangents(3.0, c=0.7)
    logits = torch.diagonal_scatter(space.logits(images, texts), space.matched_logits(images, texts))
    own = torch.arange(8)
    both = [torch.nn.functional.cross_entropy(rows, own) for rows in (logits, logits.mT)]
    assert torch.isclose(ContrastiveLoss()(images, texts, logit_scale=3.0, c=0.7), sum(both) / 2)


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


def test_without_retain_pairs_there_is_no_radius_to_hold() -> None:
    radius = torch.rand(8, requires_grad=True)
    every = torch.ones(8, dtype=torch.bool)
    term = functional.norm_regularization([radius, radius], every)
    assert term.item() == 0.0
    assert torch.autograd.grad(term, radius)[0].abs().max() == 0.0
    assert functional.norm_regularization([radius], every, "origin") > 0


def test_no_gradient_flows_through_the_mean_radius_of_the_retained() -> None:
    radius = torch.arange(1.0, 5.0, requires_grad=True)
    forget = torch.tensor([True, False, False, True])
    (gradient,) = torch.autograd.grad(functional.norm_regularization([radius], forget), radius)
    assert gradient.tolist() == [-1.5, 0.0, 0.0, 1.5]  # mean 2.5; 2 (r - r*)/2


@pytest.mark.parametrize(
    ("gone", "ids"),
    [([3], torch.arange(8)), ([0, 3], IDS), ([], IDS)],
    ids=["one pair", "one caption", "none"],
)
def test_without_mismatched_forget_pairs_there_is_no_infonce(gone: list[int], ids: Tensor) -> None:
    """Neither its numerator, bias included, nor its denominator."""
    images, texts, _ = batch()
    s = LorentzTangents().pairwise(images, texts).requires_grad_()
    forget = torch.isin(torch.arange(8), torch.tensor(gone, dtype=torch.long))
    statistics = from_similarities(s, 2.0, -3.0, forget=forget, caption_ids=ids)
    for term in (
        functional.negative_alignment(statistics, 2.0, -3.0),
        functional.performance(statistics, forget),
    ):
        assert term.item() == 0.0
        assert torch.autograd.grad(term, s, retain_graph=True)[0].abs().max() == 0.0


@pytest.mark.parametrize("ids", [None, IDS])
def test_alignment_and_performance_are_infonce_with_another_forget_sample(ids: Tensor | None) -> None:
    """The loss of the authors' code, in the mean over its random positives; both ways."""
    images, texts, forget = batch()
    forget = forget | (torch.arange(8) == 6)
    space = LorentzTangents(3.0, c=0.7)
    logits = torch.diagonal_scatter(space.logits(images, texts), space.matched_logits(images, texts))
    known = torch.arange(8) if ids is None else ids
    partners = forget[:, None] & forget & (known[:, None] != known)
    # The numerators weigh each mismatched pair alike, the denominators each row.
    rows = [forget.nonzero()[:, 0], *partners.nonzero().unbind(1)]
    want = (logits.logsumexp(1)[rows[0]] + logits.logsumexp(0)[rows[0]]).mean() / 2
    want = want - logits[rows[1], rows[2]].mean()
    loss = AlignmentCalibration(alpha=0.7, beta=0.0, gamma=0.7)
    terms = loss(images, texts, forget, logit_scale=3.0, c=0.7, caption_ids=ids, output_dict=True)
    got = terms["negative_alignment_loss"] + terms["performance_loss"]
    assert torch.isclose(got, 0.7 * want)
    if ids is None:
        # With every row as many partners: cross-entropy with each of them as the label, in the mean.
        entropy = torch.nn.functional.cross_entropy
        a, b = rows[1], rows[2]
        both = (entropy(logits[a], b) + entropy(logits.mT[a], b)) / 2
        assert torch.isclose(got, 0.7 * both)


@pytest.mark.parametrize(("beta", "bounded"), [(0.0, True), (0.3, True), (0.5, False)])
def test_what_holds_the_loss_when_the_forgotten_go_away(beta: float, bounded: bool) -> None:
    """α = γ + 0.3: their logits fall without end, and the loss with them only where β > α - γ."""
    forget = torch.arange(8) < 4
    values: list[float] = []
    for distance in (10.0, 1000.0):
        far = forget[:, None] | forget
        s = torch.where(far, -distance, -1.0).double()
        statistics = from_similarities(s, 2.0, forget=forget)
        value = 1.3 * functional.negative_alignment(statistics, 2.0)
        value = value + beta * functional.positive_alignment(statistics, forget, 2.0)
        values.append((value + functional.performance(statistics, forget)).item())
    assert (values[1] - values[0] > -1e-6) is bounded


def test_logits_have_a_bias_where_the_family_has_one() -> None:
    s = torch.arange(4.0).reshape(2, 2)
    statistics = from_similarities(s, 2.0, -3.0, forget=torch.ones(2, dtype=torch.bool))
    assert functional.negative_alignment(statistics, 2.0, -3.0) == 0.0  # mean of 2·1 - 3 and 2·2 - 3, minus
    assert functional.positive_alignment(statistics, torch.tensor([False, True]), 2.0, -3.0) == 3.0


def test_a_term_over_nothing_is_zero_even_beside_infinities() -> None:
    """A retain pair may be infinitely far; what is not chosen takes no part."""
    values = torch.tensor([torch.inf, 1.0], requires_grad=True)
    for chosen, want in (([False, False], 0.0), ([False, True], 1.0)):
        mean = functional.mean_over(values, torch.tensor(chosen))
        assert mean.item() == want
        assert torch.autograd.grad(mean, values)[0].isfinite().all()
    assert functional.mean_over(torch.empty(0), None).item() == 0.0


def test_a_target_that_means_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="or a number, got 'sky'"):
        functional.norm_regularization([torch.ones(2)], torch.ones(2, dtype=torch.bool), "sky")


def test_a_term_of_ones_own_is_a_subclass_of_one_method() -> None:
    images, texts, forget = batch()

    class Spread(HyperbolicAlignmentCalibration):
        def terms(self, pairs):  # type: ignore[no-untyped-def]
            return {**super().terms(pairs), "spread_loss": 0.1 * pairs.cones.narrow_radius.var()}

    arguments = {"logit_scale": 3.0, "c": 0.7}
    plain = HyperbolicAlignmentCalibration()(images, texts, forget, **arguments)
    terms = Spread()(images, texts, forget, **arguments, output_dict=True)
    total = Spread()(images, texts, forget, **arguments)
    assert torch.isclose(total, plain + terms["spread_loss"])
    assert torch.isclose(terms["spread_loss"], 0.1 * (0.7**0.5 * images.norm(dim=-1)).var())


def test_k_belongs_to_the_space_unless_a_loss_has_its_own() -> None:
    images, texts, forget = batch()
    wide = LorentzTangents(3.0, c=0.7, min_radius=0.4)
    loss = HyperbolicAlignmentCalibration(entailment_weight=1.0)
    of_space = loss(images, texts, forget, space=wide, output_dict=True)["entailment_loss"]
    by_default = loss(images, texts, forget, logit_scale=3.0, c=0.7, output_dict=True)["entailment_loss"]
    assert of_space < by_default  # wider cones hold more
    own = HyperbolicAlignmentCalibration(entailment_weight=1.0, min_radius=0.4)
    for arguments in ({"space": dataclasses.replace(wide, min_radius=0.1)}, {"logit_scale": 3.0, "c": 0.7}):
        got = own(images, texts, forget, **arguments, output_dict=True)["entailment_loss"]
        assert torch.equal(got, of_space)
