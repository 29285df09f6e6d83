from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riemann_unlearn.unlearning.split import NothingStays, SplitTower, Unsplittable, with_tower
from tests.conftest import make_model

IMAGES = torch.rand(7, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """A convolution around which the input goes, summed in place, and another by the way."""

    def __init__(self) -> None:
        super().__init__()
        self.way = nn.Conv2d(3, 3, 1)
        self.conv = nn.Conv2d(3, 3, 1)
        self.runs = 0
        self.conv.register_forward_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self.runs += 1

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.conv(images)
        x += self.way(images)
        return x


class Tower(nn.Module):
    """Two residual layers, a pooling, and a head that looks back at the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Residual()
        self.block = Residual()
        self.head = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 4, 8), nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem(images)
        features: Tensor = self.head(self.block(stem)) + stem.mean()
        return features


def tower() -> Tower:
    torch.manual_seed(0)
    return Tower().eval()


def move(parameters: Iterator[nn.Parameter]) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(1.5)


def test_the_parts_give_what_the_tower_gives_wherever_the_weights_go() -> None:
    visual = tower()
    # stem.mean() is over the batch, and no image's own: it is found behind the cut.
    split = SplitTower(visual, visual.head.parameters(), IMAGES)
    with torch.no_grad():
        front = split.front(IMAGES)
    assert front.shape == (7, split.width)
    assert torch.equal(split.behind(front), visual(IMAGES))
    move(visual.head.parameters())
    assert torch.equal(split.behind(front), visual(IMAGES))
    split.behind(front).sum().backward()
    assert all(weight.grad is not None for weight in visual.head.parameters())
    assert all(weight.grad is None for weight in visual.stem.parameters())


def test_what_stays_does_not_run_behind_the_cut() -> None:
    visual = tower()
    split = SplitTower(visual, visual.head.parameters(), IMAGES)
    visual.stem.runs = visual.block.runs = 0
    front = split.front(IMAGES)
    assert (visual.stem.runs, visual.block.runs) == (1, 1)
    split.behind(front)
    assert (visual.stem.runs, visual.block.runs) == (1, 1)
    # The pooling has no weights and comes first in what moves: it stays as well, and beside it the stem.
    assert split.width == 3 * 8 * 8 + 3 * 16 * 16


def test_a_sum_in_place_leaves_what_was_kept_as_it_was() -> None:
    visual = tower()
    moved = [*visual.block.way.parameters(), *visual.head.parameters()]
    split = SplitTower(visual, moved, IMAGES)
    front, kept = split.front(IMAGES), split.front(IMAGES).clone()
    visual.block.runs = 0
    for _ in range(2):
        assert torch.equal(split.behind(front), split.behind(kept))
    assert visual.block.runs == 0  # a convolution that stays, within what moves
    assert torch.equal(front, kept)
    assert torch.equal(split.behind(front), visual(IMAGES))


def test_a_tower_that_moves_from_the_start_is_not_cut() -> None:
    visual = tower()
    with pytest.raises(NothingStays, match="its first layers move"):
        SplitTower(visual, visual.parameters(), IMAGES)


class Deciding(nn.Module):
    """Goes another way by what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Flatten(), nn.Linear(3 * 16 * 16, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        return self.head(x if x.sum() > 0 else -x)  # type: ignore[no-any-return]


class Hidden(nn.Module):
    """Uses a weight that moves where no graph shows it, in a layer that has none of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.stem, self.head = Scaled([self.scale]), nn.Linear(3 * 16 * 16, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stem(images).flatten(1))  # type: ignore[no-any-return]


class Scaled(nn.Module):
    def __init__(self, hidden: list[nn.Parameter]) -> None:
        super().__init__()
        self.conv, self.hidden = nn.Conv2d(3, 3, 1), hidden

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images) * self.hidden[0]  # type: ignore[no-any-return]


class Writing(nn.Module):
    """Adds what moves to what stays, where that lies."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = images.mean((1, 2))
        return self.stem(x).add_(self.head(x))  # type: ignore[no-any-return]


class Upright(nn.Module):
    """Has its images along the second axis, which is also as long as another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(16, 7), nn.Linear(7, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images.mean((1, 2))).T
        return self.head(x.T)  # type: ignore[no-any-return]


def test_what_cannot_be_cut_is_said() -> None:
    deciding, hidden, writing = Deciding().eval(), Hidden().eval(), Writing().eval()
    with pytest.raises(Unsplittable, match="it cannot be traced"):
        SplitTower(deciding, deciding.head.parameters(), IMAGES)
    with pytest.raises(Unsplittable, match="it does not give what it gives as a whole"):
        SplitTower(hidden, [hidden.scale, *hidden.head.parameters()], IMAGES)
    with pytest.raises(Unsplittable, match="writes into what one that stays gave"):
        SplitTower(writing, writing.head.parameters(), IMAGES)


def test_images_that_lie_along_another_axis_are_not_mistaken() -> None:
    upright = Upright().eval()
    split = SplitTower(upright, upright.head.parameters(), IMAGES)
    for images in (IMAGES, IMAGES[:2]):
        torch.testing.assert_close(split.behind(split.front(images)), upright(images))


@pytest.mark.parametrize("architecture", ["MERU", "CLIP"])
def test_a_transformer_is_cut_within_its_blocks(architecture: str) -> None:
    model = make_model(architecture)
    moved = [p for name, p in model.visual.named_parameters() if "mlp" in name or name == "proj"]
    split = SplitTower(model.visual, moved, IMAGES)
    behind = with_tower(model, split.behind)
    front = split.front(IMAGES)
    move(iter(moved))
    torch.testing.assert_close(behind.encode_image(front), model.encode_image(IMAGES))
    assert model.visual is not behind.visual
    assert behind.text is model.text


def test_a_compiled_tower_is_cut_as_it_was() -> None:
    visual = tower()
    compiled = torch.compile(visual, backend="eager")
    split = SplitTower(compiled, visual.head.parameters(), IMAGES)
    move(visual.head.parameters())
    assert torch.equal(split.behind(split.front(IMAGES)), visual(IMAGES))


def test_the_part_behind_is_copied_with_weights_of_its_own() -> None:
    visual = tower()
    split = SplitTower(visual, visual.head.parameters(), IMAGES)
    twin, front = copy.deepcopy(split.behind), split.front(IMAGES)
    before = split.behind(front)
    move(visual.head.parameters())
    assert torch.equal(twin(front), before)
    assert not torch.allclose(split.behind(front), before)
    assert F.mse_loss(split.behind(front), before) > 0
