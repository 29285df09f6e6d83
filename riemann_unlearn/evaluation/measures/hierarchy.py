"""The hierarchy of a model with entailment cones: radii, cones, and the way from an image to the origin.

Near the origin is what is general, far out what is specific (Desai et al. 2023, arXiv 2304.09172).

- *radii*: quantiles of r = √c·|v| of images and of the captions of every level, of the forgotten and of the
  retained. Unlearning by generalizing moves the forgotten inwards; by repulsion, outwards.
- *cone violations*: the share of pairs whose narrower member lies outside the broader one's entailment
  cone (as wide as the model's own K makes it), ext > aper, and the mean excess max(0, ext - aper) in
  radians: of each image under its captions at every level, of each caption under that of the level above.
- *traversal*: points at even steps from an image to the origin, and at each the caption met there, twice:
  the most similar of those whose cone holds the point (Desai et al., section 4.3), or none; and, for a
  model whose cones hold little, the most similar of all captions, unless the origin is nearer than any. A
  model that forgot "red apple" and kept "food and drink" shows it on this path.
"""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from riemann_unlearn.evaluation.measures.base import (
    ROLE_COLOURS,
    ROLE_NAMES,
    Measure,
    number,
    percent,
    share,
)
from riemann_unlearn.evaluation.subject import Subject, evenly
from riemann_unlearn.registry import register
from riemann_unlearn.spaces import LorentzTangents

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

Way = list[tuple[str | None, float]]
"""The captions met on it, with the share of it that each is met on."""


@register
@dataclass(frozen=True)
class Hierarchy(Measure):
    """Radii, cone violations and traversals."""

    name: ClassVar[str] = "hierarchy"
    title: ClassVar[str] = "Hierarchy"
    reading: ClassVar[str] = (
        "Median radii in units of 1/√c, and the share of pairs outside their entailment cone. Forgotten "
        "images that move outwards were pushed away; inwards, generalized."
    )
    range: ClassVar[str] = "radii: ≥ 0; shares: 0 to 1"
    paper: ClassVar[str] = "Desai et al. 2023, arXiv 2304.09172"
    order: ClassVar[int] = 90

    steps: int = 50
    """Points on the way to the origin, as in the paper."""
    traversed: int = 3
    """Forgotten images whose way is shown, and neighbours."""

    def unmet(self, subject: Subject, references: Mapping[str, Subject]) -> str | None:
        """It needs a space with cones."""
        space = subject.space
        return None if space.has_cones else f"the model's space ({space.name}) has no entailment cones"

    @torch.no_grad()
    def compute(self, subject: Subject, references: Mapping[str, Subject], seed: int = 0) -> dict[str, Any]:
        """Radii, violations and ways to the origin.

        ``radii[kind][group]``: five quantiles (5, 25, 50, 75, 95 %), the kinds being "image" and the levels;
        ``violations[pair][group]``: ``{"share", "pairs", "excess"}``; ``traversals``: a list of ``{"name",
        "group", "image", "by_cone", "by_distance"}``, the image a data URI, the paths lists of ``[caption,
        share of the way it is met on]`` from the image on, the caption None where nothing is met.
        """
        return {
            "radii": _radii(subject),
            "violations": _violations(subject),
            "traversals": self._traversals(subject),
        }

    def rows(self, value: Any) -> dict[str, str]:
        """Median radii, then shares of violations."""
        rows = {}
        for kind, groups in value["radii"].items():
            for group, quantiles in groups.items():
                rows[f"radius of {kind}, {group}"] = "–" if quantiles is None else number(quantiles[2], 3)
        for pair, groups in value["violations"].items():
            for group, violation in groups.items():
                rows[f"outside: {pair}, {group}, %"] = percent(violation["share"], violation["pairs"])
        return rows

    def figure(self, values: Mapping[str, Any]) -> Figure:
        """Quantiles of the radii; below them the ways to the origin, a strip for each model.

        The captions on a way are those whose cone holds the point where most ways meet such a one, else the
        nearest.
        """
        from matplotlib.figure import Figure

        # All models are asked about the same images in the same order, so their ways go together by position.
        ways = list(zip(*(value["traversals"] for value in values.values()), strict=True))
        shown = [way for same in ways for way in same]
        with_cones = sum(any(caption for caption, _ in way["by_cone"]) for way in shown)
        kind = "by_cone" if 2 * with_cones > len(shown) else "by_distance"
        kinds = sum(map(len, next(iter(values.values()))["radii"].values()))
        # In inches: a line for each kind and model above, a strip for each way and model below, and titles.
        heights = [0.6 + 0.12 * kinds * (1 + len(values)), 0.5 + len(ways) * (0.25 + 0.22 * len(values))]
        figure = Figure(figsize=(7, sum(heights)), layout="constrained")
        halves: Any = figure.subfigures(2, 1, height_ratios=heights)
        above, below = halves
        _draw_radii(above.subplots(), {role: value["radii"] for role, value in values.items()})
        none = " whose cone holds the point" if kind == "by_cone" else " nearer than the origin"
        what = f"From the image (left) to the origin (right): the nearest caption{none}, if any"
        below.suptitle(what, fontsize=9)
        if ways:
            panels = below.subplots(len(ways), 2, squeeze=False, width_ratios=[1, 9])
            for (picture, strips), same in zip(panels, ways, strict=True):
                _draw_way(picture, strips, dict(zip(values, same, strict=True)), kind)
        return figure

    def _traversals(self, subject: Subject) -> list[dict[str, Any]]:
        part = subject.test
        texts = [text for captions in subject.captions for text in captions.texts]
        bank = torch.cat([captions.features for captions in subject.captions])
        # The way to the origin is straight in tangent vectors there, whatever form the features have.
        vectors, c = subject.space.tangents(bank)
        space = LorentzTangents(c=c, min_radius=subject.space.min_radius)
        shown = []
        for group, mask in (("forget", subject.selection.concepts), ("neighbours", subject.neighbours)):
            rows = evenly(mask[part.concept].nonzero()[:, 0], self.traversed)
            images, starts = part.images(rows), subject.space.tangents(part.features[rows])[0]
            for image, start, concept in zip(images, starts, part.concept[rows].tolist(), strict=True):
                shown.append(
                    {
                        "name": subject.taxonomy.concepts[concept].name,
                        "group": group,
                        # In the value itself: the page is made of it later, when the data may not be at hand.
                        "image": _data_uri(image),
                        **self._paths(space, start, vectors, texts),
                    }
                )
        return shown

    def _paths(
        self, space: LorentzTangents, image: Tensor, texts: Tensor, captions: list[str]
    ) -> dict[str, Way]:
        """Captions met between ``image`` and the origin, with the share of the way each is met on."""
        # From the image on; the origin itself lies in no cone and is left out.
        shares = torch.linspace(1, 0, self.steps + 1, dtype=image.dtype, device=image.device)[:-1]
        points = image * shares[:, None]
        similarity = space.pairwise(points, texts)
        outside = torch.stack([space.cones(texts, point.expand_as(texts)).outside > 0 for point in points])
        # A similarity is minus a distance, and the point that v stands for is |v| away from the origin.
        nearer_origin = similarity <= -points.norm(dim=-1, keepdim=True)
        return {
            "by_cone": _met(similarity, outside, captions),
            "by_distance": _met(similarity, nearer_origin, captions),
        }


def _groups(subject: Subject) -> dict[str, tuple[Tensor, Tensor]]:
    """For images and each level: the features, and which of them are forgotten."""
    kinds = {"image": (subject.test.features, subject.test.forgotten)}
    for level, captions, gone in zip(
        subject.taxonomy.levels, subject.captions, subject.selection.forgotten, strict=True
    ):
        kinds[level.name] = (captions.features, gone)
    return kinds


def _radii(subject: Subject) -> dict[str, dict[str, list[float] | None]]:
    report: dict[str, dict[str, list[float] | None]] = {}
    for kind, (features, gone) in _groups(subject).items():
        radius = subject.space.radius(features)
        quantiles = torch.tensor(QUANTILES, dtype=radius.dtype, device=radius.device)
        report[kind] = {
            group: torch.quantile(radius[mask], quantiles).tolist() if mask.any() else None
            for group, mask in (("forget", gone), ("retain", ~gone))
        }
    return report


def _violations(subject: Subject) -> dict[str, dict[str, dict[str, Any]]]:
    part, levels, captions = subject.test, subject.taxonomy.levels, subject.captions
    # (narrow, broad, which narrow ones are forgotten)
    pairs = {
        f"image under {level.name}": (
            part.features,
            captions[depth].features[part.labels(depth)],
            part.forgotten,
        )
        for depth, level in enumerate(levels)
    }
    for depth, (level, above) in enumerate(itertools.pairwise(levels)):
        narrow = captions[depth].features
        parent = torch.as_tensor(level.parent, device=narrow.device)
        broad = captions[depth + 1].features[parent]
        pairs[f"{level.name} under {above.name}"] = (narrow, broad, subject.selection.forgotten[depth])
    report: dict[str, dict[str, dict[str, Any]]] = {}
    for name, (narrow, broad, gone) in pairs.items():
        outside = subject.space.cones(broad, narrow).outside
        report[name] = {
            group: {
                "share": share((outside > 0)[mask]),
                "pairs": int(mask.sum()),
                "excess": outside.clamp(min=0)[mask].mean().item() if mask.any() else None,
            }
            for group, mask in (("forget", gone), ("retain", ~gone))
        }
    return report


def _met(similarity: Tensor, barred: Tensor, captions: list[str]) -> Way:
    """The most similar caption of each step that is not barred, equal ones in a row taken together."""
    # Where all are barred argmax gives some index all the same; that step is told apart below.
    nearest = similarity.masked_fill(barred, -torch.inf).argmax(1).tolist()
    path: Way = []
    for index, nothing in zip(nearest, barred.all(1).tolist(), strict=True):
        caption = None if nothing else captions[index]
        before = path.pop()[1] if path and path[-1][0] == caption else 0.0
        path.append((caption, round(before + 1 / len(similarity), 4)))
    return path


def _data_uri(image: Tensor) -> str:
    """A PNG of ``image`` that a page can hold."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy()).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _draw_radii(axes: Any, radii: Mapping[str, Any]) -> None:
    """5 to 95 % a line, 25 to 75 % a bar, the median a gap in it."""
    labels = []
    for kind in next(iter(radii.values())):
        for group in ("forget", "retain"):
            if all(of_role[kind][group] is None for of_role in radii.values()):
                continue
            labels.append(f"{kind}, {group}")
            for i, (role, of_role) in enumerate(radii.items()):
                if (quantiles := of_role[kind][group]) is None:
                    continue
                height, colour = len(labels) - 1 + 0.8 * (i + 0.5) / len(radii) - 0.4, ROLE_COLOURS[role]
                name = ROLE_NAMES[role] if len(labels) == 1 else None
                axes.hlines(height, quantiles[0], quantiles[4], color=colour, linewidth=1)
                axes.hlines(height, quantiles[1], quantiles[3], color=colour, linewidth=5, label=name)
                # A dot as well, for a level with one label has no spread to be seen.
                axes.plot(quantiles[2], height, "o", color=colour, markersize=5)
                axes.plot(quantiles[2], height, "|", color="white", markersize=5)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_title("Radii r = √c·|v|: 5, 25, 50, 75 and 95 %", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    # Where radii are near 0 nothing is drawn but the forgotten that was pulled inwards.
    axes.legend(frameon=False, fontsize=8, loc="lower left")


def _draw_way(picture: Any, strips: Any, ways: Mapping[str, Any], kind: str) -> None:
    """One image, and for each model the captions met, each as wide as its share of the way."""
    first = next(iter(ways.values()))
    encoded = base64.b64decode(first["image"].partition(",")[2])
    picture.imshow(Image.open(io.BytesIO(encoded)))
    picture.set_axis_off()
    group = "forgotten" if first["group"] == "forget" else "neighbour"
    strips.set_title(f"{first['name']} ({group})", fontsize=7, loc="left", pad=2)
    for line, (role, way) in enumerate(ways.items()):
        left = 0.0
        for caption, part in way[kind]:
            if caption is not None:
                strips.barh(line, part, left=left, height=0.9, color="white", edgecolor=ROLE_COLOURS[role])
                # About 110 letters fit the width of the strip.
                fitting = caption[: int(110 * part)]
                strips.text(left + 0.005, line, fitting, fontsize=6, va="center", clip_on=True)
            left += part
    strips.set(xlim=(0, 1), ylim=(len(ways) - 0.4, -0.6), xticks=[])
    strips.set_yticks(range(len(ways)), [ROLE_NAMES[role] for role in ways], fontsize=6)
    strips.spines[:].set_visible(False)
