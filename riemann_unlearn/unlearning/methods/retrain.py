"""Retraining without what is to be forgotten: the oracle that every method is measured against."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from riemann_unlearn import processes
from riemann_unlearn.evaluation import zero_shot
from riemann_unlearn.runs import CHECKPOINT_NAME
from riemann_unlearn.training import TrainConfig, train
from riemann_unlearn.unlearning.methods.base import DirectMethod, setting
from riemann_unlearn.unlearning.problem import Problem


@dataclass(frozen=True)
class Retrain(DirectMethod):
    """Train a new model of the same architecture on the retained images alone.

    Exact by definition, and as dear as the training was. The defaults are the recipe of the bundled emoji
    models; another model should be retrained as it was trained. Images of what is to be forgotten are
    left out at every level, so unlike the other methods the oracle has not seen them as examples of
    the level above either.
    """

    name: ClassVar[str] = "retrain"
    description: ClassVar[str] = "Training from scratch on the retained images (the oracle)"
    paper: ClassVar[str] = "arXiv 1912.03817"

    epochs: int = setting(56, 1, 100_000, "passes over the retained images")
    batch_size: int = setting(128, 2, 1_000_000, "pairs in a batch")
    learning_rate: float = setting(1e-3, 1e-8, 1.0, "of AdamW, at its largest")
    weight_decay: float = setting(0.1, 0, 10, "of AdamW")
    entailment_weight: float = setting(0.02, 0, 1e4, "λ, of a hyperbolic model")
    group: int = setting(8, 1, 1_000_000, "images of a class that go into a batch together")

    def apply(self, problem: Problem, *, seed: int, folder: Path | None, progress: bool) -> None:
        """Train, and take over the weights; a training in ``folder`` is gone on with."""
        model, dataset = problem.model, problem.dataset
        retained = ~problem.selection.concepts.cpu()[dataset.seen.concept]
        config = TrainConfig(
            data=dataset.name,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            entailment_weight=self.entailment_weight,
            group=self.group,
            # Once, at the end: nothing depends on the figures in between.
            evaluate_every=self.epochs,
            seed=seed,
            device=str(model.device),
        )
        with tempfile.TemporaryDirectory() as scratch:
            where = (folder or Path(scratch)) / "retrain"
            resume = processes.agreed((where / CHECKPOINT_NAME).is_file)
            # What may be left of one that had not come to its first checkpoint.
            if not resume and processes.first():
                shutil.rmtree(where, ignore_errors=True)
            trained = train(
                model.config,
                config,
                where,
                # Held-out images stay as they are, those of the forgotten too: they are measured and not
                # trained on.
                data=replace(dataset, seen=dataset.seen.subset(retained)),
                measure=zero_shot,
                resume=resume,
                progress=progress,
            )
        # Into the caller's model, which is the one that is saved and returned.
        model.load_state_dict(trained.state_dict())
