"""The loop that makes a model forget: it knows batches and the optimizer, and no method.

A run: measure, take ``steps`` optimizer steps on batches of forget and retain pairs, measure again.
Given a folder it is also a run directory, written file by file, each whole or absent:

    config.yaml         what was asked
    history.jsonl       one line a step: every loss term
    checkpoint.pt       while running: what an interrupted run goes on from
    metrics.json        before and after
    model.safetensors   the model that has forgotten
    report.html         the same for a reader
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from tqdm import tqdm

from riemann_unlearn.data import Dataset, Selection
from riemann_unlearn.data import load as load_data
from riemann_unlearn.data.batch import make_batch
from riemann_unlearn.diagnostics import watch
from riemann_unlearn.evaluation import evaluate
from riemann_unlearn.io import atomic_write
from riemann_unlearn.models import DualEncoder, save_model
from riemann_unlearn.models import load as load_model
from riemann_unlearn.models.checkpoint import WEIGHTS_NAME
from riemann_unlearn.optim import RiemannianAdam
from riemann_unlearn.unlearning.methods import (
    DEFAULT_METHOD,
    DirectMethod,
    GradientMethod,
    Method,
    Problem,
    Step,
    create_method,
)
from riemann_unlearn.unlearning.saliency import saliency_masks

CONFIG_NAME = "config.yaml"
METRICS_NAME = "metrics.json"
HISTORY_NAME = "history.jsonl"
CHECKPOINT_NAME = "checkpoint.pt"
CHECKPOINT_EVERY = 25
"""Steps between two checkpoints; one is also written when a run is interrupted."""


@dataclass(frozen=True)
class RunConfig:
    """What a run is asked to do; ``config.yaml`` holds exactly these fields."""

    forget: Sequence[str]
    model: str = "meru-emoji"
    data: str = "emoji"
    method: str = DEFAULT_METHOD
    settings: Mapping[str, float] = field(default_factory=dict)
    """Settings of the method that differ from its defaults."""
    seed: int = 0
    forget_batch: int | None = None
    """Pairs to be forgotten in a batch; None is the method's own number."""
    retain_batch: int | None = None
    saliency: float = 1.0
    """Share of the weights that may move: those with the largest gradient of the forgotten pairs' loss."""

    def __post_init__(self) -> None:
        """Refuse values no run could use, before any work is done."""
        if isinstance(self.forget, str) or not isinstance(self.forget, Sequence):
            raise ValueError(f"forget must be a list of concepts, got {self.forget!r}")
        object.__setattr__(self, "forget", tuple(map(str, self.forget)))
        if not isinstance(self.settings, Mapping):
            raise ValueError(f"settings must be a mapping, got {self.settings!r}")
        for name in ("forget_batch", "retain_batch"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed must be a whole number of at least 0, got {self.seed!r}")
        if not isinstance(self.saliency, (int, float)) or not 0 < self.saliency <= 1:
            raise ValueError(f"saliency must be in (0, 1], got {self.saliency!r}")


@dataclass(frozen=True)
class UnlearningResult:
    """What :func:`unlearn` returns."""

    model: DualEncoder
    """The model that has forgotten, in evaluation mode."""
    metrics: dict[str, Any]
    """What ``metrics.json`` holds."""
    history: list[dict[str, Any]]
    """One record a step."""


class Interrupted(KeyboardInterrupt):
    """A run was interrupted; its message says at which step, and how to go on."""


def unlearn(
    model: str | Path | DualEncoder = "meru-emoji",
    data: str | Path | Dataset = "emoji",
    *,
    forget: str | Sequence[str],
    method: str = DEFAULT_METHOD,
    settings: Mapping[str, float] | None = None,
    seed: int = 0,
    forget_batch: int | None = None,
    retain_batch: int | None = None,
    saliency: float = 1.0,
    output: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> UnlearningResult:
    """Make ``model`` forget concepts, and measure what it forgot and what it kept.

    Parameters
    ----------
    model : str, Path or DualEncoder
        A bundled model's name, a checkpoint, or a model. A model object is changed in place.
    data : str, Path or Dataset
        A bundled dataset's name, a folder of shards, or a dataset.
    forget : str or sequence of str
        Names, subcategories or categories of the data's taxonomy.
    method : str
        See :func:`riemann_unlearn.list_methods`.
    settings : mapping, optional
        Settings of the method that differ from its defaults, such as ``{"steps": 50}``.
    seed : int
        Decides batches, views and captions; with the same seed on the same machine the result is
        bitwise the same.
    forget_batch, retain_batch : int, optional
        Pairs of either kind in a batch; by default as many as the method sets.
    saliency : float
        Share of the weights that may move, in (0, 1]: those with the largest gradient of the forgotten
        pairs' contrastive loss, as in SalUn (arXiv 2310.12508). 1 moves all that the method moves.
    output : str or Path, optional
        Folder for the run directory; must be empty or missing unless ``resume`` is set.
    resume : bool
        Go on with the interrupted run in ``output``.
    progress : bool
        Show a progress bar.

    Returns
    -------
    UnlearningResult

    Raises
    ------
    ValueError
        Before any work: for an unknown concept, model, method or setting, for nothing or everything
        to forget, for a method that does not fit the model's geometry, for an unusable ``output``.
    RuntimeError
        When the loss stops being finite.
    Interrupted
        On Ctrl-C; with ``output``, the run can be resumed.

    Examples
    --------
    >>> import riemann_unlearn as ru
    >>> result = ru.unlearn(forget="food-fruit", settings={"steps": 1}, progress=False)
    >>> sorted(result.metrics["after"])
    ['forget', 'heldout', 'neighbours', 'retain']
    """
    config = RunConfig(
        forget=(forget,) if isinstance(forget, str) else tuple(forget),
        model=str(model) if isinstance(model, (str, Path)) else type(model).__name__,
        data=data.name if isinstance(data, Dataset) else str(data),
        method=method,
        settings=dict(settings or {}),
        seed=seed,
        forget_batch=forget_batch,
        retain_batch=retain_batch,
        saliency=saliency,
    )
    rules = create_method(config.method, config.settings)
    dataset = data if isinstance(data, Dataset) else load_data(data)
    selection = dataset.taxonomy.select(config.forget)
    encoder = model if isinstance(model, DualEncoder) else load_model(model)
    if encoder.geometry not in rules.geometries:
        raise ValueError(
            f"method {config.method!r} needs a model with a {' or '.join(rules.geometries)} "
            f"geometry, and {config.model} is {encoder.geometry}"
        )
    folder = None if output is None else open_run_directory(output, config, resume)
    run = _Run(encoder, dataset, selection, rules, config)
    if folder is not None and (folder / CHECKPOINT_NAME).is_file():
        run.load(folder / CHECKPOINT_NAME)
    try:
        if isinstance(rules, DirectMethod):
            run.apply(rules, folder, progress)
        elif isinstance(rules, GradientMethod):
            run.steps(rules, folder, progress)
        metrics = run.metrics()
    except KeyboardInterrupt:
        whole = (
            f" after {len(run.history)} of {rules.steps} steps" if isinstance(rules, GradientMethod) else ""
        )
        raise Interrupted(
            f"interrupted{whole}; "
            + (f"{folder} can be resumed" if folder else "without an output folder nothing was kept")
        ) from None
    if folder is not None:
        save_model(encoder, folder / WEIGHTS_NAME)
        atomic_write(folder / METRICS_NAME, json.dumps(metrics, indent=2) + "\n")
        (folder / CHECKPOINT_NAME).unlink(missing_ok=True)
    return UnlearningResult(encoder, metrics, run.history)


class _Run:
    """A run in progress: everything that moves, and the step that moves it."""

    def __init__(
        self,
        model: DualEncoder,
        dataset: Dataset,
        selection: Selection,
        method: Method,
        config: RunConfig,
    ) -> None:
        self.model = model.eval()  # batch statistics stay those of training
        self.dataset, self.method, self.config = dataset, method, config
        self.problem = Problem(model, dataset, selection)
        self.watch = watch(model)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.before: dict[str, Any] | None = None
        if isinstance(method, GradientMethod):
            self.objective = method.objective(self.problem)
            self.trainable = method.parameters(model)
            self.optimizer = RiemannianAdam(self.trainable, lr=method.learning_rate)
            forget = selection.concepts[dataset.seen.concept]
            self.pools = (
                (forget.nonzero()[:, 0], config.forget_batch or method.forget_batch),
                ((~forget).nonzero()[:, 0], config.retain_batch or method.retain_batch),
            )
            self.masks = self._saliency_masks() if config.saliency < 1 else None

    def apply(self, method: DirectMethod, folder: Path | None, progress: bool) -> None:
        """Change the model by a method that takes no steps of this loop."""
        started = time.perf_counter()
        self.before = self._evaluate()
        method.apply(self.problem, seed=self.config.seed, folder=folder, progress=progress)
        self.seconds = time.perf_counter() - started

    def steps(self, method: GradientMethod, folder: Path | None, progress: bool) -> None:
        """Take the steps that are left, keeping the checkpoint in ``folder`` up to date."""
        started = time.perf_counter() - self.seconds
        self.before = self.before or self._evaluate()
        bar = tqdm(
            total=method.steps,
            initial=len(self.history),
            desc=f"{method.name}: forget {', '.join(self.config.forget)}",
            unit="step",
            disable=None if progress else True,
        )
        with bar:
            try:
                while len(self.history) < method.steps:
                    self.history.append(self._step(method.learning_rate * method.rate(len(self.history))))
                    self.seconds = time.perf_counter() - started
                    bar.update()
                    if folder is not None and len(self.history) % CHECKPOINT_EVERY == 0:
                        self.save(folder)
            finally:  # at the end, on Ctrl-C, and on a loss that is no longer finite
                if folder is not None and self.history:
                    self.save(folder)

    def _step(self, rate: float) -> dict[str, Any]:
        step = self._next(self.generator, len(self.history))
        terms = self.objective(step)
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            raise RuntimeError(
                f"the loss became {loss.item()} at step {len(self.history) + 1}; "
                "a smaller learning_rate, or smaller weights of the method's terms, mends it"
            )
        gradients = torch.autograd.grad(loss, self.trainable, allow_unused=True)
        for parameter, gradient in zip(self.trainable, gradients, strict=True):
            parameter.grad = gradient
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        kept = None if self.masks is None else [p.detach().clone() for p in self.trainable]
        self.optimizer.step()
        if kept is not None and self.masks is not None:
            for parameter, value, mask in zip(self.trainable, kept, self.masks, strict=True):
                parameter.data.copy_(value if mask is None else torch.where(mask, parameter, value))
        figures: dict[str, float] = {}
        if self.watch.due and (c := self.model.curvature) is not None:
            figures = self.watch.tangents("image_features", step.image_features, c)
        return {
            "step": len(self.history) + 1,
            "loss": loss.item(),
            **{name: value.item() for name, value in terms.items()},
            **figures,
            **self.watch.step(),
        }

    def _saliency_masks(self) -> list[Tensor | None]:
        """The weights that matter most to the forgotten pairs, from one batch of its own."""
        generator = torch.Generator().manual_seed(self.config.seed)
        loss = self._next(generator, 0).contrast(retained=False)
        gradients = torch.autograd.grad(loss, self.trainable, allow_unused=True)
        return saliency_masks(gradients, self.config.saliency)

    def _next(self, generator: torch.Generator, number: int) -> Step:
        indices = self._draw(generator)
        batch = make_batch(self.dataset.seen, indices, self.model.image_size, generator)
        return Step(self.problem, batch, indices, number)

    def _draw(self, generator: torch.Generator) -> Tensor:
        """Indices of a batch, forget pairs first; each part without replacement where it can be."""
        return torch.cat(
            [pool[torch.randperm(len(pool), generator=generator)[:count]] for pool, count in self.pools]
        )

    def _evaluate(self) -> dict[str, Any]:
        return evaluate(self.model, self.dataset, forget=self.config.forget)

    def metrics(self) -> dict[str, Any]:
        """The contents of ``metrics.json``."""
        started = time.perf_counter()
        before, after = self.before or self._evaluate(), self._evaluate()
        self.seconds += time.perf_counter() - started
        taxonomy = self.dataset.taxonomy
        return {
            "method": self.config.method,
            "model": self.config.model,
            "data": self.config.data,
            "forget": list(self.config.forget),
            "seed": self.config.seed,
            "seconds": round(self.seconds, 2),
            "steps": len(self.history),
            "settings": asdict(self.method),
            "saliency": self.config.saliency,
            "chance": {
                "accuracy": 1 / len(taxonomy.subcategories),
                "recall_at_1": 1 / len(taxonomy.concepts),
                "recall_at_5": min(1.0, 5 / len(taxonomy.concepts)),
                "parent_accuracy": 1 / len(taxonomy.categories),
            },
            "before": {name: part for name, part in before.items() if name != "audit"},
            "after": {name: part for name, part in after.items() if name != "audit"},
            "audit": {"before": before["audit"], "after": after["audit"]},
        }

    def save(self, folder: Path) -> None:
        """Write the checkpoint and the history so far."""
        buffer = io.BytesIO()
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "generator": self.generator.get_state(),
                "history": self.history,
                "seconds": self.seconds,
                "before": self.before,
            },
            buffer,
        )
        atomic_write(folder / CHECKPOINT_NAME, buffer.getvalue())
        lines = "".join(json.dumps(record) + "\n" for record in self.history)
        atomic_write(folder / HISTORY_NAME, lines)

    def load(self, path: Path) -> None:
        """Go back to where the checkpoint was written."""
        saved = torch.load(path, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.generator.set_state(saved["generator"])
        self.history, self.seconds = saved["history"], saved["seconds"]
        self.before = saved["before"]
        self.watch.steps = len(self.history)


def open_run_directory(output: str | Path, config: RunConfig, resume: bool) -> Path:
    """Make the run's folder and write its ``config.yaml``, or check that it can be gone on with.

    Raises
    ------
    ValueError
        When the folder cannot be written to, is not empty (without ``resume``), or holds a run that
        is finished or was asked for something else (with ``resume``).
    """
    folder = Path(output)
    if resume:
        saved = read_config(folder / CONFIG_NAME)
        if saved != config:
            raise ValueError(f"{folder} holds a run with another configuration: {saved}")
        if (folder / METRICS_NAME).is_file():
            raise ValueError(f"the run in {folder} is finished; there is nothing to resume")
        return folder
    try:
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty; resume the run in it, or choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / CONFIG_NAME, yaml.safe_dump(_plain(config), sort_keys=False))
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror}") from None
    return folder


def read_config(path: str | Path, **overrides: Any) -> RunConfig:
    """A run's configuration from a YAML file; ``overrides`` replace what the file says.

    Raises
    ------
    ValueError
        When the file is missing or unreadable, is no mapping, has a key that means nothing, or does not say
        what to forget.
    """
    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} must hold a mapping of settings, such as 'forget: [food-fruit]'")
    known = [entry.name for entry in fields(RunConfig)]
    if unknown := sorted(set(map(str, loaded)) - set(known)):
        raise ValueError(f"{path} has an unknown key {unknown[0]!r}; known: {', '.join(known)}")
    merged = {**loaded, **overrides}
    if "forget" not in merged:
        raise ValueError(f"{path} names nothing to forget; add 'forget: [food-fruit]', or give --forget")
    return RunConfig(**merged)


def _plain(config: RunConfig) -> dict[str, Any]:
    return {**asdict(config), "forget": list(config.forget), "settings": dict(config.settings)}
