from __future__ import annotations

import torch

from riemann_unlearn.data import Dataset
from riemann_unlearn.data.augment import random_view
from riemann_unlearn.data.batch import LEVELS, make_batch


def test_every_image_is_paired_at_every_level(world: Dataset) -> None:
    indices = torch.tensor([0, 3, 3, 9, 15])
    batch = make_batch(world.seen, indices, (16, 16), torch.Generator().manual_seed(0))
    assert batch.images.shape == (5, 3, 16, 16)
    assert tuple(batch.pairings) == LEVELS
    for position, i in enumerate(world.seen.concept[indices].tolist()):
        concept = world.taxonomy.concepts[i]
        texts = {level: batch.texts[pair.row[position]] for level, pair in batch.pairings.items()}
        assert concept.name in texts["name"] or texts["name"] == "thing"
        assert texts["subcategory"] == concept.subcategory.replace("-", " ")
        assert texts["category"] == concept.category.replace("&", "and").lower()
        assert batch.pairings["name"].caption_ids[position] == i
        assert batch.pairings["category"].caption_ids[position] == world.taxonomy.category_of[i]
    # Captions above the names are encoded once each.
    above = batch.texts[5:]
    assert len(above) == len(set(above))


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
