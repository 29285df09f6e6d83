"""Alignment Calibration's own auditing (Wang et al. 2024, arXiv 2406.03603, section 4).

The *alignment matrix* of a model holds the similarity of every image of a list with every caption of the
same list, AM_ij = s(image_i, caption_j); here the list is of forgotten pairs and then of retained ones,
neighbours first. The *alignment-gap matrix* is what unlearning took from it, AGM = AM_before - AM_after.
Of the gap's entries over all forgotten pairs,

    forgetting score  =  mean of s_before(i_i, t_i) - s_after(i_i, t_i)        matched pairs of the forgotten

and likewise ``negative_gap``, of forgotten images and the captions of other forgotten concepts, and
``retain_gap``, of matched retained pairs. A good unlearner has a large forgetting score and a retain gap
near 0; an oracle's is smaller than a calibrated model's, which was trained to show it. Similarity is the
cosine on a Euclidean model and the negative geodesic distance, times √c, on a hyperbolic one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from riemann_unlearn.data.captions import name_caption
from riemann_unlearn.evaluation.encoded import Encoded, evenly
from riemann_unlearn.evaluation.neighbours import siblings

SHOWN = 12
"""Forgotten pairs in the matrix, and retained pairs."""
MOST_PAIRS = 2000


@torch.no_grad()
def alignment(subject: Encoded, before: Encoded | None = None) -> dict[str, Any] | None:
    """Alignment matrix of a model, and what became of it since ``before``.

    Parameters
    ----------
    subject : Encoded
    before : Encoded, optional
        The same data seen by the untouched model.

    Returns
    -------
    dict
        ``matrix`` (rows are images, columns captions), ``captions``, ``forgotten`` (how many of the first
        pairs are), and with ``before`` also ``gap``, ``forgetting_score``, ``negative_gap`` and
        ``retain_gap``. None where no forgotten image is there.
    """
    data, _ = subject.test
    taxonomy, chosen = data.taxonomy, subject.selection.concepts
    gone = chosen[data.concept].nonzero()[:, 0]
    if not len(gone):
        return None
    near = siblings(taxonomy, subject.selection)[data.concept].nonzero()[:, 0]
    kept = (~chosen[data.concept]).nonzero()[:, 0]
    first, second = _by_concept(data.concept, gone), _by_concept(data.concept, near if len(near) else kept)
    rows = torch.cat([first, second])
    matrix = _matrix(subject, rows, data.concept[rows])
    report: dict[str, Any] = {
        "matrix": _rounded(matrix),
        "captions": [name_caption(taxonomy.concepts[i]) for i in data.concept[rows].tolist()],
        "forgotten": len(first),
    }
    if before is not None and before is not subject:
        report["gap"] = _rounded(_matrix(before, rows, data.concept[rows]) - matrix)
        gone, kept = evenly(gone, MOST_PAIRS), evenly(kept, MOST_PAIRS)
        concepts = torch.unique(data.concept[gone])
        own = data.concept[gone][:, None] == concepts
        gap = _matrix(before, gone, concepts) - _matrix(subject, gone, concepts)
        report["forgetting_score"] = gap[own].mean().item()
        report["negative_gap"] = gap[~own].mean().item() if len(concepts) > 1 else None
        retained = torch.unique(data.concept[kept])
        own = data.concept[kept][:, None] == retained
        gap = _matrix(before, kept, retained) - _matrix(subject, kept, retained)
        report["retain_gap"] = gap[own].mean().item()
    return report


def _by_concept(concept: Tensor, rows: Tensor) -> Tensor:
    """At most :data:`SHOWN` rows at even steps, sorted by concept."""
    return evenly(rows[concept[rows].argsort(stable=True)], SHOWN)


def _matrix(subject: Encoded, rows: Tensor, concepts: Tensor) -> Tensor:
    """Similarity of the test images at ``rows`` with the names of ``concepts``."""
    features = subject.test[1]
    names = subject.names[concepts]
    similarity = subject.model.similarity(features[rows], names)
    c = subject.model.curvature
    return (similarity if c is None else c.sqrt() * similarity).cpu()


def _rounded(matrix: Tensor) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in matrix.tolist()]
