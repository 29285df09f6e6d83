"""The run directory: one folder and one checkpoint format for training and for unlearning.

A run's folder is written file by file, each whole or absent:

    config.yaml         what was asked; its presence says that the folder is a run's
    history.jsonl       one record a line
    checkpoint.pt       while running: what an interrupted run goes on from
    metrics.json        of an unlearning run: before and after
    model.safetensors   the model that came of it

Of several processes (:mod:`riemann_unlearn.processes`) the first writes, and all read: the folder is on a
disk that all of them see.

A run *claims* its folder, and does so last of all: whatever can be refused has been refused by then, so a
request that fails leaves nothing behind that the next one could stumble over. Two runs that claim the same
folder at once are told apart by the file system; the second gets an error, or the next free name.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from riemann_unlearn import processes
from riemann_unlearn._yaml import dump_yaml, read_yaml
from riemann_unlearn.io import atomic_write
from riemann_unlearn.models.origins import WEIGHTS_NAME

CONFIG_NAME = "config.yaml"
HISTORY_NAME = "history.jsonl"
CHECKPOINT_NAME = "checkpoint.pt"
METRICS_NAME = "metrics.json"
FORMAT = 1
"""Of the checkpoint; another one is refused rather than misread."""


class WriteError(OSError):
    """A file of a run could not be written; its text says which, what is safe, and what to do."""

    def __str__(self) -> str:
        return f"cannot write {self.filename}: {self.strerror}"


class Stateful(Protocol):
    """A part of a run that a checkpoint keeps: torch's two methods."""

    def state_dict(self) -> dict[str, Any]:
        """Of tensors, numbers, texts, lists and dicts: a checkpoint is data, and holds no code."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Go back to a state."""


@dataclass(frozen=True)
class Unused:
    """A folder that nobody has: ``base``, or ``base-2``, ``base-3`` ..., decided when the run starts."""

    base: Path


def run_name(method: str, model: str, forget: tuple[str, ...] | list[str], seed: int) -> str:
    """A name for a run's folder that says what it does.

    Examples
    --------
    >>> run_name("tilt", "models/mine.safetensors", ["red apple", "food-fruit"], 0)
    'tilt-mine-red-apple+food-fruit-seed0'
    """
    words = "+".join(forget)[:60]
    parts = (method, Path(model).stem, words, f"seed{seed}")
    # No slash, colon or space of a path or a query gets into the name; "+" stays between concepts.
    return "-".join("".join(ch if ch.isalnum() or ch == "+" else "-" for ch in part) for part in parts)


class RunDirectory:
    """A folder that is a run's, claimed or gone on with.

    Attributes
    ----------
    folder : Path
    config : dict
        What ``config.yaml`` says.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder, self.config = folder, config

    @classmethod
    def claim(cls, output: str | Path | Unused, config: Mapping[str, Any]) -> RunDirectory:
        """Make the folder and write its ``config.yaml``; call it when nothing can be refused any more.

        Parameters
        ----------
        output : str, Path or Unused
            A folder that is empty or missing.
        config : mapping
            Of plain texts, numbers, lists and mappings.

        Raises
        ------
        ValueError
            When the folder is not empty or cannot be written to. It is left as it was.
        """
        config = dict(config)
        return cls(processes.agreed(lambda: _claim(output, dump_yaml(config))), config)

    @classmethod
    def reopen(cls, output: str | Path) -> RunDirectory:
        """The run in a folder, to go on with it.

        Raises
        ------
        ValueError
            When there is no run, or it is finished.
        """
        folder = Path(output)
        # One of several processes reads; and none writes before all know what there was.
        return cls(folder, processes.agreed(lambda: cls._unfinished(folder)))

    @staticmethod
    def _unfinished(folder: Path) -> dict[str, Any]:
        """The configuration of a folder's run, if there is something left of it to do."""
        config = read_yaml(folder / CONFIG_NAME)
        if not isinstance(config, dict):
            raise ValueError(f"{folder / CONFIG_NAME} is not a run's configuration")
        # Either will do: a training writes no metrics.
        finished = any((folder / name).is_file() for name in (METRICS_NAME, WEIGHTS_NAME))
        # The checkpoint goes last, so one that is there means that something is left to be done.
        if finished and not (folder / CHECKPOINT_NAME).is_file():
            raise ValueError(f"the run in {folder} is finished; there is nothing to resume")
        return config

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file of the run; WriteError, with what is safe, when that is not possible."""
        if processes.first():
            with self.writing():
                atomic_write(self.folder / name, content)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Say of what cannot be written in here what is safe, and what to do."""
        try:
            yield
        except OSError as error:
            safe = (
                "its last checkpoint is whole"
                if (self.folder / CHECKPOINT_NAME).is_file()
                else "no checkpoint was written yet, so it will begin again"
            )
            raise WriteError(
                error.errno,
                f"{error.strerror or error}. Mend that and resume the run in {self.folder}; {safe}",
                str(error.filename or self.folder),
            ) from error

    def save(self, parts: Mapping[str, Stateful]) -> None:
        """Write the checkpoint; the last one stays until this one is whole."""
        # All processes have the same, but for what the others measured for themselves, such as their time.
        if not processes.first():
            return
        buffer = io.BytesIO()
        # Into memory first, for atomic_write takes a content that is complete.
        torch.save({"format": FORMAT, **{name: part.state_dict() for name, part in parts.items()}}, buffer)
        self.write(CHECKPOINT_NAME, buffer.getvalue())

    def restore(self, parts: Mapping[str, Stateful]) -> bool:
        """Put every part back to where the checkpoint was written; whether there was one.

        Raises
        ------
        ValueError
            When the checkpoint is damaged, or is another run's.
        """
        path = self.folder / CHECKPOINT_NAME
        if not processes.agreed(path.is_file):
            return False
        saved = _read_checkpoint(path)
        try:
            for name, part in parts.items():
                # Part by part: after an error some are the checkpoint's and some not, and none is to be used.
                part.load_state_dict(saved[name])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(_damaged(path, f"it does not fit this run: {_first_line(error)}")) from error
        return True

    def finish(self) -> None:
        """Take away what only a running run needs; call it when all results are written."""
        # Last of all: cut short before this, the run is one that can be resumed, not one that is finished.
        if processes.first():
            (self.folder / CHECKPOINT_NAME).unlink(missing_ok=True)


class Clock:
    """Seconds of work, over all the sessions that a run took; a part of the checkpoint."""

    def __init__(self) -> None:
        self._started, self._before = time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        """So far."""
        return self._before + time.perf_counter() - self._started

    def state_dict(self) -> dict[str, Any]:
        """The seconds so far."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Add what an earlier session took."""
        # Added to what has passed since this object was made, which is work too.
        self._before += state["seconds"]


def check_free(output: str | Path | Unused) -> None:
    """Raise ValueError for a folder that no new run can have; writes nothing."""
    if not isinstance(output, Unused):
        processes.agreed(lambda: _check_free(Path(output)))


def _check_free(folder: Path) -> None:
    try:
        # The ValueError is not caught below: it is no OSError.
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(_taken(folder))
    except OSError as error:  # a file, or a folder that may not be read
        raise ValueError(f"cannot write to {folder}: {error.strerror}") from None


def _claim(output: str | Path | Unused, content: str) -> Path:
    """Make a run's folder, with its config.yaml."""
    if isinstance(output, Unused):
        return _make_unused(output.base, content)
    folder = Path(output)
    _check_free(folder)
    # Of a failure below: a folder that was there stays, one that was made here goes.
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror}") from None
    try:
        _write_first(folder / CONFIG_NAME, content)
    except FileExistsError:  # another run was quicker, between the check and now
        raise ValueError(_taken(folder)) from None
    except OSError as error:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise ValueError(f"cannot write to {folder}: {error.strerror}") from None
    return folder


def _taken(folder: Path) -> str:
    return f"{folder} is not empty; resume the run in it, or choose another folder"


def _make_unused(base: Path, content: str) -> Path:
    """Make the first folder of ``base``, ``base-2``, ... that is not there, with its config.yaml."""
    try:
        base.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
            try:
                folder.mkdir()  # one of two that try at once gets FileExistsError
            except FileExistsError:
                continue
            break
    except OSError as error:
        raise ValueError(f"cannot write to {base}: {error.strerror}") from None
    try:
        _write_first(folder / CONFIG_NAME, content)
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise ValueError(f"cannot write to {folder}: {error.strerror}") from None
    return folder


def _write_first(path: Path, content: str) -> None:
    """Write a file that nobody else may be writing too; FileExistsError if somebody is."""
    try:
        # Not atomic_write, which replaces what is there: only "x" tells which of two was first.
        with path.open("x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        raise
    except OSError:
        # Half written, it would keep the folder from being used again.
        path.unlink(missing_ok=True)
        raise


def _read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, read as data: nothing in it is run."""
    try:
        # torch reads past a flipped bit in a tensor; the archive's own checksums do not.
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise ValueError(f"{broken} in it is not what was written")
        # On the CPU: the device that wrote it may not be there, and load_state_dict copies to the parts'.
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged archive or pickle raises is anybody's guess
        raise ValueError(_damaged(path, _first_line(error))) from error
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise ValueError(_damaged(path, "it was written by another version, or is no checkpoint of a run"))
    return saved


def _damaged(path: Path, reason: str) -> str:
    return (
        f"{path} cannot be gone on from ({reason}). The other files of the run are safe. Delete "
        f"{path.name} and resume, and the run begins again; or start another one in another folder"
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().split("\n")[0][:200]
