"""Train a dual encoder on image-text pairs with a taxonomy.

The objective is the family's contrastive loss at every level of the taxonomy (InfoNCE for CLIP, Radford et
al. 2021), to which a space with cones adds entailment: a caption's cone holds its image, and a broader
caption's cone holds the narrower caption (MERU, Desai et al. 2023, equations 5-8; across levels as in
HyCoCLIP, Pal et al. 2024):

    L = Σ_level [ L_con(image, text_level) + λ L_ent(image, text_level) ] + λ Σ L_ent(text, text above)

That leaves cones that hold next to nothing. With ``objective: tree`` a model that was trained so goes on to a
hierarchy whose cones hold (:mod:`riemann_unlearn.training.tree`); one without cones learns the same tree's
directions, and is its flat twin.

One training is one run directory (:mod:`riemann_unlearn.runs`). An interrupted one goes on from its last
whole epoch, and ends with the same weights as one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from riemann_unlearn import processes
from riemann_unlearn.config import HOW, TrainConfig
from riemann_unlearn.data import Dataset, Samples, Taxonomy, load
from riemann_unlearn.data.batch import Batch, make_batch
from riemann_unlearn.losses import ContrastiveLoss, EntailmentLoss
from riemann_unlearn.models import DualEncoder, create_model, evaluating, save_model
from riemann_unlearn.models import load as load_model
from riemann_unlearn.models.origins import WEIGHTS_NAME
from riemann_unlearn.runs import RunDirectory, Unused, check_free
from riemann_unlearn.training.callbacks import Checkpoint, Clamp, History, ProgressBar
from riemann_unlearn.training.driver import Callback, Driver, RandomBatches, as_device
from riemann_unlearn.training.schedules import cosine
from riemann_unlearn.training.towers import Towers, check_parts, prepare_towers
from riemann_unlearn.training.tree import embed_taxonomy, landing_loss

FINE = 0.2
"""Rate at which all weights move behind those of the last layer alone, as a share of the rate of those."""

Measure = Callable[[DualEncoder, Samples], Mapping[str, Any]]
"""What is to be known of a model on some samples."""


def train(
    model_config: dict[str, Any],
    config: TrainConfig,
    output: str | Path | Unused,
    *,
    data: Dataset | None = None,
    measure: Measure | None = None,
    resume: bool = False,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
) -> DualEncoder:
    """Train a model from scratch and write it to ``output``.

    Parameters
    ----------
    model_config : dict
        As for :func:`riemann_unlearn.models.create_model`.
    config : TrainConfig
    output : str, Path or Unused
        Folder of the run; made if missing.
    data : Dataset, optional
        What to train on, instead of loading ``config.data``.
    measure : callable, optional
        What is recorded of seen and held-out images every ``config.evaluate_every`` epochs, such as
        :func:`riemann_unlearn.evaluation.zero_shot`; nothing by default.
    resume : bool
        Go on from the checkpoint in ``output``; its configuration must be the same.
    progress : bool
        Show a progress bar.
    callbacks : sequence of Callback
        Told of every step, before the history is.

    Returns
    -------
    DualEncoder
        The trained model, in evaluation mode, on ``config.device``.

    Raises
    ------
    ValueError
        When ``output`` already holds a run and ``resume`` is not set, or holds another one. Nothing has
        been written then.
    RuntimeError
        When the loss stops being finite.
    """
    device = as_device(config.device)
    progress = progress and processes.first()
    settings = {"train": config.to_mapping(), "model": model_config}
    directory = None
    if resume and not isinstance(output, Unused) and Path(output).exists():
        directory = _reopen(Path(output), settings)
    else:
        check_free(output)
    dataset = load(config.data) if data is None else data
    # The weights' draws; batches have a generator of their own, whatever a model draws.
    torch.manual_seed(config.seed)
    model = create_model(model_config).to(device)
    if config.start is not None:
        _start(model, config.start)
    if config.objective == "tree":
        _check_tree(dataset, config)
    _check_head(model, config)
    check_parts(model, micro_batch=config.micro_batch)
    prepare_towers(model, grad_checkpointing=config.grad_checkpointing, compile=config.compile)
    if directory is None:  # all that can be refused has been refused
        directory = RunDirectory.claim(output, settings)

    batches = EpochBatches(dataset.seen, model, config)
    optimizer = _optimizer(model, config)
    driver = Driver(
        batches,
        _objective(model, dataset.taxonomy, config, progress),
        optimizer,
        parameters=[p for p in model.parameters() if p.requires_grad],
        steps=config.epochs * batches.per_epoch,
        schedule=_schedule(config, batches.per_epoch),
        gradient_clip=config.gradient_clip,
        scaler=Towers(config.precision).scaler(device),
        device=device,
        callbacks=[
            Clamp(model),
            HeadFirst(model, round(config.head_epochs * batches.per_epoch)),
            *callbacks,
            # Before the checkpoint, which keeps the epoch's record too.
            _Epochs(model, dataset, config, batches.per_epoch, measure, directory),
            # Batch statistics move in the forward pass, so only whole epochs are kept.
            Checkpoint(directory, {"model": model}, every=batches.per_epoch, at_the_end=False),
            ProgressBar("train", progress),
        ],
    )
    # After the objective was made: a tree is of the weights that the run began with, and those are the same
    # at every resumption, where a checkpoint's are not.
    directory.restore({"driver": driver, "model": model})
    model.train()
    driver.run()
    model.eval()
    if processes.first():
        with directory.writing():
            save_model(model, directory.folder / WEIGHTS_NAME, dtype=torch.float16)
    directory.finish()
    return model


def training_loss(
    model: DualEncoder, batch: Batch, config: TrainConfig, levels: Sequence[str]
) -> dict[str, Tensor]:
    """The weighted terms of the training objective on one batch; their sum is the loss.

    Parameters
    ----------
    model : DualEncoder
    batch : Batch
        On the model's device.
    config : TrainConfig
        Says how much entailment weighs, and how the towers are run.
    levels : sequence of str
        What the taxonomy's levels are called, for the names of the terms.
    """
    towers = Towers(config.precision, config.micro_batch)
    images, texts = towers.images(model, batch.images), towers.texts(model, batch.texts)
    contrastive, entailment, space = ContrastiveLoss(), EntailmentLoss(), model.space
    terms: dict[str, Tensor] = {}
    narrower = images
    # A loop of one's own may be under autocast, the geometry never is: near pairs need every digit.
    with torch.autocast(images.device.type, enabled=False):
        for level, pairing in zip(levels, batch.pairings, strict=True):
            # One row an image: a caption that several share is encoded once and stands here several times.
            captions = texts[pairing.row]
            terms[f"contrastive_{level}_loss"] = contrastive(
                images, captions, space=space, caption_ids=pairing.caption_ids
            )
            if space.has_cones:
                outside = entailment(images, captions, space=space)
                if narrower is not images:
                    outside = outside + entailment(narrower, captions, space=space)
                terms[f"entailment_{level}_loss"] = config.entailment_weight * outside
                # One level up, a caption's cone is to hold this one too.
                narrower = captions
    return terms


def _objective(
    model: DualEncoder, taxonomy: Taxonomy, config: TrainConfig, progress: bool
) -> Callable[[Batch], Mapping[str, Tensor]]:
    """The loss of a batch, by what the configuration asks for."""
    levels = [level.name for level in taxonomy.levels]
    if config.objective == "contrastive":
        return lambda batch: training_loss(model, batch, config, levels)
    # In evaluation mode, so that batch statistics neither decide the meanings nor move.
    with torch.no_grad(), evaluating(model):
        meanings = [
            torch.cat(
                [model.encode_text(some) for some in torch.split(model.tokenize(level.captions), 512)]
            ).cpu()
            for level in taxonomy.levels
        ]
    # The same at every start of the run: it is not kept in the checkpoint.
    tree = embed_taxonomy(
        taxonomy, meanings, min_radius=model.space.min_radius, seed=config.seed, progress=progress
    ).to(model.device)
    towers = Towers(config.precision, config.micro_batch)
    return lambda batch: landing_loss(model, batch, tree, config.entailment_weight, taxonomy, towers)


def _start(model: DualEncoder, start: str) -> None:
    """Give a model the weights of another one of its kind."""
    weights = load_model(start).state_dict()
    own = model.state_dict()
    wrong = [name for name in own if name not in weights or weights[name].shape != own[name].shape]
    # Checked here rather than by load_state_dict, whose message lists every weight that differs.
    if wrong or own.keys() != weights.keys():
        differing = sorted(wrong or weights.keys() - own.keys())
        raise ValueError(
            f"cannot begin with the weights of {start}: it is another kind of model than the one asked for "
            f"({len(differing)} weights differ, {differing[0]} is one); give the configuration that it has"
        )
    model.load_state_dict(weights)


def _check_head(model: DualEncoder, config: TrainConfig) -> None:
    """Refuse a last layer that cannot be trained by itself."""
    if not config.head_epochs:
        return
    if config.start is None:
        raise ValueError(
            "head_epochs holds still what the image tower has learned, and fresh weights know nothing; give "
            "a model as start"
        )
    if config.head_epochs >= config.epochs:
        raise ValueError(
            f"head_epochs, {config.head_epochs:g}, must be below epochs, {config.epochs}: they are the "
            "first of them"
        )
    last_layer(model.visual)


def _schedule(config: TrainConfig, per_epoch: int) -> Callable[[int], float]:
    """Half a cosine after a warm-up; where there are two phases, one for each, and the second one lower."""
    steps, warmup = config.epochs * per_epoch, config.warmup_epochs * per_epoch
    alone = round(config.head_epochs * per_epoch)
    if not alone:
        return cosine(steps, warmup)
    first, then = cosine(alone, warmup), cosine(steps - alone, warmup)
    return lambda step: first(step) if step < alone else FINE * then(step - alone)


def _check_tree(dataset: Dataset, config: TrainConfig) -> None:
    """Refuse what no tree can be made of."""
    if config.start is None:
        raise ValueError(
            "objective 'tree' puts captions where a text tower finds them, and fresh weights know nothing; "
            "train a model with the objective 'contrastive' and give it as start"
        )
    if len(dataset.taxonomy.levels) < 2:
        raise ValueError("objective 'tree' needs data with a level above the concepts; these have one level")


class HeadFirst(Callback):
    """Holds all of an image tower but its last layer still, in the first steps of a training.

    Fine-tuning toward another objective from a last layer that does not fit distorts what lies before it, and
    costs most on what was never seen; one that is fitted first leaves little to distort (Kumar et al. 2022,
    arXiv 2202.10054). Layers that stand still are in evaluation mode, batch statistics and all.

    Parameters
    ----------
    model : DualEncoder
    steps : int
        How many.
    """

    def __init__(self, model: DualEncoder, steps: int) -> None:
        self.model, self.steps = model, steps
        self._held: list[nn.Parameter] = []

    def started(self, driver: Driver) -> None:
        """Hold it, if the step that is next is one of them."""
        if driver.step < self.steps:
            last = {id(p) for p in last_layer(self.model.visual)}
            # What does not move anyway, such as fixed positions, is not to move afterwards either.
            self._held = [p for p in self.model.visual.parameters() if p.requires_grad and id(p) not in last]
            self._move(False)

    def stepped(self, driver: Driver, record: dict[str, Any]) -> None:
        """Let go behind the last of them."""
        if driver.step == self.steps:
            self._move(True)

    def closed(self, driver: Driver) -> None:
        """Leave no weight held."""
        self._move(True)

    def _move(self, moves: bool) -> None:
        for parameter in self._held:
            parameter.requires_grad_(moves)
        if self._held:
            self.model.visual.train(moves)


def last_layer(tower: nn.Module) -> list[nn.Parameter]:
    """Weights of what an open_clip image tower ends with: its projection, or the pooling that has one.

    Parameters
    ----------
    tower : Module

    Raises
    ------
    ValueError
        For a tower without one.
    """
    # A tower of timm's has a head, a vision transformer a matrix, a ResNet pools by attention.
    for name in ("head", "proj", "attnpool"):
        part = getattr(tower, name, None)
        weights = list(part.parameters()) if isinstance(part, nn.Module) else [part]
        if found := [weight for weight in weights if isinstance(weight, nn.Parameter)]:
            return found
    raise ValueError(
        f"cannot tell the last layer of a {type(tower).__name__}: it has no head, proj or attnpool with "
        "weights; leave head_epochs at 0"
    )


class EpochBatches(RandomBatches):
    """Batches of seen images, every image once an epoch.

    Every other epoch, from the second on, runs of ``config.group`` images of one class stay together, the
    class being the label at the taxonomy's grouping level: what is alike is told apart by seeing both.

    Parameters
    ----------
    samples : Samples
    model : DualEncoder
        Says how large views are, and how images come to that size.
    config : TrainConfig
        Says how large batches and groups are, and the seed.

    Attributes
    ----------
    per_epoch : int
        Batches in an epoch; the last one may be smaller.
    """

    def __init__(self, samples: Samples, model: DualEncoder, config: TrainConfig) -> None:
        self.samples, self._model = samples, model
        self.batch_size, self.group = config.batch_size, config.group
        self.generator = torch.Generator().manual_seed(config.seed)
        self.per_epoch = math.ceil(len(samples) / config.batch_size)
        self._order = torch.empty(0, dtype=torch.long)

    def draw(self, number: int) -> Batch:
        """The batch of a step."""
        epoch, position = divmod(number, self.per_epoch)
        # Only where an epoch begins: within one, the order is what load_state_dict or the last call left.
        if position == 0:
            self._order = self.order(epoch)
        start = position * self.batch_size
        rows = self._order[start : start + self.batch_size]
        model = self._model
        return make_batch(self.samples, rows, model.image_size, self.generator, fit=model.resize)

    def order(self, epoch: int) -> Tensor:
        """The rows of all images in the order of an epoch, the first being 0."""
        order = torch.randperm(len(self.samples), generator=self.generator)
        if epoch % 2 == 0 or self.group == 1:
            return order
        label = self.samples.labels(self.samples.taxonomy.grouping)[order]
        # Stable, so that a class's images stay in the order just drawn: its runs differ from epoch to epoch.
        members = torch.split(order[label.argsort(stable=True)], label.bincount().tolist())
        runs = [run for rows in members for run in torch.split(rows, self.group)]
        # Runs are laid end to end in random order; the border of a batch may cut one.
        return torch.cat([runs[i] for i in torch.randperm(len(runs), generator=self.generator).tolist()])

    def state_dict(self) -> dict[str, Any]:
        """The generator, and the order of the epoch."""
        return {**super().state_dict(), "order": self._order}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        super().load_state_dict(state)
        self._order = state["order"]


class _Epochs(History):
    """One record an epoch: the mean of each term, the scalars at the end, and now and then a measurement."""

    def __init__(
        self,
        model: DualEncoder,
        dataset: Dataset,
        config: TrainConfig,
        per_epoch: int,
        measure: Measure | None,
        directory: RunDirectory,
    ) -> None:
        super().__init__(directory)
        self.model, self.dataset, self.config = model, dataset, config
        self.per_epoch, self.measure = per_epoch, measure
        self._sums: dict[str, float] = {}
        self._started = time.perf_counter()

    def started(self, driver: Driver) -> None:
        """Begin an epoch."""
        self._begin()

    def stepped(self, driver: Driver, record: dict[str, Any]) -> None:
        """Add to the epoch's means; at its end keep its record."""
        for name, value in record.items():
            if name.endswith("_loss"):
                self._sums[name] = self._sums.get(name, 0.0) + value / self.per_epoch
        # The sums are in no checkpoint: those are written at whole epochs, when there are none.
        epoch, position = divmod(driver.step, self.per_epoch)
        if position:
            return
        entry: dict[str, Any] = {"epoch": epoch, **self._sums, **_scalars(self.model)}
        # Before the measurement, whose time is not training's.
        entry["seconds"] = round(time.perf_counter() - self._started, 2)
        if self.measure is not None and (
            epoch % self.config.evaluate_every == 0 or epoch == self.config.epochs
        ):
            entry["seen"] = self.measure(self.model, self.dataset.seen)
            if self.dataset.heldout is not None:
                entry["heldout"] = self.measure(self.model, self.dataset.heldout)
        self.records.append(entry)
        self.write()
        self._begin()

    def _begin(self) -> None:
        self._sums, self._started = {}, time.perf_counter()


def _scalars(model: DualEncoder) -> dict[str, float]:
    """τ and what else the space has learned, as it is."""
    return {"curvature" if name == "c" else name: value for name, value in model.scalars().items()}


def _optimizer(model: DualEncoder, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, with weight decay on matrices alone and a rate of their own for τ, c and the feature scales."""
    # By the number of axes: convolutions count as matrices, biases and norms are vectors. Decay would pull a
    # scalar to 0, and as scale and curvature are kept as logarithms, what they stand for to 1.
    learned = [p for p in model.parameters() if p.requires_grad]  # positions of sines and cosines are not
    matrices = [p for p in learned if p.ndim > 1]
    vectors = [p for p in learned if p.ndim == 1]
    scalars = [p for p in learned if p.ndim == 0]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
            {"params": scalars, "weight_decay": 0.0, "lr": config.scalar_learning_rate},
        ],
        lr=config.learning_rate,
        # β2 of CLIP's vision transformers; torch's own is 0.999.
        betas=(0.9, 0.98),
        fused=True,
    )


def _reopen(output: Path, settings: Mapping[str, Any]) -> RunDirectory:
    """The training in a folder, if it is the one asked for; how it is computed is of no matter."""
    directory = RunDirectory.reopen(output)
    saved, asked = (_without_how(config) for config in (directory.config, settings))
    if saved != asked:
        raise ValueError(f"{output} holds a run with another configuration; use another folder")
    return directory


def _without_how(settings: Mapping[str, Any]) -> dict[str, Any]:
    options = settings.get("train")
    kept = {k: v for k, v in options.items() if k not in HOW} if isinstance(options, dict) else options
    return {**settings, "train": kept}
