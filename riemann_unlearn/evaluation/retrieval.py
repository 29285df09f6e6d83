"""Retrieval in both directions, on held-out images.

Image to text: the rank of an image's own name among all names. Text to image: the rank of the best image
of a concept among all images, asked by its name; a name without images is not asked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from riemann_unlearn.evaluation.encoded import Encoded
from riemann_unlearn.evaluation.encoding import CHUNK, ranks
from riemann_unlearn.evaluation.zero_shot import share
from riemann_unlearn.models import DualEncoder

AT = (1, 5)


@torch.no_grad()
def retrieval(subject: Encoded, groups: dict[str, Tensor]) -> dict[str, dict[str, float | None]]:
    """Recall at 1 and 5 of either direction, by group of concepts.

    Parameters
    ----------
    subject : Encoded
    groups : dict of str to Tensor, shape (concepts,)
        Boolean masks over the concepts.

    Returns
    -------
    dict
        For each group ``image_to_text_at_1``, ``..._at_5``, ``text_to_image_at_1``, ``..._at_5``, each in
        [0, 1], or None for a group without images. A tie counts against the model.
    """
    data, features = subject.test
    concept = data.concept.to(features.device)
    image_rank = ranks(subject.model, features, subject.names, concept)
    present, own = torch.unique(concept, return_inverse=True)
    text_rank = _ranks_of_texts(subject.model, features, subject.names[present], own)
    return {
        group: {
            f"{direction}_at_{k}": share((rank < k)[mask[which.cpu()]])
            for direction, rank, which in (
                ("image_to_text", image_rank, concept),
                ("text_to_image", text_rank, present),
            )
            for k in AT
        }
        for group, mask in groups.items()
    }


def _ranks_of_texts(model: DualEncoder, images: Tensor, texts: Tensor, own: Tensor) -> Tensor:
    """How many images of others are at least as similar to each text as the best of its own; shape (texts,).

    The similarities are computed twice, a chunk of images at a time: first for the best, then to count.
    """
    chunks = list(zip(torch.split(images, CHUNK), torch.split(own, CHUNK), strict=True))
    best = images.new_full((len(texts),), -torch.inf)
    for some, text in chunks:
        mine = model.similarity(some, texts).gather(1, text[:, None])[:, 0]
        best = best.scatter_reduce(0, text, mine, "amax")
    columns, count = (
        torch.arange(len(texts), device=own.device),
        torch.zeros_like(texts[:, 0], dtype=torch.long),
    )
    for some, text in chunks:
        count += ((model.similarity(some, texts) >= best) & (text[:, None] != columns)).sum(0)
    return count
