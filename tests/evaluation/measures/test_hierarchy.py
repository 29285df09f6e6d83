from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from riemann_unlearn.evaluation.measures.hierarchy import Hierarchy
from riemann_unlearn.evaluation.subject import Subject
from riemann_unlearn.geometry import tangent
from tests.evaluation.worlds import subject


def made() -> Subject:
    """Two rays: food and animals. On each a category, subcategories, names and images, outwards."""
    food, animals = torch.eye(2, 4)
    rays = torch.stack([food, food, food, animals, animals])
    captions = (1.5 * rays, torch.stack([food, food, animals]), 0.5 * torch.stack([food, animals]))
    images = 2.0 * rays
    images[4] = -2.0 * animals  # a duck on the far side of the origin
    part = (torch.arange(5), images)
    return subject(["fruit"], part, part, architecture="MERU", features=captions)


def test_radii_are_in_units_of_the_curvature_radius() -> None:
    one = made()
    with torch.no_grad():
        one.model.log_curvature.fill_(torch.tensor(4.0).log())  # type: ignore[operator, union-attr]
    got = Hierarchy().compute(one, {})
    assert got["radii"]["image"]["forget"] == pytest.approx([4.0] * 5)
    assert got["radii"]["category"] == {"forget": None, "retain": pytest.approx([1.0] * 5)}


def test_what_lies_outwards_on_the_ray_is_inside_the_cone() -> None:
    got = Hierarchy().compute(made(), {})
    inside = {"share": 0.0, "pairs": 2, "excess": 0.0}
    for pair in ("image under name", "image under category", "name under subcategory"):
        assert got["violations"][pair]["forget"] == inside
    # Of the three retained images the duck is on the wrong side, at an angle of π.
    wrong = got["violations"]["image under name"]["retain"]
    assert wrong["share"] == pytest.approx(1 / 3)
    assert wrong["excess"] > 0.9
    assert got["violations"]["image under name"]["forget"] == inside


def test_the_way_to_the_origin_goes_up_the_hierarchy() -> None:
    got = Hierarchy().compute(made(), {})
    ways = {way["name"]: way for way in got["traversals"]}
    assert set(ways) == {"red apple", "banana", "coffee"}
    assert ways["red apple"]["group"] == "forget"
    assert ways["coffee"]["group"] == "neighbours"
    met = [caption for caption, _ in ways["red apple"]["by_cone"]]
    assert met == ["red apple", "fruit", "food", None]
    shares = [share for _, share in ways["red apple"]["by_cone"]]
    # From 2 to the name at 1.5, to the subcategory at 1, to the category at 0.5, to the origin.
    assert shares == pytest.approx([0.25] * 4, abs=0.021)  # one step of fifty
    by_distance = ways["red apple"]["by_distance"]
    assert [caption for caption, _ in by_distance] == ["red apple", "fruit", "food", None]
    assert by_distance[0][1] == pytest.approx(0.375, abs=0.021)  # to the middle between 1.5 and 1
    picture = Image.open(io.BytesIO(base64.b64decode(ways["coffee"]["image"].partition(",")[2])))
    one = made()
    assert one.heldout is not None
    assert (
        np.array(picture) == one.heldout.samples.images[torch.tensor([2])][0].permute(1, 2, 0).numpy()
    ).all()


def test_a_euclidean_model_has_no_radii() -> None:
    part = (torch.arange(5), torch.eye(5))
    one = subject(["fruit"], part, part)
    assert Hierarchy().unmet(one, {}) == "the model's space (cosine) has no entailment cones"
    assert Hierarchy().unmet(made(), {}) is None


def test_the_cones_are_as_wide_as_the_model_says() -> None:
    """K = 1: cones are half spaces as far as sinh r = 2, and what lies beside its caption is inside."""
    one = made()
    assert one.heldout is not None
    beside = one.heldout.features.clone()
    beside[0] = beside[0].roll(2)  # at a right angle: outside a cone of K = 0.1
    one = replace(one, heldout=replace(one.heldout, features=beside))
    narrow = Hierarchy().compute(one, {})["violations"]["image under category"]["forget"]["share"]
    one.model.config["space"]["min_radius"] = 1.0
    broad = Hierarchy().compute(one, {})
    c, image = torch.tensor(1.0), beside[:2]
    captions = one.captions[2].features[[0, 0]]
    outside = tangent.exterior_angle(captions, image, c) - tangent.half_aperture(captions, c, min_radius=1.0)
    got = broad["violations"]["image under category"]["forget"]
    assert narrow == 0.5
    assert got["excess"] == pytest.approx(outside.clamp(min=0).mean().item(), abs=1e-6)
    assert got["share"] == (outside > 0).double().mean()
