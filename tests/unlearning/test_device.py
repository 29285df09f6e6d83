"""One device contract: models, batches and selections move at the driver's door, and nothing comes back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import riemann_unlearn as ru
from riemann_unlearn.data import Dataset, Selection
from riemann_unlearn.data.batch import Batch
from riemann_unlearn.unlearning import GradientMethod, Problem, create_method
from riemann_unlearn.unlearning.methods import METHODS
from riemann_unlearn.unlearning.problem import ForgetAndRetain
from tests.conftest import make_model
from tests.device import DEVICE, StandIn, StrayTensor

GRADIENT_METHODS = [
    name for name, one in METHODS.items() if isinstance(one, type) and issubclass(one, GradientMethod)
]


def step_on(mode: StandIn, name: str, world: Dataset, architecture: str = "MERU") -> dict[str, float]:
    """A whole step of a method on the stand-in, forward and backward; its terms."""
    model = make_model(architecture).to(DEVICE)
    problem = Problem(model, world, world.taxonomy.select(["food-fruit"]).to(DEVICE))
    method = create_method(name)
    assert isinstance(method, GradientMethod)
    objective = method.objective(problem)
    step = ForgetAndRetain(problem, 4, 8, seed=0).draw(0).to(DEVICE)
    with mode.nothing_comes_back():
        terms = objective(step)
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert any(p.grad is not None for p in method.parameters(model))
    return {name: value.item() for name, value in terms.items()}


@pytest.mark.parametrize("architecture", ["MERU", "CLIP"])
@pytest.mark.parametrize("name", GRADIENT_METHODS)
def test_a_step_stays_on_its_device(name: str, architecture: str, world: Dataset) -> None:
    model = make_model(architecture)
    problem = Problem(model, world, world.taxonomy.select(["food-fruit"]))
    method = create_method(name)
    if method.unmet(problem) is not None:
        pytest.skip(f"{name} is not for {architecture}")
    with StandIn() as mode:
        found = step_on(mode, name, world, architecture)
    assert mode.moved
    assert isinstance(method, GradientMethod)
    terms = method.objective(problem)(ForgetAndRetain(problem, 4, 8, seed=0).draw(0))
    assert found == pytest.approx({key: value.item() for key, value in terms.items()}, rel=1e-3, abs=1e-4)


def left_behind(*_: Any) -> Any:
    return _[0]


@pytest.mark.parametrize(
    ("kind", "attribute", "fault"),
    [
        (Selection, "to", left_behind),  # the masks of what is to be forgotten stay on the CPU
        (Batch, "to", left_behind),  # the caption ids do
    ],
)
def test_what_is_left_on_the_cpu_is_noticed(
    kind: type, attribute: str, fault: Callable[..., Any], world: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, attribute, fault)
    with StandIn() as mode, pytest.raises(StrayTensor):
        step_on(mode, "hac", world)


def test_a_stray_cpu_is_noticed(world: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    tilt = METHODS["tilt"]
    real = tilt.objective  # type: ignore[union-attr]

    def objective(self: Any, problem: Problem) -> Any:
        terms = real(self, problem)
        return lambda step: {**terms(step), "stray_loss": step.image_features.cpu().sum()}

    monkeypatch.setattr(tilt, "objective", objective)
    with StandIn() as mode, pytest.raises(StrayTensor, match="cpu brings a tensor back to the CPU"):
        step_on(mode, "tilt", world)


@pytest.mark.parametrize("name", ["tilt", "hac", "nullspace"])
def test_a_whole_run_moves_at_the_door(name: str, world: Dataset, tmp_path: Path) -> None:
    """From a model on the CPU: batches, selection, measures before and after, run directory."""
    settings = {} if name == "nullspace" else {"steps": 3}
    asked: dict[str, Any] = {"forget": "food-fruit", "method": name, "settings": settings, "progress": False}
    plain = ru.unlearn(make_model("MERU"), world, **asked)
    with StandIn() as mode:
        model = make_model("MERU")
        result = ru.unlearn(model, world, device=DEVICE.type, output=tmp_path / "run", **asked)
        assert model.device == DEVICE
    assert mode.moved
    losses = [[record["loss"] for record in one.history] for one in (result, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert result.metrics["after"]["retain"].keys() == plain.metrics["after"]["retain"].keys()
    assert ru.load(tmp_path / "run").device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", list(METHODS))
def test_a_run_on_a_gpu(name: str, world: Dataset, tmp_path: Path) -> None:
    """From a model on the CPU to a run directory, and on with it; near what the CPU gives."""
    settings: dict[str, Any] = {"nullspace": {}, "retrain": {"epochs": 1, "batch_size": 8}}.get(
        name, {"steps": 3}
    )
    on_cpu = ru.unlearn(
        copy.deepcopy(make_model("MERU")),
        world,
        forget="food-fruit",
        method=name,
        settings=settings,
        progress=False,
    )
    result = ru.unlearn(
        make_model("MERU"),
        world,
        forget="food-fruit",
        method=name,
        settings=settings,
        output=tmp_path / "run",
        device="cuda",
        progress=False,
    )
    assert result.model.device.type == "cuda"
    losses = [[record["loss"] for record in one.history] for one in (result, on_cpu)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02, abs=0.02)
    assert ru.load(tmp_path / "run").device.type == "cpu"
