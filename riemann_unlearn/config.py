"""What can be asked of a run, a training and an evaluation: each option in one place.

The command line's flags and their ``--help``, the YAML files of ``--config``, a run directory's
``config.yaml`` and the keywords of Python are all made from the dataclasses here: a new option is a new
field. Nothing heavy is imported, so that the command line answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from functools import partial
from typing import Any, ClassVar

from riemann_unlearn.options import Config, option

SEED_LIMIT = 2**63 - 1
"""The largest seed: ``torch.Generator`` takes what fits a signed 64-bit integer."""

PRECISIONS = ("float32", "bfloat16", "float16")
"""What towers can be computed in."""

# What a run and a training are asked in the same words.
_precision = partial(
    option,
    "float32",
    "of the towers (bfloat16, float16: autocast); the geometry is always float32 or more",
    choices=PRECISIONS,
)
_micro_batch = partial(
    option,
    None,
    "images, and texts, that a tower is run on at a time: less memory for one more forward pass, and the "
    "same loss and gradient (default: the whole batch)",
    low=1,
    metavar="N",
)
_grad_checkpointing = partial(
    option, False, "keep a tower's activations at its blocks' borders only, and make the others twice"
)
_compile = partial(option, False, "compile the towers by torch.compile")
_device = partial(option, "cpu", "where to compute, such as cuda", metavar="DEVICE")

HOW = frozenset({"device", "micro_batch", "grad_checkpointing", "compile"})
"""Options that say how a result is computed and not which: a run may be resumed with others."""


@dataclass(frozen=True)
class RunConfig(Config):
    """What a run is asked to do; its ``config.yaml`` holds exactly these fields.

    Examples
    --------
    >>> RunConfig(forget="food-fruit", seed=3).to_mapping()["forget"]
    ['food-fruit']
    """

    example: ClassVar[str] = "forget: [food-fruit]"

    # Python and files must say it, for nothing is forgotten by default; the command line's default is its
    # own (cli.commands.DEFAULT_FORGET).
    forget: Sequence[str] = option(
        MISSING,
        "what to forget: a concept or a label of any level of the data, /a regular expression/ over "
        "captions, words:some words of a caption, an image's path, or @FILE of such (default: food-fruit)",
        metavar="CONCEPT",
    )
    model: str = option(
        "meru-emoji", "bundled model, checkpoint or folder, open_clip:ARCHITECTURE/TAG or hf-hub:OWNER/NAME"
    )
    data: str = option("emoji", "bundled dataset, or a folder or file; see 'riemann-unlearn list sources'")
    method: str = option("tilt", "see 'riemann-unlearn list methods'")
    settings: Mapping[str, Any] = option(
        {},
        "change a setting of the method, such as alpha=0.5 (default: the method's)",
        metavar="NAME=NUMBER",
        flag="--set",
    )
    seed: int = option(0, "decides batches, views and captions", low=0, high=SEED_LIMIT, metavar="N")
    forget_batch: int | None = option(
        None, "pairs to be forgotten in a batch (default: the method's)", low=1, metavar="N"
    )
    retain_batch: int | None = option(
        None, "other pairs in a batch (default: the method's)", low=1, metavar="N"
    )
    views: int = option(
        4,
        "views kept of each image where the first layers stay, which so run once for all steps; with 0 every "
        "step draws new ones, of all images, and takes several times as long",
        low=0,
        metavar="N",
    )
    tolerance: float | None = option(
        None,
        "stop once, on an eighth of the seen images that is set aside, the forgotten are found at most so "
        "much more often than by chance and the retained at most so much less often than before, 0.01 being "
        "a point (default: take all steps)",
        above=0,
        high=1,
        metavar="SHARE",
    )
    train: str = option(
        "all",
        "which of the weights that the method moves: all, a tower's, those of each tower's last N blocks, or "
        "corrections of rank R to its matrices",
        choices=("all", "image", "text", "last-N", "lora:R"),
    )
    saliency: float = option(
        1.0,
        "move only this share of the weights, those that the forgotten depend on most",
        above=0,
        high=1,
        metavar="SHARE",
    )
    device: str = _device()
    precision: str = _precision()
    micro_batch: int | None = _micro_batch()
    grad_checkpointing: bool = _grad_checkpointing()
    compile: bool = _compile()


@dataclass(frozen=True)
class SelectConfig(Config):
    """What is to be found in a dataset, to be forgotten later."""

    example: ClassVar[str] = "near: [photo.jpg]"

    forget: Sequence[str] | None = option(None, "as for a run", metavar="CONCEPT")
    near: Sequence[str] | None = option(
        None, "an image file or a phrase; what is near it is selected, given --threshold", metavar="EXAMPLE"
    )
    threshold: float | None = option(
        None,
        "similarity to an example from which on an image is near: a cosine, or minus a distance where the "
        "model is hyperbolic",
        metavar="NUMBER",
    )
    model: str = option("meru-emoji", "bundled model or checkpoint, whose features say what is near")
    data: str = option("emoji", "bundled dataset, or a folder or file; see 'riemann-unlearn list sources'")
    device: str = option("cpu", "where to compute, such as cuda", metavar="DEVICE")


@dataclass(frozen=True)
class TrainConfig(Config):
    """Everything that decides what comes out of a training, besides the model's configuration."""

    example: ClassVar[str] = "epochs: 100"

    data: str = option("emoji", "bundled dataset, or a folder or file; see 'riemann-unlearn list sources'")
    start: str | None = option(
        None, "model whose weights to begin with (default: fresh ones)", metavar="MODEL"
    )
    objective: str = option(
        "contrastive",
        "tree: the taxonomy's captions are put on nested cones first, then both towers learn to land there "
        "(a space without cones learns the directions); it needs --start",
        choices=("contrastive", "tree"),
    )
    epochs: int = option(100, "passes over the seen images", low=1, metavar="N")
    batch_size: int = option(256, "pairs in a batch", low=1, metavar="N")
    learning_rate: float = option(1e-3, "of the weights, after the warm-up", above=0, metavar="RATE")
    scalar_learning_rate: float = option(
        1e-2,
        "of τ, the curvature and the feature scales, which have further to go than a weight has",
        low=0,
        metavar="RATE",
    )
    weight_decay: float = option(0.1, "of matrices", low=0, metavar="RATE")
    warmup_epochs: float = option(2.0, "epochs in which the learning rate rises", low=0, metavar="N")
    head_epochs: float = option(
        0.0,
        "epochs at the beginning in which of the image tower only the last layer moves; then all of it, at a "
        "fifth of the rate: a tower that has learned much keeps it on the way to another objective",
        low=0,
        metavar="N",
    )
    entailment_weight: float = option(0.2, "λ, for a space with cones; 0.2 is MERU's", low=0, metavar="λ")
    gradient_clip: float = option(1.0, "largest norm of a gradient", above=0, metavar="NORM")
    precision: str = _precision()
    group: int = option(
        8,
        "every other epoch, so many images of one class go into a batch together: what is alike is told "
        "apart by seeing both; 1 leaves every batch to chance",
        low=1,
        metavar="N",
    )
    evaluate_every: int = option(10, "epochs between two evaluations", low=1, metavar="N")
    seed: int = option(0, "decides weights, batches and views", low=0, high=SEED_LIMIT, metavar="N")
    device: str = _device()
    micro_batch: int | None = _micro_batch()
    grad_checkpointing: bool = _grad_checkpointing()
    compile: bool = _compile()


@dataclass(frozen=True)
class EvaluateConfig(Config):
    """What an evaluation is asked to measure."""

    example: ClassVar[str] = "model: meru-emoji"

    model: str = option("meru-emoji", "bundled model, checkpoint or run")
    data: str | None = option(None, "dataset or folder of shards (default: the run's, else emoji)")
    forget: Sequence[str] | None = option(
        None, "what counts as forgotten (default: what the run forgot, else food-fruit)", metavar="CONCEPT"
    )
    audit: str = option(
        "quick",
        "full also asks the features, relearning, membership inference, alignment and hierarchy, and says "
        "whether it is hidden or gone: minutes",
        choices=("quick", "full"),
    )
    before: str | None = option(
        None, "untouched model, for a full audit (default: the one the run is of)", metavar="MODEL"
    )
    oracle: str | None = option(
        None, "model trained without the forgotten, for a full audit", metavar="MODEL"
    )
    measures: Sequence[str] | None = option(
        None,
        "ask only this, in place of what the audit asks by itself; see 'riemann-unlearn list measures'",
        metavar="NAME",
        flag="--measure",
    )
    seed: int = option(0, "of a full audit", low=0, high=SEED_LIMIT, metavar="N")
    device: str = _device()
