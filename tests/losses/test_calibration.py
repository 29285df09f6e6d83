from __future__ import annotations

import geoopt
import pytest
import torch
from torch import Tensor

from riemann_unlearn.geometry import expmap0, to_ambient
from riemann_unlearn.losses import AlignmentCalibration, HyperbolicAlignmentCalibration
from tests.losses import reference

WEIGHTS = {"alpha": 0.3, "beta": 0.7, "gamma": 1.3}
HYPERBOLIC_WEIGHTS = {"omega": 0.5, "eta": 2.0, "entailment_weight": 0.9}
SCALES = {
    "contrastive_loss": 1.0,
    "negative_alignment_loss": 0.3,
    "positive_alignment_loss": 0.7,
    "performance_loss": 1.3,
    "entailment_loss": 0.9,
    "cone_exit_loss": 0.5,
    "norm_loss": 2.0,
}
IDS = torch.tensor([0, 1, 2, 0, 3, 4, 4, 5])


def batch(seed: int = 0, scale: float = 0.7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(8, 5, dtype=torch.float64, generator=generator) * scale
    texts = 0.6 * images + torch.randn(8, 5, dtype=torch.float64, generator=generator) * scale / 2
    return images, texts, torch.tensor([True, True, False, False, True, False, False, False])


def hac(**options: object) -> HyperbolicAlignmentCalibration:
    return HyperbolicAlignmentCalibration(**WEIGHTS, **HYPERBOLIC_WEIGHTS, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("c", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ids", [None, IDS])
def test_hac_matches_the_slow_reference(c: float, seed: int, ids: Tensor | None) -> None:
    images, texts, forget = batch(seed)
    known = torch.arange(8) if ids is None else ids
    want = reference.terms(
        images.tolist(), texts.tolist(), forget.tolist(), known.tolist(), 3.0, c, reference.hyperbolic
    )
    got = hac()(images, texts, forget, logit_scale=3.0, c=c, caption_ids=ids, output_dict=True)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].item() == pytest.approx(SCALES[name] * value, rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize("ids", [None, IDS])
def test_ac_matches_the_slow_reference_in_both_geometries(ids: Tensor | None) -> None:
    images, texts, forget = batch()
    known = torch.arange(8) if ids is None else ids
    for similarity, c in ((reference.cosine, None), (reference.hyperbolic, 0.7)):
        want = reference.terms(
            images.tolist(), texts.tolist(), forget.tolist(), known.tolist(), 3.0, c or 1.0, similarity
        )
        loss = AlignmentCalibration(**WEIGHTS)
        got = loss(images, texts, forget, logit_scale=3.0, c=c, caption_ids=ids, output_dict=True)
        for name, value in got.items():
            assert value.item() == pytest.approx(SCALES[name] * want[name], rel=1e-9, abs=1e-12), name


def test_the_terms_add_up_and_epsilon_scales_the_calibration() -> None:
    images, texts, forget = batch()
    arguments = {"logit_scale": 3.0, "c": 0.7}
    terms = hac()(images, texts, forget, **arguments, output_dict=True)
    total = hac()(images, texts, forget, **arguments)
    assert torch.isclose(sum(terms.values()), total)
    doubled = hac(epsilon=2.0)(images, texts, forget, **arguments, output_dict=True)
    for name, value in terms.items():
        factor = 1 if name in ("contrastive_loss", "entailment_loss") else 2
        assert torch.isclose(doubled[name], factor * value), name


def test_the_order_of_a_batch_does_not_matter() -> None:
    images, texts, forget = batch()
    order = torch.tensor([3, 1, 7, 0, 5, 2, 6, 4])
    for loss, c in ((hac(), 0.7), (AlignmentCalibration(), None)):
        want = loss(images, texts, forget, logit_scale=3.0, c=c, caption_ids=IDS)
        got = loss(images[order], texts[order], forget[order], logit_scale=3.0, c=c, caption_ids=IDS[order])
        assert torch.isclose(got, want)


@pytest.mark.parametrize("forget", [[False] * 8, [True] * 8, [True] + [False] * 7, [False] + [True] * 7])
def test_batches_that_lack_a_kind_are_finite(forget: list[bool]) -> None:
    images, texts, _ = batch()
    mask = torch.tensor(forget)
    for loss, c in ((hac(), 0.7), (AlignmentCalibration(), None)):
        inputs = [images.clone().requires_grad_(), texts.clone().requires_grad_()]
        terms = loss(*inputs, mask, logit_scale=3.0, c=c, output_dict=True)
        assert all(term.isfinite() for term in terms.values())
        for gradient in torch.autograd.grad(sum(terms.values()), inputs):
            assert gradient.isfinite().all()
        if not any(forget):
            assert all(
                terms[name].item() == 0.0
                for name in terms
                if name not in ("contrastive_loss", "entailment_loss")
            )


@pytest.mark.parametrize("r", [0.0, 1e-12, 5.0, 50.0, 300.0])
def test_collapsed_and_far_batches_are_finite(r: float) -> None:
    v = torch.nn.functional.normalize(torch.ones(8, 16), dim=-1) * r
    _, _, forget = batch()
    inputs = [v.clone().requires_grad_(), v.clone().requires_grad_()]
    c = torch.tensor(1.0, requires_grad=True)
    value = hac()(*inputs, forget, logit_scale=10.0, c=c)
    assert value.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, [*inputs, c]))


def _after_one_step(name: str, images: Tensor, texts: Tensor, forget: Tensor) -> list[Tensor]:
    """Features after a small step down one term of HAC."""
    inputs = [images.clone().requires_grad_(), texts.clone().requires_grad_()]
    term = hac()(*inputs, forget, logit_scale=3.0, c=1.0, output_dict=True)[name]
    gradients = torch.autograd.grad(term, inputs, allow_unused=True)
    return [
        v.detach() - 1e-3 * (torch.zeros_like(v) if g is None else g)
        for v, g in zip(inputs, gradients, strict=True)
    ]


def test_each_term_moves_what_it_should() -> None:
    from riemann_unlearn.geometry import tangent

    images, texts, forget = batch(scale=1.5)
    other = ~torch.eye(8, dtype=torch.bool) & forget[:, None] & forget[None, :]

    def matched(v: Tensor, t: Tensor, which: Tensor) -> float:
        return tangent.dist(v, t, 1.0)[which].mean().item()

    def mismatched(v: Tensor, t: Tensor) -> float:
        return tangent.dist(v[:, None], t[None], 1.0)[other].mean().item()

    def angle(v: Tensor, t: Tensor, which: Tensor) -> float:
        return tangent.exterior_angle(t, v, 1.0)[which].mean().item()

    def spread(v: Tensor) -> float:
        radius = v.norm(dim=-1)
        return (radius[forget] - radius[~forget].mean()).abs().mean().item()

    before = images, texts
    after = {name: _after_one_step(name, *before, forget) for name in SCALES}
    assert matched(*after["contrastive_loss"], ~forget) < matched(*before, ~forget)
    assert matched(*after["positive_alignment_loss"], forget) > matched(*before, forget)
    assert mismatched(*after["negative_alignment_loss"]) < mismatched(*before)
    assert matched(*after["performance_loss"], forget) > matched(*before, forget)
    assert angle(*after["entailment_loss"], ~forget) < angle(*before, ~forget)
    assert spread(after["norm_loss"][0]) < spread(images)
    inside = 1.2 * texts + 1e-2 * images  # ahead of their captions, hence in their cones
    left = _after_one_step("cone_exit_loss", inside, texts, forget)
    assert angle(*left, forget) > angle(inside, texts, forget)


def test_points_on_a_manifold_give_the_loss_of_their_tangent_vectors() -> None:
    images, texts, forget = batch()
    for k in (0.5, 1.0, 2.0):
        c = 1 / k
        want = hac()(images, texts, forget, logit_scale=3.0, c=c)
        lorentz = geoopt.Lorentz(k=k).double()
        points = [to_ambient(expmap0(v, c), c) for v in (images, texts)]
        assert torch.isclose(hac(manifold=lorentz)(*points, forget, logit_scale=3.0), want)
        ball = geoopt.PoincareBall(c=c).double()
        # The ball's metric at the centre is four times the Euclidean one.
        points = [ball.expmap0(v / 2) for v in (images, texts)]
        assert torch.isclose(hac(manifold=ball)(*points, forget, logit_scale=3.0), want, rtol=1e-6)


def test_ac_takes_any_manifold_with_a_distance_and_hac_says_what_it_needs() -> None:
    images, texts, forget = batch()
    sphere = geoopt.Sphere()
    points = [sphere.projx(images), sphere.projx(texts)]
    value = AlignmentCalibration(manifold=sphere)(*points, forget, logit_scale=3.0)
    assert value.isfinite()
    lorentz = geoopt.Lorentz(k=2.0).double()
    on = [to_ambient(expmap0(v, 0.5), 0.5) for v in (images, texts)]
    want = AlignmentCalibration()(images, texts, forget, logit_scale=3.0, c=0.5)
    assert torch.isclose(AlignmentCalibration(manifold=lorentz)(*on, forget, logit_scale=3.0), want)
    with pytest.raises(ValueError, match="Sphere has no entailment cones"):
        hac(manifold=sphere)(*points, forget, logit_scale=3.0)
    with pytest.raises(ValueError, match="c belongs to the manifold"):
        hac(manifold=lorentz)(*on, forget, logit_scale=3.0, c=1.0)


def test_a_loss_trains_manifold_parameters() -> None:
    """Points are ManifoldParameters, moved by geoopt's Riemannian Adam: the user's own loop."""
    _, _, forget = batch()
    torch.manual_seed(0)
    manifold = geoopt.Lorentz(k=1.0)
    images, texts = (
        geoopt.ManifoldParameter(to_ambient(expmap0(torch.randn(8, 4), 1.0), 1.0), manifold=manifold)
        for _ in range(2)
    )
    optimizer = geoopt.optim.RiemannianAdam([images, texts], lr=1e-2)
    loss = hac(manifold=manifold)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        value = loss(images, texts, forget, logit_scale=5.0)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0]
    assert torch.allclose(manifold.inner(None, images, images), torch.tensor(-1.0), atol=1e-3)


def test_the_norm_target_can_be_the_origin_or_a_number() -> None:
    images, texts, forget = batch()
    for target, goal in (("origin", 0.0), (2.5, 2.5)):
        terms = hac(target_radius=target)(images, texts, forget, logit_scale=1.0, c=1.0, output_dict=True)
        want = sum((v[forget].norm(dim=-1) - goal).square().mean() for v in (images, texts))
        assert torch.isclose(terms["norm_loss"], want)  # weight 2, mean of the two sides
    with pytest.raises(ValueError, match="'retain', 'origin' or a number, got 'sky'"):
        hac(target_radius="sky")(images, texts, forget, logit_scale=1.0, c=1.0)


def test_bad_arguments_are_refused() -> None:
    images, texts, forget = batch()
    loss = hac()
    with pytest.raises(ValueError, match="pass c="):
        loss(images, texts, forget, logit_scale=1.0)
    with pytest.raises(ValueError, match=r"same shape \(B, D\), got \(8, 5\) and \(7, 5\)"):
        loss(images, texts[:7], forget, logit_scale=1.0, c=1.0)
    with pytest.raises(ValueError, match=r"forget_mask must be a bool tensor of shape \(8,\)"):
        loss(images, texts, forget.float(), logit_scale=1.0, c=1.0)
    with pytest.raises(ValueError, match="caption_ids must be an integer tensor"):
        loss(images, texts, forget, logit_scale=1.0, c=1.0, caption_ids=torch.arange(3))
    with pytest.raises(TypeError, match="floating point"):
        loss(images.long(), texts, forget, logit_scale=1.0, c=1.0)
