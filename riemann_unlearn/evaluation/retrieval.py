"""Retrieval in both directions, on held-out images.

Image to text: the rank of an image's own name among all names. Text to image: the rank of the best image
of a concept among all images, asked by its name; a name without images is not asked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from riemann_unlearn.evaluation.encoded import Encoded
from riemann_unlearn.evaluation.encoding import CHUNK
from riemann_unlearn.evaluation.zero_shot import share

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
    similarity = torch.cat([subject.model.similarity(f, subject.names) for f in torch.split(features, CHUNK)])
    mine = similarity.gather(1, concept[:, None])
    image_rank = (similarity >= mine).sum(1) - 1
    present = torch.unique(concept)
    own = concept[:, None] == present  # which images show each concept, (M, present)
    by_text = similarity[:, present]
    best = by_text.masked_fill(~own, -torch.inf).amax(0)
    text_rank = ((by_text >= best) & ~own).sum(0)
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
