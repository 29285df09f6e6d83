"""Zero-shot accuracy and retrieval: what a model still knows, before and after.

Every measure asks the same question of an image: among these captions, which is the most similar? The
captions are all names of the taxonomy (retrieval), all subcategories (accuracy) or all categories
(accuracy one level up: the parents). A tie counts against the model, so that an encoder which maps
everything to one point scores zero, and not by luck.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riemann_unlearn.data import Dataset, ImageTextData, Selection, Taxonomy
from riemann_unlearn.data import load as load_data
from riemann_unlearn.data.captions import category_caption, name_caption, subcategory_caption
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.models import load as load_model

_CHUNK = 512
"""Images encoded and ranked at a time; bounds the memory and has no effect on the result."""

Metrics = dict[str, float | None]


@torch.no_grad()
def encode_images(model: DualEncoder, images: Tensor) -> Tensor:
    """Features of raw ``images``, shape (N, D), in evaluation mode and in chunks."""
    was_training = model.training
    model.eval()
    chunks = [model.encode_image(model.preprocess(chunk)) for chunk in torch.split(images, _CHUNK)]
    model.train(was_training)
    return torch.cat(chunks)


@torch.no_grad()
def encode_texts(model: DualEncoder, texts: Sequence[str]) -> Tensor:
    """Features of ``texts``, shape (N, D), in evaluation mode and in chunks."""
    was_training = model.training
    model.eval()
    chunks = [model.encode_text(tokens) for tokens in torch.split(model.tokenize(texts), _CHUNK)]
    model.train(was_training)
    return torch.cat(chunks)


@torch.no_grad()
def ranks(model: DualEncoder, image_features: Tensor, text_features: Tensor, own: Tensor) -> Tensor:
    """Rank of each image's own text among all texts, 0 being the most similar.

    Parameters
    ----------
    model : DualEncoder
        Supplies the similarity.
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
        When a similarity is NaN: a broken model must not pass for one that has forgotten.
    """
    found = []
    for features, target in zip(torch.split(image_features, _CHUNK), torch.split(own, _CHUNK), strict=True):
        similarity = model.similarity(features, text_features)
        if similarity.isnan().any():
            raise ValueError(
                "the model's similarities contain NaN; its weights are not usable "
                "(a diverged run? try a smaller learning rate)"
            )
        mine = similarity.gather(1, target[:, None])
        found.append((similarity >= mine).sum(1) - 1)
    return torch.cat(found)


def zero_shot(model: DualEncoder, data: ImageTextData, groups: dict[str, Tensor] | None = None) -> Any:
    """Accuracy and recall of ``model`` on ``data``, overall or by group of images.

    For an image whose concept is in subcategory p and category q:

    - ``accuracy``: the subcategory caption of p is the most similar of all subcategory captions;
    - ``recall_at_1``, ``recall_at_5``: the concept's name is the most similar, or among the five
      most similar, of all names;
    - ``parent_accuracy``: the category caption of q is the most similar of all category captions.

    Parameters
    ----------
    model : DualEncoder
    data : ImageTextData
    groups : dict of str to Tensor, optional
        Boolean masks over the images of ``data``.

    Returns
    -------
    dict
        The four measures, each in [0, 1]; with ``groups``, one such dict for each of them, whose
        values are None for a group without images.
    """
    hits = _hits(model, data)
    if groups is None:
        return {name: _mean(hit) for name, hit in hits.items()}
    return {
        group: {name: _mean(hit[mask.to(hit.device)]) for name, hit in hits.items()}
        for group, mask in groups.items()
    }


def evaluate(
    model: DualEncoder | str | Path = "meru-emoji",
    data: Dataset | str | Path = "emoji",
    *,
    forget: str | Sequence[str],
) -> dict[str, Any]:
    """What ``model`` knows of the forgotten and of the retained, on seen and held-out renderings.

    Parameters
    ----------
    model : DualEncoder, str or Path
        A model, or what :func:`riemann_unlearn.load` takes.
    data : Dataset, str or Path
        A dataset, or what :func:`riemann_unlearn.data.load` takes.
    forget : str or sequence of str
        What is, or is to be, forgotten: names, subcategories or categories of the data's taxonomy.

    Returns
    -------
    dict
        ``{"forget": metrics, "retain": metrics, "heldout": {"forget": metrics, "retain": metrics}}``
        with the metrics of :func:`zero_shot`; ``heldout`` only where the dataset has such images.

    Raises
    ------
    ValueError
        For a model, dataset or concept that does not exist.

    Examples
    --------
    >>> report = evaluate("meru-emoji", "emoji", forget="food-fruit")
    >>> sorted(report)
    ['forget', 'heldout', 'retain']
    """
    dataset = data if isinstance(data, Dataset) else load_data(data)
    selection = dataset.taxonomy.select([forget] if isinstance(forget, str) else forget)
    encoder = model if isinstance(model, DualEncoder) else load_model(model)
    report: dict[str, Any] = zero_shot(encoder, dataset.seen, _groups(dataset.seen, selection))
    if dataset.heldout is not None:
        groups = _groups(dataset.heldout, selection)
        report["heldout"] = zero_shot(encoder, dataset.heldout, groups)
    return report


def _groups(data: ImageTextData, selection: Selection) -> dict[str, Tensor]:
    forget = selection.concepts[data.concept]
    return {"forget": forget, "retain": ~forget}


def _hits(model: DualEncoder, data: ImageTextData) -> dict[str, Tensor]:
    """For each measure, whether each image of ``data`` passes it."""
    taxonomy: Taxonomy = data.taxonomy
    images = encode_images(model, data.images)
    names = encode_texts(model, [name_caption(concept) for concept in taxonomy.concepts])
    middle = encode_texts(model, [subcategory_caption(name) for name in taxonomy.subcategories])
    top = encode_texts(model, [category_caption(name) for name in taxonomy.categories])
    concept = data.concept.to(images.device)
    by_name = ranks(model, images, names, concept)
    subcategory = taxonomy.subcategory_of.to(images.device)[concept]
    category = taxonomy.category_of.to(images.device)[concept]
    return {
        "accuracy": ranks(model, images, middle, subcategory) < 1,
        "recall_at_1": by_name < 1,
        "recall_at_5": by_name < 5,
        "parent_accuracy": ranks(model, images, top, category) < 1,
    }


def _mean(hit: Tensor) -> float | None:
    return hit.double().mean().item() if hit.numel() else None
