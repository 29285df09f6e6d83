"""Is it really gone? Two ways to ask for the forgotten that unlearning did not train against.

*Paraphrase*: every concept is described by the whole list of its keywords, a caption that neither
training nor unlearning used (both draw the name and at most two keywords). Is the description of its own
concept the nearest to an image?

*Prototype*: no text at all. Each subcategory is the mean of its seen images' features, and a held-out
image belongs to the nearest mean (Snell et al. 2017, arXiv 1703.05175). What the caption no longer finds
but the prototype does is hidden, not gone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from riemann_unlearn.data import Dataset, ImageTextData, Selection
from riemann_unlearn.data.captions import keyword_caption
from riemann_unlearn.evaluation.encoding import CHUNK, encode_texts, ranks
from riemann_unlearn.evaluation.zero_shot import forget_and_retain, share
from riemann_unlearn.models import DualEncoder

Measures = dict[str, dict[str, float | None]]


def audit(
    model: DualEncoder, dataset: Dataset, selection: Selection, seen: Tensor, heldout: Tensor | None
) -> Measures:
    """Both measures, for the forgotten and the retained.

    Parameters
    ----------
    model : DualEncoder
    dataset : Dataset
    selection : Selection
        What is, or is to be, forgotten.
    seen, heldout : Tensor, shape (N, D)
        Features of the images of either part; None where nothing is held out.

    Returns
    -------
    dict
        ``{"paraphrase": {"forget": recall@1, "retain": ...}, "prototype": {"forget": accuracy, ...}}``,
        each in [0, 1]: by keywords, on seen renderings; by prototypes, on held-out ones (only where there
        are such). None for a group without images.
    """
    report = {"paraphrase": _by_group(_paraphrase(model, dataset.seen, seen), dataset.seen, selection)}
    if dataset.heldout is not None and heldout is not None:
        hits = _prototype(model, dataset, seen, heldout)
        report["prototype"] = _by_group(hits, dataset.heldout, selection)
    return report


def _paraphrase(model: DualEncoder, data: ImageTextData, images: Tensor) -> Tensor:
    """Whether each image's nearest list of keywords is its own; bool, shape (N,)."""
    captions = [keyword_caption(concept, concept.keywords) for concept in data.taxonomy.concepts]
    return ranks(model, images, encode_texts(model, captions), data.concept.to(images.device)) < 1


@torch.no_grad()
def _prototype(model: DualEncoder, dataset: Dataset, seen: Tensor, heldout: Tensor) -> Tensor:
    """Whether each held-out image is nearest to its own subcategory's mean; bool, shape (N,)."""
    subcategory = dataset.taxonomy.subcategory_of.to(seen.device)
    labels = subcategory[dataset.seen.concept.to(seen.device)]
    # The subcategories that have images; a mean of none would be near to everything or nothing.
    present, own = torch.unique(labels, return_inverse=True)
    sums = seen.new_zeros(len(present), seen.shape[1]).index_add(0, own, seen)
    means = sums / torch.bincount(own)[:, None]
    if model.geometry == "euclidean":
        means = F.normalize(means, dim=-1)  # its similarity is the cosine of unit vectors
    target = subcategory[dataset.heldout.concept.to(seen.device)]  # type: ignore[union-attr]
    chunks = torch.split(heldout, CHUNK)
    nearest = torch.cat([model.nearest(chunk, means, 1)[:, 0] for chunk in chunks])
    hits: Tensor = present[nearest] == target
    return hits


def _by_group(hits: Tensor, data: ImageTextData, selection: Selection) -> dict[str, float | None]:
    groups = forget_and_retain(data, selection)
    return {group: share(hits[mask.to(hits.device)]) for group, mask in groups.items()}
