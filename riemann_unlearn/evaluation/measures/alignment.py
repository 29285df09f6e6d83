"""Alignment Calibration's own auditing (Wang et al. 2024, arXiv 2406.03603, section 4).

The *alignment matrix* of a model holds the similarity of every image of a list with every caption of the
same list, AM_ij = s(image_i, caption_j); here the list is of forgotten pairs and then of retained ones,
neighbours first. The *alignment-gap matrix* is what unlearning took from it, AGM = AM_before - AM_after.
Of the gap's entries over all forgotten pairs,

    forgetting score  =  mean of s_before(i_i, t_i) - s_after(i_i, t_i)        matched pairs of the forgotten

and likewise ``negative_gap``, of forgotten images and the captions of other forgotten concepts, and
``retain_gap``, of matched retained pairs. A good unlearner has a large forgetting score and a retain gap
near 0; an oracle's is smaller than a calibrated model's, which was trained to show it. Similarity is the
space's own: the cosine, or the negative geodesic distance, in units of the curvature radius 1/√c where
there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from riemann_unlearn.evaluation.measures.base import ROLE_NAMES, Measure, missing, number
from riemann_unlearn.evaluation.subject import Subject, evenly
from riemann_unlearn.registry import register

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SCORES = {
    "forgetting_score": "forgetting score",
    "negative_gap": "gap of unmatched forgotten pairs",
    "retain_gap": "gap of matched retained pairs",
}


@register
@dataclass(frozen=True)
class Alignment(Measure):
    """Alignment matrix of a model, and what became of it since before."""

    name: ClassVar[str] = "alignment"
    title: ClassVar[str] = "Alignment Calibration's audit"
    reading: ClassVar[str] = (
        "Similarity lost since before: by matched forgotten pairs (forgetting score), by other forgotten "
        "pairs, and by matched retained pairs, which should be near 0."
    )
    range: ClassVar[str] = "cosine: -2 to 2; distance: any, in 1/√c"
    guess: ClassVar[str] = ""
    paper: ClassVar[str] = "Wang et al. 2024, arXiv 2406.03603"
    order: ClassVar[int] = 80

    shown: int = 12
    """Forgotten pairs in the matrix, and retained pairs."""
    most_pairs: int = 2000

    def unmet(self, subject: Subject, references: Mapping[str, Subject]) -> str | None:
        """It needs forgotten and retained images."""
        return missing([subject.test], retained=True)

    def compute(self, subject: Subject, references: Mapping[str, Subject], seed: int = 0) -> dict[str, Any]:
        """The matrix, and the scores against the untouched model.

        ``matrix`` (rows are images, columns captions), ``captions``, ``forgotten`` (how many of the first
        pairs are), and with another model before also ``gap``, ``forgetting_score``, ``negative_gap`` and
        ``retain_gap``.
        """
        part, before = subject.test, references.get("before")
        gone, kept = part.forgotten.nonzero()[:, 0], (~part.forgotten).nonzero()[:, 0]
        near = subject.neighbours[part.concept].nonzero()[:, 0]
        first = self._by_concept(part.concept, gone)
        second = self._by_concept(part.concept, near if len(near) else kept)
        rows = torch.cat([first, second])
        concepts = part.concept[rows]
        matrix = _matrix(subject, rows, concepts)
        report: dict[str, Any] = {
            "matrix": _rounded(matrix),
            "captions": [subject.captions[0].texts[i] for i in concepts.tolist()],
            "forgotten": len(first),
        }
        # A model's gap from itself is 0 everywhere and says nothing.
        if before is not None and before is not subject:
            report["gap"] = _rounded(_matrix(before, rows, concepts) - matrix)
            matched, unmatched = _gap(before, subject, evenly(gone, self.most_pairs))
            report["forgetting_score"], report["negative_gap"] = matched, unmatched
            report["retain_gap"], _ = _gap(before, subject, evenly(kept, self.most_pairs))
        return report

    def rows(self, value: Any) -> dict[str, str]:
        """The scores, of those that are compared with the untouched model."""
        return {label: number(value[name], 3) for name, label in _SCORES.items() if name in value}

    def figure(self, values: Mapping[str, Any]) -> Figure:
        """The matrices on one scale, and below them the gaps on another."""
        from matplotlib.figure import Figure

        gaps = any("gap" in value for value in values.values())
        figure = Figure(figsize=(7, 5 if gaps else 2.7), layout="constrained")
        panels = figure.subplots(2 if gaps else 1, len(values), squeeze=False)
        for line, (key, words, colours) in zip(
            panels, (("matrix", "alignment", "Blues"), ("gap", "gap since before", "PuOr_r")), strict=False
        ):
            entries = [x for value in values.values() for row in value.get(key, []) for x in row]
            low, high = min(entries), max(entries)
            if key == "gap":  # 0 is white
                high = max(-low, high) or 1.0
                low = -high
            drawn = []
            for panel, (role, value) in zip(line, values.items(), strict=True):
                panel.set(xticks=[], yticks=[])
                if key not in value:
                    panel.set_axis_off()
                    continue
                drawn.append(panel.imshow(value[key], cmap=colours, vmin=low, vmax=high))
                # The line between the forgotten pairs and the retained ones.
                panel.axhline(value["forgotten"] - 0.5, color="#1c2430", linewidth=0.8)
                panel.axvline(value["forgotten"] - 0.5, color="#1c2430", linewidth=0.8)
                panel.set_title(f"{ROLE_NAMES[role]}: {words}", fontsize=9)
            figure.colorbar(drawn[0], ax=list(line), shrink=0.8)
        return figure

    def _by_concept(self, concept: Tensor, rows: Tensor) -> Tensor:
        """As many rows as are shown, at even steps, sorted by concept."""
        # Sorted, so that images of a concept stand side by side; stably, so that they are always the same
        # ones.
        return evenly(rows[concept[rows].argsort(stable=True)], self.shown)


def _gap(before: Subject, after: Subject, rows: Tensor) -> tuple[float, float | None]:
    """Mean loss of similarity between images and their own captions, and those of the other images."""
    concept = after.test.concept[rows]
    concepts = torch.unique(concept)
    # One column a concept, however many images it has: a caption counts once for each image.
    own = concept[:, None] == concepts
    gap = _matrix(before, rows, concepts) - _matrix(after, rows, concepts)
    return gap[own].mean().item(), gap[~own].mean().item() if len(concepts) > 1 else None


@torch.no_grad()
def _matrix(subject: Subject, rows: Tensor, concepts: Tensor) -> Tensor:
    """Similarity of the test images at ``rows`` with the captions of ``concepts``."""
    names, space = subject.captions[0].features[concepts], subject.space
    similarity = space.pairwise(subject.test.features[rows], names)
    if not space.has_cones:
        return similarity
    # Models of different curvature are compared in units of their own radius of curvature.
    _, c = space.tangents(names)
    return c**0.5 * similarity


def _rounded(matrix: Tensor) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in matrix.tolist()]
