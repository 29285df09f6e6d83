"""Features of images, texts and captions in chunks, and the rank of each image's own text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from riemann_unlearn.data import Taxonomy
from riemann_unlearn.data.captions import category_caption, name_caption, subcategory_caption
from riemann_unlearn.models import DualEncoder

CHUNK = 512
"""Images encoded and ranked at a time; bounds the memory and has no effect on the result."""


@torch.no_grad()
def encode_images(model: DualEncoder, images: Tensor) -> Tensor:
    """Features of raw ``images``, shape (N, D), in evaluation mode and in chunks."""
    was_training = model.training
    model.eval()
    chunks = [model.encode_image(model.preprocess(chunk)) for chunk in torch.split(images, CHUNK)]
    model.train(was_training)
    return torch.cat(chunks)


@torch.no_grad()
def encode_texts(model: DualEncoder, texts: Sequence[str]) -> Tensor:
    """Features of ``texts``, shape (N, D), in evaluation mode and in chunks."""
    was_training = model.training
    model.eval()
    chunks = [model.encode_text(tokens) for tokens in torch.split(model.tokenize(texts), CHUNK)]
    model.train(was_training)
    return torch.cat(chunks)


def encode_captions(model: DualEncoder, taxonomy: Taxonomy) -> dict[str, Tensor]:
    """By level of the taxonomy, the features of all its captions, shape (captions, D)."""
    return {
        "name": encode_texts(model, [name_caption(concept) for concept in taxonomy.concepts]),
        "subcategory": encode_texts(model, [subcategory_caption(name) for name in taxonomy.subcategories]),
        "category": encode_texts(model, [category_caption(name) for name in taxonomy.categories]),
    }


@torch.no_grad()
def ranks(model: DualEncoder, image_features: Tensor, text_features: Tensor, own: Tensor) -> Tensor:
    """Rank of each image's own text among all texts, 0 being the most similar.

    Parameters
    ----------
    model : DualEncoder
        Supplies the ranks.
    image_features : Tensor, shape (N, D)
    text_features : Tensor, shape (M, D)
    own : Tensor, shape (N,)
        Long; row of ``text_features`` that belongs to each image.

    Returns
    -------
    Tensor, shape (N,)
        Long; how many other texts are at least as similar as the image's own.

    Raises
    ------
    ValueError
        When features are not finite: a broken model must not pass for one that has forgotten.
    """
    if not (image_features.isfinite().all() and text_features.isfinite().all()):
        raise ValueError(
            "the model's features are not finite; its weights are not usable "
            "(a diverged run? try a smaller learning rate)"
        )
    chunks = zip(torch.split(image_features, CHUNK), torch.split(own, CHUNK), strict=True)
    return torch.cat([model.ranks(features, text_features, target) for features, target in chunks])
