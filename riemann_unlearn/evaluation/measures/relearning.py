"""Does it come back? How much of the forgotten a little fine-tuning restores.

The attacker has n images of each forgotten class with their captions and trains for a few steps with the
contrastive loss at every level of the taxonomy; the retained pairs beside them are there for contrast,
for an InfoNCE over one class alone has no negatives. What was hidden returns with one shot; what is gone
must be learned anew, and returns no faster than in a model that never knew it: the retrained oracle.
(Relearning attacks: Lynch et al. 2024, arXiv 2402.16835; Hu et al. 2024, arXiv 2406.13356.)
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from riemann_unlearn.data.batch import make_batch
from riemann_unlearn.evaluation.features import encode_captions, encode_images
from riemann_unlearn.evaluation.measures.base import Measure, percent, share, shots_text
from riemann_unlearn.evaluation.measures.recovery import SHOTS, shots_figure
from riemann_unlearn.evaluation.subject import Part, Subject, evenly
from riemann_unlearn.losses import ContrastiveLoss
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.registry import register

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@register
@dataclass(frozen=True)
class Relearning(Measure):
    """Accuracy on the forgotten after fine-tuning on n shots of it."""

    name: ClassVar[str] = "relearning"
    title: ClassVar[str] = "Does it come back, %"
    reading: ClassVar[str] = (
        "Accuracy on the forgotten, by the caption of its class, after fine-tuning on a few other images of it. "
        "Above the retrained model's: it remembered."
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
    """Of Adam, on every weight of both towers. Half of it restores next to nothing in ten steps on the bundled
    model, and half as much again costs the untouched model what it knew."""
    most_tested: int = 200
    """Forgotten images that are asked about."""

    def on(self, subject: Subject) -> str:
        """Held-out images, after fine-tuning on seen ones."""
        return f"{subject.test.what}, after fine-tuning on {subject.seen.what}"

    def unmet(self, subject: Subject, references: Mapping[str, Subject]) -> str | None:
        """It never asks about the images that it fine-tunes on."""
        if subject.heldout is None:
            return "it needs held-out images: an attack must not be tested on its own shots"
        for part in (subject.seen, subject.heldout):
            if not part.forgotten.any():
                return f"no {part.what} show anything forgotten"
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
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.cat([rows[torch.randperm(len(rows), generator=generator)[:n]] for rows in pools])
            tuned = self.attack(subject, drawn, generator)
            curves.append([_accuracy(subject, model, test) for step, model in tuned if step in self.steps])
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
            role: ([0, *value["shots"]], [value["start"], *value["accuracy"]]) for role, value in values.items()
        }
        return shots_figure("Accuracy on the forgotten after fine-tuning", curves, None)

    def attack(
        self, subject: Subject, shots: Tensor, generator: torch.Generator
    ) -> Iterator[tuple[int, DualEncoder]]:
        """Fine-tune a copy of the model on the seen images at rows ``shots``; the copy after each step."""
        # In evaluation mode, so that batch statistics stay; a frozen model is one to an attacker as any other.
        model = copy.deepcopy(subject.model).eval().requires_grad_(True)
        data = subject.seen.samples
        retained = (~subject.seen.forgotten).nonzero()[:, 0].cpu()
        # As in unlearning: τ, the curvature and the feature scales define the space and stay.
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.ndim > 0], lr=self.learning_rate)
        contrastive = ContrastiveLoss()
        for step in range(1, self.steps[-1] + 1):
            some = shots[torch.randperm(len(shots), generator=generator)[: self.forget_batch]]
            others = retained[torch.randint(len(retained), (self.retain_batch,), generator=generator)]
            batch = make_batch(data, torch.cat([some, others]), model.image_size, generator)
            batch = batch.to(subject.seen.features.device)
            images = model.encode_image(model.preprocess(batch.images))
            texts = model.encode_text(model.tokenize(batch.texts))
            losses = [
                contrastive(images, texts[pair.row], caption_ids=pair.caption_ids, space=model.space)
                for pair in batch.pairings
            ]
            optimizer.zero_grad(set_to_none=True)
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            yield step, model


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
