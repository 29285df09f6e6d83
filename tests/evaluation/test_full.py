from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from riemann_unlearn.data import Dataset
from riemann_unlearn.evaluation import evaluate, full_audit
from riemann_unlearn.evaluation import full as full_module
from riemann_unlearn.models import DualEncoder
from tests.conftest import make_model

FAMILIES = {
    "zero_shot",
    "retrieval",
    "paraphrase",
    "over_unlearning",
    "recovery",
    "relearning",
    "membership",
    "alignment",
    "hierarchy",
}


def other(model: DualEncoder) -> DualEncoder:
    """The model with moved weights."""
    moved = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in moved.parameters():
            if parameter.ndim > 0:
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return moved


@pytest.fixture(scope="module")
def report(world: Dataset) -> dict[str, Any]:
    before = make_model("MERU")
    models = {"oracle": other(other(before)), "after": other(before), "before": before}
    return full_audit(models, world, world.taxonomy.select(["food-fruit"]))


def test_every_measure_of_every_model_is_there(report: dict[str, Any]) -> None:
    assert set(report) == FAMILIES | {"seconds", "neighbours"}
    assert set(report["seconds"]) == FAMILIES | {"encode"}
    assert report["neighbours"] == ["drink"]
    for family in FAMILIES:
        assert list(report[family]) == ["before", "after", "oracle"]
        assert all(value is not None for value in report[family].values())
    assert json.loads(json.dumps(report)) == json.loads(json.dumps(report, allow_nan=False))


def test_a_measure_against_a_reference_is_only_made_against_another(report: dict[str, Any]) -> None:
    assert report["over_unlearning"]["before"] == 0.0
    assert report["over_unlearning"]["after"] > 0.0
    assert "gap" not in report["alignment"]["before"]
    assert "gap" in report["alignment"]["oracle"]
    assert "likelihood_ratio" not in report["membership"]["oracle"]
    assert "likelihood_ratio" in report["membership"]["before"]


def test_the_audit_repeats_itself_and_leaves_the_model_alone(
    world: Dataset, model: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("riemann_unlearn.evaluation.membership.RESAMPLES", 20)
    weights = copy.deepcopy(model.state_dict())
    reports = []
    for _ in range(2):
        found = evaluate(model, world, forget="owl", audit="full", before=model, seed=3)
        del found["full_audit"]["seconds"]
        reports.append(found)
    assert reports[0] == reports[1]
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    full = reports[0]["full_audit"]
    # The model against itself: nothing was lost.
    assert full["over_unlearning"]["after"] == 0.0
    assert full["alignment"]["after"]["forgetting_score"] == 0.0
    assert full["zero_shot"]["after"]["heldout"]["retain"] == reports[0]["heldout"]["retain"]
    assert full["paraphrase"]["after"] == reports[0]["audit"]["paraphrase"]
    assert (full["hierarchy"]["after"] is None) == (model.geometry == "euclidean")


def test_without_held_out_images_what_needs_them_is_left_out(
    world: Dataset, meru: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("riemann_unlearn.evaluation.relearning.STEPS", (1,))
    found = full_audit({"after": meru}, replace(world, heldout=None), world.taxonomy.select(["owl"]))
    assert found["recovery"]["after"] is None
    assert found["membership"]["after"] is None
    assert found["over_unlearning"]["after"] is None  # no untouched model
    assert list(found["zero_shot"]["after"]) == ["seen"]
    assert found["relearning"]["after"]["shots"] == [1, 2]


def test_of_many_seen_images_some_are_taken(
    world: Dataset, meru: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from riemann_unlearn.evaluation.encoded import encode

    monkeypatch.setattr("riemann_unlearn.evaluation.encoded.MOST_SEEN", 4)
    selection = world.taxonomy.select(["owl"])
    given = encode(meru, world, selection, torch.arange(16.0)[:, None].expand(-1, 16))
    assert given.seen_features[:, 0].tolist() == [2, 6, 10, 14]
    assert given.seen.concept.tolist() == world.seen.concept[[2, 6, 10, 14]].tolist()
    assert encode(meru, world, selection).seen_features.shape == (4, 16)


def test_models_that_cannot_be_compared_are_refused(world: Dataset, meru: DualEncoder) -> None:
    selection = world.taxonomy.select(["owl"])
    with pytest.raises(ValueError, match=r"'after' among .*; got \['before'\]"):
        full_audit({"before": meru}, world, selection)
    with pytest.raises(ValueError, match="got \\['after', 'later'\\]"):
        full_audit({"after": meru, "later": meru}, world, selection)
    with pytest.raises(ValueError, match="must share a geometry"):
        full_audit({"after": meru, "oracle": make_model("CLIP")}, world, selection)


def test_a_request_that_cannot_be_met_is_refused_at_once(
    world: Dataset, meru: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="audit must be 'quick' or 'full', got 'long'"):
        evaluate(meru, world, forget="owl", audit="long")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="belong to the full audit"):
        evaluate(meru, world, forget="owl", oracle=meru)
    monkeypatch.setattr(full_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs scikit-learn: pip install 'riemann-unlearn\[audit\]'"):
        evaluate(meru, world, forget="owl", audit="full")
