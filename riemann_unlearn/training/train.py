"""Train CLIP or MERU on image-text pairs with a taxonomy.

The objective is CLIP's symmetric InfoNCE at every level of the taxonomy (Radford et al. 2021), to which
MERU adds entailment: a caption's cone holds its image, and a broader caption's cone holds the narrower
caption (Desai et al. 2023, equations 5-8; across levels as in HyCoCLIP, Pal et al. 2024):

    L = Σ_level [ L_con(image, text_level) + λ L_ent(image, text_level) ] + λ Σ L_ent(text, text above)

One training run is one folder: ``config.yaml``, ``history.jsonl``, ``checkpoint.pt`` (while it lasts)
and ``model.safetensors``. An interrupted run goes on from its last whole epoch, and ends with the same
weights as one that was never interrupted.
"""

from __future__ import annotations

import io
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from tqdm import tqdm

from riemann_unlearn.data import Dataset, load
from riemann_unlearn.data.batch import LEVELS, Batch, make_batch
from riemann_unlearn.evaluation import zero_shot
from riemann_unlearn.io import atomic_write
from riemann_unlearn.losses import ContrastiveLoss, EntailmentLoss
from riemann_unlearn.models import DualEncoder, create_model, save_model
from riemann_unlearn.models.checkpoint import WEIGHTS_NAME

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what comes out of a training run, besides the model's configuration."""

    data: str = "emoji"
    epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 1e-3
    scalar_learning_rate: float = 1e-2
    """Of τ, the curvature and the feature scales, which have further to go than a weight has."""
    weight_decay: float = 0.1
    warmup_epochs: float = 2.0
    entailment_weight: float = 0.2
    """λ, for a hyperbolic model; 0.2 is MERU's."""
    gradient_clip: float = 1.0
    precision: str = "float32"
    """Of the towers: "float32" or "bfloat16" (autocast). The geometry is always float32."""
    group: int = 8
    """Every other epoch, this many images of one subcategory go into a batch together: man and woman office
    worker are told apart by seeing both. 1 leaves every batch to chance."""
    evaluate_every: int = 10
    """Epochs between two evaluations."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values no run could use, before any work is done."""
        for name in ("epochs", "batch_size", "learning_rate", "gradient_clip", "evaluate_every", "group"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("weight_decay", "warmup_epochs", "entailment_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {list(PRECISIONS)}, got {self.precision!r}")


def train(
    model_config: dict[str, Any],
    config: TrainConfig,
    output: str | Path,
    *,
    data: Dataset | None = None,
    resume: bool = False,
    progress: bool = True,
) -> DualEncoder:
    """Train a model from scratch and write it to ``output``.

    Parameters
    ----------
    model_config : dict
        As for :func:`riemann_unlearn.models.create_model`.
    config : TrainConfig
    output : str or Path
        Folder of the run; made if missing.
    data : Dataset, optional
        What to train on, instead of loading ``config.data``.
    resume : bool
        Go on from the checkpoint in ``output``; its configuration must be the same.
    progress : bool
        Show a progress bar.

    Returns
    -------
    DualEncoder
        The trained model, in evaluation mode.

    Raises
    ------
    ValueError
        When ``output`` already holds a run and ``resume`` is not set, or holds another one.
    """
    output = Path(output)
    settings = yaml.safe_dump({"train": asdict(config), "model": model_config}, sort_keys=False)
    _prepare_folder(output, settings, resume)
    dataset = load(config.data) if data is None else data
    torch.manual_seed(config.seed)
    model = create_model(model_config)
    state = _State(model, config, steps_per_epoch=math.ceil(len(dataset.seen) / config.batch_size))
    checkpoint = output / "checkpoint.pt"
    if resume and checkpoint.is_file():
        state.load(checkpoint)

    bar = tqdm(
        total=config.epochs * state.steps_per_epoch,
        initial=state.epoch * state.steps_per_epoch,
        desc="train",
        unit="step",
        disable=None if progress else True,
    )
    with bar:
        for epoch in range(state.epoch, config.epochs):
            started = time.perf_counter()
            terms = _run_epoch(state, dataset, bar)
            record: dict[str, Any] = {"epoch": epoch + 1, **terms}
            record["seconds"] = round(time.perf_counter() - started, 2)
            if (epoch + 1) % config.evaluate_every == 0 or epoch + 1 == config.epochs:
                record["seen"] = zero_shot(model, dataset.seen)
                if dataset.heldout is not None:
                    record["heldout"] = zero_shot(model, dataset.heldout)
            state.history.append(record)
            state.epoch = epoch + 1
            state.save(checkpoint)
            lines = (json.dumps(entry) for entry in state.history)
            atomic_write(output / "history.jsonl", "\n".join(lines) + "\n")
    save_model(model, output / WEIGHTS_NAME, dtype=torch.float16)
    checkpoint.unlink()
    return model.eval()


class _State:
    """What a run carries from one epoch to the next."""

    def __init__(self, model: DualEncoder, config: TrainConfig, steps_per_epoch: int) -> None:
        self.model = model
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        matrices = [p for p in model.parameters() if p.ndim > 1]
        vectors = [p for p in model.parameters() if p.ndim == 1]
        scalars = [p for p in model.parameters() if p.ndim == 0]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
                {"params": scalars, "weight_decay": 0.0, "lr": config.scalar_learning_rate},
            ],
            lr=config.learning_rate,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.epoch = 0
        self.history: list[dict[str, Any]] = []

    def _rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to zero."""
        warmup = self.config.warmup_epochs * self.steps_per_epoch
        if step < warmup:
            return (step + 1) / warmup
        whole = self.config.epochs * self.steps_per_epoch
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, whole - warmup)))

    def save(self, path: Path) -> None:
        buffer = io.BytesIO()
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "generator": self.generator.get_state(),
                "epoch": self.epoch,
                "history": self.history,
            },
            buffer,
        )
        atomic_write(path, buffer.getvalue())

    def load(self, path: Path) -> None:
        saved = torch.load(path, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scheduler.load_state_dict(saved["scheduler"])
        self.generator.set_state(saved["generator"])
        self.epoch, self.history = saved["epoch"], saved["history"]


def _run_epoch(state: _State, dataset: Dataset, bar: tqdm[Any]) -> dict[str, float]:
    """One pass over the seen images; returns the mean of each loss term and the scalars at the end."""
    model, config = state.model, state.config
    model.train()
    sums: dict[str, float] = {}
    order = _order(dataset, config.group if state.epoch % 2 else 1, state.generator)
    for indices in torch.split(order, config.batch_size):
        batch = make_batch(dataset.seen, indices, model.image_size, state.generator)
        terms = training_loss(model, batch, config)
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            raise RuntimeError(
                f"the loss became {loss.item()} in epoch {state.epoch + 1}; "
                "a smaller learning_rate or gradient_clip usually mends it"
            )
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        state.optimizer.step()
        state.scheduler.step()
        model.clamp_()
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + value.item() / state.steps_per_epoch
        bar.update()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()
    return {**sums, "logit_scale": model.logit_scale.exp().item(), **_curvature(model)}


def _order(dataset: Dataset, group: int, generator: torch.Generator) -> Tensor:
    """A random order of the seen images in which runs of ``group`` share a subcategory."""
    order = torch.randperm(len(dataset.seen), generator=generator)
    if group == 1:
        return order
    subcategory = dataset.taxonomy.subcategory_of[dataset.seen.concept[order]]
    runs = [
        run
        for members in torch.split(order[subcategory.argsort(stable=True)], subcategory.bincount().tolist())
        for run in torch.split(members, group)
    ]
    return torch.cat([runs[i] for i in torch.randperm(len(runs), generator=generator).tolist()])


def training_loss(model: DualEncoder, batch: Batch, config: TrainConfig) -> dict[str, Tensor]:
    """The weighted terms of the training objective on one batch; their sum is the loss."""
    autocast = PRECISIONS[config.precision]
    with torch.autocast(batch.images.device.type, dtype=autocast, enabled=autocast is not None):
        images = model.encode_image(model.preprocess(batch.images))
        texts = model.encode_text(model.tokenize(batch.texts))
    c, scale = model.curvature, model.logit_scale.exp()
    contrastive = ContrastiveLoss(geometry=model.geometry)
    entailment = EntailmentLoss()
    terms: dict[str, Tensor] = {}
    narrower = images
    for level in LEVELS:
        pairing = batch.pairings[level]
        captions = texts[pairing.row]
        terms[f"contrastive_{level}_loss"] = contrastive(
            images, captions, logit_scale=scale, c=c, caption_ids=pairing.caption_ids
        )
        if c is not None:
            cones = entailment(images, captions, c=c)
            if narrower is not images:
                cones = cones + entailment(narrower, captions, c=c)
            terms[f"entailment_{level}_loss"] = config.entailment_weight * cones
            narrower = captions
    return terms


def _curvature(model: DualEncoder) -> dict[str, float]:
    return {} if model.curvature is None else {"curvature": model.curvature.item()}


def _prepare_folder(output: Path, settings: str, resume: bool) -> None:
    """Make the run's folder, or check that the run in it is this one."""
    path = output / "config.yaml"
    if resume and path.is_file() and path.read_text() != settings:
        raise ValueError(f"{output} holds a run with another configuration; use another folder")
    if not resume and output.exists() and any(output.iterdir()):
        raise ValueError(f"{output} is not empty; go on with --resume, or use another folder")
    output.mkdir(parents=True, exist_ok=True)
    atomic_write(path, settings)
