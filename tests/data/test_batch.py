from __future__ import annotations

import pytest
import torch

from riemann_unlearn.data import Concept, Dataset, Samples, Taxonomy
from riemann_unlearn.data.augment import random_view
from riemann_unlearn.data.batch import make_batch


def test_every_image_is_paired_at_every_level(world: Dataset) -> None:
    indices = torch.tensor([0, 3, 3, 9, 15])
    batch = make_batch(world.seen, indices, (16, 16), torch.Generator().manual_seed(0))
    taxonomy = world.taxonomy
    assert len(batch) == 5
    assert batch.images.shape == (5, 3, 16, 16)
    assert torch.equal(batch.indices, indices)
    assert len(batch.pairings) == len(taxonomy.levels) == 3
    for position, i in enumerate(world.seen.concept[indices].tolist()):
        concept = taxonomy.concepts[i]
        name, subcategory, category = (batch.texts[pair.row[position]] for pair in batch.pairings)
        assert concept.name in name or name == "thing"
        assert subcategory == concept.path[0].replace("-", " ")
        assert category == concept.path[1].replace("&", "and").lower()
        for depth, pair in enumerate(batch.pairings):
            assert pair.caption_ids[position] == taxonomy.ancestor(depth)[i]
    # Captions above the names are encoded once each.
    above = batch.texts[5:]
    assert len(above) == len(set(above))


@pytest.mark.parametrize("depth", [0, 1, 2, 6])
def test_a_batch_has_a_pairing_for_each_level_there_is(depth: int) -> None:
    # Concepts 0 and 1 part at the first level above them, and meet again at the second, and so on.
    paths = [[f"{level}-{i >> level}" for level in range(1, depth + 1)] for i in range(8)]
    taxonomy = Taxonomy([Concept(str(i), f"0-{i}", ("word",), tuple(path)) for i, path in enumerate(paths)])
    images = torch.zeros(8, 3, 4, 4, dtype=torch.uint8)
    samples = Samples(images, torch.arange(8), torch.zeros(8, dtype=torch.long), ("x",), taxonomy)
    batch = make_batch(samples, torch.tensor([5, 4, 0]), (4, 4), torch.Generator().manual_seed(0))
    assert len(batch.pairings) == depth + 1
    for level, pair in enumerate(batch.pairings[1:], start=1):
        assert [batch.texts[row] for row in pair.row] == [f"{level}-{i >> level}" for i in (5, 4, 0)]
        assert pair.caption_ids.tolist() == samples.labels(level)[[5, 4, 0]].tolist()


def test_a_batch_moves_whole(world: Dataset) -> None:
    batch = make_batch(world.seen, torch.arange(4), (16, 16), torch.Generator().manual_seed(0)).to("meta")
    tensors = [batch.images, batch.indices]
    tensors += [tensor for pair in batch.pairings for tensor in (pair.row, pair.caption_ids)]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert len(batch.texts) >= 4


def test_batches_repeat_with_the_seed(world: Dataset) -> None:
    def draw(seed: int) -> tuple[torch.Tensor, list[str]]:
        batch = make_batch(world.seen, torch.arange(8), (20, 20), torch.Generator().manual_seed(seed))
        return batch.images, batch.texts

    (first, words), (second, again), (other, _) = draw(0), draw(0), draw(1)
    assert torch.equal(first, second)
    assert words == again
    assert not torch.equal(first, other)


def test_views_differ_stay_in_range_and_fill_with_white() -> None:
    images = torch.zeros(64, 3, 24, 24, dtype=torch.uint8)
    views = random_view(images, (24, 24), torch.Generator().manual_seed(0))
    assert views.min() >= 0
    assert views.max() <= 1
    assert views[:, :, 12, 12].max() < 0.6  # the centre stays dark, whatever its contrast
    assert views[:, :, 0, 0].max() > 0.9  # a corner has been moved in from outside
    assert len({view.numpy().tobytes() for view in views}) == 64


def test_views_are_never_mirrored() -> None:
    images = torch.full((64, 3, 24, 24), 255, dtype=torch.uint8)
    images[:, :, 6:18, 6:12] = 0  # dark on the left
    views = random_view(images, (24, 24), torch.Generator().manual_seed(0)).mean(1)
    darkness = views.mean(dim=(1, 2), keepdim=True) - views
    columns = torch.arange(24.0)
    centre = (darkness.clamp(min=0).sum(1) * columns).sum(1) / darkness.clamp(min=0).sum((1, 2))
    assert (centre < 12 + 24 * 0.13).all()
    assert centre.mean() < 10.5


def test_images_of_different_sizes_are_viewed_each_by_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    large, banner = (torch.randint(256, (3, *size), dtype=torch.uint8) for size in ((40, 40), (20, 300)))

    def draw(images: list[torch.Tensor]) -> torch.Tensor:
        return random_view(images, (24, 24), generator.manual_seed(1))

    views = draw([large, banner])
    assert views.shape == (2, 3, 24, 24)
    assert torch.equal(draw([large, large])[0], views[0])
    assert torch.equal(draw([banner, banner])[1], views[1])


@pytest.mark.parametrize("shape", [(12, 12), (24, 24), (40, 40), (20, 300)])
def test_a_view_does_not_depend_on_how_images_are_held(shape: tuple[int, int]) -> None:
    images = torch.randint(256, (3, 3, *shape), dtype=torch.uint8)
    views = [random_view(x, (24, 24), torch.Generator().manual_seed(1)) for x in (images, list(images))]
    assert torch.allclose(*views, atol=1e-6)


def test_only_images_that_are_larger_or_of_other_proportions_are_fitted_first() -> None:
    asked = []

    def fit(images: torch.Tensor) -> torch.Tensor:
        asked.append(tuple(images.shape))
        return torch.ones(len(images), 3, 16, 32)

    sizes = [(8, 16), (16, 32), (16, 16), (32, 64), (8, 33)]
    images = [torch.zeros(3, *size, dtype=torch.uint8) for size in sizes]
    views = random_view(images, (16, 32), torch.Generator().manual_seed(0), fit=fit)
    assert asked == [(1, 3, *size) for size in sizes[2:]]
    assert (views[:2, :, 8, 16] < 0.6).all()
    assert (views[2:, :, 8, 16] > 0.7).all()
    asked.clear()
    random_view(torch.stack([images[4]] * 2), (16, 32), torch.Generator().manual_seed(0), fit=fit)
    assert asked == [(2, 3, 8, 33)]
