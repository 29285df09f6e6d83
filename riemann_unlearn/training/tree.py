r"""A taxonomy as a tree of points on the hyperboloid, every cone of which holds what belongs to it.

Contrast and entailment learned at once leave no hierarchy: contrast pulls an image to all its captions and
ends nearer the origin than any of them, and for an image behind its caption half of the cone's gradient
points sideways. So the tree comes first: its points are trained by themselves, and towers learn to land on it
afterwards (:func:`riemann_unlearn.training.train` with ``objective: tree``).

*Ladder.* A cone opens to a half-space at sinh r = 2K and narrows fast beyond, so the topmost level lies
there, each level below it at 1.5 times the radius of the one above, and images at 2.2 times that of the most
specific.

*Loss*, with E(y, x) = ext(y, x) - aper(y), which is negative inside the cone of y, and for each concept a
*stand-in* for its images, the point on the concept's own ray at the images' radius:

.. math::
    \operatorname{mean}_{x} [E(π(x), x) + \tfrac15 \mathrm{aper}]_+
    + \operatorname{mean}_{i} \sum_{\text{levels}} [E(y_i, i) + \tfrac25 \mathrm{aper}]_+
    + \operatorname{mean}_{i} \sum_{\text{levels}} \sum_{y \ne y_i} [δ - E(y, i)]_+
    + ρ \operatorname{mean}(r/r_l - 1)^2 + σ \operatorname{mean}(1 - \cos(x, x_0)),

over all points x with a parent π(x), and stand-ins i with their own labels y_i: every label inside its
parent's cone, every stand-in inside its labels' cones and outside all others (Ganea, Bécigneul and Hofmann
2018, arXiv 1804.01882, equation 32, with the siblings among the negatives, for they are the hard ones; the
first two terms are weighted by 3). The last two hold each point to its level's radius and to the direction
x_0 in which a text encoder puts it, so that what is alike in meaning lies together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import geoopt
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from riemann_unlearn.data import Taxonomy
from riemann_unlearn.data.batch import Batch
from riemann_unlearn.geometry import Lorentz, expmap0, from_ambient, logmap0, tangent, to_ambient
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.optim import RiemannianAdam
from riemann_unlearn.spaces import LorentzTangents
from riemann_unlearn.training.towers import WHOLE, Towers

RATIO = 1.5
"""Radius of a level over that of the level above it."""
IMAGES = 2.2
"""Radius of images over that of the most specific level."""
MARGIN = 0.1
"""δ: how far outside a cone is enough, in radians."""
RADIUS_WEIGHT, MEANING_WEIGHT = 10.0, 0.5
"""ρ and σ."""
CONCEPTS = 128
"""Concepts whose stand-ins take part in a step."""
LABELS = 256
"""Labels of a higher level that a stand-in is held against in a step."""
IMAGE_WEIGHT, TEXT_WEIGHT = 20.0, 20.0
"""Of the images' radius, and of the captions' distance to their points, in :func:`landing_loss`."""


@dataclass(frozen=True)
class Tree:
    """A taxonomy's points, in a space of curvature -1."""

    points: tuple[Tensor, ...]
    """By level, from specific to general: tangent vectors at the origin, shape (labels, D)."""
    min_radius: float
    """K of the cones that they were made for."""

    @property
    def image_radius(self) -> float:
        """How far from the origin images belong."""
        return IMAGES * ladder(len(self.points), self.min_radius)[0]

    def to(self, device: torch.device) -> Tree:
        """The same on another device."""
        return Tree(tuple(points.to(device) for points in self.points), self.min_radius)


def ladder(levels: int, min_radius: float) -> tuple[float, ...]:
    """Radii of the levels in units of the curvature radius, from specific to general.

    Parameters
    ----------
    levels : int
    min_radius : float
        K of the cones.

    Examples
    --------
    >>> [round(r, 3) for r in ladder(3, 0.1)]
    [0.447, 0.298, 0.199]
    """
    # There the aperture asin(2K / sinh r) is π/2; further in it is no larger, and its gradient is 0.
    top = math.asinh(2 * min_radius)
    return tuple(top * RATIO**level for level in reversed(range(levels)))


def embed_taxonomy(
    taxonomy: Taxonomy,
    meanings: Sequence[Tensor],
    *,
    min_radius: float = 0.1,
    steps: int = 300,
    learning_rate: float = 3e-3,
    seed: int = 0,
    progress: bool = False,
) -> Tree:
    """Points for every label of a taxonomy, whose cones nest and hold no one else's.

    The points are ``geoopt.ManifoldParameter`` on :class:`riemann_unlearn.Lorentz`, moved by
    :class:`riemann_unlearn.optim.RiemannianAdam`.

    Parameters
    ----------
    taxonomy : Taxonomy
        Of two levels or more.
    meanings : sequence of Tensor, shape (labels, D)
        By level, what a text encoder makes of each label; only directions matter.
    min_radius : float
        K of the cones.
    steps : int
    learning_rate : float
        Of Riemannian Adam.
    seed : int
        Decides which concepts and labels take part in a step.
    progress : bool
        Show a progress bar.

    Raises
    ------
    ValueError
        For a taxonomy of one level, or meanings that are not one for each label.

    Examples
    --------
    >>> from riemann_unlearn.data import Concept
    >>> taxonomy = Taxonomy([Concept(n, n, (), (s,)) for n, s in (("apple", "fruit"), ("owl", "bird"))])
    >>> tree = embed_taxonomy(taxonomy, [torch.eye(2, 8), torch.eye(2, 8).roll(2, 1)], steps=50)
    >>> space = LorentzTangents(min_radius=tree.min_radius)
    >>> (space.cones(tree.points[1], tree.points[0]).outside < 0).tolist()      # apple is a fruit, owl a bird
    [True, True]
    """
    shapes = [tuple(meaning.shape) for meaning in meanings]
    if len(taxonomy.levels) < 2:
        raise ValueError("a tree needs a level above the concepts, and this taxonomy has one level")
    if [shape[:1] for shape in shapes] != [(len(level),) for level in taxonomy.levels]:
        raise ValueError(
            f"expected a vector for each label, {[len(level) for level in taxonomy.levels]} by level; got "
            f"shapes {shapes}"
        )
    radii = ladder(len(meanings), min_radius)
    first = [r * u for r, u in zip(radii, _directions(taxonomy, meanings, radii, min_radius), strict=True)]
    manifold = Lorentz()
    points = [geoopt.ManifoldParameter(to_ambient(expmap0(v, 1.0), 1.0), manifold=manifold) for v in first]
    optimizer = RiemannianAdam(points, lr=learning_rate)
    # Its own, so that a tree neither depends on what was drawn before nor moves torch's global generator.
    generator = torch.Generator().manual_seed(seed)
    space = LorentzTangents(min_radius=min_radius)
    for _ in tqdm(range(steps), desc="tree", unit="step", disable=None if progress else True):
        vectors = [logmap0(from_ambient(point), 1.0) for point in points]
        # Losses are of tangent vectors, whose formulas keep their digits; the optimizer moves the points.
        loss = _nesting(taxonomy, vectors, space) + _apart(taxonomy, vectors, space, generator)
        for v, v0, r in zip(vectors, first, radii, strict=True):
            loss = loss + RADIUS_WEIGHT * (v.norm(dim=-1) / r - 1).square().mean()
            loss = loss + MEANING_WEIGHT * (1 - F.cosine_similarity(v, v0, dim=-1)).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    # Once more, for the last step moved the points.
    with torch.no_grad():
        vectors = [logmap0(from_ambient(point), 1.0).detach() for point in points]
    return Tree(tuple(vectors), min_radius)


def landing_loss(
    model: DualEncoder,
    batch: Batch,
    tree: Tree,
    entailment_weight: float,
    levels: Sequence[str],
    towers: Towers = WHOLE,
) -> dict[str, Tensor]:
    r"""The weighted terms by which both towers learn to land on a tree; their sum is the loss.

    With y the tree's points, R_l the radius of a level, R that of images, L the number of levels:

    .. math::
        \sum_l \Bigl[ -\log\frac{e^{-τ d(v, y_v)}}{\sum_{y} e^{-τ d(v, y)}}
        + λ\,[E(y_v, v) + \tfrac1{10}\mathrm{aper}]_+
        + \sum_{y \ne y_v} [\tfrac1{20}\mathrm{aper} - E(y, v)]_+
        + \frac{20}{L}\,\frac{d(t, y_t)^2}{R_l^2} \Bigr]
        + 20\,[1 - r/R]_+^2 + 10\,[r/R - 1.4]_+^2

    averaged over the images v and their captions t. Candidates are *all* labels of a level, not those of the
    batch. Wrong cones are asked about above the most specific level only, whose cones are narrow. The
    curvature takes no gradient: the tree has fixed it.

    Parameters
    ----------
    model : DualEncoder
        With cones.
    batch : Batch
    tree : Tree
        On the model's device.
    entailment_weight : float
        λ.
    levels : sequence of str
        What the levels are called, for the names of the terms.
    towers : Towers
        How both are run: whole and in float32 by default.
    """
    images, texts = towers.images(model, batch.images), towers.texts(model, batch.texts)
    # A loop of one's own may be under autocast, the geometry never is.
    with torch.autocast(images.device.type, enabled=False):
        (images, c), (texts, _) = model.space.tangents(images), model.space.tangents(texts)
        c = torch.as_tensor(c).detach()
        space = LorentzTangents(scale=model.space.scale, c=c, min_radius=tree.min_radius)
        terms: dict[str, Tensor] = {}
        for depth, (level, pairing) in enumerate(zip(levels, batch.pairings, strict=True)):
            # The tree is of curvature -1; the same figure in curvature -c is smaller by √c.
            points = tree.points[depth].to(images.dtype) / c.sqrt()
            own = pairing.caption_ids
            terms[f"contrastive_{level}_loss"] = F.cross_entropy(space.logits(images, points), own)
            aperture = tangent.half_aperture(points, c, tree.min_radius)
            outside = space.cones(points[own], images).outside
            terms[f"entailment_{level}_loss"] = (
                entailment_weight * F.relu(outside + aperture[own] / 10).mean()
            )
            if depth > 0:
                every = space.outside(images, points)
                wrong = F.relu(aperture / 20 - every).scatter(1, own[:, None], 0.0)
                terms[f"wrong_{level}_loss"] = wrong.sum(1).mean()
            # In units of the curvature radius, as the ladder is, so the ratio does not depend on c.
            off = -space.matched(texts[pairing.row], points[own]) * c.sqrt()
            radius = ladder(len(tree.points), tree.min_radius)[depth]
            terms[f"text_{level}_loss"] = TEXT_WEIGHT / len(levels) * (off / radius).square().mean()
        reach = space.radius(images) / tree.image_radius
        terms["radius_loss"] = IMAGE_WEIGHT * (
            F.relu(1 - reach).square().mean() + F.relu(reach - 1.4).square().mean() / 2
        )
    return terms


def _directions(
    taxonomy: Taxonomy, meanings: Sequence[Tensor], radii: Sequence[float], min_radius: float
) -> list[Tensor]:
    """Unit vectors to start from: each label off its parent's direction, to the side of its own meaning."""
    top = F.normalize(meanings[-1].float() - meanings[-1].float().mean(0), dim=-1)
    # No more labels than dimensions, or there are no orthonormal directions for all.
    if len(top) <= top.shape[1]:
        # Orthonormal, near what they were: topmost cones are nearly half-spaces, and would overlap.
        q, r = torch.linalg.qr(meanings[-1].float().mT)
        # QR leaves the signs open. With R's diagonal positive, each direction is on its meaning's side.
        top = q.mT * torch.where(torch.diagonal(r) < 0, -1.0, 1.0)[:, None]
    directions = [top]
    for depth in range(len(meanings) - 2, -1, -1):
        parent = _parent(taxonomy, depth)
        meaning = F.normalize(meanings[depth].float(), dim=-1)
        # What siblings have in common says nothing of which is which.
        count = torch.bincount(parent, minlength=len(directions[0]))[:, None]
        common = torch.zeros_like(directions[0]).index_add(0, parent, meaning) / count
        alone = (count == 1)[parent]
        # An only child is all that its siblings have in common, and the difference would have no direction.
        own = torch.where(alone, meaning, meaning - common[parent])
        base = directions[0][parent]
        # Orthogonal to the parent's direction, so that the angle below is the one between them.
        side = F.normalize(own - (own * base).sum(-1, keepdim=True) * base, dim=-1)
        angle = _widest(radii[depth + 1], radii[depth], min_radius)
        directions.insert(0, math.cos(angle) * base + math.sin(angle) * side)
    return directions


def _widest(parent: float, child: float, min_radius: float) -> float:
    """Angle at the origin at which a child lies at half the aperture of its parent's cone, by bisection."""
    low, high = 0.0, math.pi / 2
    broad = torch.tensor([parent, 0.0], dtype=torch.float64)
    bound = tangent.half_aperture(broad, 1.0, min_radius) / 2
    # 50 halvings of π/2 leave 1.4e-15.
    for _ in range(50):
        middle = (low + high) / 2
        narrow = child * torch.tensor([math.cos(middle), math.sin(middle)], dtype=torch.float64)
        # The exterior angle grows with the angle at the origin.
        low, high = (middle, high) if tangent.exterior_angle(broad, narrow, 1.0) < bound else (low, middle)
    # The end at which the bound still holds.
    return low


def _nesting(taxonomy: Taxonomy, vectors: Sequence[Tensor], space: LorentzTangents) -> Tensor:
    """How far labels lie outside four fifths of their parents' cones."""
    total = vectors[0].new_zeros(())
    for depth in range(len(vectors) - 1):
        broad = vectors[depth + 1][_parent(taxonomy, depth)]
        aperture = tangent.half_aperture(broad, 1.0, space.min_radius)
        outside = space.cones(broad, vectors[depth]).outside
        total = total + F.relu(outside + aperture / 5).mean()
    return 3 * total


def _apart(
    taxonomy: Taxonomy, vectors: Sequence[Tensor], space: LorentzTangents, generator: torch.Generator
) -> Tensor:
    """Stand-ins of some concepts: how far outside their own cones they lie, and how deep in others'."""
    concepts = _some(taxonomy, generator)
    radius = IMAGES * ladder(len(vectors), space.min_radius)[0]
    # On the concept's ray: the gradient of where images lie goes to the concept's direction.
    images = radius * F.normalize(vectors[0][concepts], dim=-1)
    total = images.new_zeros(())
    for depth, labels in enumerate(vectors):
        own = taxonomy.ancestor(depth)[concepts]
        broad = labels[own]
        aperture = tangent.half_aperture(broad, 1.0, space.min_radius)
        outside = space.cones(broad, images).outside
        total = total + 3 * F.relu(outside + 0.4 * aperture).mean()
        # Concepts come by whole groups, so that siblings are among them.
        others = concepts if depth == 0 else torch.randperm(len(labels), generator=generator)[:LABELS]
        outside = space.outside(images, labels[others])
        wrong = others[None] != own[:, None]
        total = total + torch.where(wrong, F.relu(MARGIN - outside), 0.0).sum(1).mean()
    return total


def _some(taxonomy: Taxonomy, generator: torch.Generator) -> Tensor:
    """Rows of some concepts, group by group of the level above."""
    group = taxonomy.ancestor(1)
    order = torch.randperm(len(taxonomy.levels[1]), generator=generator)
    # The inverse of the permutation: each group's rank. Concepts sorted by it stand group by group; the limit
    # may cut the last group.
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    return place[group].argsort(stable=True)[:CONCEPTS]


def _parent(taxonomy: Taxonomy, depth: int) -> Tensor:
    """Index of each label's own at the level above ``depth``."""
    return torch.as_tensor(taxonomy.levels[depth].parent)
