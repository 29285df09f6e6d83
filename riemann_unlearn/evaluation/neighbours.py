"""Over-unlearning: what happens to those next to the forgotten.

*Neighbours* are the siblings in the taxonomy: for each forgotten concept the retained concepts of its
subcategory, and where none is left there, those of its category. Their zero-shot measures are the first
to fall when a method cuts too wide.

*OU@ε* (Ha, Park and Yoon 2025, arXiv 2506.01318) asks what became of the retained classes *around* the
forgotten images: the divergence between the two models' distributions over the retained captions, the
forgotten ones masked out, at forgotten images moved by noise of at most ε. Here the noise is uniform; the
paper also drives it to the old decision boundary.

    OU@ε = mean_x KL( p_before(· | x + δ, retained) ‖ p_after(· | x + δ, retained) )      in nats, ≥ 0
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from riemann_unlearn.data import Selection, Taxonomy
from riemann_unlearn.evaluation.encoded import Encoded, evenly
from riemann_unlearn.evaluation.encoding import encode_images

EPSILON = 8 / 255
"""Largest change of a pixel, of a range of 1; the customary bound of an invisible change."""
MOST_IMAGES = 128


def siblings(taxonomy: Taxonomy, selection: Selection) -> Tensor:
    """Which concepts are neighbours of what is forgotten; bool, shape (concepts,).

    Examples
    --------
    >>> from riemann_unlearn.data import Concept
    >>> taxonomy = Taxonomy([Concept(n, n, (), s, "food") for n, s in (("apple", "fruit"), ("tea", "drink"))])
    >>> siblings(taxonomy, taxonomy.select(["fruit"])).tolist()
    [False, True]
    """
    chosen = selection.concepts
    near = torch.zeros_like(chosen)
    for concept in chosen.nonzero()[:, 0].tolist():
        for group in (taxonomy.subcategory_of, taxonomy.category_of):
            left = (group == group[concept]) & ~chosen
            if left.any():
                near |= left
                break
    return near


def over_unlearning(subject: Encoded, before: Encoded | None, seed: int = 0) -> float | None:
    """OU@ε of a model, in nats; 0 when nothing changed, None where nothing is there to compare.

    Parameters
    ----------
    subject : Encoded
    before : Encoded or None
        The same dataset and selection by the untouched model.
    seed : int
        Decides the noise.
    """
    if before is None:
        return None
    data, _ = before.test
    rows = evenly(before.selection.concepts[data.concept].nonzero()[:, 0], MOST_IMAGES)
    kept = ~before.selection.subcategories
    if not len(rows) or int(kept.sum()) < 2:
        return None
    images = data.images[rows].float() / 255
    generator = torch.Generator().manual_seed(seed)
    noise = (2 * torch.rand(images.shape, generator=generator) - 1) * EPSILON
    images = (images + noise).clamp(0, 1)
    first, second = (_log_probabilities(one, images, kept) for one in (before, subject))
    return max(0.0, F.kl_div(second, first, log_target=True, reduction="batchmean").item())


@torch.no_grad()
def _log_probabilities(subject: Encoded, images: Tensor, kept: Tensor) -> Tensor:
    """Of the ``kept`` subcategories, for each image."""
    model = subject.model
    similarity = model.similarity(encode_images(model, images), subject.subcategories[kept])
    return F.log_softmax(model.logit_scale.exp() * similarity, dim=-1)
