from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from riemann_unlearn import models
from riemann_unlearn.data import Concept, Dataset, Samples, Taxonomy
from riemann_unlearn.data.batch import make_batch
from riemann_unlearn.evaluation import zero_shot
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.training import Callback, Driver, EpochBatches, TrainConfig, training_loss
from riemann_unlearn.training import train as train_model
from riemann_unlearn.training.train import HeadFirst, last_layer
from tests.conftest import make_model, model_config

LEVELS = ("name", "kind", "realm")


def config(world_path: Path, **changes: object) -> TrainConfig:
    base = TrainConfig(data=str(world_path), epochs=4, batch_size=8, warmup_epochs=1, evaluate_every=2)
    return replace(base, **changes)  # type: ignore[arg-type]


def train(*arguments: Any, **options: Any) -> DualEncoder:
    return train_model(*arguments, **{"progress": False, "measure": zero_shot} | options)


def history(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize("architecture", ["MERU", "CLIP"])
def test_training_learns_and_repeats(architecture: str, world_path: Path, tmp_path: Path) -> None:
    settings = config(world_path, epochs=8, learning_rate=3e-3)
    model = train(model_config(architecture), settings, tmp_path / "a")
    records = history(tmp_path / "a")
    assert [record["epoch"] for record in records] == list(range(1, 9))
    assert records[-1]["contrastive_name_loss"] < records[0]["contrastive_name_loss"]
    assert set(records[-1]["seen"]) == set(records[-1]["heldout"])
    assert ["seen" in record for record in records] == [False, True] * 4
    assert ("curvature" in records[0]) == (architecture == "MERU")
    assert records[-1]["logit_scale"] == pytest.approx(model.logit_scale.exp().item())
    assert not model.training
    for_open_clip = {"open_clip_config.json"} if architecture == "CLIP" else set()
    always = {"config.yaml", "history.jsonl", "model.safetensors"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == always | for_open_clip
    again = train(model_config(architecture), settings, tmp_path / "b")
    assert history(tmp_path / "b") == records
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    saved = models.load(tmp_path / "a")
    assert saved.config["architecture"] == architecture


class Stop(Callback):
    """Ctrl-C after a number of steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def stepped(self, driver: Driver, record: dict[str, Any]) -> None:
        if driver.step == self.steps:
            raise KeyboardInterrupt


@pytest.mark.parametrize("steps", [4, 5, 7])
def test_a_resumed_training_ends_as_an_uninterrupted_one(
    steps: int, world_path: Path, tmp_path: Path
) -> None:
    """Interrupted at the end of an epoch of two steps, or in the middle of one."""
    settings = config(world_path, group=2)
    whole = train(model_config("MERU"), settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(model_config("MERU"), settings, tmp_path / "parts", callbacks=[Stop(steps)])
    assert (tmp_path / "parts" / "checkpoint.pt").is_file()
    resumed = train(model_config("MERU"), settings, tmp_path / "parts", resume=True)
    assert history(tmp_path / "parts") == history(tmp_path / "whole")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    with pytest.raises(ValueError, match="is finished; there is nothing to resume"):
        train(model_config("MERU"), settings, tmp_path / "parts", resume=True)


def test_a_folder_that_holds_something_else_is_refused(world_path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        train(model_config("MERU"), config(world_path), tmp_path)
    (tmp_path / "config.yaml").write_text("another: run")
    with pytest.raises(ValueError, match="another configuration"):
        train(model_config("MERU"), config(world_path), tmp_path, resume=True)


def test_nothing_is_written_before_everything_is_checked(world_path: Path, tmp_path: Path) -> None:
    """A bad model file, mended, trains into the same folder."""
    bad = model_config("MERU") | {"architecture": "MURU"}
    for resume in (False, True):
        with pytest.raises(ValueError, match="'MURU'"):
            train(bad, config(world_path), tmp_path / "run", resume=resume)
        with pytest.raises(ValueError, match="no dataset"):
            train(model_config("MERU"), config(world_path, data="none"), tmp_path / "run", resume=resume)
    with pytest.raises(ValueError, match="cannot compute on device"):
        train(model_config("MERU"), config(world_path, device="toaster"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train(model_config("MERU"), config(world_path, epochs=1), tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number, at least 1, got 0"),
        ({"weight_decay": -1}, "weight_decay must be a number, at least 0, got -1"),
        ({"precision": "float8"}, "precision must be one of"),
    ],
)
def test_settings_are_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**change)  # type: ignore[arg-type]


def test_a_loss_that_is_not_finite_ends_the_run(world_path: Path, tmp_path: Path) -> None:
    settings = config(world_path, learning_rate=1e25, warmup_epochs=0)
    with pytest.raises(RuntimeError, match="smaller learning_rate"):
        train(model_config("CLIP"), settings, tmp_path / "a")


def test_bfloat16_is_near_float32(world_path: Path, tmp_path: Path) -> None:
    """The towers run under autocast and the rest does not, so the first losses differ by rounding alone."""
    first = []
    for precision in ("float32", "bfloat16"):
        settings = config(world_path, epochs=1, precision=precision, learning_rate=1e-8)
        train(model_config("MERU"), settings, tmp_path / precision)
        first.append(history(tmp_path / precision)[0]["contrastive_name_loss"])
    assert first[0] != first[1]
    assert first[1] == pytest.approx(first[0], rel=0.02)


@pytest.fixture
def example(world: Dataset) -> tuple[DualEncoder, Any]:
    model = make_model("MERU")
    return model, make_batch(world.seen, torch.arange(8), (16, 16), torch.Generator().manual_seed(0))


def test_every_level_and_every_cone_has_its_term(example: tuple[DualEncoder, Any]) -> None:
    model, batch = example
    terms = training_loss(model, batch, TrainConfig(), LEVELS)
    assert set(terms) == {
        f"{kind}_{level}_loss" for kind in ("contrastive", "entailment") for level in LEVELS
    }
    sum(terms.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    off = training_loss(model, batch, TrainConfig(entailment_weight=0.0), LEVELS)
    assert off["entailment_name_loss"].item() == 0.0


def test_a_broader_captions_cone_is_to_hold_the_narrower_caption(example: tuple[DualEncoder, Any]) -> None:
    """Beside the image: the excess over each cone is summed here pair by pair."""
    model, batch = example
    with torch.no_grad():  # captions far enough out for their cones to be narrow
        model.text_log_scale.add_(4.0)  # type: ignore[operator, union-attr]
        images = model.encode_image(model.preprocess(batch.images))
        texts = model.encode_text(model.tokenize(batch.texts))
        captions = [texts[pairing.row] for pairing in batch.pairings]

    def excess(broad: Tensor, narrow: Tensor) -> Tensor:
        return model.space.cones(broad, narrow).outside.clamp(min=0).mean()

    found = training_loss(model, batch, TrainConfig(entailment_weight=0.5), LEVELS)
    for depth, level in enumerate(LEVELS):
        expected = excess(captions[depth], images)
        if depth:
            below = excess(captions[depth], captions[depth - 1])
            assert below > 0.1
            expected = expected + below
        assert found[f"entailment_{level}_loss"].item() == pytest.approx(0.5 * expected.item(), rel=1e-5)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_taxonomy_has_as_many_terms_as_levels(depth: int) -> None:
    path = tuple(f"level {i}" for i in range(depth))
    taxonomy = Taxonomy([Concept(name, name, (), path) for name in ("owl", "duck")])
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    samples = Samples(images, torch.tensor([0, 1, 0, 1]), torch.zeros(4, dtype=torch.long), ("me",), taxonomy)
    batch = make_batch(samples, torch.arange(4), (16, 16), torch.Generator().manual_seed(0))
    names = [level.name for level in taxonomy.levels]
    assert len(training_loss(make_model("CLIP"), batch, TrainConfig(), names)) == depth + 1


class TestEpochs:
    @staticmethod
    def batches(world: Dataset, **changes: Any) -> EpochBatches:
        return EpochBatches(world.seen, make_model("CLIP"), TrainConfig(batch_size=6, **changes))

    def test_every_image_comes_once_an_epoch(self, world: Dataset) -> None:
        batches = self.batches(world, group=3)
        assert batches.per_epoch == 3
        for epoch in range(2):
            rows = torch.cat([batches.draw(3 * epoch + i).indices for i in range(3)])
            assert rows.sort().values.tolist() == list(range(16))

    def test_every_other_epoch_from_the_second_on_is_grouped(self, world: Dataset) -> None:
        """Chance alone orders the images in the first and the third, runs of two in the second and fourth."""
        batches = self.batches(world, group=2)
        label = world.seen.labels(world.taxonomy.grouping)
        grouped = []
        for epoch in range(4):
            pairs = label[batches.order(epoch)].view(8, 2)
            grouped.append(bool((pairs[:, 0] == pairs[:, 1]).all()))
        assert grouped == [False, True, False, True]
        plain = torch.Generator().manual_seed(0)
        assert torch.equal(self.batches(world, group=2).order(0), torch.randperm(16, generator=plain))

    def test_a_group_of_one_leaves_it_to_chance(self, world: Dataset) -> None:
        batches, plain = self.batches(world, group=1), torch.Generator().manual_seed(0)
        for epoch in range(2):
            assert torch.equal(batches.order(epoch), torch.randperm(16, generator=plain))


class Moved(Callback):
    """Which parameters had a gradient at each step, and the rate."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.rates: list[float] = []

    def updating(self, driver: Driver) -> None:
        self.counts.append(sum(p.grad is not None for p in driver.parameters))

    def updated(self, driver: Driver) -> None:
        self.rates.append(driver.optimizer.param_groups[0]["lr"])


def test_the_last_layer_moves_first(world_path: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    models.save_model(make_model("MERU"), start)
    settings = config(world_path, start=str(start), epochs=4, head_epochs=2, warmup_epochs=0)
    moved = Moved()
    model = train(model_config("MERU"), settings, tmp_path / "a", callbacks=[moved])
    tower, last = list(model.visual.parameters()), last_layer(model.visual)
    assert all(p.requires_grad for p in tower)
    assert 0 < len(last) < len(tower)
    half = len(moved.counts) // 2
    assert set(moved.counts[:half]) == {moved.counts[-1] - len(tower) + len(last)}
    assert len(set(moved.counts[half:])) == 1
    assert moved.rates[half] == pytest.approx(0.2 * moved.rates[0])
    assert moved.rates[half - 1] < moved.rates[0]
    assert all(parameter.requires_grad for parameter in model.parameters())
    # Interrupted in the second phase and gone on with, it is the same training.
    stop = Interrupting(3 * half // 2)
    with pytest.raises(KeyboardInterrupt):
        train(model_config("MERU"), settings, tmp_path / "b", callbacks=[stop])
    again = train(model_config("MERU"), settings, tmp_path / "b", resume=True)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


class Interrupting(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, driver: Driver, record: dict[str, Any]) -> None:
        if driver.step == self.step:
            raise KeyboardInterrupt


def test_what_is_fixed_stays_fixed_and_no_last_layer_is_asked_for_without_need() -> None:
    model = make_model("MERU")
    fixed = next(model.visual.parameters()).requires_grad_(False)
    driver = SimpleNamespace(step=0)
    first = HeadFirst(model, 1)
    first.started(driver)  # type: ignore[arg-type]
    assert not any(
        p.requires_grad for p in model.visual.parameters() if p not in set(last_layer(model.visual))
    )
    driver.step = 1
    first.stepped(driver, {})  # type: ignore[arg-type]
    assert [p for p in model.visual.parameters() if not p.requires_grad] == [fixed]
    model.visual = torch.nn.Flatten()  # which has none
    never = HeadFirst(model, 0)
    never.started(driver)  # type: ignore[arg-type]
    never.closed(driver)  # type: ignore[arg-type]


def test_a_last_layer_that_cannot_move_alone_is_refused(world_path: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    models.save_model(make_model("MERU"), start)
    for changes, message in (
        ({"head_epochs": 1.0}, "give a model as start"),
        ({"head_epochs": 4.0, "start": str(start)}, "head_epochs, 4, must be below epochs, 4"),
    ):
        with pytest.raises(ValueError, match=message):
            train(model_config("MERU"), config(world_path, **changes), tmp_path / "a")
        assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match="cannot tell the last layer of a Identity"):
        last_layer(torch.nn.Identity())
