from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import riemann_unlearn as ru
from riemann_unlearn import training
from riemann_unlearn.data import Concept, Dataset
from riemann_unlearn.data.batch import make_batch
from riemann_unlearn.evaluation.features import encode_images, encode_texts
from riemann_unlearn.losses import AlignmentCalibration, ContrastiveLoss
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.spaces import Cosine
from riemann_unlearn.unlearning import DirectMethod, GradientMethod, Method, Problem, Step, create_method
from riemann_unlearn.unlearning.methods import METHODS, NullSpace, Retrain, Tilt, setting
from tests.conftest import make_model
from tests.evaluation.worlds import dataset

# Benchmarks register some too.
OURS = [
    method
    for method in METHODS.values()
    if isinstance(method, type) and method.__module__.startswith("riemann_unlearn.")
]


def problem(model: DualEncoder, world: Dataset, *forget: str) -> Problem:
    return Problem(model, world, world.taxonomy.select(forget or ["food-fruit"]))


def step(task: Problem, number: int = 0) -> Step:
    generator = torch.Generator().manual_seed(0)
    indices = torch.arange(len(task.dataset.seen))
    batch = make_batch(task.dataset.seen, indices, task.model.image_size, generator)
    return Step(task, batch, number)


def terms(name: str, task: Problem, settings: dict[str, float] | None = None) -> dict[str, Tensor]:
    method = create_method(name, settings)
    assert isinstance(method, GradientMethod)
    return dict(method.objective(task)(step(task)))


@pytest.mark.parametrize("method", OURS, ids=lambda method: method.name)
def test_a_method_says_what_it_is(method: type[Method]) -> None:
    assert method.description
    assert method.paper
    assert issubclass(method, (GradientMethod, DirectMethod))
    default = create_method(method.name)
    for entry in fields(method):
        low, high = entry.metadata["range"]
        assert low <= getattr(default, entry.name) <= high
        assert entry.metadata["description"]
        with pytest.raises(ValueError, match=f"{method.name}: {entry.name} must be in"):
            create_method(method.name, {entry.name: type(entry.default)(high) * 2})
        with pytest.raises(ValueError, match=f"{method.name}: {entry.name} must be a number, got True"):
            create_method(method.name, {entry.name: True})


def test_unknown_methods_and_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="no method 'amnesia'; There are: tilt, generalize, hac"):
        create_method("amnesia")
    with pytest.raises(ValueError, match="no method 'tild'; did you mean 'tilt'"):
        create_method("tild")
    with pytest.raises(ValueError, match="hac has no setting 'strength'; It has: learning_rate, steps"):
        create_method("hac", {"strength": 1})
    with pytest.raises(ValueError, match="hac has no setting 'alhpa'; did you mean 'alpha'"):
        create_method("hac", {"alhpa": 1})
    with pytest.raises(ValueError, match="hac: steps must be a whole number, got 1"):
        create_method("hac", {"steps": 1.5})


def test_a_class_and_an_instance_go_where_a_name_goes() -> None:
    assert create_method(Tilt) == create_method("tilt") == Tilt()
    assert create_method(Tilt, {"steps": 5}) == Tilt(steps=5)
    mine = Tilt(steps=7)
    assert create_method(mine) is mine
    with pytest.raises(TypeError, match=r"settings are the instance's own; give them to Tilt\(\.\.\.\)"):
        create_method(mine, {"steps": 5})
    for other in (7, dict, Problem):
        with pytest.raises(TypeError, match="expected the name of a method, a subclass"):
            create_method(other)  # type: ignore[arg-type]


def test_a_method_from_outside_is_registered_as_a_class_or_as_an_instance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._loaded()))

    @dataclass(frozen=True)
    class Named(DirectMethod):
        name = "named"
        note: str = "any value: it is no setting()"
        strength: float = setting(1.0, 0, 1, "how much")

        def apply(self, problem: Problem, **_: Any) -> None: ...

    ru.register(Named)
    assert create_method("named", {"note": "mine"}) == Named(note="mine")
    assert ru.list_methods()[-1] is Named

    @ru.register
    @dataclass(frozen=True)
    class Needy(Named):
        name = "needy"
        amount: int = field(kw_only=True)

    with pytest.raises(ValueError, match="needy has no default for 'amount'; give it in settings"):
        create_method("needy")
    ready = replace(Needy(amount=3), note="ready")
    monkeypatch.setattr(Needy, "name", "ready")
    ru.register(ready)
    assert create_method("ready") is ready
    assert create_method("ready", {"strength": 0.5}) == replace(ready, strength=0.5)


def test_hac_needs_cones(world: Dataset) -> None:
    hac = create_method("hac")
    assert hac.unmet(problem(make_model("MERU"), world)) is None
    assert "needs a model whose space has entailment cones" in str(
        hac.unmet(problem(make_model("CLIP"), world))
    )
    assert create_method("ac").unmet(problem(make_model("CLIP"), world)) is None


@pytest.mark.parametrize("name", ["hac", "ac"])
def test_calibration_is_summed_over_the_levels_that_forget(
    name: str, meru: DualEncoder, world: Dataset
) -> None:
    one = terms(name, problem(meru, world, "red apple", "banana"))
    two = terms(name, problem(meru, world, "food-fruit"))
    assert one["positive_alignment_loss"] != two["positive_alignment_loss"]


def test_ac_compares_as_the_model_does_or_by_cosine(meru: DualEncoder, world: Dataset) -> None:
    task = problem(meru, world)
    cosine = Cosine(scale=meru.space.scale)
    for settings, space in (({}, meru.space), ({"cosine": 1}, cosine)):
        expected = step(task).calibrate(AlignmentCalibration(0.1, 0.05, 0.05), space)
        found = terms("ac", task, settings)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)


@pytest.mark.parametrize("name", ["hac", "ac"])
def test_settings_of_another_unit_are_not_misread(name: str) -> None:
    """Those from before the weights were in logits, every file of which has epsilon."""
    with pytest.raises(ValueError, match="no setting 'epsilon' any more: alpha and beta are in logits now"):
        create_method(name, {"epsilon": 1.0, "alpha": 1.0, "beta": 1.0, "gamma": 0.01})


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
    loss = ContrastiveLoss(space=model.space)
    expected = torch.zeros(())
    for level in range(3):
        rows = ~one.forget[level]
        expected = expected + loss(
            one.image_features[rows], one.text_features[level][rows], caption_ids=one.caption_ids[level][rows]
        )
    torch.testing.assert_close(one.contrast(retained=True), expected, rtol=1e-4, atol=1e-5)


def test_forgotten_pairs_are_contrasted_with_the_whole_batch(model: DualEncoder, world: Dataset) -> None:
    one = step(problem(model, world))
    expected = torch.zeros(())
    for level in (0, 1):  # what is above them is retained
        ids = one.caption_ids[level].tolist()
        rows = one.forget[level].nonzero()[:, 0].tolist()
        logits = model.space.logits(one.image_features, one.text_features[level])
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
    for level, (texts, ids) in enumerate(seen):
        forget, gone = one.forget[level], task.forgotten(level)
        assert not gone[ids].any()
        assert torch.equal(texts[~forget], one.text_features[level][~forget])
        assert torch.equal(ids[~forget], one.caption_ids[level][~forget])
    assert len(seen) == 3


class TestTilt:
    def test_every_setting_weighs_its_own_term(self, model: DualEncoder, world: Dataset) -> None:
        task = problem(model, world)
        base = terms("tilt", task)
        for name, term in (
            ("retain", "retain_loss"),
            ("target", "target_loss"),
            ("mixing", "mixing_loss"),
        ):
            off = terms("tilt", task, {name: 0.0})
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
        assert set(found) == {"retain_loss", "stay_loss"}
        assert [value.item() for value in found.values()] == pytest.approx([0, 0], abs=1e-5)

    def test_the_odds_are_those_of_all_forgotten_captions(self, model: DualEncoder, world: Dataset) -> None:
        task = problem(model, world, "red apple", "banana")
        found = terms("tilt", task, {"margin": 2.0})
        names = encode_texts(model, [concept.name for concept in world.taxonomy.concepts])
        one = step(task)
        share = model.space.logits(one.image_features, names).softmax(1)
        gone = task.selection.concepts
        odds = share[:, gone].sum(1) / share[:, ~gone].sum(1)
        expected = (2 + odds.log()).relu()[one.forget[0]].mean()
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
        forget = one.forget[0]
        assert 1 < forget.sum() < len(forget)
        near = model.space.logits(one.image_features, one.image_features).exp()
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


def test_the_oracle_of_a_tree_is_retrained_from_the_first_stage_on(
    meru: DualEncoder, world: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second stage begins with its own first one, and an interrupted one does not repeat it."""
    from riemann_unlearn.unlearning.methods import retrain

    configs: list[Any] = []

    def watched(model: Any, config: Any, *arguments: Any, **rest: Any) -> DualEncoder:
        configs.append(config)
        if len(configs) == 3:
            raise KeyboardInterrupt
        return training.train(model, config, *arguments, **rest)

    monkeypatch.setattr(retrain, "train", watched)
    task = problem(meru, world)
    method = Retrain(
        epochs=1, batch_size=8, more_epochs=3, tree_epochs=2, tree_head_epochs=1, tree_learning_rate=1e-4
    )
    with pytest.raises(KeyboardInterrupt):
        method.apply(task, seed=0, folder=tmp_path, progress=False)
    method.apply(task, seed=0, folder=tmp_path, progress=False)
    assert [(c.objective, c.epochs, c.learning_rate) for c in configs] == [
        ("contrastive", 1, 1e-3),
        ("contrastive", 3, 1e-3),
        ("tree", 2, 1e-4),
        ("tree", 2, 1e-4),
    ]
    first, more = (str(tmp_path / name / "model.safetensors") for name in ("retrain", "retrain-more"))
    assert [c.start for c in configs] == [None, first, more, more]
    assert (tmp_path / "retrain-tree" / "model.safetensors").is_file()
    one_level = dataset([Concept("1", "owl"), Concept("2", "duck")])
    flat = problem(meru, one_level, "owl")
    assert "a level above the concepts" in (method.unmet(flat) or "")
    assert method.unmet(task) is Retrain().unmet(flat) is None
    assert "set them lower" in (Retrain(tree_epochs=5, tree_head_epochs=5).unmet(task) or "")
