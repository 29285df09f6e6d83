"""What can be asked of a run, a training and an evaluation: each option in one place.

The command line's flags and their ``--help``, the YAML files of ``--config``, a run directory's
``config.yaml`` and the keywords of Python are all made from the dataclasses here: a new option is a new
field. Nothing heavy is imported, so that the command line answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from riemann_unlearn.options import Config, about

SEED_LIMIT = 2**63 - 1
"""The largest seed: ``torch.Generator`` takes what fits a signed 64-bit integer."""


@dataclass(frozen=True)
class RunConfig(Config):
    """What a run is asked to do; its ``config.yaml`` holds exactly these fields.

    Examples
    --------
    >>> RunConfig(forget="food-fruit", seed=3).to_mapping()["forget"]
    ['food-fruit']
    """

    example: ClassVar[str] = "forget: [food-fruit]"

    forget: Sequence[str] = field(
        metadata=about(
            "what to forget: a concept or a label of any level of the data (default: food-fruit)",
            metavar="CONCEPT",
        )
    )
    model: str = field(default="meru-emoji", metadata=about("bundled model or checkpoint"))
    data: str = field(default="emoji", metadata=about("bundled dataset or folder of shards"))
    method: str = field(default="tilt", metadata=about("see 'riemann-unlearn list methods'"))
    settings: Mapping[str, Any] = field(
        default_factory=dict,
        metadata=about(
            "change a setting of the method, such as alpha=0.5 (default: the method's)",
            metavar="NAME=NUMBER",
            flag="--set",
        ),
    )
    seed: int = field(
        default=0, metadata=about("decides batches, views and captions", low=0, high=SEED_LIMIT, metavar="N")
    )
    forget_batch: int | None = field(
        default=None,
        metadata=about("pairs to be forgotten in a batch (default: the method's)", low=1, metavar="N"),
    )
    retain_batch: int | None = field(
        default=None, metadata=about("other pairs in a batch (default: the method's)", low=1, metavar="N")
    )
    saliency: float = field(
        default=1.0,
        metadata=about(
            "move only this share of the weights, those that the forgotten depend on most",
            above=0,
            high=1,
            metavar="SHARE",
        ),
    )
    device: str = field(default="cpu", metadata=about("where to compute, such as cuda", metavar="DEVICE"))


@dataclass(frozen=True)
class TrainConfig(Config):
    """Everything that decides what comes out of a training, besides the model's configuration."""

    example: ClassVar[str] = "epochs: 100"

    data: str = field(default="emoji", metadata=about("bundled dataset or folder of shards"))
    start: str | None = field(
        default=None,
        metadata=about("model whose weights to begin with (default: fresh ones)", metavar="MODEL"),
    )
    objective: str = field(
        default="contrastive",
        metadata=about(
            "tree: the taxonomy's captions are put on nested cones first, then both towers learn to land "
            "there; it needs a model with cones, and --start",
            choices=("contrastive", "tree"),
        ),
    )
    epochs: int = field(default=100, metadata=about("passes over the seen images", low=1, metavar="N"))
    batch_size: int = field(default=256, metadata=about("pairs in a batch", low=1, metavar="N"))
    learning_rate: float = field(
        default=1e-3, metadata=about("of the weights, after the warm-up", above=0, metavar="RATE")
    )
    scalar_learning_rate: float = field(
        default=1e-2,
        metadata=about(
            "of τ, the curvature and the feature scales, which have further to go than a weight has",
            low=0,
            metavar="RATE",
        ),
    )
    weight_decay: float = field(default=0.1, metadata=about("of matrices", low=0, metavar="RATE"))
    warmup_epochs: float = field(
        default=2.0, metadata=about("epochs in which the learning rate rises", low=0, metavar="N")
    )
    entailment_weight: float = field(
        default=0.2, metadata=about("λ, for a space with cones; 0.2 is MERU's", low=0, metavar="λ")
    )
    gradient_clip: float = field(
        default=1.0, metadata=about("largest norm of a gradient", above=0, metavar="NORM")
    )
    precision: str = field(
        default="float32",
        metadata=about(
            "of the towers (bfloat16: autocast); the geometry is always float32",
            choices=("float32", "bfloat16"),
        ),
    )
    group: int = field(
        default=8,
        metadata=about(
            "every other epoch, so many images of one class go into a batch together: what is alike is told "
            "apart by seeing both; 1 leaves every batch to chance",
            low=1,
            metavar="N",
        ),
    )
    evaluate_every: int = field(
        default=10, metadata=about("epochs between two evaluations", low=1, metavar="N")
    )
    seed: int = field(
        default=0, metadata=about("decides weights, batches and views", low=0, high=SEED_LIMIT, metavar="N")
    )
    device: str = field(default="cpu", metadata=about("where to compute, such as cuda", metavar="DEVICE"))


@dataclass(frozen=True)
class EvaluateConfig(Config):
    """What an evaluation is asked to measure."""

    example: ClassVar[str] = "model: meru-emoji"

    model: str = field(default="meru-emoji", metadata=about("bundled model, checkpoint or run"))
    data: str | None = field(
        default=None, metadata=about("dataset or folder of shards (default: the run's, else emoji)")
    )
    forget: Sequence[str] | None = field(
        default=None,
        metadata=about(
            "what counts as forgotten (default: what the run forgot, else food-fruit)", metavar="CONCEPT"
        ),
    )
    audit: str = field(
        default="quick",
        metadata=about(
            "full also asks the features, relearning, membership inference, alignment and hierarchy: about a "
            "minute",
            choices=("quick", "full"),
        ),
    )
    before: str | None = field(
        default=None,
        metadata=about("untouched model, for a full audit (default: the one the run is of)", metavar="MODEL"),
    )
    oracle: str | None = field(
        default=None, metadata=about("model trained without the forgotten, for a full audit", metavar="MODEL")
    )
    measures: Sequence[str] | None = field(
        default=None,
        metadata=about(
            "ask only this, in place of what the audit asks by itself; see 'riemann-unlearn list measures'",
            metavar="NAME",
            flag="--measure",
        ),
    )
    seed: int = field(default=0, metadata=about("of a full audit", low=0, high=SEED_LIMIT, metavar="N"))
    device: str = field(default="cpu", metadata=about("where to compute, such as cuda", metavar="DEVICE"))
