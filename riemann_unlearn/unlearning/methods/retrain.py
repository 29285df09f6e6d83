"""Retraining without what is to be forgotten: the oracle that every method is measured against."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from riemann_unlearn import processes
from riemann_unlearn.evaluation import zero_shot
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.models import load as load_model
from riemann_unlearn.models.origins import WEIGHTS_NAME
from riemann_unlearn.runs import CHECKPOINT_NAME
from riemann_unlearn.training import TrainConfig, train
from riemann_unlearn.unlearning.methods.base import DirectMethod, setting
from riemann_unlearn.unlearning.problem import Problem


@dataclass(frozen=True)
class Retrain(DirectMethod):
    """Train a new model of the same architecture on the retained images alone.

    Exact by definition, and as dear as the training was. The defaults are the first stage of the recipe of
    the bundled emoji models; ``more_epochs=60`` is the second, and with it that of the flat ones,
    ``tree_epochs=45`` the third. Another model should be retrained as it was trained. Images of what is to
    be forgotten are left out at every level, so unlike the other methods the oracle has not seen them as
    examples of the level above either.
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
    more_epochs: int = setting(0, 0, 100_000, "passes after those, with the rate beginning anew; 0 is none")
    tree_epochs: int = setting(0, 0, 100_000, "passes with the objective 'tree' after those; 0 is none")
    tree_head_epochs: int = setting(25, 0, 100_000, "of those, in which the last layer moves alone")
    tree_learning_rate: float = setting(2e-3, 1e-8, 1.0, "of AdamW in those")
    tree_entailment_weight: float = setting(5.0, 0, 1e4, "λ in those")

    def unmet(self, problem: Problem) -> str | None:
        """A tree needs two levels; it is said now and not when the first training is over."""
        if self.tree_epochs and len(problem.taxonomy.levels) < 2:
            return "the objective 'tree' needs data with a level above the concepts; set tree_epochs to 0"
        if self.tree_epochs and self.tree_head_epochs >= self.tree_epochs:
            return "tree_head_epochs are the first of tree_epochs; set them lower"
        return None

    def apply(self, problem: Problem, *, seed: int, folder: Path | None, progress: bool) -> None:
        """Train, and take over the weights; a training in ``folder`` is gone on with."""
        first = TrainConfig(
            data=problem.dataset.name,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            entailment_weight=self.entailment_weight,
            group=self.group,
            # Once, at the end: nothing depends on the figures in between.
            evaluate_every=self.epochs,
            seed=seed,
            device=str(problem.model.device),
        )
        # What goes on from weights that know something begins and moves its scalars more gently.
        gently: dict[str, Any] = {"warmup_epochs": 1.0, "scalar_learning_rate": 3e-3}
        stages = {"retrain": first}
        if self.more_epochs:
            stages["retrain-more"] = replace(
                first, epochs=self.more_epochs, evaluate_every=self.more_epochs, **gently
            )
        if self.tree_epochs:
            stages["retrain-tree"] = replace(
                first,
                objective="tree",
                epochs=self.tree_epochs,
                head_epochs=self.tree_head_epochs,
                learning_rate=self.tree_learning_rate,
                entailment_weight=self.tree_entailment_weight,
                evaluate_every=self.tree_epochs,
                **gently,
            )
        with tempfile.TemporaryDirectory() as scratch:
            # Of several processes the first one's, in which all trainings are.
            home = processes.agreed(lambda: folder or Path(scratch))
            start: str | None = None
            for name, config in stages.items():
                # From its own last stage: other weights may have seen what is to be forgotten.
                trained = _trained(problem, replace(config, start=start), home / name, progress)
                start = str(home / name / WEIGHTS_NAME)
        # Into the caller's model, which is the one that is saved and returned.
        problem.model.load_state_dict(trained.state_dict())


def _trained(problem: Problem, config: TrainConfig, where: Path, progress: bool) -> DualEncoder:
    """A model of the problem's architecture, trained on the retained images alone in a folder of its own."""
    dataset = problem.dataset
    resume, done = processes.agreed(
        lambda: tuple((where / name).is_file() for name in (CHECKPOINT_NAME, WEIGHTS_NAME))
    )
    if not resume and done:
        return load_model(where).to(problem.model.device)
    # What may be left of one that had not come to its first checkpoint.
    if not resume and processes.first():
        shutil.rmtree(where, ignore_errors=True)
    retained = ~dataset.seen.chosen(problem.selection)
    return train(
        problem.model.config,
        config,
        where,
        # Held-out images stay as they are, those of the forgotten too: they are measured and not trained on.
        data=replace(dataset, seen=dataset.seen.subset(retained)),
        measure=zero_shot,
        resume=resume,
        progress=progress,
    )
