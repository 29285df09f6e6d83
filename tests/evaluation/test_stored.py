from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from riemann_unlearn.evaluation.stored import StoredImages
from riemann_unlearn.models import DualEncoder
from tests.conftest import make_model


def images(model: DualEncoder, count: int = 5) -> Tensor:
    drawn = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return model.preprocess(drawn)


@pytest.mark.parametrize("frozen", [0.0, 0.25, 0.6])
def test_features_are_the_models_own_also_after_it_moved(model: DualEncoder, frozen: float) -> None:
    given = images(model)
    stored = StoredImages(model, iter([given[:3], given[3:]]), frozen=frozen)
    other, encode = stored.copy()
    rows = torch.tensor([4, 0, 4])
    moved = [p for name, p in other.named_parameters() if name in stored.moved]
    assert [p.requires_grad for p in moved] == [True] * len(moved)
    assert sum(p.requires_grad for p in other.parameters()) == len(moved)
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(encode(rows), whole(other).encode_image(given[rows]))
            for parameter in moved:
                parameter.add_(0.01)
    # Nobody else has moved.
    _, encode = stored.copy()
    with torch.no_grad():
        torch.testing.assert_close(encode(rows), model.encode_image(given[rows]))


def whole(moved: DualEncoder) -> DualEncoder:
    """A model that stores nothing, with the weights of one that does."""
    fresh = make_model(moved.name)
    fresh.load_state_dict(moved.state_dict())
    return fresh


def test_gradients_are_those_of_the_whole_tower(model: DualEncoder) -> None:
    given = images(model)
    stored = StoredImages(model, [given], frozen=0.25)
    other, encode = stored.copy()
    encode(torch.tensor([1, 3])).square().sum().backward()
    model.encode_image(given[[1, 3]]).square().sum().backward()
    expected = dict(model.named_parameters())
    for name, parameter in other.named_parameters():
        if name in stored.moved:
            torch.testing.assert_close(parameter.grad, expected[name].grad)
        else:
            assert parameter.grad is None


class Tower(nn.Module):
    """Two layers, a shortcut around the first, and one that writes into what it is given."""

    def __init__(self, shortcut: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.last = nn.Linear(4, 16)
        self.shortcut = shortcut
        self.calls: list[str] = []
        for name in ("first", "second", "last"):
            inner = getattr(self, name)
            inner.register_forward_pre_hook(lambda layer, inputs, name=name: self.calls.append(name))

    def forward(self, given: Tensor) -> Tensor:
        x = self.first(given.flatten(1)[:, :4])
        y = self.second(x).relu_()
        return self.last(x + y if self.shortcut else y)


@pytest.mark.parametrize("shortcut", [False, True])
def test_only_what_is_asked_for_again_is_kept(shortcut: bool) -> None:
    model = make_model("CLIP")
    model.visual = Tower(shortcut)
    given = images(model)
    stored = StoredImages(model, [given], frozen=0.34)  # of 20 + 20 + 80 weights
    assert stored.moved == ["visual.last.weight", "visual.last.bias"]
    assert set(stored._kept) == ({"first", "second"} if shortcut else {"second"})
    _, encode = stored.copy()
    with torch.no_grad():
        torch.testing.assert_close(encode(torch.arange(5)), model.encode_image(given))


def test_a_layer_that_is_asked_twice_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Twice(Tower):
        def forward(self, given: Tensor) -> Tensor:
            return self.last(self.second(self.first(self.first(given.flatten(1)[:, :4]))))

    model = make_model("CLIP")
    model.visual = Twice(False)
    stored = StoredImages(model, [images(model)], frozen=0.34)
    assert set(stored._kept) == {"second"}


def test_a_compiled_tower_is_stored_as_any_other(model: DualEncoder) -> None:
    given = images(model)
    with torch.no_grad():
        expected = model.encode_image(given)
    model.visual = torch.compile(model.visual, backend="eager")  # type: ignore[assignment]
    _, encode = StoredImages(model, [given], frozen=0.25).copy()
    with torch.no_grad():
        torch.testing.assert_close(encode(torch.arange(5)), expected)
