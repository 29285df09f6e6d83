"""Does it come back? How much of the forgotten a little fine-tuning restores.

The attacker has n images of each forgotten class with their captions and trains for a few steps with the
contrastive loss at every level of the taxonomy; the retained pairs beside them are there for contrast,
for an InfoNCE over one class alone has no negatives. What was hidden returns with one shot; what is gone
must be learned anew, and returns no faster than in a model that never knew it: the retrained oracle.
(Relearning attacks: Lynch et al. 2024, arXiv 2402.16835; Hu et al. 2024, arXiv 2406.13356.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from riemann_unlearn import processes
from riemann_unlearn.data.batch import Batch, make_batch
from riemann_unlearn.evaluation.features import encode_captions, encode_images
from riemann_unlearn.evaluation.measures.base import Measure, missing, percent, share
from riemann_unlearn.evaluation.probes import SHOTS, shots_figure, shots_text
from riemann_unlearn.evaluation.subject import Part, Subject, evenly
from riemann_unlearn.losses import ContrastiveLoss
from riemann_unlearn.models import DualEncoder, evaluating
from riemann_unlearn.registry import register
from riemann_unlearn.training.driver import Callback, Driver, RandomBatches

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@register
@dataclass(frozen=True)
class Relearning(Measure):
    """Accuracy on the forgotten after fine-tuning on n shots of it."""

    name: ClassVar[str] = "relearning"
    title: ClassVar[str] = "Does it come back, %"
    reading: ClassVar[str] = (
        "Accuracy on the forgotten, by the caption of its class, after fine-tuning on a few other images of "
        "it. Above the retrained model's: it remembered."
    )
    guess: ClassVar[str] = "1/labels"
    paper: ClassVar[str] = "Lynch et al. 2024, arXiv 2402.16835; Hu et al. 2024, arXiv 2406.13356"
    order: ClassVar[int] = 60

    shots: tuple[int, ...] = SHOTS
    steps: tuple[int, ...] = (2, 5, 10)
    """Numbers of steps after which the forgotten is asked for; the attack ends with the last."""
    forget_batch: int = 16
    """Forgotten pairs in a step at most; fewer shots than that are all in every step."""
    retain_batch: int = 16
    learning_rate: float = 2e-4
    """Of Adam, on every weight of both towers. Half of it restores next to nothing in ten steps on the
    bundled model, and half as much again costs the untouched model what it knew."""
    most_tested: int = 200
    """Forgotten images that are asked about."""

    def on(self, subject: Subject) -> str:
        """Held-out images, after fine-tuning on seen ones."""
        return f"{subject.test.what}, after fine-tuning on {subject.seen.what}"

    def unmet(self, subject: Subject, references: Mapping[str, Subject]) -> str | None:
        """It never asks about the images that it fine-tunes on."""
        if subject.heldout is None:
            return "it needs held-out images: an attack must not be tested on its own shots"
        if (reason := missing(subject.parts)) is not None:
            return reason
        if not subject.known(_tested(subject))[1].any():
            return "the captions of the forgotten read the same as others"
        return None

    def compute(self, subject: Subject, references: Mapping[str, Subject], seed: int = 0) -> dict[str, Any]:
        """Accuracy of the forgotten held-out images; the model is copied, not changed.

        ``shots`` (those that every forgotten class has images for), ``accuracy`` after the last step with
        each, ``by_steps`` (the same after every number of steps), ``start`` (without any), and how many
        ``images`` were asked about.
        """
        test = _tested(subject)
        test = test.subset(evenly(torch.arange(len(test), device=test.features.device), self.most_tested))
        hits, asked = subject.known(test)
        pools = _pools(subject)
        shots = [n for n in self.shots if n <= min(map(len, pools))]
        curves = []
        for n in shots:
            # All that is random is drawn on the CPU, so that a seed means the same on every device.
            # Seeded anew for each n: the orders are the same ones, so that fewer shots are some of the more,
            # and a curve rises by what is added and not by which were drawn.
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.cat([rows[torch.randperm(len(rows), generator=generator)[:n]] for rows in pools])
            # A frozen model is one to an attacker as any other.
            model = copy.deepcopy(subject.model).requires_grad_(True)
            curve = _Curve(self.steps, partial(_accuracy, subject, model, test))
            # One attack gives the figures after every number of steps, since a curve asks on the way.
            self.attack(model, subject, drawn, generator, [curve])
            curves.append(curve.accuracies)
        by_steps = {step: [curve[i] for curve in curves] for i, step in enumerate(self.steps)}
        return {
            "shots": shots,
            "accuracy": by_steps[self.steps[-1]],
            "by_steps": {str(step): values for step, values in by_steps.items()},
            "start": share(hits[asked]),
            "images": int(asked.sum()),
        }

    def rows(self, value: Any) -> dict[str, str]:
        """Accuracy without a shot, and after the last step with each number of them."""
        after = zip(value["shots"], value["accuracy"], strict=True)
        return {"no shot": percent(value["start"])} | {shots_text(n): percent(a) for n, a in after}

    def figure(self, values: Mapping[str, Any]) -> Figure:
        """Accuracy after the last step against the number of shots."""
        curves = {
            role: ([0, *value["shots"]], [value["start"], *value["accuracy"]])
            for role, value in values.items()
        }
        return shots_figure("Accuracy on the forgotten after fine-tuning", curves, None)

    def attack(
        self,
        model: DualEncoder,
        subject: Subject,
        shots: Tensor,
        generator: torch.Generator,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """Fine-tune ``model``, in place, on some seen images of the forgotten.

        Parameters
        ----------
        model : DualEncoder
            A copy of the subject's.
        subject : Subject
        shots : Tensor, shape (n,)
            Rows of the seen images; long, on the CPU.
        generator : torch.Generator
            Source of all randomness.
        callbacks : sequence of Callback
            Told of every step.
        """
        contrastive = ContrastiveLoss()
        levels = [f"{level.name}_loss" for level in subject.taxonomy.levels]

        def objective(batch: Batch) -> dict[str, Tensor]:
            images = model.encode_image(model.preprocess(batch.images))
            texts = model.encode_text(model.tokenize(batch.texts))
            return {
                level: contrastive(images, texts[pair.row], caption_ids=pair.caption_ids, space=model.space)
                for level, pair in zip(levels, batch.pairings, strict=True)
            }

        # As in unlearning: τ, the curvature and the feature scales define the space and stay.
        weights = [parameter for parameter in model.parameters() if parameter.ndim > 0]
        # In evaluation mode, so that batch statistics stay. Each process by itself: a mean of equal gradients
        # may be rounded, and the figures are to be those of one process.
        with evaluating(model), processes.alone():
            Driver(
                _Shots(self, subject, shots, generator),
                objective,
                torch.optim.Adam(weights, lr=self.learning_rate),
                parameters=weights,
                steps=self.steps[-1],
                device=subject.seen.features.device,
                callbacks=callbacks,
            ).run()


class _Shots(RandomBatches):
    """Batches of some of the shots, and as many retained pairs as there are to be."""

    def __init__(
        self, measure: Relearning, subject: Subject, shots: Tensor, generator: torch.Generator
    ) -> None:
        self.measure, self.subject, self.shots, self.generator = measure, subject, shots, generator
        self.retained = (~subject.seen.forgotten).nonzero()[:, 0].cpu()

    def draw(self, number: int) -> Batch:
        """The batch of a step."""
        measure, generator = self.measure, self.generator
        some = self.shots[torch.randperm(len(self.shots), generator=generator)[: measure.forget_batch]]
        # With replacement: there may be fewer retained images than a batch has.
        drawn = torch.randint(len(self.retained), (measure.retain_batch,), generator=generator)
        rows = torch.cat([some, self.retained[drawn]])
        samples, model = self.subject.seen.samples, self.subject.model
        return make_batch(samples, rows, model.image_size, generator, fit=model.resize)


class _Curve(Callback):
    """Asks after some of the steps how well the forgotten is known."""

    def __init__(self, steps: Sequence[int], accuracy: Callable[[], float | None]) -> None:
        self.steps, self.accuracy = steps, accuracy
        self.accuracies: list[float | None] = []

    def stepped(self, driver: Driver, record: dict[str, Any]) -> None:
        """Ask, if it is time."""
        if driver.step in self.steps:
            self.accuracies.append(self.accuracy())


def _tested(subject: Subject) -> Part:
    """The forgotten images to ask about."""
    return subject.test.subset(subject.test.forgotten.nonzero()[:, 0])


def _pools(subject: Subject) -> list[Tensor]:
    """Rows of the seen images of each forgotten class that has any, on the CPU."""
    label = subject.classes[subject.seen.concept]
    classes = torch.unique(subject.classes[subject.selection.concepts])
    rows = [(label == c).nonzero()[:, 0].cpu() for c in classes.tolist()]
    return [pool for pool in rows if len(pool)]


def _accuracy(subject: Subject, model: DualEncoder, test: Part) -> float | None:
    """Of another model on ``test``, by the captions of the subject's classes."""
    captions = list(subject.captions)
    alone = subject.caption_of_class[test.concept]
    # Only the captions that are asked with: there may be thousands of names.
    for depth, needed in ((subject.taxonomy.grouping, ~alone), (0, alone)):
        if needed.any():
            captions[depth] = encode_captions(model, captions[depth].texts)
    tuned = replace(subject, model=model, captions=tuple(captions))
    hits, asked = tuned.known(replace(test, features=encode_images(model, test.samples.images)))
    return share(hits[asked])
