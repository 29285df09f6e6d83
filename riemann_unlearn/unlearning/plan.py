"""What a run will take, before it is begun: of which images, how long, how much memory, which files.

A few of its steps are taken on a copy of the model, so time and memory are measured and not guessed; then
everything is forgotten again, and nothing is written.
"""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from riemann_unlearn import processes
from riemann_unlearn.data import Dataset
from riemann_unlearn.evaluation.features import IMAGES, encode_images
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.runs import Unused
from riemann_unlearn.training import Driver
from riemann_unlearn.unlearning.api import _Run, prepare
from riemann_unlearn.unlearning.methods import GradientMethod, Method

STEPS = 5
"""Steps that are timed; one more before them starts what has to be started."""


@dataclass(frozen=True)
class Plan:
    """What a run will take."""

    forget: list[str]
    method: str
    device: str
    processes: int
    images: dict[str, int]
    """Seen images to ``forget`` and to ``retain``, and those ``heldout``."""
    moves: dict[str, int]
    """Weights that move, in the ``image`` tower, the ``text`` tower and in ``all``; and the ``weights``."""
    batch: dict[str, int]
    """Pairs of each kind in a step."""
    steps: int
    """0 for a method that takes none; its time and memory are then not measured."""
    seconds: dict[str, float | None]
    """``step``: the median of those measured; ``steps``: of all; ``evaluations``: before and after, by a
    chunk of seen images, without their measures; ``total``. None for what was not measured."""
    memory: dict[str, int | None]
    """Bytes on the device: ``weights``; ``gradients`` and ``optimizer``, of what moves; ``batch``; and
    ``activations``, the most that was kept for backward passes at one time. ``peak``, on CUDA, is all that
    was allocated, a method's own copies included."""
    files: dict[str, int | None]
    """By name, what will be written, with its bytes where these are known."""
    folder: str | None = None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As plain dicts, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """A few lines of text."""
        moving = f"{self.moves['all']:,} of {self.moves['weights']:,} weights"
        towers = f"image tower {self.moves['image']:,}, text tower {self.moves['text']:,}"
        lines = [
            f"forget     {', '.join(self.forget)}: {self.images['forget']:,} seen images",
            f"retain     {self.images['retain']:,} seen images; {self.images['heldout']:,} held out",
            f"method     {self.method}, on {self.device}, processes: {self.processes}",
            f"moves      {moving} ({towers})",
        ]
        if self.steps:
            lines.append(
                f"steps      {self.steps:,}, of {self.batch['forget']} pairs to forget and "
                f"{self.batch['retain']} to retain"
            )
        known = [f"{name} {_duration(value)}" for name, value in self.seconds.items() if value is not None]
        lines.append(f"time       {'; '.join(known)}" if known else "time       not measured")
        held = [f"{name} {_size(value)}" for name, value in self.memory.items() if value is not None]
        lines.append(f"memory     {', '.join(held)}")
        files = [name + ("" if size is None else f" ({_size(size)})") for name, size in self.files.items()]
        lines.append(f"writes     {self.folder or 'no folder'}: {', '.join(files)}")
        return "\n".join([*lines, *(f"note       {note}" for note in self.notes)])


def plan(
    model: str | Path | nn.Module = "meru-emoji",
    data: str | Path | Dataset = "emoji",
    *,
    forget: str | Sequence[str],
    method: str | type[Method] | Method = "tilt",
    output: str | Path | Unused | None = None,
    **options: Any,
) -> Plan:
    """What :func:`unlearn` of the same arguments will take; no model is changed, and nothing is written.

    Parameters and errors are those of :func:`unlearn`.

    Examples
    --------
    >>> import riemann_unlearn as ru
    >>> found = plan(forget="food-fruit", method="hac", forget_batch=2, retain_batch=2)
    >>> found.steps, found.batch["forget"], found.folder
    (100, 2, None)
    """
    if isinstance(model, nn.Module):
        model = copy.deepcopy(model)
    run = prepare(model, data, forget=forget, method=method, output=output, resume=False, options=options)
    problem, config = run.problem, run.config
    gone, kept = (len(rows) for rows in problem.pools)
    heldout = problem.dataset.heldout
    weights = _bytes(problem.model.parameters())
    moves = {"image": 0, "text": 0, "all": 0}
    batch, steps, notes = {"forget": 0, "retain": 0}, 0, []
    seconds: dict[str, float | None] = {"step": None, "steps": None}
    memory: dict[str, int | None] = {"weights": weights}
    if isinstance(run.method, GradientMethod):
        steps = run.method.steps
        sizes = config.forget_batch or run.method.forget_batch, config.retain_batch or run.method.retain_batch
        batch = {"forget": min(sizes[0], gone), "retain": min(sizes[1], kept)}
        step, measured, moves = _steps_of(run, run.method)
        seconds = {"step": step, "steps": step * steps}
        memory |= measured
        if config.micro_batch is not None or config.grad_checkpointing:
            # What a checkpoint makes again it keeps by hooks of its own, which are asked first.
            memory["activations"] = None
            notes.append("activations that are made again are not counted; the peak, on CUDA, has them")
    else:
        notes.append(f"{run.method.name} takes no steps: what it costs is not measured")
    evaluations, taken = 2 * _encoding(run), seconds["steps"]
    whole = None if taken is None else taken + evaluations
    optimizer = memory.get("optimizer") or 0
    return Plan(
        forget=list(config.forget),
        method=run.method.name,
        device=str(problem.model.device),
        processes=processes.count(),
        images={
            "forget": gone,
            "retain": kept,
            "heldout": 0 if heldout is None else len(heldout),
        },
        moves={**moves, "weights": sum(p.numel() for p in problem.model.parameters())},
        batch=batch,
        steps=steps,
        seconds={**seconds, "evaluations": evaluations, "total": whole},
        memory=memory,
        files=_files(weights, optimizer) if output is not None else {},
        folder=str(output.base if isinstance(output, Unused) else output) if output is not None else None,
        notes=notes,
    )


class Activations:
    """Counts the bytes that autograd keeps for backward passes: what activations take, on any device.

    ``with Activations(parameters) as kept: ...; kept.most``. A storage counts once, however many tensors show
    parts of it; parameters are kept anyway and do not count.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._known = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        self._holders: Counter[int] = Counter()
        self.now = self.most = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t: _Held(self, t), lambda held: held.tensor
        )

    def __enter__(self) -> Activations:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def count(self, storage: torch.UntypedStorage, change: int) -> None:
        """A tensor of a storage is kept from now on, or no longer."""
        place = storage.data_ptr()
        if place in self._known:
            return
        before = self._holders[place]
        self._holders[place] += change
        # Its first holder brings its bytes, and its last one takes them away.
        if not before or not self._holders[place]:
            self.now += change * storage.nbytes()
            self.most = max(self.most, self.now)


class _Held:
    def __init__(self, kept: Activations, tensor: Tensor) -> None:
        self.kept, self.tensor = kept, tensor
        kept.count(tensor.untyped_storage(), 1)

    def __del__(self) -> None:
        self.kept.count(self.tensor.untyped_storage(), -1)


def _steps_of(run: _Run, method: GradientMethod) -> tuple[float, dict[str, int | None], dict[str, int]]:
    """Seconds of a step, what it holds, and how many weights it moves."""
    model = run.problem.model
    with run.stepping(method) as driver:
        moved = driver.parameters
        moves = {"image": _among(moved, model.visual), "text": _among(moved, model.text)}
        moves["all"] = sum(p.numel() for p in moved)
        seconds, memory = _measured(driver, model)
    return seconds, memory, moves


def _measured(driver: Driver, model: DualEncoder) -> tuple[float, dict[str, int | None]]:
    """Seconds of a step, and what it holds."""
    processes.share(driver.parameters)
    device, moved = model.device, driver.parameters
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    with Activations(list(model.parameters())) as kept:
        images = _batch_bytes(driver)
    state = [value for entry in driver.optimizer.state.values() for value in entry.values()]
    memory: dict[str, int | None] = {
        "gradients": _bytes(p.grad for p in moved if p.grad is not None),
        "optimizer": _bytes(value for value in state if isinstance(value, Tensor)),
        "batch": images,
        "activations": kept.most,
        "peak": torch.cuda.max_memory_allocated(device) if cuda else None,
    }
    times = [_timed(driver.take_step, device) for _ in range(STEPS)]
    return sorted(times)[STEPS // 2], memory


def _batch_bytes(driver: Driver) -> int:
    """Take a step; the bytes of its images."""
    sizes: list[int] = []
    objective = driver.objective

    def listening(step: Any) -> Any:
        sizes.append(_bytes([step.batch.images]))
        return objective(step)

    driver.objective = listening
    driver.take_step()
    driver.objective = objective
    return sizes[0]


def _encoding(run: _Run) -> float:
    """Seconds to encode all images once, by the time of the first chunk of seen ones."""
    dataset, model = run.problem.dataset, run.problem.model
    some = dataset.seen.subset(torch.arange(min(IMAGES, len(dataset.seen))))
    # Each process by itself, as it has a chunk when there are many: they are dealt out.
    with processes.alone():
        taken = _timed(lambda: encode_images(model, some.images), model.device)
    chunks = sum(
        math.ceil(len(part) / IMAGES) for part in (dataset.seen, dataset.heldout) if part is not None
    )
    # Of few chunks the last may be small; a chunk's time is that of as many images as were taken.
    whole = taken * (len(dataset.seen) + (0 if dataset.heldout is None else len(dataset.heldout))) / len(some)
    return whole * math.ceil(chunks / processes.count()) / chunks


def _timed(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":  # what was asked of it may not be done yet
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _files(weights: int, optimizer: int) -> dict[str, int | None]:
    """What a run writes: see :mod:`riemann_unlearn.runs`."""
    return {
        "config.yaml": None,
        "history.jsonl": None,
        "metrics.json": None,
        "model.safetensors": weights,
        "report.html": None,
        "checkpoint.pt, while it runs": weights + optimizer,
    }


def _among(moved: Sequence[Tensor], tower: nn.Module) -> int:
    own = set(map(id, tower.parameters()))
    return sum(p.numel() for p in moved if id(p) in own)


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = seconds / 60
    return f"{minutes:.3g} min" if minutes < 120 else f"{minutes / 60:.3g} h"
