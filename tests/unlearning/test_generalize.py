from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import relu

from riemann_unlearn.data import Dataset
from riemann_unlearn.evaluation.features import encode_images, encode_texts
from riemann_unlearn.evaluation.measures.landing import Landing
from riemann_unlearn.geometry import tangent
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.testing.methods import small_model, small_world
from riemann_unlearn.unlearning import Problem, create_method
from riemann_unlearn.unlearning.methods import Generalize, Tilt, generalize
from riemann_unlearn.unlearning.methods.generalize import Home
from tests.evaluation.measures.test_landing import (
    ANIMAL,
    DRINK,
    FOOD,
    FOREIGN,
    FRUIT,
    GENERALIZED,
    HOME,
    NOWHERE,
    SIBLING,
    made,
    ray,
)
from tests.unlearning.test_methods import problem, step, terms

CHILDREN = 0.8 * torch.stack([ray(FOOD, FRUIT), ray(FOOD, DRINK)])
FOODS = Home(torch.tensor([True]), 0.3 * FOOD[None], CHILDREN, (1.0, 3.0), min_radius=0.1, clearance=0.1)


@pytest.mark.parametrize("point", [HOME, SIBLING, GENERALIZED, FOREIGN, NOWHERE])
def test_the_zone_is_where_the_audit_says_that_an_image_landed(point: Tensor) -> None:
    landed = Landing().compute(made(point), {})["parts"]["seen images"]["forget"]["landed"]
    assert (FOODS.excess(point[None]).item() == 0) == (landed == 1)


@pytest.mark.parametrize("point", [HOME, SIBLING, FOREIGN, 4 * FOOD, 0.5 * FOOD])
def test_the_excess_is_what_every_bound_is_missed_by(point: Tensor) -> None:
    def excess(apex: Tensor, inside: int) -> Tensor:
        aperture = tangent.half_aperture(apex, 1.0, 0.1)
        outside = tangent.exterior_angle(apex, point, 1.0) - aperture
        return relu(inside * outside + 0.1 * aperture)

    r = point.norm()
    expected = (
        excess(0.3 * FOOD, 1) + sum(excess(child, -1) for child in CHILDREN) + relu(r - 3) + relu(1 - r)
    )
    torch.testing.assert_close(FOODS.excess(point[None])[0], expected, check_dtype=False)


def test_the_root_holds_everything() -> None:
    rooted = replace(FOODS, parent=None)
    assert rooted.excess(torch.stack([FOREIGN, NOWHERE, GENERALIZED])).tolist() == [0, 0, 0]
    assert rooted.excess(SIBLING[None]) > 0


def test_descending_it_leads_into_the_zone_from_anywhere() -> None:
    points = torch.stack([HOME, SIBLING, FOREIGN, 4 * ray(FOOD, FRUIT)]) + 0.01 * ANIMAL + 0.01 * FRUIT
    points = points.requires_grad_()
    optimizer = torch.optim.Adam([points], lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        FOODS.excess(points).sum().backward()
        optimizer.step()
    assert FOODS.excess(points).max() < 0.02


def shown(world: Dataset, *names: str) -> Tensor:
    """Which concepts are those of the names."""
    return torch.tensor([concept.name in names for concept in world.taxonomy.concepts])


def members(world: Dataset, depth: int, parent: str) -> list[str]:
    """Labels of a level under a label of the next, in the level's order."""
    level, above = world.taxonomy.levels[depth], world.taxonomy.levels[depth + 1]
    assert level.parent is not None
    return [
        label for label, up in zip(level.labels, level.parent.tolist(), strict=True)
        if above.labels[up] == parent
    ]  # fmt: skip


def spread(model: DualEncoder, world: Dataset, *names: str) -> tuple[float, float]:
    """Between which radii all but a tenth of the seen images of some concepts lie."""
    images = world.seen.images[shown(world, *names)[world.seen.concept].nonzero()[:, 0]]
    low, high = model.space.radius(encode_images(model, images)).quantile(torch.tensor([0.05, 0.95])).tolist()
    return low, high


def homes(task: Problem, **settings: float) -> list[Home]:
    method = create_method("generalize", settings)
    assert isinstance(method, Generalize)
    return list(method.homes(task))


def test_it_is_the_lowest_retained_label_that_is_left_for(meru: DualEncoder, world: Dataset) -> None:
    def encoded(*texts: str) -> Tensor:
        return encode_texts(meru, texts) * meru.curvature.sqrt()

    task = problem(meru, world, "red apple", "animal-bird")
    name, subcategory = homes(task, clearance=0.25)
    assert torch.equal(name.concepts, shown(world, "red apple"))
    assert torch.equal(subcategory.concepts, shown(world, "owl", "duck"))
    assert name.parent is not None
    assert subcategory.parent is not None
    captions = {level.labels[i]: c for level in world.taxonomy.levels for i, c in enumerate(level.captions)}
    torch.testing.assert_close(name.parent, encoded(captions["food-fruit"]))
    torch.testing.assert_close(name.children, encoded(*members(world, 0, "food-fruit")))
    torch.testing.assert_close(subcategory.parent, encoded(captions["Animals & Nature"]))
    kinds = [captions[label] for label in members(world, 1, "Animals & Nature")]
    torch.testing.assert_close(subcategory.children, encoded(*kinds))
    assert (name.clearance, name.min_radius) == (0.25, 0.1)
    assert name.radii == pytest.approx(spread(meru, world, "banana", "cherries"))
    assert subcategory.radii == pytest.approx(spread(meru, world, "tulip", "rose"))


def test_where_nothing_of_the_parent_is_left_the_rest_says_how_far_out_images_lie(
    meru: DualEncoder, world: Dataset
) -> None:
    (home,) = homes(problem(meru, world, "food-fruit", "drink"))
    assert home.parent is None
    assert len(home.children) == 2
    assert home.radii == pytest.approx(spread(meru, world, "owl", "duck", "tulip", "rose"))


def test_of_many_children_the_nearest_are_looked_at(
    meru: DualEncoder, world: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = problem(meru, world, "red apple")
    (whole,) = homes(task)
    monkeypatch.setattr(generalize, "MOST_CHILDREN", 2)
    (some,) = homes(task)
    own = members(world, 0, "food-fruit").index("red apple")
    torch.testing.assert_close(some.children[0], whole.children[own])
    distance = tangent.dist(whole.children, whole.children[[own]], 1.0)
    torch.testing.assert_close(some.children[1], whole.children[distance.argsort()[1]])


def test_to_tilt_it_adds_one_term_of_the_forgotten(meru: DualEncoder, world: Dataset) -> None:
    with torch.no_grad():  # images further out than the captions' cones, as on a model that has a hierarchy
        meru.image_log_scale.fill_(0.0)
        meru.text_log_scale.fill_(-1.5)
    task = problem(meru, world)
    found, tilt = terms("generalize", task), terms("tilt", task)
    assert found.keys() - tilt.keys() == {"zone_loss"}
    assert all(torch.equal(found[name], value) for name, value in tilt.items())
    (home,) = homes(task)
    one = step(task)
    points = one.image_features[one.forget[0]] * meru.curvature.sqrt()
    assert home.excess(points).mean() > 0
    torch.testing.assert_close(found["zone_loss"], 5 * home.excess(points).mean())
    assert terms("generalize", task, {"zone": 0.0})["zone_loss"] == 0


def test_retained_images_are_held_to_where_they_were(meru: DualEncoder, world: Dataset) -> None:
    task = problem(meru, world)
    method = create_method("tilt", {"stay": 3.0})
    assert isinstance(method, Tilt)
    objective = method.objective(task)
    one = step(task)
    # Not quite 0: attention rounds otherwise where no gradient is asked for.
    assert objective(one)["stay_loss"] < 1e-9
    before = one.image_features.detach()
    with torch.no_grad():
        for parameter in method.parameters(meru):
            parameter.mul_(1.2)
    moved = step(task)
    distance = tangent.dist(moved.image_features, before, meru.curvature) * meru.curvature.sqrt()
    expected = 3 * distance[~one.forget[0]].square().mean()
    assert expected > 0
    torch.testing.assert_close(objective(moved)["stay_loss"], expected, rtol=1e-4, atol=1e-6)


def test_of_one_level_every_cone_is_left() -> None:
    data = small_world(1)
    task = Problem(small_model("MERU"), data, data.taxonomy.select(["owl"]))
    (home,) = homes(task)
    assert home.parent is None
    assert len(home.children) == len(data.taxonomy.concepts)


def test_it_needs_cones(model: DualEncoder, world: Dataset) -> None:
    reason = create_method("generalize").unmet(problem(model, world))
    assert (reason is None) == model.space.has_cones
    assert reason is None or "needs a model whose space has entailment cones" in reason
