"""What listens to a driver: the progress bar, the history, the checkpoint and the watch.

Each is a :class:`~riemann_unlearn.training.driver.Callback`; a third party's own goes beside them, as in
``unlearn(..., callbacks=[mine])``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from riemann_unlearn import processes
from riemann_unlearn.diagnostics.watcher import watch
from riemann_unlearn.runs import HISTORY_NAME, RunDirectory, Stateful
from riemann_unlearn.training.driver import Callback, Driver


class ProgressBar(Callback):
    """Shows the steps and the last loss, where there is a terminal to show them.

    Parameters
    ----------
    description : str
    shown : bool
    """

    def __init__(self, description: str, shown: bool = True) -> None:
        self.description, self.shown = description, shown
        self._bar: tqdm[Any] | None = None

    def started(self, driver: Driver) -> None:
        """Open the bar at the step that is next."""
        self._bar = tqdm(
            total=driver.steps,
            initial=driver.step,
            desc=self.description,
            unit="step",
            # None lets tqdm see for itself whether there is a terminal.
            disable=None if self.shown and processes.first() else True,
        )

    def stepped(self, driver: Driver, record: dict[str, Any]) -> None:
        """Move it."""
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{record['loss']:.3f}", refresh=False)
            self._bar.update()

    def closed(self, driver: Driver) -> None:
        """Leave it as it is."""
        if self._bar is not None:
            self._bar.close()


class History(Callback):
    """Keeps a record of every step, and writes them to the run's ``history.jsonl``.

    Parameters
    ----------
    directory : RunDirectory, optional
        Without one the records are kept in memory alone.
    every : int
        Steps between two times that the file is written.

    Attributes
    ----------
    records : list of dict
    """

    def __init__(self, directory: RunDirectory | None = None, every: int = 1) -> None:
        self.directory, self.every = directory, every
        self.records: list[dict[str, Any]] = []

    def stepped(self, driver: Driver, record: dict[str, Any]) -> None:
        """Keep the record."""
        self.records.append(record)
        if driver.step % self.every == 0:
            self.write()

    def closed(self, driver: Driver) -> None:
        """Write what there is."""
        self.write()

    def write(self) -> None:
        """Write all records, if there is a folder."""
        if self.directory is not None:
            # The whole file each time, in place of the old one: what was recorded after the checkpoint that a
            # run goes on from disappears with it.
            self.directory.write(HISTORY_NAME, "".join(json.dumps(entry) + "\n" for entry in self.records))

    def state_dict(self) -> dict[str, Any]:
        """The records."""
        return {"records": self.records}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the records of a checkpoint."""
        # In place, for others may hold the list.
        self.records[:] = state["records"]


class Checkpoint(Callback):
    """Keeps the run's checkpoint up to date.

    Parameters
    ----------
    directory : RunDirectory
    parts : mapping
        By name, all that the run is made of beside the driver.
    every : int
        Steps between two checkpoints.
    at_the_end : bool
        Also write one when the run ends or is cut short. Not for a model in training mode, whose batch
        statistics move in the forward pass: there, a step that is cut short cannot be taken back.
    """

    def __init__(
        self,
        directory: RunDirectory,
        parts: Mapping[str, Stateful],
        every: int,
        *,
        at_the_end: bool = True,
    ) -> None:
        self.directory, self.parts, self.every, self.at_the_end = directory, parts, every, at_the_end
        self._last: int | None = None

    def started(self, driver: Driver) -> None:
        """Remember where the run goes on from: that is in the folder already."""
        self._last = driver.step

    def stepped(self, driver: Driver, record: dict[str, Any]) -> None:
        """Write it when it is time."""
        if driver.step % self.every == 0:
            self._save(driver)

    def closed(self, driver: Driver) -> None:
        """Write the last state that is whole."""
        # Of parameters that an optimizer left halfway the last checkpoint is the better one to go on from.
        if self.at_the_end and driver.whole and driver.step != self._last:
            self._save(driver)

    def _save(self, driver: Driver) -> None:
        self.directory.save({"driver": driver, **self.parts})
        self._last = driver.step


class Watch(Callback):
    """Looks now and then at where the parameters and the features are, and for the first NaN.

    Parameters
    ----------
    target : Module or iterable of Tensor
        As for :func:`riemann_unlearn.diagnostics.watch`.
    features : callable, optional
        Of a batch on the device: features as tangent vectors at the origin, their curvature magnitude and
        what they are called; None for a batch whose features have no radius.
    """

    def __init__(
        self,
        target: Any,
        features: Callable[[Any], tuple[str, Tensor, Tensor] | None] | None = None,
    ) -> None:
        self.watch = watch(target)
        self.features = features

    def started(self, driver: Driver) -> None:
        """Count the steps that were taken before."""
        # So that a resumed run looks at the same steps as one that was never interrupted.
        self.watch.steps = driver.step

    def stepped(self, driver: Driver, record: dict[str, Any]) -> None:
        """Add what was seen to the record."""
        # Before the watch counts this step, after which it would no longer be due.
        if self.features is not None and self.watch.due:
            seen = self.features(driver.batch)
            if seen is not None:
                name, vectors, c = seen
                record.update(self.watch.tangents(name, vectors, torch.as_tensor(c)))
        record.update(self.watch.step())


class Clamp(Callback):
    """Puts a model's scalars back into their range after each step.

    Parameters
    ----------
    model : Module
        With a method ``clamp_``.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def updated(self, driver: Driver) -> None:
        """Clamp."""
        self.model.clamp_()
