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

from riemann_unlearn.data.batch import make_batch
from riemann_unlearn.data.captions import name_caption, subcategory_caption
from riemann_unlearn.evaluation.encoded import Encoded
from riemann_unlearn.evaluation.encoding import encode_images, encode_texts
from riemann_unlearn.evaluation.recovery import SHOTS
from riemann_unlearn.evaluation.zero_shot import share
from riemann_unlearn.losses import ContrastiveLoss
from riemann_unlearn.models import DualEncoder

STEPS = 10
FORGET_BATCH = 16
"""Forgotten pairs in a step at most; fewer shots than that are all in every step."""
RETAIN_BATCH = 16
LEARNING_RATE = 3e-4
"""Of Adam, on every weight of both towers."""


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
        ``shots`` (those that every forgotten class has images for), ``accuracy`` after :data:`STEPS` steps
        with each, ``start`` (without any) and ``steps``. Accuracy is that of the forgotten held-out
        images, by the caption of their class. None where no forgotten image is there.
    """
    data, features = subject.test
    gone = subject.selection.concepts[data.concept]
    pool, labels = _pool(subject)
    if not gone.any() or not pool:
        return None
    test = data.subset(gone)
    start = share(subject.known(test, features[gone]))
    shots = [n for n in SHOTS if n <= min(len(rows) for rows in pool.values())]
    accuracy = []
    for n in shots:
        generator = torch.Generator().manual_seed(seed)
        drawn = [rows[torch.randperm(len(rows), generator=generator)[:n]] for rows in pool.values()]
        model = _fine_tuned(subject, torch.cat(drawn), generator)
        images = encode_images(model, test.images)
        names, subcategories = subject.names, subject.subcategories
        taxonomy = subject.seen.taxonomy
        whole = labels < len(taxonomy.subcategories)
        if whole.any():
            subcategories = encode_texts(model, list(map(subcategory_caption, taxonomy.subcategories)))
        if not whole.all():
            names = encode_texts(model, list(map(name_caption, taxonomy.concepts)))
        tuned = replace(subject, model=model, names=names, subcategories=subcategories)
        accuracy.append(share(tuned.known(test, images)))
    return {"shots": shots, "accuracy": accuracy, "start": start, "steps": STEPS}


def _pool(subject: Encoded) -> tuple[dict[int, Tensor], Tensor]:
    """Rows of the seen images of each forgotten class, and those classes."""
    label = subject.labels[subject.seen.concept]
    classes = torch.unique(subject.labels[subject.selection.concepts])
    rows = {c: (label == c).nonzero()[:, 0] for c in classes.tolist()}
    return {c: found for c, found in rows.items() if len(found)}, classes


def _fine_tuned(subject: Encoded, shots: Tensor, generator: torch.Generator) -> DualEncoder:
    """A copy of the model after :data:`STEPS` steps on ``shots`` and retained images."""
    model, data = copy.deepcopy(subject.model), subject.seen
    retained = (~subject.selection.concepts[data.concept]).nonzero()[:, 0]
    # As in unlearning: τ, the curvature and the feature scales define the space and stay.
    weights = [p for p in model.parameters() if p.ndim > 0]
    optimizer = torch.optim.Adam(weights, lr=LEARNING_RATE)
    contrastive = ContrastiveLoss(geometry=model.geometry)
    for _ in range(STEPS):
        some = shots[torch.randperm(len(shots), generator=generator)[:FORGET_BATCH]]
        others = retained[torch.randint(len(retained), (RETAIN_BATCH,), generator=generator)]
        batch = make_batch(data, torch.cat([some, others]), model.image_size, generator)
        images = model.encode_image(model.preprocess(batch.images))
        texts = model.encode_text(model.tokenize(batch.texts))
        scale, c = model.logit_scale.exp(), model.curvature
        loss = sum(
            contrastive(images, texts[pair.row], logit_scale=scale, c=c, caption_ids=pair.caption_ids)
            for pair in batch.pairings.values()
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return model
