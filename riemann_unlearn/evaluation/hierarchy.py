"""The hierarchy of a hyperbolic model: radii, cones, and the way from an image to the origin.

Near the origin is what is general, far out what is specific (Desai et al. 2023, arXiv 2304.09172).

- *radii*: quantiles of r = √c·|v| of images, names, subcategories and categories, of the forgotten and of
  the retained. Unlearning by generalizing moves the forgotten inwards; by repulsion, outwards.
- *cone violations*: the share of pairs whose narrower member lies outside the broader one's entailment
  cone, ext > aper, and the mean excess max(0, ext - aper) in radians: of each image under its captions at
  every level, of each name under its subcategory and of that under its category.
- *traversal*: points at even steps from an image to the origin, and at each the caption met there, twice:
  the most similar of those whose cone holds the point (Desai et al., section 4.3), or none; and, for a
  model whose cones hold little, the most similar of all captions, unless the origin is nearer than any. A
  model that forgot "red apple" and kept "food and drink" shows it on this path.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from riemann_unlearn.data.captions import category_caption, name_caption, subcategory_caption
from riemann_unlearn.evaluation.encoded import Encoded, evenly
from riemann_unlearn.evaluation.neighbours import siblings
from riemann_unlearn.evaluation.zero_shot import share
from riemann_unlearn.geometry import tangent

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
STEPS = 50
"""Points on the way, as in the paper."""
TRAVERSED = 3
"""Forgotten images whose way is shown, and neighbours."""


@torch.no_grad()
def hierarchy(subject: Encoded) -> dict[str, Any] | None:
    """Radii, cone violations and traversals of one model; None for a Euclidean one, which has none of them.

    Parameters
    ----------
    subject : Encoded

    Returns
    -------
    dict
        ``radii[kind][group]``: five quantiles (5, 25, 50, 75, 95 %); ``violations[pair][group]``:
        ``{"share", "excess"}``; ``traversals``: a list of ``{"name", "group", "image", "by_cone",
        "by_distance"}``, the image a data URI, the paths lists of ``[caption, share of the way it is met
        on]`` from the image on, the caption None where nothing is met.
    """
    c = subject.model.curvature
    if c is None:
        return None
    return {
        "radii": _radii(subject, c),
        "violations": _violations(subject, c),
        "traversals": _traversals(subject, c),
    }


def _groups(subject: Encoded) -> dict[str, tuple[Tensor, Tensor]]:
    """For each kind of embedding: its features, and which of them are forgotten."""
    data, features = subject.test
    return {
        "image": (features, subject.selection.concepts[data.concept]),
        "name": (subject.names, subject.selection.concepts),
        "subcategory": (subject.subcategories, subject.selection.subcategories),
        "category": (subject.categories, subject.selection.categories),
    }


def _radii(subject: Encoded, c: Tensor) -> dict[str, dict[str, list[float] | None]]:
    levels = torch.tensor(QUANTILES, device=c.device)
    report: dict[str, dict[str, list[float] | None]] = {}
    for kind, (features, gone) in _groups(subject).items():
        radius = c.sqrt() * features.norm(dim=-1)
        report[kind] = {
            group: torch.quantile(radius[mask], levels).tolist() if mask.any() else None
            for group, mask in (("forget", gone), ("retain", ~gone))
        }
    return report


def _violations(subject: Encoded, c: Tensor) -> dict[str, dict[str, dict[str, float | None]]]:
    data, images = subject.test
    taxonomy, kinds = data.taxonomy, _groups(subject)
    concept = data.concept
    pairs = {
        "image under name": (images, subject.names[concept], kinds["image"][1]),
        "image under subcategory": (
            images,
            subject.subcategories[taxonomy.subcategory_of[concept]],
            kinds["image"][1],
        ),
        "image under category": (
            images,
            subject.categories[taxonomy.category_of[concept]],
            kinds["image"][1],
        ),
        "name under subcategory": (
            subject.names,
            subject.subcategories[taxonomy.subcategory_of],
            kinds["name"][1],
        ),
        "subcategory under category": (
            subject.subcategories,
            subject.categories[taxonomy.category_of_subcategory],
            kinds["subcategory"][1],
        ),
    }
    report = {}
    for name, (narrow, broad, gone) in pairs.items():
        excess = tangent.exterior_angle(broad, narrow, c) - tangent.half_aperture(broad, c)
        report[name] = {
            group: {
                "share": share((excess > 0)[mask]),
                "excess": excess.clamp(min=0)[mask].mean().item() if mask.any() else None,
            }
            for group, mask in (("forget", gone), ("retain", ~gone))
        }
    return report


def _traversals(subject: Encoded, c: Tensor) -> list[dict[str, Any]]:
    data, features = subject.test
    taxonomy = data.taxonomy
    captions = [
        *map(name_caption, taxonomy.concepts),
        *map(subcategory_caption, taxonomy.subcategories),
        *map(category_caption, taxonomy.categories),
    ]
    texts = torch.cat([subject.names, subject.subcategories, subject.categories])
    shown = []
    near = siblings(taxonomy, subject.selection)
    for group, mask in (("forget", subject.selection.concepts), ("neighbours", near)):
        for row in evenly(mask[data.concept].nonzero()[:, 0], TRAVERSED).tolist():
            shown.append(
                {
                    "name": taxonomy.concepts[int(data.concept[row])].name,
                    "group": group,
                    "image": _data_uri(data.images[row]),
                    **_paths(subject, features[row], texts, captions, c),
                }
            )
    return shown


def _paths(
    subject: Encoded, image: Tensor, texts: Tensor, captions: list[str], c: Tensor
) -> dict[str, list[tuple[str | None, float]]]:
    """Captions met between ``image`` and the origin, with the share of the way each is met on."""
    # From the image on; the origin itself lies in no cone and is left out.
    points = image * torch.linspace(1, 0, STEPS + 1, device=image.device)[:-1, None]
    similarity = subject.model.similarity(points, texts)
    outside = tangent.exterior_angle(texts, points[:, None], c) > tangent.half_aperture(texts, c)
    nearer_origin = similarity <= -points.norm(dim=-1, keepdim=True)
    return {
        "by_cone": _met(similarity, outside, captions),
        "by_distance": _met(similarity, nearer_origin, captions),
    }


def _met(similarity: Tensor, barred: Tensor, captions: list[str]) -> list[tuple[str | None, float]]:
    """The most similar caption of each step that is not barred, equal ones in a row taken together."""
    nearest = similarity.masked_fill(barred, -torch.inf).argmax(1).tolist()
    path: list[tuple[str | None, float]] = []
    for index, nothing in zip(nearest, barred.all(1).tolist(), strict=True):
        caption = None if nothing else captions[index]
        before = path.pop()[1] if path and path[-1][0] == caption else 0.0
        path.append((caption, round(before + 1 / STEPS, 4)))
    return path


def _data_uri(image: Tensor) -> str:
    """A PNG of ``image`` that a page can hold."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy()).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
