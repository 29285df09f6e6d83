"""The loop by itself, on a weight and a handful of numbers."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from riemann_unlearn.runs import RunDirectory
from riemann_unlearn.training import Callback, Checkpoint, Clamp, Driver, History, ProgressBar, as_device
from riemann_unlearn.training.schedules import cosine


class Numbers:
    """Batches of random numbers."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def draw(self, number: int) -> Tensor:
        return torch.rand(4, generator=self.generator)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generator.set_state(state["generator"])


def make(*callbacks: Callback, steps: int = 6, **options: Any) -> tuple[Driver, nn.Parameter, History]:
    weight, history = nn.Parameter(torch.tensor([3.0, -2.0])), History()
    optimizer = torch.optim.Adam([weight], lr=0.1)
    driver = Driver(
        Numbers(),
        lambda batch: {"far_loss": (weight[0] - batch).square().mean(), "near_loss": weight[1].abs()},
        optimizer,
        parameters=[weight],
        steps=steps,
        **{"callbacks": [*callbacks, history]} | options,
    )
    return driver, weight, history


class Told(Callback):
    """Remembers what it heard, and stops at some point of a step."""

    def __init__(self, stop: tuple[str, int] | None = None) -> None:
        self.heard: list[str] = []
        self.stop = stop

    def _hear(self, what: str, driver: Driver) -> None:
        self.heard.append(what)
        if self.stop == (what, driver.step):
            raise KeyboardInterrupt

    def started(self, driver: Driver) -> None:
        self._hear("started", driver)

    def updating(self, driver: Driver) -> None:
        self._hear("updating", driver)

    def updated(self, driver: Driver) -> None:
        self._hear("updated", driver)

    def stepped(self, driver: Driver, record: dict[str, Any]) -> None:
        self._hear("stepped", driver)

    def closed(self, driver: Driver) -> None:
        self._hear("closed", driver)


def test_it_descends_and_tells() -> None:
    told = Told()
    driver, _, history = make(told, steps=2)
    driver.run()
    assert told.heard == ["started", *["updating", "updated", "stepped"] * 2, "closed"]
    assert [record["step"] for record in history.records] == [1, 2]
    assert history.records[1]["loss"] < history.records[0]["loss"]
    for record in history.records:
        assert record["loss"] == pytest.approx(record["far_loss"] + record["near_loss"])


def test_it_is_the_loop_that_one_would_write() -> None:
    driver, weight, _ = make(schedule=cosine(6, 2), gradient_clip=0.5)
    driver.run()
    plain, batches = nn.Parameter(torch.tensor([3.0, -2.0])), Numbers()
    optimizer = torch.optim.Adam([plain], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine(6, 2))
    for number in range(6):
        loss = (plain[0] - batches.draw(number)).square().mean() + plain[1].abs()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([plain], 0.5)
        optimizer.step()
        scheduler.step()
    assert torch.equal(weight, plain)


def test_only_what_is_to_move_gets_a_gradient() -> None:
    driver, weight, _ = make(steps=1)
    other = nn.Parameter(torch.tensor(1.0))
    driver.objective = lambda batch: {"loss": other * weight.square().sum()}
    driver.run()
    assert other.grad is None
    assert weight.grad is not None


@pytest.mark.parametrize("moment", ["started", "updating", "updated", "stepped"])
def test_whatever_the_moment_of_a_stop_callbacks_are_closed_and_the_state_says_if_it_is_whole(
    moment: str,
) -> None:
    step = {"started": 0, "stepped": 4}.get(moment, 3)
    told, other = Told((moment, step)), Told()
    driver, _, history = make(told, other)
    with pytest.raises(KeyboardInterrupt):
        driver.run()
    # One that could not be started is not closed either.
    assert (other.heard[-1:] == ["closed"]) == (moment != "started")
    assert driver.whole == (moment in ("started", "stepped"))
    assert len(history.records) == driver.step


def test_a_state_goes_on_bitwise_with_the_rates_of_the_schedule() -> None:
    whole, weight, history = make(schedule=cosine(6, 2))
    whole.run()
    first, half, _ = make(steps=3, schedule=cosine(6, 2))
    first.run()
    buffer = io.BytesIO()
    torch.save([first.state_dict(), half.detach()], buffer)
    buffer.seek(0)
    state, value = torch.load(buffer, weights_only=True)
    second, resumed, records = make(schedule=cosine(6, 2))
    resumed.data.copy_(value)
    second.load_state_dict(state)
    second.run()
    assert torch.equal(resumed, weight)
    assert records.records == history.records


def test_a_callback_that_was_added_since_has_nothing_to_go_on_from() -> None:
    first, _, _ = make(Told(), Told(), steps=2)
    first.run()
    second, _, history = make(Told())
    second.load_state_dict(first.state_dict())
    assert len(history.records) == 2


def test_a_loss_that_is_not_finite_says_which_term_and_moves_nothing() -> None:
    driver, weight, _ = make()
    driver.objective = lambda batch: {"good_loss": weight.sum(), "bad_loss": (weight - 3).log().sum()}
    with pytest.raises(
        RuntimeError, match=r"the loss became nan at step 1 \(bad_loss\); a smaller learning_rate"
    ):
        driver.run()
    assert weight.tolist() == [3.0, -2.0]
    driver.objective = lambda batch: {"a_loss": weight.sum() * 3e38, "b_loss": weight.sum() * 3e38}
    with pytest.raises(RuntimeError, match=r"became inf at step 1 \(its sum\)"):
        driver.run()


def test_devices_are_checked() -> None:
    with pytest.raises(ValueError, match="cannot compute on device 'cuda:99'"):
        as_device("cuda:99")


class Scaled:
    """A driver of a weight in float16, whose gradients overflow above 65504 and vanish below 6e-8."""

    def __init__(self, factor: float, **options: Any) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        self.driver, self.weight, self.history = make(scaler=self.scaler, **options)
        # Through half precision, forward and backward, as a tower of a GPU goes.
        self.driver.objective = lambda batch: {"loss": factor * self.weight.half().float().sum()}


@pytest.mark.parametrize(("factor", "clip", "expected"), [(1e-8, None, 1e-8), (2.0, 0.5, 0.5 / 2**0.5)])
def test_gradients_that_vanish_in_float16_are_scaled_and_clipped_as_they_are(
    factor: float, clip: float | None, expected: float
) -> None:
    case = Scaled(factor, steps=1, gradient_clip=clip)
    case.driver.run()
    assert case.weight.grad is not None
    assert case.weight.grad.tolist() == pytest.approx([expected] * 2, rel=1e-2)


def test_a_step_whose_gradients_overflow_moves_nothing_and_halves_the_scale() -> None:
    case = Scaled(100.0, steps=1)
    case.driver.run()
    assert case.history.records[0]["gradient_scale"] == 512.0  # 1024 times 100 is above 65504
    assert case.weight.tolist() == [3.0, -2.0]
    assert case.weight.grad is None
    case.driver.steps = 2
    case.driver.run()
    assert case.weight[0] < 3.0


def test_gradients_that_overflow_whatever_the_scale_end_the_run() -> None:
    case = Scaled(1e6, steps=40)
    with pytest.raises(RuntimeError, match="gradients overflow float16 at every scale down to 1, at step 12"):
        case.driver.run()
    assert case.driver.whole
    assert case.weight.tolist() == [3.0, -2.0]


def test_the_scale_goes_on_from_a_checkpoint() -> None:
    first, second = Scaled(1.0, steps=2), Scaled(1.0, steps=4)
    first.driver.run()
    second.driver.load_state_dict(first.driver.state_dict())
    # Doubled after two steps without an overflow.
    assert second.scaler.get_scale() == first.scaler.get_scale() == 2048.0


class TestCheckpoint:
    def parts(self, tmp_path: Path, stop: tuple[str, int] | None, at_the_end: bool) -> tuple[int, Path]:
        directory = RunDirectory.claim(tmp_path / "run", {"a": 1})
        checkpoint = Checkpoint(directory, {}, every=4, at_the_end=at_the_end)
        driver, _, _ = make(Told(stop), checkpoint)
        if stop is None:
            driver.run()
        else:
            with pytest.raises(KeyboardInterrupt):
                driver.run()
        path = directory.folder / "checkpoint.pt"
        saved = torch.load(path, weights_only=True)["driver"]["step"] if path.is_file() else 0
        return saved, path

    @pytest.mark.parametrize(
        ("stop", "at_the_end", "kept"),
        [
            (None, True, 6),
            (None, False, 4),
            (("stepped", 3), True, 3),
            (("stepped", 3), False, 0),
            (("updated", 5), True, 4),
            (("updated", 2), True, 0),
        ],
    )
    def test_the_last_whole_state_is_kept(
        self, stop: tuple[str, int] | None, at_the_end: bool, kept: int, tmp_path: Path
    ) -> None:
        assert self.parts(tmp_path, stop, at_the_end)[0] == kept


def test_the_history_is_written(tmp_path: Path) -> None:
    directory = RunDirectory.claim(tmp_path / "run", {})
    lines = []

    class Look(Callback):
        def stepped(self, driver: Driver, record: dict[str, Any]) -> None:
            path = tmp_path / "run" / "history.jsonl"
            lines.append(len(path.read_text().splitlines()) if path.is_file() else 0)

    driver, _, _ = make(History(directory, every=4), Look())
    driver.run()
    assert lines == [0, 0, 0, 4, 4, 4]
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == 6


def test_a_model_is_clamped_after_each_step() -> None:
    class Model(nn.Module):
        clamped = 0

        def clamp_(self) -> None:
            self.clamped += 1

    model = Model()
    make(Clamp(model))[0].run()
    assert model.clamped == 6


def test_the_bar_starts_where_the_run_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    class Shown(ProgressBar):
        def started(self, driver: Driver) -> None:
            super().started(driver)
            assert self._bar is not None
            assert (self._bar.n, self._bar.total) == (driver.step, 6)

    driver, _, _ = make(Shown("forget", shown=True), steps=2)
    driver.steps = 6
    driver.step = 2
    driver.run()
    make(ProgressBar("forget", shown=False))[0].run()
    assert capsys.readouterr().out == ""
