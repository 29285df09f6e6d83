"""Retraining without what is to be forgotten: the oracle that every method is measured against."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from riemann_unlearn.training import TrainConfig, train
from riemann_unlearn.unlearning.methods.base import DirectMethod, Problem, setting


@dataclass(frozen=True)
class Retrain(DirectMethod):
    """Train a new model of the same architecture on the retained images alone.

    Exact by definition, and as dear as the training was. The defaults are the recipe of the bundled emoji
    models; another model should be retrained as it was trained. Images of what is to be forgotten are
    left out at every level, so unlike the other methods the oracle has not seen them as examples of
    the category above either.
    """

    name: ClassVar[str] = "retrain"
    description: ClassVar[str] = "Training from scratch on the retained images (the oracle)"
    paper: ClassVar[str] = "arXiv 1912.03817"

    epochs: int = setting(56, 1, 100_000, "passes over the retained images")
    batch_size: int = setting(128, 2, 1_000_000, "pairs in a batch")
    learning_rate: float = setting(1e-3, 1e-8, 1.0, "of AdamW, at its largest")
    weight_decay: float = setting(0.1, 0, 10, "of AdamW")
    entailment_weight: float = setting(0.02, 0, 1e4, "λ, of a hyperbolic model")
    group: int = setting(8, 1, 1_000_000, "images of a subcategory that go into a batch together")

    def apply(self, problem: Problem, *, seed: int, folder: Path | None, progress: bool) -> None:
        """Train, and take over the weights; a training in ``folder`` is gone on with."""
        model, dataset = problem.model, problem.dataset
        retained = ~problem.selection.concepts[dataset.seen.concept]
        config = TrainConfig(
            data=dataset.name,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            entailment_weight=self.entailment_weight,
            group=self.group,
            evaluate_every=self.epochs,
            seed=seed,
        )
        architecture = {"architecture": type(model).__name__, **model.config}
        with tempfile.TemporaryDirectory() as scratch:
            where = folder / "retrain" if folder else Path(scratch) / "retrain"
            trained = train(
                architecture,
                config,
                where,
                data=replace(dataset, seen=dataset.seen.subset(retained)),
                resume=where.exists(),
                progress=progress,
            )
        model.load_state_dict(trained.state_dict())
