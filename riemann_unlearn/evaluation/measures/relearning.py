r"""Does it come back? How much of the forgotten a little fine-tuning restores, at the attacker's choice.

The attacker has n images of each forgotten class and images of what is retained, and trains the image tower
to tell each image's own caption from *all* others at every level of the taxonomy:

.. math::
    \sum_{\text{levels}} \mathrm{mean}_i\,\bigl[-\log \mathrm{softmax}_t\, τ s(i, t)\bigr]_{t = t_i}.

With n = 0 there are retained images alone, and forgotten captions are no candidates, for no image of theirs
is there to be held against (what fine-tuning on the retained brings back by itself: Siddiqui et al. 2025,
arXiv 2505.22310). The attacker chooses the learning rate and the number of steps: what counts is the *worst*
over a grid of both, on the oracle as well, since the best of many tries flatters every model. What was hidden
returns with one image; what is gone must be learned anew, and returns no faster than in a model that never
knew it. (Relearning attacks: Lynch et al. 2024, arXiv 2402.16835; Hu et al. 2024, arXiv 2406.13356.)

Captions stay where they are, so all of them can be candidates at the price of one product of matrices, and
the first layers of the tower stay too, so that each image goes through them once for all attacks
(:class:`~riemann_unlearn.evaluation.stored.StoredImages`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from riemann_unlearn import processes
from riemann_unlearn.data.augment import random_view
from riemann_unlearn.evaluation.features import CHUNK
from riemann_unlearn.evaluation.intervals import wilson
from riemann_unlearn.evaluation.measures.base import (
    ROLE_COLOURS,
    ROLE_NAMES,
    Measure,
    missing,
    percent,
    share,
)
from riemann_unlearn.evaluation.stored import Encode, StoredImages
from riemann_unlearn.evaluation.subject import Part, Subject, evenly
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.registry import register
from riemann_unlearn.training.driver import Callback, Diverged, Driver, RandomBatches

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@register
@dataclass(frozen=True)
class Relearning(Measure):
    """Accuracy on the forgotten after fine-tuning on n images of each of its classes, worst over a grid."""

    name: ClassVar[str] = "relearning"
    title: ClassVar[str] = "Does it come back, %"
    reading: ClassVar[str] = (
        "Accuracy on the forgotten, by the caption of its class, after fine-tuning on a few other images of "
        "it, or on retained images alone; the worst over learning rates and numbers of steps. Above the "
        "retrained model's: it remembered."
    )
    guess: ClassVar[str] = "1/labels"
    paper: ClassVar[str] = (
        "Lynch et al. 2024, arXiv 2402.16835; Hu et al. 2024, arXiv 2406.13356; Siddiqui et al. 2025, arXiv "
        "2505.22310"
    )
    order: ClassVar[int] = 60

    shots: tuple[int, ...] = (0, 1, 4, 16)
    """Images of each forgotten class; as many of these numbers as every class has images for."""
    rates: tuple[float, ...] = (2e-4, 1e-3, 3e-3)
    """Learning rates of Adam."""
    steps: tuple[int, ...] = (10, 40, 120)
    """Numbers of steps after which the forgotten is asked for; an attack ends with the last."""
    frozen: float = 0.25
    """Share of the image tower's weights, those of its first layers, that stay."""
    forget_batch: int = 16
    """Forgotten images in a step at most; fewer than that are all in every step."""
    retain_batch: int = 16
    views: int = 4
    """Random views of each forgotten image."""
    most_retained: int = 512
    """Retained images that the attacker has."""
    most_tested: int = 400
    """Forgotten images that are asked about."""

    def on(self, subject: Subject) -> str:
        """Held-out images, after fine-tuning on seen ones."""
        return f"{subject.test.what}, after fine-tuning on {subject.seen.what}"

    def unmet(self, subject: Subject, references: Mapping[str, Subject]) -> str | None:
        """It never asks about the images that it fine-tunes on."""
        if subject.heldout is None:
            return "it needs held-out images: an attack must not be tested on its own shots"
        if (reason := missing(subject.parts) or missing([subject.seen], retained=True)) is not None:
            return reason
        if not subject.known(_tested(subject))[1].any():
            return "the captions of the forgotten read the same as others"
        return None

    def compute(self, subject: Subject, references: Mapping[str, Subject], seed: int = 0) -> dict[str, Any]:
        """Accuracy of the forgotten held-out images; the model is copied, not changed.

        ``shots`` (those that every forgotten class has images for), ``accuracy`` with each, the worst of
        ``grid[shot][rate][step]``, and ``worst`` the [rate, steps] that it is of; ``rates``, ``steps``;
        ``start``, the accuracy of the model as it is; and how many ``images`` were asked about.
        """
        test = _tested(subject)
        test = test.subset(evenly(torch.arange(len(test), device=test.features.device), self.most_tested))
        hits, asked = subject.known(test)
        ground = _Ground(self, subject, test, torch.Generator().manual_seed(seed))
        shots = [n for n in self.shots if n <= ground.most_shots]
        grid = [[self._attack(ground, n, rate, seed) for rate in self.rates] for n in shots]
        worst = [max(_cells(of_rates, self.rates, self.steps), key=lambda cell: cell[0]) for of_rates in grid]
        return {
            "shots": shots,
            "accuracy": [accuracy for accuracy, _, _ in worst],
            "worst": [[rate, steps] for _, rate, steps in worst],
            "rates": list(self.rates),
            "steps": list(self.steps),
            "grid": grid,
            "start": share(hits[asked]),
            "images": int(asked.sum()),
        }

    def rows(self, value: Any) -> dict[str, str]:
        """Accuracy as it is, the worst for each number of images, and the grid that it is the worst of."""
        n = value["images"]
        rows = {"as it is": percent(value["start"], n)}
        for shots, accuracy in zip(value["shots"], value["accuracy"], strict=True):
            rows[f"{_words(shots)}: worst"] = percent(accuracy, n)
        after = f"after {', '.join(map(str, value['steps']))} steps"
        for shots, of_rates in zip(value["shots"], value["grid"], strict=True):
            for rate, of_steps in zip(value["rates"], of_rates, strict=True):
                rows[f"{_words(shots)}, rate {rate:g}: {after}"] = ", ".join(map(percent, of_steps))
        return rows

    def figure(self, values: Mapping[str, Any]) -> Figure:
        """The worst against the number of images, with its 95 % interval; beside it each model's grid."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 3.4), layout="constrained")
        curve, *grids = figure.subplots(1, 1 + len(values), width_ratios=[2.4, *[1] * len(values)])
        for role, value in values.items():
            places = range(1 + len(value["shots"]))
            shares = [value["start"], *value["accuracy"]]
            ends = [wilson(p, value["images"]) for p in shares]
            # Of a share of 0 or 1 one end is itself, and rounding may put it on the other side.
            lengths = [[max(0.0, p - low) for p, (low, _) in zip(shares, ends, strict=True)]]
            lengths += [[max(0.0, high - p) for p, (_, high) in zip(shares, ends, strict=True)]]
            curve.errorbar(
                places, shares, lengths, fmt="o-", color=ROLE_COLOURS[role], label=ROLE_NAMES[role],
                markersize=4, capsize=2, linewidth=1.2,
            )  # fmt: skip
        first = next(iter(values.values()))
        curve.set_xticks(range(1 + len(first["shots"])), ["as it is", *map(str, first["shots"])])
        curve.set(title="Worst accuracy", xlabel="images of each forgotten class", ylim=(-0.03, 1.03))
        curve.spines[["top", "right"]].set_visible(False)
        curve.legend(frameon=False, fontsize=8)
        for number, (axes, (role, value)) in enumerate(zip(grids, values.items(), strict=True)):
            _draw_grid(axes, value, named=number == 0)
            axes.set_title(ROLE_NAMES[role], fontsize=9)
        return figure

    def _attack(self, ground: _Ground, shots: int, rate: float, seed: int) -> list[float]:
        """Accuracy after each number of steps of one attack."""
        model, encode = ground.stored.copy()
        parameters = dict(model.named_parameters())
        weights = [parameters[name] for name in ground.stored.moved]
        curve = _Curve(self.steps, partial(ground.accuracy, model, encode))
        driver = Driver(
            # Seeded by the number of images alone: all rates see the same batches.
            _Shots(self, ground, shots, torch.Generator().manual_seed(seed + shots)),
            partial(ground.terms, model, encode, shots > 0),
            torch.optim.Adam(weights, lr=rate),
            parameters=weights,
            steps=self.steps[-1],
            device=model.device,
            callbacks=[curve],
        )
        # An attack that breaks the model has brought nothing back. Each process attacks by itself: a mean of
        # equal gradients may be rounded, and the figures are to be those of one process.
        with suppress(Diverged), processes.alone():
            driver.run()
        return curve.accuracies + [0.0] * (len(self.steps) - len(curve.accuracies))


class _Ground:
    """What all attacks on one model share: images behind the layers that stay, captions, labels."""

    def __init__(self, measure: Relearning, subject: Subject, test: Part, generator: torch.Generator) -> None:
        self.subject, self.test = subject, test
        seen, model = subject.seen, subject.model
        pools = _pools(subject)
        least = min(map(len, pools))
        self.most_shots = max((n for n in measure.shots if n <= least), default=0)
        # All that is random is drawn on the CPU, so that a seed means the same on every device.
        drawn = [pool[torch.randperm(len(pool), generator=generator)[: self.most_shots]] for pool in pools]
        # Shot by shot, one of each class: the first n·classes rows are n of each, some of those of more.
        forgotten = torch.stack(drawn, 1).flatten()
        self.classes = len(pools)
        kept = (~seen.forgotten).nonzero()[:, 0].cpu()
        kept = kept[torch.randperm(len(kept), generator=generator)[: measure.most_retained]]
        rows = torch.cat([*[forgotten] * measure.views, kept])
        self.forgotten, self.retained = len(forgotten), len(kept)
        self.first_retained = self.forgotten * measure.views

        def chunks() -> Iterator[Tensor]:
            for some in torch.split(rows, CHUNK):
                views = random_view(seen.samples.images[some], model.image_size, generator, fit=model.resize)
                yield model.preprocess(views)
            for some in torch.split(torch.arange(len(test)), CHUNK):
                yield model.preprocess(test.images(some))

        self.stored = StoredImages(model, chunks(), frozen=measure.frozen)
        self.labels = [
            seen.labels(depth)[rows.to(seen.features.device)] for depth in range(len(subject.captions))
        ]
        self.tested = torch.arange(len(rows), len(rows) + len(test), device=seen.features.device)

    def terms(self, model: DualEncoder, encode: Encode, shown: bool, rows: Tensor) -> dict[str, Tensor]:
        """The loss of some rows by level; ``shown`` says whether images of the forgotten are among them."""
        features, space = encode(rows), model.space
        terms = {}
        for depth, level in enumerate(self.subject.taxonomy.levels):
            logits = space.logits(features, self.subject.captions[depth].features)
            if not shown:
                logits = logits.masked_fill(self.subject.selection.forgotten[depth], -math.inf)
            terms[f"{level.name}_loss"] = F.cross_entropy(logits, self.labels[depth][rows])
        return terms

    @torch.no_grad()
    def accuracy(self, model: DualEncoder, encode: Encode) -> float:
        """On the tested images, by the captions of the subject's classes."""
        features = torch.cat([encode(rows) for rows in torch.split(self.tested, CHUNK)])
        if not features.isfinite().all():
            return 0.0
        tuned = replace(self.subject, model=model)
        hits, asked = tuned.known(replace(self.test, features=features))
        return share(hits[asked]) or 0.0


class _Shots(RandomBatches):
    """Rows of some of the forgotten images, in one view each, and of some retained ones."""

    def __init__(self, measure: Relearning, ground: _Ground, shots: int, generator: torch.Generator) -> None:
        self.measure, self.ground, self.generator = measure, ground, generator
        self.shots = shots * ground.classes

    def draw(self, number: int) -> Tensor:
        """The rows of a step."""
        measure, ground, generator = self.measure, self.ground, self.generator
        some = torch.randperm(self.shots, generator=generator)[: measure.forget_batch]
        view = torch.randint(measure.views, some.shape, generator=generator)
        # With replacement: there may be fewer retained images than a batch has.
        drawn = torch.randint(ground.retained, (measure.retain_batch,), generator=generator)
        return torch.cat([view * ground.forgotten + some, ground.first_retained + drawn])


class _Curve(Callback):
    """Asks after some of the steps how well the forgotten is known."""

    def __init__(self, steps: Sequence[int], accuracy: Callable[[], float]) -> None:
        self.steps, self.accuracy = steps, accuracy
        self.accuracies: list[float] = []

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
    gone = subject.seen.forgotten
    return [(gone & (label == c)).nonzero()[:, 0].cpu() for c in torch.unique(label[gone]).tolist()]


def _cells(
    of_rates: Sequence[Sequence[float]], rates: Sequence[float], steps: Sequence[int]
) -> Iterator[tuple[float, float, int]]:
    """Accuracy, rate and steps of each cell of a grid."""
    for rate, of_steps in zip(rates, of_rates, strict=True):
        for step, accuracy in zip(steps, of_steps, strict=True):
            yield accuracy, rate, step


def _words(shots: int) -> str:
    """What the attacker has of each class."""
    return f"from {shots or 'no'} image{'s' * (shots > 1)}"


def _draw_grid(axes: Any, value: Mapping[str, Any], *, named: bool) -> None:
    """A line for each number of images and rate, a column for each number of steps, the shares in percent."""
    lines = [of_steps for of_rates in value["grid"] for of_steps in of_rates]
    names = [f"{n}, {rate:g}" for n in value["shots"] for rate in value["rates"]]
    axes.imshow(lines, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for row, line in enumerate(lines):
        for column, accuracy in enumerate(line):
            # White on the darker half.
            colour = "white" if accuracy > 0.5 else "#1c2430"
            axes.text(
                column, row, f"{100 * accuracy:.0f}", ha="center", va="center", fontsize=7, color=colour
            )
    axes.set_xticks(range(len(value["steps"])), list(map(str, value["steps"])), fontsize=7)
    axes.set_yticks(range(len(names)), names if named else [], fontsize=7)
    axes.set_xlabel("steps", fontsize=8)
    if named:
        axes.set_ylabel("images, rate", fontsize=8)
