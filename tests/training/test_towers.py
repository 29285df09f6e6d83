"""How towers are run on a batch: in parts, in half precision, with fewer activations, compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from riemann_unlearn.data import Dataset
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.training import Towers, TrainConfig, prepare_towers, training_loss
from riemann_unlearn.training.towers import check_parts
from riemann_unlearn.unlearning import GradientMethod, Problem, create_method
from riemann_unlearn.unlearning.methods import METHODS
from riemann_unlearn.unlearning.problem import ForgetAndRetain
from tests.conftest import make_model

GRADIENT_METHODS = [
    name for name, one in METHODS.items() if isinstance(one, type) and issubclass(one, GradientMethod)
]


def gradients(world: Dataset, name: str, architecture: str, towers: Towers) -> tuple[Tensor, list[Tensor]]:
    """The loss of a method's first step, and its gradient."""
    problem = Problem(make_model(architecture), world, world.taxonomy.select(["food-fruit"]), towers)
    method = create_method(name)
    assert isinstance(method, GradientMethod)
    if (reason := method.unmet(problem)) is not None:
        pytest.skip(reason)
    moved = method.parameters(problem.model)
    terms = method.objective(problem)(ForgetAndRetain(problem, 4, 7, seed=0).draw(0))
    loss = torch.stack(list(terms.values())).sum()
    found = torch.autograd.grad(loss, moved, allow_unused=True, materialize_grads=True)
    return loss.detach(), list(found)


def furthest(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest entry of all."""
    largest = max(float(value.abs().max()) for value in one)
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True)) / largest


@pytest.mark.parametrize("architecture", ["MERU", "CLIP"])
@pytest.mark.parametrize("name", GRADIENT_METHODS)
def test_parts_of_a_batch_have_the_loss_and_the_gradient_of_the_whole(
    name: str, architecture: str, world: Dataset
) -> None:
    loss, whole = gradients(world, name, architecture, Towers())
    for size in (1, 3, 100):
        parted, parts = gradients(world, name, architecture, Towers(micro_batch=size))
        assert parted.item() == pytest.approx(loss.item(), rel=1e-6)
        assert furthest(whole, parts) < 1e-6


def test_one_part_is_run_at_a_time_and_its_backward_pass_follows(meru: DualEncoder) -> None:
    """What a tower keeps for a part is gone before the part before it is run again."""
    heard: list[str] = []

    class Kept(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            heard.append(f"forward {len(x)}")
            ctx.save_for_backward(x)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors  # asks for the part to be run again
            heard.append(f"backward {len(x)}")
            return grads[0]

    usual = meru.encode_image
    meru.encode_image = lambda images: Kept.apply(usual(images))  # type: ignore[method-assign]
    Towers(micro_batch=2).images(meru, torch.rand(3, 3, 16, 16)).sum().backward()  # type: ignore[no-untyped-call]
    assert heard == ["forward 2", "forward 1", "forward 1", "backward 1", "forward 2", "backward 2"]
    heard.clear()
    with torch.no_grad():
        Towers(micro_batch=2).images(meru, torch.rand(3, 3, 16, 16))
    assert heard == ["forward 2", "forward 1"]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_towers_alone_are_in_half_precision(precision: str, world: Dataset) -> None:
    """Of the features three digits are left; the geometry of what is left is exact."""
    seen = []
    model = make_model("MERU")
    model.visual.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    images = torch.rand(4, 3, 16, 16)
    whole = Towers().images(model, images).detach()
    half = Towers(precision, micro_batch=3).images(model, images)
    half.sum().backward()  # type: ignore[no-untyped-call]
    # Also where a part is run again.
    assert seen == [False, True, True, True, True]
    assert half.dtype == torch.float32
    assert 0 < furthest([whole], [half.detach()]) < 2e-2
    assert not torch.is_autocast_enabled("cpu")
    loss = gradients(world, "hac", "MERU", Towers(precision))[0]
    assert loss.item() == pytest.approx(gradients(world, "hac", "MERU", Towers())[0].item(), rel=2e-2)


def test_a_callers_own_autocast_stays(meru: DualEncoder) -> None:
    images = torch.rand(4, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = Towers().images(meru, images)
    assert torch.equal(found, Towers("bfloat16").images(meru, images))


def test_only_float16_has_its_loss_scaled() -> None:
    scalers = [Towers(name).scaler(torch.device("cpu")) for name in ("float32", "bfloat16", "float16")]
    assert [scaler is not None for scaler in scalers] == [False, False, True]


def test_what_cannot_be_run_is_refused() -> None:
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, float16, got 'int8'"):
        Towers("int8")
    with pytest.raises(ValueError, match="micro_batch must be at least 1, or None for all, got 0"):
        Towers(micro_batch=0)


def test_training_in_parts_is_training(world: Dataset, meru: DualEncoder) -> None:
    batch = ForgetAndRetain(Problem(meru, world, world.taxonomy.select(["owl"])), 2, 9, seed=0).draw(0).batch
    levels = [level.name for level in world.taxonomy.levels]
    found = []
    for size in (None, 4):
        terms = training_loss(meru, batch, TrainConfig(micro_batch=size), levels)
        loss = torch.stack(list(terms.values())).sum()
        found.append(torch.autograd.grad(loss, list(meru.parameters())))
    assert furthest(*found) < 1e-6


def test_checkpointed_blocks_have_the_same_gradient(world: Dataset) -> None:
    plain, saving = make_model("CLIP"), make_model("CLIP")
    prepare_towers(saving, grad_checkpointing=True)
    images = torch.rand(3, 3, 16, 16)
    kept = []
    for model in (plain, saving):
        sizes: list[int] = []
        pack = lambda tensor, sizes=sizes: sizes.append(tensor.numel()) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model.encode_image(images).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        kept.append(sum(sizes))
    assert kept[1] < kept[0]
    for one, other in zip(plain.visual.parameters(), saving.visual.parameters(), strict=True):
        if one.grad is not None:
            assert other.grad is not None
            assert torch.allclose(one.grad, other.grad, atol=1e-7)


def test_towers_that_do_not_checkpoint_are_named(meru: DualEncoder) -> None:
    meru.visual, meru.text = nn.Linear(2, 2), nn.Linear(2, 2)
    with pytest.raises(ValueError, match="grad_checkpointing: neither tower of this MERU offers it"):
        prepare_towers(meru, grad_checkpointing=True)


def test_both_towers_are_compiled_and_keep_their_names(
    meru: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    names = list(meru.state_dict())
    prepare_towers(meru)
    assert compiled == []
    prepare_towers(meru, compile=True)
    assert compiled == [meru.visual, meru.text]
    assert list(meru.state_dict()) == names


def test_batch_statistics_are_of_a_whole_batch() -> None:
    model = make_model("CLIP")
    check_parts(model, micro_batch=4)
    model.visual.add_module("norm", nn.BatchNorm2d(3))
    check_parts(model, micro_batch=None)
    with pytest.raises(ValueError, match=r"micro_batch: visual\.norm normalizes by the statistics"):
        check_parts(model, micro_batch=4)
