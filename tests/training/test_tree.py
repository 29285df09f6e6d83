from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from riemann_unlearn.data import Concept, Dataset, Taxonomy
from riemann_unlearn.geometry import tangent
from riemann_unlearn.models import load, save_model
from riemann_unlearn.spaces import LorentzTangents
from riemann_unlearn.training import TrainConfig, train
from riemann_unlearn.training.tree import Tree, embed_taxonomy, ladder
from tests.conftest import make_model, model_config


def grown(branches: tuple[int, ...]) -> Taxonomy:
    """Every label of a level has so many below it; the topmost level first."""
    paths: list[tuple[str, ...]] = [()]
    for count in branches:
        paths = [(f"{'/'.join(path)}{i}", *path) for path in paths for i in range(count)]
    return Taxonomy([Concept(path[0], path[0], (), path[1:]) for path in paths])


def meanings(taxonomy: Taxonomy, dimension: int = 24) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(len(level), dimension, generator=generator) for level in taxonomy.levels]


def holds(broad: Tensor, narrow: Tensor) -> Tensor:
    """Whether each cone holds each point, shape (narrow, broad); by the geometry's functions."""
    angle = tangent.exterior_angle(broad[None], narrow[:, None], 1.0)
    return angle <= tangent.half_aperture(broad, 1.0, 0.1)


@pytest.mark.parametrize("branches", [(4, 3), (3, 3, 3), (2, 2, 2, 2)], ids=["two", "three", "four levels"])
def test_cones_nest_and_hold_no_one_elses(branches: tuple[int, ...]) -> None:
    taxonomy = grown(branches)
    tree = embed_taxonomy(taxonomy, meanings(taxonomy))
    radii = ladder(len(branches), 0.1)
    for depth, points in enumerate(tree.points):
        assert points.norm(dim=-1) == pytest.approx(radii[depth], rel=0.25)
        if depth + 1 < len(branches):
            parent = taxonomy.levels[depth].parent
            assert parent is not None
            inside = holds(tree.points[depth + 1], points)
            assert inside[torch.arange(len(points)), parent].all()
    images = tree.image_radius * F.normalize(tree.points[0], dim=-1)
    for depth, points in enumerate(tree.points):
        inside = holds(points, images)
        own = F.one_hot(taxonomy.ancestor(depth), len(points)).bool()
        assert inside[own].all()
        if depth > 0:  # the most specific labels may share
            assert inside[~own].float().mean() <= 0.01


def test_what_is_alike_in_meaning_lies_together() -> None:
    taxonomy = grown((2, 6))
    given = meanings(taxonomy)
    given[0][1] = given[0][0] + 0.2 * given[0][1]
    tree = embed_taxonomy(taxonomy, given)
    alike = F.cosine_similarity(tree.points[0][:6, None], tree.points[0][None, :6], dim=-1).fill_diagonal_(-1)
    assert alike[0].argmax() == 1


def test_a_seed_gives_one_tree() -> None:
    taxonomy = grown((15, 10))  # more concepts than take part in a step
    one, same, other = (embed_taxonomy(taxonomy, meanings(taxonomy), steps=5, seed=s) for s in (0, 0, 1))
    assert all(map(torch.equal, one.points, same.points))
    assert not all(map(torch.equal, one.points, other.points))


def test_radii_grow_from_where_a_cone_opens() -> None:
    radii = ladder(4, 0.3)
    assert math.sinh(radii[-1]) == pytest.approx(0.6)
    assert all(below > 1.3 * above for below, above in itertools.pairwise(radii))
    assert Tree((torch.zeros(1, 2),) * 4, 0.3).image_radius > 2 * radii[0]


def test_what_is_no_tree_is_refused() -> None:
    flat = Taxonomy([Concept("1", "owl"), Concept("2", "duck")])
    with pytest.raises(ValueError, match="needs a level above the concepts"):
        embed_taxonomy(flat, [torch.eye(2)])
    with pytest.raises(ValueError, match=r"expected a vector for each label, \[4, 2\] by level; got shapes"):
        embed_taxonomy(grown((2, 2)), [torch.eye(4)])


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("start") / "model.safetensors"
    save_model(make_model("MERU"), path)
    return path


def config(world_path: Path, start: Path | None, **changes: object) -> TrainConfig:
    base = TrainConfig(
        data=str(world_path),
        start=None if start is None else str(start),
        objective="tree",
        epochs=60,
        batch_size=16,
        learning_rate=3e-3,
        warmup_epochs=2,
        entailment_weight=2.0,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def test_towers_land_in_the_cones(world: Dataset, world_path: Path, start: Path, tmp_path: Path) -> None:
    model = train(model_config("MERU"), config(world_path, start), tmp_path / "a", progress=False)
    space, seen = model.space.detached(), world.seen
    with torch.no_grad():
        images = model.encode_image(model.preprocess(seen.images[torch.arange(len(seen))]))
        for depth, level in enumerate(world.taxonomy.levels[1:], start=1):
            captions = model.encode_text(model.tokenize(level.captions))
            own = captions[seen.labels(depth)]
            assert (space.cones(own, images).outside <= 0).float().mean() >= 0.85, level.name
    assert isinstance(space, LorentzTangents)
    assert float(space.c) == pytest.approx(float(load(start).space.detached().c))  # type: ignore[attr-defined]
    records = [json.loads(line) for line in (tmp_path / "a" / "history.jsonl").read_text().splitlines()]
    assert records[-1]["text_name_loss"] < records[0]["text_name_loss"]
    assert {"wrong_subcategory_loss", "entailment_category_loss", "radius_loss"} < set(records[0])


def test_training_begins_with_given_weights(world_path: Path, start: Path, tmp_path: Path) -> None:
    settings = config(world_path, start, objective="contrastive", epochs=1, learning_rate=1e-12)
    settings = replace(settings, scalar_learning_rate=0.0)
    model = train(model_config("MERU"), settings, tmp_path / "a", progress=False)
    for name, value in load(start).named_parameters():
        assert torch.allclose(model.get_parameter(name), value, atol=1e-6), name


def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    world_path: Path, start: Path, tmp_path: Path
) -> None:
    for settings, model, message in (
        (config(world_path, None), "MERU", "give it as start"),
        (config(world_path, start), "CLIP", "cannot begin with the weights of"),
    ):
        with pytest.raises(ValueError, match=message):
            train(model_config(model), settings, tmp_path / "a", progress=False)
    assert not (tmp_path / "a").exists()


def test_a_space_without_cones_learns_the_same_directions(
    world: Dataset, world_path: Path, tmp_path: Path
) -> None:
    save_model(make_model("CLIP"), tmp_path / "start.safetensors")
    settings = config(world_path, tmp_path / "start.safetensors")
    model = train(model_config("CLIP"), settings, tmp_path / "a", progress=False)
    before = load(tmp_path / "start.safetensors")
    tree = embed_taxonomy(
        world.taxonomy,
        [before.encode_text(before.tokenize(x.captions)).detach() for x in world.taxonomy.levels],
    )
    with torch.no_grad():
        for level, points in zip(world.taxonomy.levels[1:], tree.points[1:], strict=True):
            captions = model.encode_text(model.tokenize(level.captions))
            assert F.cosine_similarity(captions, points, dim=-1).mean() >= 0.98, level.name
    records = [json.loads(line) for line in (tmp_path / "a" / "history.jsonl").read_text().splitlines()]
    assert records[-1]["contrastive_name_loss"] < records[0]["contrastive_name_loss"]
    assert not any(name.startswith(("entailment", "wrong", "radius")) for name in records[0])
