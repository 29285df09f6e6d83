from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from riemann_unlearn import training
from riemann_unlearn.data import Dataset
from riemann_unlearn.data.batch import LEVELS, make_batch
from riemann_unlearn.evaluation.encoding import encode_images, encode_texts
from riemann_unlearn.losses import AlignmentCalibration, ContrastiveLoss
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.unlearning import create_method, list_methods
from riemann_unlearn.unlearning.methods import DirectMethod, GradientMethod, Method, Problem, Step
from riemann_unlearn.unlearning.methods.nullspace import NullSpace
from riemann_unlearn.unlearning.methods.retrain import Retrain
from tests.conftest import make_model

GRADIENT_METHODS = [method.name for method in list_methods() if issubclass(method, GradientMethod)]


def problem(model: DualEncoder, world: Dataset, *forget: str) -> Problem:
    return Problem(model, world, world.taxonomy.select(forget or ["food-fruit"]))


def step(task: Problem, number: int = 0) -> Step:
    generator = torch.Generator().manual_seed(0)
    indices = torch.arange(len(task.dataset.seen))
    batch = make_batch(task.dataset.seen, indices, task.model.image_size, generator)
    return Step(task, batch, indices, number)


def terms(name: str, task: Problem, settings: dict[str, float] | None = None) -> dict[str, Tensor]:
    method = create_method(name, settings)
    assert isinstance(method, GradientMethod)
    return method.objective(task)(step(task))


@pytest.mark.parametrize("method", list_methods(), ids=lambda method: method.name)
def test_a_method_says_what_it_is(method: type[Method]) -> None:
    assert method.description
    assert method.paper
    assert set(method.geometries) <= {"hyperbolic", "euclidean"}
    assert issubclass(method, (GradientMethod, DirectMethod))
    default = create_method(method.name)
    for field in fields(method):
        low, high = field.metadata["range"]
        assert low <= getattr(default, field.name) <= high
        assert field.metadata["description"]
        with pytest.raises(ValueError, match=f"{method.name}: {field.name} must be in"):
            create_method(method.name, {field.name: type(field.default)(high) * 2})
        with pytest.raises(ValueError, match=f"{method.name}: {field.name} must be a number, got True"):
            create_method(method.name, {field.name: True})


def test_unknown_methods_and_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="no method 'amnesia'; there are: tilt, hac, ac"):
        create_method("amnesia")
    with pytest.raises(ValueError, match="hac has no setting 'strength'; it has: learning_rate, steps"):
        create_method("hac", {"strength": 1})
    with pytest.raises(ValueError, match="hac: steps must be a whole number, got 1"):
        create_method("hac", {"steps": 1.5})


@pytest.mark.parametrize("name", GRADIENT_METHODS)
def test_every_term_has_a_finite_gradient_and_descends(name: str, model: DualEncoder, world: Dataset) -> None:
    """A small step against the gradient of the sum lowers the sum; a method that ascends says so by sign."""
    method = create_method(name)
    if model.geometry not in method.geometries:
        pytest.skip(f"{name} is not for a {model.geometry} model")
    assert isinstance(method, GradientMethod)
    task = problem(model, world)
    objective, weights = method.objective(task), method.parameters(model)
    found = objective(step(task))
    assert all(term.endswith("_loss") for term in found)
    before = torch.stack(list(found.values())).sum()
    gradients = torch.autograd.grad(before, weights, allow_unused=True)
    known = [gradient for gradient in gradients if gradient is not None]
    assert all(gradient.isfinite().all() for gradient in known)
    length = torch.stack([gradient.square().sum() for gradient in known]).sum().sqrt()
    assert length > 0
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                weight -= 1e-4 * gradient / length
    assert torch.stack(list(objective(step(task)).values())).sum() < before


@pytest.mark.parametrize("name", ["hac", "ac"])
def test_calibration_is_summed_over_the_levels_that_forget(
    name: str, meru: DualEncoder, world: Dataset
) -> None:
    one = terms(name, problem(meru, world, "red apple", "banana"))
    two = terms(name, problem(meru, world, "food-fruit"))
    assert one["positive_alignment_loss"] != two["positive_alignment_loss"]


def test_ac_compares_as_the_model_does_or_by_cosine(meru: DualEncoder, world: Dataset) -> None:
    task = problem(meru, world)
    for settings, geometry in (({}, "hyperbolic"), ({"cosine": 1}, "euclidean")):
        expected = step(task).calibrate(AlignmentCalibration(epsilon=0.3, geometry=geometry))
        found = terms("ac", task, settings)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)


@pytest.mark.parametrize("name", ["alpha", "beta", "gamma", "omega", "eta", "entailment_weight"])
def test_every_weight_weighs_its_own_term(name: str, meru: DualEncoder, world: Dataset) -> None:
    term = {
        "alpha": "negative_alignment_loss",
        "beta": "positive_alignment_loss",
        "gamma": "performance_loss",
        "omega": "cone_exit_loss",
        "eta": "norm_loss",
        "entailment_weight": "entailment_loss",
    }[name]
    task = problem(meru, world)
    base = terms("hac", task)
    off = terms("hac", task, {name: 0.0})
    assert off[term].item() == 0.0
    assert base.keys() == off.keys()
    assert all(torch.equal(base[key], off[key]) for key in base if key != term)


def test_retained_pairs_are_contrasted_among_themselves(model: DualEncoder, world: Dataset) -> None:
    one = step(problem(model, world))
    loss = ContrastiveLoss(geometry=model.geometry)
    expected = torch.zeros(())
    for level in LEVELS:
        rows = ~one.forget[level]
        expected = expected + loss(
            one.image_features[rows],
            one.text_features[level][rows],
            logit_scale=model.logit_scale.exp(),
            c=model.curvature,
            caption_ids=one.batch.pairings[level].caption_ids[rows],
        )
    torch.testing.assert_close(one.contrast(retained=True), expected, rtol=1e-4, atol=1e-5)


def test_forgotten_pairs_are_contrasted_with_the_whole_batch(model: DualEncoder, world: Dataset) -> None:
    one = step(problem(model, world))
    scale = model.logit_scale.exp()
    expected = torch.zeros(())
    for level in ("name", "subcategory"):  # their category is retained
        ids = one.batch.pairings[level].caption_ids.tolist()
        rows = one.forget[level].nonzero()[:, 0].tolist()
        logits = scale * model.similarity(one.image_features, one.text_features[level])
        for table in (logits, logits.mT):
            for i in rows:
                others = [j for j in range(len(ids)) if j == i or ids[j] != ids[i]]
                expected = expected + (table[i, others].logsumexp(0) - table[i, i]) / (2 * len(rows))
    torch.testing.assert_close(one.contrast(retained=False), expected, rtol=1e-4, atol=1e-5)


def test_neggrad_plus_weighs_descent_and_ascent(meru: DualEncoder, world: Dataset) -> None:
    task = problem(meru, world)
    found = terms("neggrad-plus", task, {"beta": 0.75})
    assert found["contrastive_loss"] == 0.75 * terms("finetune", task)["contrastive_loss"]
    assert found["ascent_loss"] == 0.25 * terms("gradient-ascent", task)["ascent_loss"]
    assert found["ascent_loss"] < 0 < found["contrastive_loss"]


def test_the_l1_penalty_fades_out(meru: DualEncoder, world: Dataset) -> None:
    task = problem(meru, world)
    method = create_method("l1-sparse", {"steps": 10, "gamma": 0.5})
    assert isinstance(method, GradientMethod)
    objective = method.objective(task)
    norm = sum(p.detach().abs().sum().item() for p in method.parameters(meru))
    for number in (0, 5, 9):
        penalty = objective(step(task, number))["l1_loss"]
        assert penalty.item() == pytest.approx(0.5 * (1 - number / 10) * norm, rel=1e-5)


def test_random_captions_are_those_of_retained_pairs(
    meru: DualEncoder, world: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    real = ContrastiveLoss.forward

    def watched(self: Any, images: Tensor, texts: Tensor, *, caption_ids: Tensor, **rest: Any) -> Any:
        seen.append((texts, caption_ids))
        return real(self, images, texts, caption_ids=caption_ids, **rest)

    monkeypatch.setattr(ContrastiveLoss, "forward", watched)
    task = problem(meru, world)
    one = step(task)
    method = create_method("random-captions")
    assert isinstance(method, GradientMethod)
    method.objective(task)(one)
    for level, (texts, ids) in zip(LEVELS, seen, strict=True):
        forget, gone = one.forget[level], task.forgotten(level)
        assert not gone[ids].any()
        assert torch.equal(texts[~forget], one.text_features[level][~forget])
        assert torch.equal(ids[~forget], one.batch.pairings[level].caption_ids[~forget])


class TestTilt:
    def test_every_setting_weighs_its_own_term(self, model: DualEncoder, world: Dataset) -> None:
        task = problem(model, world)
        base = terms("tilt", task)
        for setting, term in (
            ("retain", "retain_loss"),
            ("target", "target_loss"),
            ("mixing", "mixing_loss"),
        ):
            off = terms("tilt", task, {setting: 0.0})
            assert off[term].item() == 0.0
            assert all(torch.equal(base[key], off[key]) for key in base if key != term)
        assert base["target_loss"] > 0
        less, more = (terms("tilt", task, {"margin": m})["odds_loss"] for m in (8.0, 9.0))
        assert less < more

    def test_the_frozen_model_is_the_target(self, model: DualEncoder, world: Dataset) -> None:
        """At a level where nothing goes, the divergence from what the model said is 0."""
        task = problem(model, world, "owl")
        task.selection.concepts[:] = False
        found = terms("tilt", task)
        assert set(found) == {"retain_loss"}
        assert found["retain_loss"].item() == pytest.approx(0, abs=1e-5)

    def test_the_odds_are_those_of_all_forgotten_captions(self, model: DualEncoder, world: Dataset) -> None:
        task = problem(model, world, "red apple", "banana")
        found = terms("tilt", task, {"margin": 2.0})
        names = encode_texts(model, [concept.name for concept in world.taxonomy.concepts])
        one = step(task)
        share = (model.logit_scale.exp() * model.similarity(one.image_features, names)).softmax(1)
        gone = task.selection.concepts
        odds = share[:, gone].sum(1) / share[:, ~gone].sum(1)
        expected = (2 + odds.log()).relu()[one.forget["name"]].mean()
        torch.testing.assert_close(found["odds_loss"], expected, rtol=1e-4, atol=1e-5)

    def test_the_odds_term_ends_where_the_odds_are_small(self, model: DualEncoder, world: Dataset) -> None:
        task = problem(model, world, "red apple")
        with torch.no_grad():  # every similarity alike: the odds of one caption in eight are 1 to 7
            model.logit_scale.fill_(-30.0)
        assert terms("tilt", task, {"margin": 1.9})["odds_loss"] == 0
        assert terms("tilt", task, {"margin": 2.0})["odds_loss"] > 0

    def test_forgotten_images_are_to_be_no_nearer_to_each_other_than_to_retained_ones(
        self, model: DualEncoder, world: Dataset
    ) -> None:
        task = problem(model, world)
        one = step(task)
        forget = one.forget["name"]
        assert 1 < forget.sum() < len(forget)
        near = (model.logit_scale.exp() * model.similarity(one.image_features, one.image_features)).exp()
        expected = torch.zeros(())
        for i in forget.nonzero()[:, 0].tolist():
            others = forget.clone()
            others[i] = False
            ratio = near[i, others].mean() / near[i, ~forget].mean()
            expected = expected + ratio.log().relu() / forget.sum()
        assert expected > 0
        torch.testing.assert_close(
            terms("tilt", task, {"mixing": 1.0})["mixing_loss"], expected, rtol=1e-3, atol=1e-5
        )

    def test_the_mixing_term_ends_where_images_are_mixed(self, model: DualEncoder, world: Dataset) -> None:
        with torch.no_grad():  # every similarity alike
            model.logit_scale.fill_(-30.0)
        assert terms("tilt", problem(model, world))["mixing_loss"].item() == pytest.approx(0, abs=1e-6)

    def test_only_the_image_tower_moves_behind_its_first_layers(self, model: DualEncoder) -> None:
        tower = [p for p in model.visual.parameters() if p.ndim > 0]
        for share in (0.0, 0.12, 0.5):
            method = create_method("tilt", {"frozen": share})
            assert isinstance(method, GradientMethod)
            moved = method.parameters(model)
            assert all(a is b for a, b in zip(moved, tower[len(tower) - len(moved) :], strict=True))
            held = sum(p.numel() for p in tower[: len(tower) - len(moved)])
            assert held <= share * sum(p.numel() for p in model.visual.parameters()) < held + moved[0].numel()

    def test_the_rate_warms_up_and_ends_near_zero(self) -> None:
        method = create_method("tilt", {"steps": 100})
        assert isinstance(method, GradientMethod)
        rates = [method.rate(n) for n in range(100)]
        assert rates[0] == pytest.approx(0.1)
        assert max(rates) == rates[9]
        assert rates[9:] == sorted(rates[9:], reverse=True)
        assert 0 < rates[-1] < 1e-3


class TestNullSpace:
    @pytest.mark.parametrize("strength", [1.0, 0.4])
    def test_images_lose_the_directions_of_the_forgotten_captions(
        self, model: DualEncoder, world: Dataset, strength: float
    ) -> None:
        task = problem(model, world)
        method = NullSpace(strength=strength)
        basis = method.basis(task).float()
        torch.testing.assert_close(basis.mT @ basis, torch.eye(basis.shape[1]), rtol=0, atol=1e-6)
        forgotten = encode_texts(model, ["red apple", "banana", "cherries", "food fruit"])
        torch.testing.assert_close(forgotten @ basis @ basis.mT, forgotten, rtol=1e-4, atol=1e-5)
        before = raw(model, world)
        texts = encode_texts(model, ["owl"])
        method.apply(task, seed=0, folder=None, progress=False)
        expected = before - strength * before @ basis @ basis.mT
        torch.testing.assert_close(raw(model, world), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(encode_texts(model, ["owl"]), texts)

    def test_the_rank_bounds_the_subspace(self, model: DualEncoder, world: Dataset) -> None:
        assert NullSpace(rank=2).basis(problem(model, world)).shape == (16, 2)
        assert NullSpace(rank=16).basis(problem(model, world)).shape == (16, 4)


def raw(model: DualEncoder, world: Dataset) -> Tensor:
    """What the image tower emits, before any normalization or scale."""
    with torch.no_grad():
        return model.visual(model.preprocess(world.seen.images))  # type: ignore[no-any-return]


def test_a_map_is_folded_into_a_linear_head_too(world: Dataset) -> None:
    model = make_model("CLIP")
    model.visual = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 16))
    before, matrix = raw(model, world), torch.randn(16, 16)
    model.transform_image_features_(matrix)
    torch.testing.assert_close(raw(model, world), before @ matrix.mT, rtol=1e-4, atol=1e-4)
    model.visual = nn.Flatten()
    with pytest.raises(ValueError, match="does not end in a linear layer to 16 features"):
        model.transform_image_features_(matrix)


def test_the_oracle_never_sees_what_it_must_not_know(
    model: DualEncoder, world: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from riemann_unlearn.unlearning.methods import retrain

    given: list[Dataset] = []

    def watched(*arguments: Any, data: Dataset, **rest: Any) -> DualEncoder:
        given.append(data)
        return training.train(*arguments, data=data, **rest)

    monkeypatch.setattr(retrain, "train", watched)
    task = problem(model, world)
    images = encode_images(model, world.seen.images)
    for folder in (tmp_path, None):
        Retrain(epochs=1, batch_size=4).apply(task, seed=0, folder=folder, progress=False)
    for data in given:
        assert set(data.seen.concept.tolist()) == set((~task.selection.concepts).nonzero()[:, 0].tolist())
        assert data.heldout is world.heldout
    assert not torch.equal(encode_images(model, world.seen.images), images)
    assert (tmp_path / "retrain" / "model.safetensors").is_file()
