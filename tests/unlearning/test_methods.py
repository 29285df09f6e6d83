from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from riemann_unlearn.models import DualEncoder
from riemann_unlearn.unlearning import create_method, list_methods
from riemann_unlearn.unlearning.methods import Method, Step


@pytest.mark.parametrize("method", list_methods(), ids=lambda method: method.name)
def test_a_method_says_what_it_is(method: type[Method]) -> None:
    assert method.description
    assert method.paper
    assert set(method.geometries) <= {"hyperbolic", "euclidean"}
    default = create_method(method.name)
    for field in fields(method):  # type: ignore[arg-type]
        low, high = field.metadata["range"]
        assert low <= getattr(default, field.name) <= high
        assert field.metadata["description"]
        with pytest.raises(ValueError, match=f"{method.name}: {field.name} must be in"):
            create_method(method.name, {field.name: type(field.default)(high) * 2})
        with pytest.raises(ValueError, match=f"{method.name}: {field.name} must be a number, got True"):
            create_method(method.name, {field.name: True})


def test_unknown_methods_and_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="no method 'amnesia'; there are: hac, ac"):
        create_method("amnesia")
    with pytest.raises(ValueError, match="hac has no setting 'strength'; it has: learning_rate, steps"):
        create_method("hac", {"strength": 1})
    with pytest.raises(ValueError, match="hac: steps must be a whole number, got 1"):
        create_method("hac", {"steps": 1.5})


def step(model: DualEncoder, **forget: bool) -> Step:
    generator = torch.Generator().manual_seed(0)
    levels = ("name", "subcategory", "category")
    return Step(
        model=model,
        image_features=torch.randn(4, 16, generator=generator),
        text_features={level: torch.randn(4, 16, generator=generator) for level in levels},
        caption_ids={level: torch.arange(4) for level in levels},
        forget={level: torch.tensor([forget.get(level, False)] * 2 + [False] * 2) for level in levels},
    )


def test_terms_are_summed_over_the_levels_that_forget(model: DualEncoder) -> None:
    for method in list_methods():
        if model.geometry not in method.geometries:
            continue
        one = create_method(method.name).terms(step(model, name=True))
        two = create_method(method.name).terms(step(model, name=True, subcategory=True))
        none = create_method(method.name).terms(step(model))
        assert one["positive_alignment_loss"] != two["positive_alignment_loss"]
        assert none["positive_alignment_loss"].item() == 0.0
        assert all(name.endswith("_loss") for name in one)


@pytest.mark.parametrize("name", ["alpha", "beta", "gamma", "omega", "eta", "entailment_weight"])
def test_every_weight_weighs_its_own_term(name: str, meru: DualEncoder) -> None:
    term = {
        "alpha": "negative_alignment_loss",
        "beta": "positive_alignment_loss",
        "gamma": "performance_loss",
        "omega": "cone_exit_loss",
        "eta": "norm_loss",
        "entailment_weight": "entailment_loss",
    }[name]
    inputs = step(meru, name=True, subcategory=True)
    base = create_method("hac").terms(inputs)
    off = create_method("hac", {name: 0.0}).terms(inputs)
    assert off[term].item() == 0.0
    assert base.keys() == off.keys()
    assert all(torch.equal(base[key], off[key]) for key in base if key != term)
