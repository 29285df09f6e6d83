from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from riemann_unlearn.models import DualEncoder
from riemann_unlearn.unlearning.frozen import FrozenCopy
from tests.conftest import make_model


class Residual(nn.Module):
    """A convolution around which the input goes, summed in place, and another by the way."""

    def __init__(self) -> None:
        super().__init__()
        self.way = nn.Conv2d(3, 3, 1)  # moves
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
    """What stays, then a residual layer of which a part moves, then what moves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Residual()
        self.block = Residual()
        self.head = nn.Linear(3, 16)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.block(self.stem(images))
        return self.head(x.mean((2, 3)))

    def moved(self) -> list[nn.Parameter]:
        return [*self.block.way.parameters(), *self.head.parameters()]


@pytest.fixture
def tower() -> tuple[DualEncoder, Tower]:
    torch.manual_seed(0)
    model, visual = make_model("MERU"), Tower()
    model.visual = visual
    return model, visual


IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_it_gives_what_the_model_gave_before_it_moved(tower: tuple[DualEncoder, Tower]) -> None:
    model, visual = tower
    plain, frozen = copy.deepcopy(model), FrozenCopy(model, visual.moved())
    with torch.no_grad():
        for weight in visual.moved():
            weight.add_(1)
    with frozen.following():
        moved = model.encode_image(IMAGES)
    found = frozen.model.encode_image(IMAGES)
    assert not found.requires_grad
    assert torch.equal(found, plain.encode_image(IMAGES))
    assert not torch.allclose(found, moved)
    moved.sum().backward()  # nothing that autograd saved was written to
    assert all(weight.grad is not None for weight in visual.moved())


def test_what_stays_runs_once_for_both(tower: tuple[DualEncoder, Tower]) -> None:
    model, visual = tower
    frozen = FrozenCopy(model, visual.moved())
    with frozen.following():
        model.encode_image(IMAGES)
    frozen.model.encode_image(IMAGES)
    copied = frozen.model.visual
    assert isinstance(copied, Tower)
    assert (visual.stem.runs, copied.stem.runs) == (1, 0)
    # The sum was written into what this layer gave, so that it has to run again.
    assert (visual.block.runs, copied.block.runs) == (1, 1)


def test_other_images_are_not_taken_for_the_last_ones(tower: tuple[DualEncoder, Tower]) -> None:
    model, visual = tower
    plain, frozen = copy.deepcopy(model), FrozenCopy(model, visual.moved())
    with frozen.following():
        model.encode_image(IMAGES)
    for other in (IMAGES.flip(0), IMAGES[:2]):
        assert torch.equal(frozen.model.encode_image(other), plain.encode_image(other))


def test_the_model_is_left_without_hooks(tower: tuple[DualEncoder, Tower]) -> None:
    model, visual = tower
    frozen = FrozenCopy(model, visual.moved())
    with pytest.raises(RuntimeError, match="interrupted"), frozen.following():
        raise RuntimeError("interrupted")
    assert not any(module._forward_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


class Twice(nn.Module):
    """Layers in a list and in a sequence that is gone through by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = nn.ModuleList([nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)])
        self.sequence = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
        self.head = nn.Linear(3, 16)

    def forward(self, images: Tensor) -> Tensor:
        for layer in (*self.listed, *self.sequence):
            images = layer(images)
        assert len(self.sequence) == 2
        assert self.sequence[0].kernel_size == self.listed[0].kernel_size == (1, 1)
        return self.head(images.mean((2, 3)))  # type: ignore[no-any-return]


def test_a_tower_finds_in_a_layer_what_it_looks_for() -> None:
    model = make_model("MERU")
    model.visual = Twice()
    frozen = FrozenCopy(model, model.visual.head.parameters())
    with frozen.following():
        now = model.encode_image(IMAGES)
    assert torch.equal(frozen.model.encode_image(IMAGES), now)
    with pytest.raises(AttributeError, match="nonsense"):
        frozen.model.visual.sequence.nonsense  # noqa: B018


class TestTheCopyIsAModelLikeAnyOther:
    def test_it_is_saved_and_copied(self, tower: tuple[DualEncoder, Tower]) -> None:
        model, visual = tower
        frozen = FrozenCopy(model, visual.moved())
        with frozen.following():
            now = model.encode_image(IMAGES).detach()
            inside = copy.deepcopy(model)  # hooks are there now
        assert torch.equal(inside.encode_image(IMAGES), now)
        for again in (copy.deepcopy(frozen.model.visual), pickle.loads(pickle.dumps(frozen.model.visual))):
            assert torch.equal(again(IMAGES), frozen.model.visual(IMAGES))
            for weight in again.parameters():
                weight.data.zero_()
            assert torch.equal(again(IMAGES.flip(0)), torch.zeros(4, 16))
        assert torch.equal(frozen.model.encode_image(IMAGES), now)

    def test_it_is_compiled(self, tower: tuple[DualEncoder, Tower]) -> None:
        model, visual = tower
        frozen = FrozenCopy(model, visual.moved())
        compiled = torch.compile(frozen.model.visual, backend="eager")
        for images in (IMAGES, IMAGES.flip(0)):
            with frozen.following():
                now = model.encode_image(images)
            torch.testing.assert_close(compiled(images) * model.image_log_scale.exp(), now)

    def test_a_compiled_model_is_copied_as_it_was(self, tower: tuple[DualEncoder, Tower]) -> None:
        model, visual = tower
        expected = model.encode_image(IMAGES).detach()
        model.visual = torch.compile(visual, backend="eager")  # type: ignore[assignment]
        frozen = FrozenCopy(model, visual.moved())
        for weight in visual.moved():
            weight.data.add_(1)
        with frozen.following():
            model.encode_image(IMAGES)
        torch.testing.assert_close(frozen.model.encode_image(IMAGES), expected)

    def test_threads_beside_it_get_what_they_ask_for(self, tower: tuple[DualEncoder, Tower]) -> None:
        model, visual = tower
        frozen = FrozenCopy(model, visual.moved())
        batches = [torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(4)]
        expected = [frozen.model.encode_image(images) for images in batches]

        def ask(number: int) -> bool:
            with torch.no_grad():
                for _ in range(20):
                    model.encode_image(batches[number])
                    if not torch.equal(frozen.model.encode_image(batches[number]), expected[number]):
                        return False
            return True

        with frozen.following(), ThreadPoolExecutor(4) as pool:
            assert all(pool.map(ask, range(4)))


def test_layers_whose_output_is_no_tensor_run_in_both() -> None:
    """The attention of a transformer is called by name and gives a tuple."""
    model = make_model("CLIP")
    attention = {id(p) for name, p in model.visual.named_parameters() if ".attn." in name}
    assert attention
    frozen = FrozenCopy(model, [p for p in model.visual.parameters() if id(p) not in attention])
    with frozen.following():
        now = model.encode_image(IMAGES)
    # Attention rounds differently where no gradient is asked for.
    torch.testing.assert_close(frozen.model.encode_image(IMAGES), now.detach())
