"""Forgetting by generalizing: a forgotten image becomes what its parent is, and nothing beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from riemann_unlearn.data.zone import Zone, level_to_leave
from riemann_unlearn.evaluation.features import encode_images, encode_texts
from riemann_unlearn.evaluation.subject import evenly
from riemann_unlearn.geometry import tangent
from riemann_unlearn.spaces import LorentzTangents
from riemann_unlearn.unlearning.methods.base import setting
from riemann_unlearn.unlearning.methods.tilt import Tilt, mean
from riemann_unlearn.unlearning.problem import Problem, Step

MOST_IMAGES = 512
"""Retained images of a parent whose radii are looked at: quantiles want no more."""
MOST_CHILDREN = 256
"""Cones of a parent's children that images are kept out of: of more, those nearest to the forgotten."""


@dataclass(frozen=True)
class Home:
    """Where some forgotten concepts belong, in units of the curvature radius."""

    concepts: Tensor
    """bool, shape (concepts,): those forgotten that belong here."""
    parent: Tensor | None
    """The parent's caption as a tangent vector, shape (1, D); None for the root, whose cone holds all."""
    children: Tensor
    """The captions of the parent's children, forgotten ones among them, shape (M, D)."""
    radii: tuple[float, float]
    """Between which images lie there."""
    min_radius: float
    """K of the cones."""
    clearance: float
    """δ."""

    def excess(self, points: Tensor) -> Tensor:
        """How far tangent vectors of shape (N, D) lie outside the zone, shape (N,); 0 inside it."""
        space = LorentzTangents(min_radius=self.min_radius)
        # By a share of each cone's own aperture: a narrow one cannot be entered by more than it has.
        slack = self.clearance * tangent.half_aperture(self.children, 1.0, self.min_radius)
        total = F.relu(slack - space.outside(points, self.children)).sum(1)
        if self.parent is not None:
            slack = self.clearance * tangent.half_aperture(self.parent, 1.0, self.min_radius)
            total = total + F.relu(space.outside(points, self.parent) + slack)[:, 0]
        low, high = self.radii
        r = points.norm(dim=-1)
        return total + F.relu(r - high) + F.relu(low - r)


@dataclass(frozen=True)
class Generalize(Tilt):
    r"""Tilted distillation, with the forgotten images brought into the zone of their parent.

    With E(y, x) = ext(y, x) - aper(y), which is not positive where the cone of y holds x, and π the lowest
    label above the forgotten that is retained, the zone of π is where images lie that are of its kind and of
    none of the kinds below it:

    .. math::
        E(π, x) ≤ -δ\,\mathrm{aper}(π), \qquad
        E(b, x) ≥ δ\,\mathrm{aper}(b) \text{ for all children b of π}, \qquad
        r_- ≤ r(x) ≤ r_+,

    the children being the forgotten and their siblings alike, and r between the 5 and 95 % quantiles of the
    retained images of π, so that nothing is flung out to where no image lies. To the loss of
    :class:`~riemann_unlearn.unlearning.methods.tilt.Tilt` comes

    .. math::
        ζ\,\mathrm{mean}_{i∈U} \Bigl( [E(π, i) + δ\,\mathrm{aper}(π)]_+
        + \sum_b [δ\,\mathrm{aper}(b) - E(b, i)]_+ + [r - r_+]_+ + [r_- - r]_+ \Bigr),

    which is exactly 0 once all forgotten images lie there. They can: apertures are at most π/2, so that every
    cone lies beyond its apex's radius, and a child's is narrower than its parent's. Nor is the way long: the
    exterior angle at π does not change along the geodesic from x to π, so an image in the parent's cone stays
    in it all the way there, which is at most d(x, π) long.

    Where nothing above is retained, or the taxonomy has one level, the parent is a root whose cone holds
    everything, and the zone lies outside all cones of the level.

    Distillation under a mask has precedents in arXiv 2506.01318 (with dispersion) and 2606.00399 (a bounded
    divergence), redirection in the hierarchy in HySAC, arXiv 2503.12127.
    """

    name: ClassVar[str] = "generalize"
    description: ClassVar[str] = "Tilted distillation into the parent's cone and out of all its children's"
    paper: ClassVar[str] = "docs/unlearning.md"

    zone: float = setting(5.0, 0, 1e4, "weight of the forgotten images' way into the zone")
    clearance: float = setting(0.1, 0, 1, "δ: by what share of its aperture a cone is entered or left")

    def unmet(self, problem: Problem) -> str | None:
        """It needs entailment cones, and captions to forget."""
        if problem.space.has_cones:
            return super().unmet(problem)
        return (
            f"it needs a model whose space has entailment cones, and that of {type(problem.model).__name__} "
            f"({problem.space.name!r}) has none"
        )

    def further(self, problem: Problem) -> Callable[[Step, Tensor], Mapping[str, Tensor]]:
        """The forgotten's way into their zones."""
        homes = list(self.homes(problem))

        def terms(step: Step, before: Tensor) -> dict[str, Tensor]:
            concept = step.caption_ids[0]
            # The towers may run under autocast, the geometry never does.
            with torch.autocast(concept.device.type, enabled=False):
                points = _points(step.image_features, problem)
                excess = torch.cat([home.excess(points[home.concepts[concept]]) for home in homes])
            return {"zone_loss": self.zone * mean(excess)}

        return terms

    def homes(self, problem: Problem) -> Iterator[Home]:
        """The zones of all that is forgotten, one for each parent that keeps something."""
        level = level_to_leave(problem.taxonomy, problem.selection)
        for depth in torch.unique(level[level >= 0]).tolist():
            zone = Zone.of(problem.taxonomy, depth, level.device)
            above = zone.parent[problem.taxonomy.ancestor(depth).to(level.device)]
            for parent in torch.unique(above[level == depth]).tolist():
                yield self.home(problem, zone, parent, (level == depth) & (above == parent))

    def home(self, problem: Problem, zone: Zone, parent: int, concepts: Tensor) -> Home:
        """The zone of one parent, for some concepts."""
        taxonomy, seen = problem.taxonomy, problem.dataset.seen
        under = zone.parent[taxonomy.ancestor(zone.depth).to(zone.parent.device)] == parent
        kept = ~problem.selection.concepts
        # Images of the parent that stay; where none does, of everything that stays.
        rows = (kept & under).cpu()[seen.concept].nonzero()[:, 0]
        if not len(rows):
            rows = kept.cpu()[seen.concept].nonzero()[:, 0]
        images = _points(encode_images(problem.model, seen.images[evenly(rows, MOST_IMAGES)]), problem)
        low, high = images.norm(dim=-1).quantile(images.new_tensor([0.05, 0.95])).tolist()
        captions = None if zone.rooted else [taxonomy.levels[zone.depth + 1].captions[parent]]
        return Home(
            concepts,
            None if captions is None else _points(encode_texts(problem.model, captions), problem),
            self.children(problem, zone, parent),
            (low, high),
            problem.space.min_radius,
            self.clearance,
        )

    def children(self, problem: Problem, zone: Zone, parent: int) -> Tensor:
        """Captions of a parent's children whose cones are left, as tangent vectors of shape (M, D)."""
        labels = (zone.parent == parent).nonzero()[:, 0]
        captions = problem.taxonomy.levels[zone.depth].captions
        points = _points(encode_texts(problem.model, [captions[i] for i in labels.tolist()]), problem)
        gone = problem.forgotten(zone.depth)[labels]
        if len(points) > MOST_CHILDREN and gone.any():
            # The forgotten are at no distance from themselves, so they come first.
            nearest = tangent.cdist(points, points[gone], 1.0, fix_near="all").amin(1)
            points = points[nearest.argsort(stable=True)[:MOST_CHILDREN]]
        return points


def _points(features: Tensor, problem: Problem) -> Tensor:
    """Features as tangent vectors of a space of curvature -1, in which a radius is that of the ladder."""
    vectors, c = problem.space.tangents(features)
    return vectors * torch.as_tensor(c).detach().sqrt()
