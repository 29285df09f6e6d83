"""Does it come back? How much of the forgotten a little fine-tuning restores.

The attacker has n images of each forgotten class with their captions and trains for a few steps with the
contrastive loss at every level of the taxonomy; the retained pairs beside them are there for contrast,
for an InfoNCE over one class alone has no negatives. What was hidden returns with one shot; what is gone
must be learned anew, and returns no faster than in a model that never knew it: the retrained oracle.
(Relearning attacks: Lynch et al. 2024, arXiv 2402.16835; Hu et al. 2024, arXiv 2406.13356.)
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from riemann_unlearn.data import ImageTextData
from riemann_unlearn.data.batch import make_batch
from riemann_unlearn.data.captions import name_caption, subcategory_caption
from riemann_unlearn.evaluation.encoded import Encoded, evenly
from riemann_unlearn.evaluation.encoding import encode_images, encode_texts
from riemann_unlearn.evaluation.recovery import SHOTS
from riemann_unlearn.evaluation.zero_shot import share
from riemann_unlearn.losses import ContrastiveLoss
from riemann_unlearn.models import DualEncoder

STEPS = (2, 5, 10)
"""Numbers of steps after which the forgotten is asked for; the attack ends with the last."""
FORGET_BATCH = 16
"""Forgotten pairs in a step at most; fewer shots than that are all in every step."""
RETAIN_BATCH = 16
LEARNING_RATE = 2e-4
"""Of Adam, on every weight of both towers. Half of it restores next to nothing in ten steps on the bundled
model, and half as much again costs the untouched model what it knew."""
MOST_TESTED = 200
"""Forgotten images that are asked about."""


def relearning(subject: Encoded, seed: int = 0) -> dict[str, Any] | None:
    """Accuracy on the forgotten after fine-tuning on n shots of it, for n = 1, 2, 4, 8, 16.

    Parameters
    ----------
    subject : Encoded
        Its model is copied, not changed.
    seed : int
        Decides the shots, the batches and the wording of the captions; the same for every model.

    Returns
    -------
    dict
        ``shots`` (those that every forgotten class has images for), ``accuracy`` after the last step with
        each, ``by_steps`` (the same after every number of :data:`STEPS`) and ``start`` (without any).
        Accuracy is that of the forgotten held-out images, by the caption of their class. None where no
        forgotten image is there.
    """
    data, features = subject.test
    rows = evenly(subject.selection.concepts[data.concept].nonzero()[:, 0], MOST_TESTED)
    pool = _pool(subject)
    if not len(rows) or not pool:
        return None
    test = data.subset(rows)
    shots = [n for n in SHOTS if n <= min(map(len, pool))]
    curves = []
    for n in shots:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.cat([rows[torch.randperm(len(rows), generator=generator)[:n]] for rows in pool])
        curves.append(_attack(subject, drawn, test, generator))
    by_steps = {step: [curve[i] for curve in curves] for i, step in enumerate(STEPS)}
    return {
        "shots": shots,
        "accuracy": by_steps[STEPS[-1]],
        "by_steps": {str(step): values for step, values in by_steps.items()},
        "start": share(subject.known(test, features[rows])),
    }


def _pool(subject: Encoded) -> list[Tensor]:
    """Rows of the seen images of each forgotten class."""
    label = subject.labels[subject.seen.concept]
    classes = torch.unique(subject.labels[subject.selection.concepts])
    rows = [(label == c).nonzero()[:, 0] for c in classes.tolist()]
    return [found for found in rows if len(found)]


def _attack(
    subject: Encoded, shots: Tensor, test: ImageTextData, generator: torch.Generator
) -> list[float | None]:
    """Accuracy on ``test`` of a copy of the model that is fine-tuned on ``shots``, after each of STEPS."""
    model, data = copy.deepcopy(subject.model), subject.seen
    retained = (~subject.selection.concepts[data.concept]).nonzero()[:, 0]
    # As in unlearning: τ, the curvature and the feature scales define the space and stay.
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.ndim > 0], lr=LEARNING_RATE)
    contrastive = ContrastiveLoss(geometry=model.geometry)
    found = []
    for step in range(1, STEPS[-1] + 1):
        some = shots[torch.randperm(len(shots), generator=generator)[:FORGET_BATCH]]
        others = retained[torch.randint(len(retained), (RETAIN_BATCH,), generator=generator)]
        batch = make_batch(data, torch.cat([some, others]), model.image_size, generator)
        images = model.encode_image(model.preprocess(batch.images))
        texts = model.encode_text(model.tokenize(batch.texts))
        scale, c = model.logit_scale.exp(), model.curvature
        losses = [
            contrastive(images, texts[pair.row], logit_scale=scale, c=c, caption_ids=pair.caption_ids)
            for pair in batch.pairings.values()
        ]
        optimizer.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step in STEPS:
            found.append(_accuracy(subject, model, test))
    return found


def _accuracy(subject: Encoded, model: DualEncoder, test: ImageTextData) -> float | None:
    """Of another model on ``test``, by the captions of the subject's classes."""
    taxonomy = subject.seen.taxonomy
    asked = subject.labels[test.concept]
    names, subcategories = subject.names, subject.subcategories
    # Only the captions that are asked with: there may be thousands of names.
    if (asked < len(taxonomy.subcategories)).any():
        subcategories = encode_texts(model, list(map(subcategory_caption, taxonomy.subcategories)))
    if (asked >= len(taxonomy.subcategories)).any():
        names = encode_texts(model, list(map(name_caption, taxonomy.concepts)))
    tuned = replace(subject, model=model, names=names, subcategories=subcategories)
    return share(tuned.known(test, encode_images(model, test.images)))
