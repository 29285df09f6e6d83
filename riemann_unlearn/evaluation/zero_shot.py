"""Zero-shot accuracy and retrieval: what a model knows.

Every measure asks the same question of an image: among these captions, which is the most similar? The
captions are all names of the taxonomy (retrieval), all subcategories (accuracy) or all categories
(accuracy one level up: the parents). A tie counts against the model, so that an encoder which maps
everything to one point scores zero, and not by luck.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from riemann_unlearn.data import ImageTextData, Selection, Taxonomy
from riemann_unlearn.evaluation.encoding import encode_captions, encode_images, ranks
from riemann_unlearn.models import DualEncoder


def zero_shot(
    model: DualEncoder,
    data: ImageTextData,
    groups: dict[str, Tensor] | None = None,
    *,
    image_features: Tensor | None = None,
) -> Any:
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
    image_features : Tensor, shape (N, D), optional
        Features of the images of ``data``, where they are known already.

    Returns
    -------
    dict
        The four measures, each in [0, 1]; with ``groups``, one such dict for each of them, whose
        values are None for a group without images.
    """
    images = encode_images(model, data.images) if image_features is None else image_features
    hits = _hits(model, data, images)
    if groups is None:
        return {name: share(hit) for name, hit in hits.items()}
    return {
        group: {name: share(hit[mask.to(hit.device)]) for name, hit in hits.items()}
        for group, mask in groups.items()
    }


def forget_and_retain(data: ImageTextData, selection: Selection) -> dict[str, Tensor]:
    """Which images of ``data`` show something selected, and which do not; bool, shape (N,)."""
    forget = selection.concepts[data.concept]
    return {"forget": forget, "retain": ~forget}


def share(hit: Tensor) -> float | None:
    """The share of True, None of nothing."""
    return hit.double().mean().item() if hit.numel() else None


def _hits(model: DualEncoder, data: ImageTextData, images: Tensor) -> dict[str, Tensor]:
    """For each measure, whether each image of ``data`` passes it."""
    taxonomy: Taxonomy = data.taxonomy
    captions = encode_captions(model, taxonomy)
    names, middle, top = (captions[level] for level in ("name", "subcategory", "category"))
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
