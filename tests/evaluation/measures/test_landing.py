from __future__ import annotations

import json

import pytest
import torch

from riemann_unlearn.evaluation.measures.landing import Landing
from riemann_unlearn.evaluation.subject import Subject
from tests.evaluation.worlds import subject

FOOD, FRUIT, DRINK, ANIMAL = torch.eye(4)


def made(*apples: torch.Tensor) -> Subject:
    """Categories at 0.3, their subcategories a little aside at 0.8, names on the same rays at 1.2.

    K is 0.1: at 0.3 a cone has a half aperture of 41 degrees, at 0.8 of 13 degrees.
    """
    fruit, drink = FOOD + 0.3 * FRUIT, FOOD + 0.3 * DRINK
    fruit, drink = fruit / fruit.norm(), drink / drink.norm()
    names = 1.2 * torch.stack([fruit, fruit, drink, ANIMAL, ANIMAL])
    captions = (names, 0.8 * torch.stack([fruit, drink, ANIMAL]), 0.3 * torch.stack([FOOD, ANIMAL]))
    kept = torch.stack([2.0 * drink, 2.0 * ANIMAL])
    part = (torch.tensor([0] * len(apples) + [2, 3]), torch.cat([torch.stack(apples), kept]))
    return subject(["fruit"], part, part, architecture="MERU", features=captions)


def ray(of: torch.Tensor, aside: torch.Tensor) -> torch.Tensor:
    direction = of + 0.3 * aside
    return direction / direction.norm()


HOME = 2.0 * ray(FOOD, FRUIT)
SIBLING = 2.0 * ray(FOOD, DRINK)
GENERALIZED = 2.0 * FOOD
FOREIGN = 2.0 * ANIMAL
NOWHERE = -2.0 * FOOD


@pytest.mark.parametrize(
    ("apple", "expected", "steps"),
    [
        # The name's cone holds it: one edge below the subcategory.
        (HOME, {"own": 1, "parent": 1, "sibling": 0, "foreign": 0, "landed": 0, "wrong": 0}, 1),
        # coffee, drink, food, fruit: three edges.
        (SIBLING, {"own": 0, "parent": 1, "sibling": 1, "foreign": 0, "landed": 0, "wrong": 0.5}, 3),
        (GENERALIZED, {"own": 0, "parent": 1, "sibling": 0, "foreign": 0, "landed": 1, "wrong": 0}, 1),
        # owl, bird, animals, above both, food, fruit: five edges.
        (FOREIGN, {"own": 0, "parent": 0, "sibling": 0, "foreign": 1, "landed": 0, "wrong": 0.5}, 5),
        # above the topmost level, food, fruit.
        (NOWHERE, {"own": 0, "parent": 0, "sibling": 0, "foreign": 0, "landed": 0, "wrong": 0}, 2),
    ],
    ids=["home", "sibling", "generalized", "foreign", "nowhere"],
)
def test_where_an_image_lies(apple: torch.Tensor, expected: dict[str, float], steps: float) -> None:
    got = Landing().compute(made(apple), {})
    assert (got["level"], got["above"]) == ("subcategory", "category")
    for what in ("seen images", "held-out images"):
        figures = got["parts"][what]["forget"]
        assert {key: figures[key] for key in expected} == pytest.approx(expected)
        assert figures["steps"] == steps
        assert figures["radius"] == pytest.approx(2.0)
        assert figures["images"] == 1


def test_shares_are_means_over_the_forgotten_images() -> None:
    got = Landing().compute(made(HOME, GENERALIZED, GENERALIZED, SIBLING), {})
    figures = got["parts"]["seen images"]["forget"]
    assert (figures["own"], figures["landed"], figures["sibling"]) == (0.25, 0.5, 0.25)
    neighbours = got["parts"]["seen images"]["neighbours"]
    assert (neighbours["images"], neighbours["own"]) == (1, 1.0)


def test_cones_are_as_wide_as_the_model_says() -> None:
    one = made(GENERALIZED)
    one.model.config["space"]["min_radius"] = 0.3
    assert Landing().compute(one, {})["parts"]["seen images"]["forget"]["own"] == 1.0


def test_at_the_topmost_level_there_is_no_parent() -> None:
    one = made(HOME)
    selection = one.taxonomy.select(["animals"])
    part = one.seen.__class__(one.seen.samples, one.seen.features, selection, one.seen.what)
    got = Landing().compute(one.__class__(one.model, selection, part, None, one.captions), {})
    figures = got["parts"]["seen images"]["forget"]
    assert got["above"] is None
    assert figures["own"] == 1.0
    # The root's cone holds everything, so it landed if no category's holds it.
    assert figures["parent"] is figures["foreign"] is None
    assert (figures["sibling"], figures["landed"]) == (0.0, 0.0)
    row = Landing().rows(got)["forget, seen images: in the cone of no category there, %"]
    assert row.startswith("0.0 ")
    assert "neighbours, seen images" not in " ".join(Landing().rows(got))
    assert Landing().figure({"after": got}) is None


def test_where_all_of_a_label_goes_its_own_level_is_left() -> None:
    """With fruit and drink food itself is gone: to be in its cone is not to have landed."""
    one = made(GENERALIZED)
    selection = one.taxonomy.select(["fruit", "drink"])
    part = one.seen.__class__(one.seen.samples, one.seen.features, selection, one.seen.what)
    got = Landing().compute(one.__class__(one.model, selection, part, None, one.captions), {})
    assert (got["level"], got["above"]) == ("category", None)
    # The image on the axis of food, and the one of a drink.
    assert got["parts"]["seen images"]["forget"]["own"] == 1.0
    assert got["parts"]["seen images"]["forget"]["landed"] == 0.0


def test_it_needs_cones_and_forgotten_images() -> None:
    part = (torch.tensor([2, 3]), torch.eye(2, 4))
    assert "no entailment cones" in str(Landing().unmet(subject(["fruit"], part, None), {}))
    hyperbolic = subject(["fruit"], part, None, architecture="MERU")
    assert Landing().unmet(hyperbolic, {}) == "no image shows what is forgotten"
    assert Landing().unmet(made(HOME), {}) is None
    assert Landing().on(made(HOME)) == "seen images and held-out images"


def test_rows_and_picture_are_made_from_json() -> None:
    got = {role: Landing().compute(made(apple), {}) for role, apple in (("before", HOME), ("after", SIBLING))}
    got = json.loads(json.dumps(got))
    rows = Landing().rows(got["after"])
    assert rows["forget, seen images: in the cone of another subcategory of its category, %"].startswith(
        "100.0 ["
    )
    assert rows["forget, seen images: steps in the tree to the deepest cone"] == "3.00"
    picture = got["after"]["picture"]
    assert (picture["parent"], picture["label"]) == ("food", "fruit")
    # The parent's axis is straight up, the forgotten label to its one side.
    assert picture["parent_at"][0] == pytest.approx([0.3, 0.0], abs=1e-6)
    assert picture["label_at"][0][1] > 0
    figure = Landing().figure(got)
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == ["before", "after"]
