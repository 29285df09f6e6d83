from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from riemann_unlearn.evaluation.encoded import Encoded
from riemann_unlearn.evaluation.hierarchy import hierarchy
from tests.evaluation.worlds import subject


def made() -> Encoded:
    """Two rays: food and animals. On each a category, subcategories, names and images, outwards."""
    food, animals = torch.eye(2, 4)
    rays = torch.stack([food, food, food, animals, animals])
    captions = (1.5 * rays, torch.stack([food, food, animals]), 0.5 * torch.stack([food, animals]))
    images = 2.0 * rays
    images[4] = -2.0 * animals  # a duck on the far side of the origin
    part = (torch.arange(5), images)
    return subject(["fruit"], part, part, architecture="MERU", captions=captions)


def test_radii_are_in_units_of_the_curvature_radius() -> None:
    one = made()
    with torch.no_grad():
        one.model.log_curvature.fill_(torch.tensor(4.0).log())  # type: ignore[operator, union-attr]
    found = hierarchy(one)
    assert found is not None
    assert found["radii"]["image"]["forget"] == pytest.approx([4.0] * 5)
    assert found["radii"]["category"] == {"forget": None, "retain": pytest.approx([1.0] * 5)}


def test_what_lies_outwards_on_the_ray_is_inside_the_cone() -> None:
    found = hierarchy(made())
    assert found is not None
    inside = {"share": 0.0, "excess": 0.0}
    for pair in ("image under name", "image under category", "name under subcategory"):
        assert found["violations"][pair]["forget"] == inside
    # Of the three retained images the duck is on the wrong side, at an angle of π.
    wrong = found["violations"]["image under name"]["retain"]
    assert wrong["share"] == pytest.approx(1 / 3)
    assert wrong["excess"] > 0.9
    assert found["violations"]["image under name"]["forget"] == inside


def test_the_way_to_the_origin_goes_up_the_hierarchy() -> None:
    found = hierarchy(made())
    assert found is not None
    ways = {way["name"]: way for way in found["traversals"]}
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
    assert (np.array(picture) == one.heldout.images[2].permute(1, 2, 0).numpy()).all()


def test_a_euclidean_model_has_no_radii() -> None:
    part = (torch.arange(5), torch.eye(5))
    assert hierarchy(subject(["fruit"], part, part)) is None
