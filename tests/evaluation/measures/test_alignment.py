from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from riemann_unlearn.data import Dataset
from riemann_unlearn.evaluation.measures.alignment import Alignment
from riemann_unlearn.evaluation.subject import encode
from riemann_unlearn.geometry import tangent
from tests.conftest import make_model
from tests.evaluation.worlds import subject


def test_the_score_is_what_the_matched_pairs_lost() -> None:
    concept = torch.arange(5)
    after = torch.eye(5)
    after[:2] = normalize(torch.ones(2, 5), dim=-1)  # the fruit resembles everything alike
    before = subject(["fruit"], (concept, torch.eye(5)), (concept, torch.eye(5)))
    one = subject(["fruit"], (concept, after), (concept, after))
    got = Alignment().compute(one, {"before": before})
    assert got["captions"] == ["red apple", "banana", "coffee"]  # two forgotten, and their neighbour
    assert got["forgotten"] == 2
    level = 1 / 5**0.5
    assert got["matrix"][0] == pytest.approx([level] * 3, abs=1e-4)
    assert got["gap"][0] == pytest.approx([1 - level, -level, -level], abs=1e-4)
    assert got["gap"][2] == pytest.approx([0, 0, 0])
    assert got["forgetting_score"] == pytest.approx(1 - level)
    assert got["negative_gap"] == pytest.approx(-level)
    assert got["retain_gap"] == 0.0


def test_a_hyperbolic_similarity_is_in_units_of_the_curvature_radius(world: Dataset) -> None:
    model = make_model("MERU")
    with torch.no_grad():
        model.log_curvature.fill_(1.0)
    got = Alignment().compute(encode(model, world, world.taxonomy.select(["owl"])), {})
    assert "gap" not in got
    assert got["captions"] == ["owl", "duck"]
    assert world.heldout is not None
    owl = [c.name for c in world.taxonomy.concepts].index("owl")
    image = model.encode_image(model.preprocess(world.heldout.images[world.heldout.concept == owl]))
    text = model.encode_text(model.tokenize(["owl"]))
    expected = -(model.curvature.sqrt() * tangent.dist(image, text, model.curvature)).item()
    assert got["matrix"][0][0] == pytest.approx(expected, abs=1e-4)  # rounded to four places


def test_one_concept_has_no_unmatched_pairs_and_none_no_matrix() -> None:
    concept = torch.arange(4)
    part = (concept, torch.eye(4, 5))
    before, after = subject(["coffee"], part, part), subject(["coffee"], part, part)
    got = Alignment().compute(after, {"before": before})
    assert got["negative_gap"] is None
    assert "forgotten" in (Alignment().unmet(subject(["duck"], part, part), {}) or "")
    three = subject(["red apple", "banana", "coffee", "owl"], part, part)
    assert "retained" in (Alignment().unmet(three, {}) or "")
    assert Alignment().unmet(before, {}) is None
