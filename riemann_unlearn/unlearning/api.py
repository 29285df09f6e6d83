"""Make a model forget: measure, change it by a method, measure again.

Given a folder, a run is also a run directory (:mod:`riemann_unlearn.runs`) that an interrupted one goes on
with. What is done at each step is the driver's (:mod:`riemann_unlearn.training.driver`), what is descended is
the method's; here they are put together.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from riemann_unlearn import processes
from riemann_unlearn.config import HOW, RunConfig
from riemann_unlearn.data import Dataset
from riemann_unlearn.data import load as load_data
from riemann_unlearn.data.queries import lasting_query
from riemann_unlearn.evaluation import chance
from riemann_unlearn.evaluation.api import quick_audit
from riemann_unlearn.evaluation.features import warn_of_shared
from riemann_unlearn.evaluation.subject import encode
from riemann_unlearn.models import DualEncoder, save_model, state_of, unwrap
from riemann_unlearn.models import load as load_model
from riemann_unlearn.models.checkpoint import check_saveable
from riemann_unlearn.models.origins import WEIGHTS_NAME, lasting
from riemann_unlearn.optim import RiemannianAdam
from riemann_unlearn.registry import did_you_mean
from riemann_unlearn.runs import METRICS_NAME, Clock, RunDirectory, Stateful, Unused, check_free
from riemann_unlearn.training import (
    Callback,
    Checkpoint,
    Driver,
    History,
    ProgressBar,
    Towers,
    Watch,
    as_device,
    prepare_towers,
)
from riemann_unlearn.unlearning.bars import StopAtBars, set_aside
from riemann_unlearn.unlearning.checks import check_seen, warn_of_captions, warn_of_look_alikes
from riemann_unlearn.unlearning.kept import Fronts, keep
from riemann_unlearn.unlearning.methods import METHODS, DirectMethod, GradientMethod, Method, create_method
from riemann_unlearn.unlearning.methods.base import Objective
from riemann_unlearn.unlearning.moving import moving
from riemann_unlearn.unlearning.problem import ForgetAndRetain, Kept, Problem, Step
from riemann_unlearn.unlearning.saliency import Saliency, saliency_masks
from riemann_unlearn.unlearning.split import NothingStays, SplitTower, Unsplittable

CHECKPOINT_EVERY = 25
"""Steps between two checkpoints; one is also written when a run is interrupted."""


@dataclass(frozen=True)
class UnlearningResult:
    """What :func:`unlearn` returns."""

    model: DualEncoder
    """The model that has forgotten, in evaluation mode."""
    metrics: dict[str, Any]
    """What ``metrics.json`` holds."""
    history: list[dict[str, Any]]
    """One record a step."""
    folder: Path | None = None
    """The run directory, if there is one."""


class Interrupted(KeyboardInterrupt):
    """A run was interrupted; its message says at which step, and how to go on."""


def unlearn(
    model: str | Path | nn.Module = "meru-emoji",
    data: str | Path | Dataset = "emoji",
    *,
    forget: str | Sequence[str],
    method: str | type[Method] | Method = "tilt",
    output: str | Path | Unused | None = None,
    resume: bool = False,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> UnlearningResult:
    """Make ``model`` forget concepts, and measure what it forgot and what it kept.

    Parameters
    ----------
    model : str, Path or Module
        A bundled model's name, a checkpoint, or a model, compiled or wrapped or not. A model object is
        changed in place.
    data : str, Path or Dataset
        A dataset's name, a folder, or a dataset.
    forget : str or sequence of str
        Labels of any level of the data's taxonomy, queries over captions (``/dog|cat/``, ``words:red sofa``),
        an image's id, or a list of such as ``@FILE``; see :meth:`riemann_unlearn.data.Dataset.select`.
    method : str, class or Method
        A name from :func:`riemann_unlearn.list_methods`, or a method, registered or not: ``Tilt(steps=5)``.
    output : str, Path or Unused, optional
        Folder for the run directory; must be empty or missing unless ``resume`` is set.
    resume : bool
        Go on with the interrupted run in ``output``.
    progress : bool
        Show a progress bar.
    callbacks : sequence of Callback
        Told of every step, before the history is; see :class:`riemann_unlearn.training.Callback`.
    **options
        The other fields of :class:`riemann_unlearn.config.RunConfig`: ``settings`` (a mapping, settings of
        a method given by name), ``seed``, ``forget_batch``, ``retain_batch``, ``views``, ``tolerance``,
        ``train`` (which weights move), ``saliency``, ``device`` (where the model is moved; a model object
        stays where it is by default), ``precision``, ``micro_batch``, ``grad_checkpointing``, ``compile``.

    Returns
    -------
    UnlearningResult

    Raises
    ------
    TypeError
        For an option that there is not.
    ValueError
        Before any work, and before anything is written: for an unknown concept, model, method or setting, for
        nothing or everything to forget, for a method that does not fit the model, for an unusable ``output``
        or a model that could not be saved there.
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
    run = prepare(model, data, forget=forget, method=method, output=output, resume=resume, options=options)
    encoder, directory = run.problem.model, run.directory
    if directory is None and output is not None:
        # all that can be refused has been refused
        directory = run.directory = run.history.directory = RunDirectory.claim(
            output, run.config.to_mapping()
        )
    try:
        run.go(callbacks, progress)
        # Inside, for it evaluates: that takes long enough to be interrupted, and can be gone on with too.
        metrics = run.metrics()
    except KeyboardInterrupt:
        raise Interrupted(run.interrupted()) from None
    if directory is not None:
        # The checkpoint goes last, in finish(): while it is there the run counts as unfinished, so one that
        # is stopped between two of these files can be resumed and writes them all again.
        if processes.first():
            with directory.writing():
                save_model(encoder, directory.folder / WEIGHTS_NAME)
        directory.write(METRICS_NAME, json.dumps(metrics, indent=2) + "\n")
        directory.finish()
    folder = None if directory is None else directory.folder
    return UnlearningResult(encoder, metrics, run.history.records, folder)


def prepare(
    model: str | Path | nn.Module,
    data: str | Path | Dataset,
    *,
    forget: str | Sequence[str],
    method: str | type[Method] | Method,
    output: str | Path | Unused | None,
    resume: bool,
    options: Mapping[str, Any],
) -> _Run:
    """A run as :func:`unlearn` is asked for it, up to where something would be written or moved.

    Of a new run the folder is not claimed yet. Parameters and errors are those of :func:`unlearn`.
    """
    options = dict(options)
    known = [entry.name for entry in fields(RunConfig)]
    if unknown := [name for name in options if name not in known]:
        hint = did_you_mean(unknown[0], known)
        raise TypeError(f"unlearn() has no option {unknown[0]!r}; {hint}There are: {', '.join(known)}")
    directory = None
    if resume:
        if output is None or isinstance(output, Unused):
            raise ValueError("resume=True needs output=, the run directory to go on with")
        directory = RunDirectory.reopen(output)
        _check_method(directory, method)
    elif output is not None:
        # Asked now, before a model is loaded, and again when the folder is claimed.
        check_free(output)
    rules = create_method(method, options.pop("settings", None))
    encoder = unwrap(model) if isinstance(model, nn.Module) else None
    if encoder is not None:
        # The configuration's own default would move a model that its owner has put somewhere.
        options.setdefault("device", str(encoder.device))
    config = RunConfig(
        forget=forget,
        model=str(model) if encoder is None else encoder.name,
        data=data.name if isinstance(data, Dataset) else str(data),
        method=rules.name,
        settings=rules.settings(),
        **options,
    )
    device = as_device(config.device)
    dataset = load_data(data)
    selection = dataset.select(config.forget)
    check_seen(dataset, config.forget)
    if encoder is None:
        encoder = load_model(config.model)
        # After loading, whose errors name the model as it was asked for.
        config = replace(config, model=lasting(config.model))
    config = replace(config, data=dataset.name, forget=tuple(map(lasting_query, config.forget)))
    towers = Towers(config.precision, config.micro_batch)
    problem = Problem(encoder.to(device).eval(), dataset, selection.to(device), towers)
    if config.tolerance is not None:
        problem = replace(problem, aside=set_aside(problem, config.seed))
    if (reason := rules.unmet(problem)) is not None:
        raise ValueError(f"method {rules.name!r} cannot be used: {reason}")
    _check_moving(encoder, rules, config.train)
    warn_of_look_alikes(dataset, selection)
    warn_of_captions(encoder, dataset, selection)
    if directory is not None:
        _check_same(directory, config)
    elif output is not None:
        check_saveable(encoder)
    prepare_towers(encoder, grad_checkpointing=config.grad_checkpointing, compile=config.compile)
    return _Run(problem, rules, config, directory)


class _Run:
    """A run in progress; of a checkpoint, the part that is neither weights nor the driver's."""

    def __init__(
        self, problem: Problem, method: Method, config: RunConfig, directory: RunDirectory | None
    ) -> None:
        self.problem, self.method, self.config, self.directory = problem, method, config, directory
        self.clock, self.history = Clock(), History(directory, CHECKPOINT_EVERY)
        self.before: dict[str, Any] = {}
        """What was measured before anything moved; empty until then."""
        self.fronts: Fronts | None = None
        self.kept: Kept | None = None
        self.bars: StopAtBars | None = None
        # Features of the untouched model, until they have been measured.
        self._untouched: tuple[Tensor, Tensor | None] | None = None
        self.applied = False

    def go(self, callbacks: Sequence[Callback], progress: bool) -> None:
        """Do what the method does, or what of it is left."""
        if isinstance(self.method, GradientMethod):
            with self.stepping(self.method, callbacks) as driver:
                self._drive(driver, progress)
        elif isinstance(self.method, DirectMethod):
            self._apply(self.method, progress)
        else:
            raise TypeError(
                f"method {self.method.name!r} is neither a GradientMethod nor a DirectMethod; subclass one"
            )

    @contextmanager
    def stepping(self, method: GradientMethod, callbacks: Sequence[Callback] = ()) -> Iterator[Driver]:
        """The driver of a method's steps; inside, only what it moves needs a gradient."""
        # Of the model as it is now: before a checkpoint is read, and before anything is put on its layers.
        model, train = self.problem.model, self.config.train
        parameters = method.parameters(model)
        # Corrections are put on any of the method's matrices, so that the tower is cut before all of these.
        with moving(model, parameters, "all" if train.startswith("lora:") else train) as may_move:
            self._keep(may_move)
        objective = method.objective(self.problem)
        with moving(model, parameters, train) as moved:
            yield self.driver(method, callbacks, objective=objective, moved=moved)

    def _drive(self, driver: Driver, progress: bool) -> None:
        parts: dict[str, Stateful] = {"weights": _Weights(self.problem.model), "run": self}
        if self.directory is not None:
            # Behind the history, so that a checkpoint holds the record of the step that it is written after.
            driver.callbacks.append(Checkpoint(self.directory, parts, CHECKPOINT_EVERY))
            self.directory.restore({"driver": driver, **parts})
        driver.callbacks.append(
            ProgressBar(f"{self.method.name}: forget {', '.join(self.config.forget)}", progress)
        )
        # A resumed run has it from its checkpoint: measured now, it would be of a model that forgot already.
        self.before = self.before or self._evaluate(self._untouched)
        self._untouched = None
        driver.run()

    def driver(
        self,
        method: GradientMethod,
        callbacks: Sequence[Callback] = (),
        *,
        objective: Objective | None = None,
        moved: Sequence[nn.Parameter] | None = None,
    ) -> Driver:
        """What takes the steps of a method, from the first one on; ``callbacks`` hear before the history.

        What is descended and what moves are the method's, unless they were made before.
        """
        model, config = self.problem.model, self.config
        objective = method.objective(self.problem) if objective is None else objective
        moved = method.parameters(model) if moved is None else moved
        sizes = config.forget_batch or method.forget_batch, config.retain_batch or method.retain_batch
        if self.problem.aside is not None and config.tolerance is not None:
            self.bars = StopAtBars(self.problem, moved, self.problem.aside, config.tolerance)
        masks = []
        if config.saliency < 1:
            # The same holds for the masks: a resumed run must move the weights that it moved before.
            masks.append(Saliency(moved, self._saliency(moved, sizes)))
        return Driver(
            ForgetAndRetain(self.problem, *sizes, seed=config.seed, kept=self.kept),
            objective,
            RiemannianAdam(moved, lr=method.learning_rate),
            parameters=moved,
            steps=method.steps,
            schedule=method.rate,
            scaler=self.problem.towers.scaler(model.device),
            device=model.device,
            # The watch adds its figures to a step's record before the history keeps it; masks come before the
            # caller's callbacks, which so see the weights as the step leaves them.
            # The bars come before the history, whose checkpoint is then that of a run that has stopped.
            callbacks=[
                Watch(model, _radii),
                *masks,
                *callbacks,
                *([] if self.bars is None else [self.bars]),
                self.history,
            ],
        )

    def _keep(self, moved: Sequence[nn.Parameter]) -> None:
        """Cut the image tower where it begins to move, and keep what reaches the cut."""
        if self.config.grad_checkpointing:
            return  # it is of whole blocks, which a cut takes apart
        problem = self.problem
        model, seen = problem.model, problem.dataset.seen
        # Seven, whatever there are: a number that is seldom another size of a layer's.
        images = model.preprocess(seen.images[torch.arange(7) % len(seen)])
        try:
            split = SplitTower(model.visual, moved, images)
        except NothingStays:
            return
        except Unsplittable as reason:
            warnings.warn(f"the image tower runs as a whole at every step: {reason}", stacklevel=2)
            return
        if self.config.compile:
            split.behind.compile()
        self.problem = problem = replace(problem, split=split)
        known = None
        if Fronts.fit(problem):
            self.fronts = Fronts(problem)
            self._untouched = self.fronts.features()
            known = self.fronts.seen, self._untouched[0]
        if self.config.views:
            self.kept = keep(problem, split.width, self.config.views, self.config.seed, known)

    def _saliency(self, moved: Sequence[Tensor], sizes: tuple[int, int]) -> list[Tensor | None]:
        """The weights that matter most to the forgotten pairs, from one batch of its own."""
        # With a generator of its own, which leaves the run's draws what they are without saliency.
        # In float32: no scaler keeps the gradients of this one backward pass from vanishing.
        towers = replace(self.problem.towers, precision="float32")
        batches = ForgetAndRetain(replace(self.problem, towers=towers), *sizes, seed=self.config.seed)
        loss = batches.draw(0).to(self.problem.model.device).contrast(retained=False)
        gradients = torch.autograd.grad(loss, moved, allow_unused=True)
        processes.average([gradient for gradient in gradients if gradient is not None])
        return saliency_masks(gradients, self.config.saliency)

    def _apply(self, method: DirectMethod, progress: bool) -> None:
        """Change the model by a method that takes no steps of the driver."""
        weights = _Weights(self.problem.model)
        # In two readings: a checkpoint has weights only once the method is done. Until then the model is the
        # untouched one that was loaded, and the method is called again.
        if self.directory is not None and self.directory.restore({"run": self}) and self.applied:
            self.directory.restore({"weights": weights})
            return
        self.before = self.before or self._evaluate()
        folder = None
        if self.directory is not None:
            folder = self.directory.folder
            self.directory.save({"run": self})
        try:
            method.apply(self.problem, seed=self.config.seed, folder=folder, progress=progress)
        except BaseException:
            if self.directory is not None:
                self.directory.save({"run": self})  # the seconds; weights may be half changed
            raise
        # A decomposition may round otherwise on another machine.
        processes.share(list(state_of(self.problem.model).values()))
        self.applied = True
        self.history.write()  # of no step, but the file is there
        if self.directory is not None:
            self.directory.save({"weights": weights, "run": self})

    def _evaluate(self, features: tuple[Tensor, Tensor | None] | None = None) -> dict[str, Any]:
        """What :func:`~riemann_unlearn.evaluation.evaluate` gives of the model as it is now."""
        if features is None and self.fronts is not None:
            features = self.fronts.features()
        problem = self.problem
        subject = encode(problem.model, problem.dataset, problem.selection, features=features)
        warn_of_shared(subject.captions)
        return quick_audit(subject)

    def metrics(self) -> dict[str, Any]:
        """The contents of ``metrics.json``."""
        before, after = self.before, self._evaluate()
        # What an evaluation says beside the groups' figures: the same before and after, so it stands once.
        aside = ("audit", "on", "unmet")
        return {
            "method": self.config.method,
            "model": self.config.model,
            "data": self.config.data,
            "forget": list(self.config.forget),
            "seed": self.config.seed,
            "seconds": round(self.clock.seconds, 2),
            "steps": len(self.history.records),
            "settings": self.method.settings(),
            "kept": None if self.kept is None else list(self.kept.fronts.shape),
            "stopped": None if self.bars is None else self.bars.stopped,
            "saliency": self.config.saliency,
            "train": self.config.train,
            "chance": chance(self.problem.taxonomy, self.problem.selection),
            "before": {name: part for name, part in before.items() if name not in aside},
            "after": {name: part for name, part in after.items() if name not in aside},
            "audit": {"before": before["audit"], "after": after["audit"]},
            "on": after["on"],
            "unmet": after["unmet"],
        }

    def interrupted(self) -> str:
        """Where the run was interrupted, and how to go on."""
        where = ""
        if isinstance(self.method, GradientMethod):
            where = f" after {len(self.history.records)} of {self.method.steps} steps"
        if self.directory is None:
            return f"interrupted{where}; without an output folder nothing was kept"
        return f"interrupted{where}; {self.directory.folder} can be resumed"

    def state_dict(self) -> dict[str, Any]:
        """What was measured, whether a direct method is done, and how long it all took."""
        return {"before": self.before, "applied": self.applied, "clock": self.clock.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.before, self.applied = state["before"], state["applied"]
        self.clock.load_state_dict(state["clock"])


class _Weights:
    """A model's weights under the names that they have where nothing is compiled."""

    def __init__(self, model: DualEncoder) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Any]:
        return dict(state_of(self.model))

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        # All is checked before anything is copied: weights that do not fit leave the model as it was.
        own = state_of(self.model)
        if own.keys() != state.keys():
            raise ValueError(f"it holds other weights: {sorted(own.keys() ^ state.keys())[:3]}")
        for name, value in own.items():
            if value.shape != state[name].shape:  # copying would stretch a 1 over the whole axis
                raise ValueError(f"its {name} has shape {tuple(state[name].shape)}, not {tuple(value.shape)}")
        for name, value in own.items():
            value.copy_(state[name])


def _radii(step: Step) -> tuple[str, Tensor, Tensor] | None:
    """The batch's image features as tangent vectors, in a space that has such."""
    if not step.space.has_cones:
        return None
    vectors, c = step.space.tangents(step.image_features)
    return "image_features", vectors, torch.as_tensor(c)


def _check_moving(model: DualEncoder, method: Method, train: str) -> None:
    """Refuse a choice of weights by which a method would move none."""
    if isinstance(method, GradientMethod):
        with moving(model, method.parameters(model), train):
            pass  # what cannot be chosen is refused on the way in, and nothing is changed
    elif train != "all":
        raise ValueError(
            f"train={train!r} chooses among the weights that steps move, and method {method.name!r} takes no "
            "steps; leave train out"
        )


def _check_method(directory: RunDirectory, method: object) -> None:
    """Refuse to go on by name with a method that has no name here."""
    name = directory.config.get("method")
    # A run may have been started with a class or an instance that was never registered. create_method
    # would call its name unknown, which the folder's own configuration belies.
    if isinstance(method, str) and method == name and name not in METHODS:
        raise ValueError(
            f"the run in {directory.folder} is of method {name!r}, which is not registered; register it "
            "(riemann_unlearn.register), or give the method itself: unlearn(..., method=..., resume=True)"
        )


def _check_same(directory: RunDirectory, config: RunConfig) -> None:
    """Refuse to go on with a run that was asked for something else; how it computes is of no matter."""
    # A run of before an option was there is one with its default.
    defaults = {entry.name: entry.default for entry in fields(RunConfig)}
    saved, asked = {**defaults, **directory.config}, config.to_mapping()
    settings = saved.get("settings") or {}
    for name, value in asked.items():
        if name == "settings":
            same = all(value.get(key) == entry for key, entry in settings.items())
        else:
            same = name in HOW or saved.get(name) == value
        if not same:
            raise ValueError(
                f"{directory.folder} holds a run with another configuration: {name} is {saved.get(name)!r} "
                f"there, and {value!r} was asked for"
            )
