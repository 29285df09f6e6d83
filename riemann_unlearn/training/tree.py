r"""A taxonomy as a tree of points on the hyperboloid, every cone of which holds what belongs to it.

Contrast and entailment learned at once leave no hierarchy: contrast pulls an image to all its captions and
ends nearer the origin than any of them, and for an image behind its caption half of the cone's gradient
points sideways. So the tree comes first: its points are trained by themselves, and towers learn to land on it
afterwards (:func:`riemann_unlearn.training.train` with ``objective: tree``).

*Ladder.* A cone opens to a half-space at sinh r = 2K and narrows fast beyond, so the topmost level lies
there, each level below it at 1.36 times the radius of the one above, and images at 3.2 times that of the most
specific. So far beyond its parent a child has room: with three levels its direction may be 33 degrees off its
parent's in the second, and 12 degrees in the third.

*Directions.* Topmost labels are orthonormal, so that their half-spaces part. A label below lies as far off
its parent's direction as the parent's cone allows, to the side of its own meaning. Where others lie below it,
that is what it does *not* have in common with its siblings, for their cones are not to hold its images. The
most specific labels keep the whole of their meaning: what is alike in different groups stays alike, and an
image that is taken for something else is taken for something near.

*Loss*, with E(y, x) = ext(y, x) - aper(y), which is negative inside the cone of y, and for each concept a
*stand-in* for its images, the point on the concept's own ray at the images' radius:

.. math::
    \operatorname{mean}_{x} [E(π(x), x) + \tfrac1{10} \mathrm{aper}]_+
    + \operatorname{mean}_{i} \sum_{\text{levels}} [E(y_i, i) + \tfrac25 \mathrm{aper}]_+
    + \operatorname{mean}_{i} \sum_{\text{levels}} \sum_{y \ne y_i} [δ - E(y, i)]_+
    + ρ \operatorname{mean}(r/r_l - 1)^2 + σ \operatorname{mean}(1 - \cos(x, x_0)),

over all points x with a parent π(x), and stand-ins i with their own labels y_i at the levels above the most
specific: every label inside its parent's cone, every stand-in inside its labels' cones and outside all others
(Ganea, Bécigneul and Hofmann 2018, arXiv 1804.01882, equation 32, with the siblings among the negatives, for
they are the hard ones; the first two terms are weighted by 3). The last two hold each point to its level's
radius and to the direction x_0 in which it began.
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
from riemann_unlearn.losses import ContrastiveLoss
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.optim import RiemannianAdam
from riemann_unlearn.spaces import LorentzTangents, Space
from riemann_unlearn.training.towers import WHOLE, Towers

RATIO = 1.36
"""Radius of a level over that of the level above it."""
IMAGES = 3.2
"""Radius of images over that of the most specific level."""
WIDEST = 0.84
"""How far from its parent's axis a label begins, as a share of the aperture."""
MARGIN = 0.15
"""δ: how far outside a cone is enough, in radians."""
RADIUS_WEIGHT, MEANING_WEIGHT = 10.0, 1.0
"""ρ and σ."""
CONCEPTS = 256
"""Concepts whose stand-ins take part in a step."""
LABELS = 256
"""Labels of a higher level that a stand-in is held against in a step."""
IMAGE_WEIGHT, TEXT_WEIGHT, NAME_WEIGHT, NEST_WEIGHT = 20.0, 100.0, 7.0, 10.0
"""In :func:`landing_loss`: of the images' radius, of the distance to their points of broad captions and of
the most specific, and of the latter's place in their parents' cones. A broad caption is the answer to many
images, among rivals that are near: it must be where its images are told that it is."""


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
    [0.367, 0.27, 0.199]
    """
    # There the aperture asin(2K / sinh r) is π/2; further in it is no larger, and its gradient is 0.
    top = math.asinh(2 * min_radius)
    return tuple(top * RATIO**level for level in reversed(range(levels)))


def embed_taxonomy(
    taxonomy: Taxonomy,
    meanings: Sequence[Tensor],
    *,
    min_radius: float = 0.1,
    steps: int = 150,
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
    taxonomy: Taxonomy,
    towers: Towers = WHOLE,
) -> dict[str, Tensor]:
    r"""The weighted terms by which both towers learn to land on a tree; their sum is the loss.

    With y the tree's points, v an image, t its captions, π(y) the point above, R the radius of images; at the
    levels above the most specific, whose labels are few,

    .. math::
        -\log\frac{e^{τ s(v, y_v)}}{\sum_{y} e^{τ s(v, y)}}
        + λ\,[E(y_v, v) + \tfrac1{10}\mathrm{aper}]_+
        + \sum_{y \ne y_v} [\tfrac1{20}\mathrm{aper} - E(y, v)]_+
        + 100\,\frac{d(t, y_t)^2}{|y_t|^2};

    at the most specific, whose captions learn from images as they do in the contrastive objective,

    .. math::
        -\log\frac{e^{τ s(v, y_v)}}{\sum_{y} e^{τ s(v, y)}} + L_{\mathrm{con}}(v, t)
        + λ\,[E(t, v) + \tfrac1{10}\mathrm{aper}]_+ + 10\,[E(π(y_t), t) + \tfrac1{10}\mathrm{aper}]_+
        + 7\,\frac{d(t, y_t)^2}{|y_t|^2} + 10\,\Bigl(\frac{|t|}{|y_t|} - 1\Bigr)^2;

    and of every image 20 [1 - r/R]₊² + 10 [r/R - 1.4]₊². Averaged over images and over captions. Held to its
    point, a concept's caption could not take up what its images have in common with others; held to its
    parent's cone and to its rung of the ladder, it can. Wrong cones are asked about above the most specific
    level only, whose cones are narrow. The curvature takes no gradient: the tree has fixed it.

    Where a space has no cones, captions and images learn the directions of the same points: the terms of
    cones and radii fall away, and the chord between directions, 2 - 2 cos, stands in for d²/R².

    Parameters
    ----------
    model : DualEncoder
    batch : Batch
    tree : Tree
        On the model's device.
    entailment_weight : float
        λ.
    taxonomy : Taxonomy
        Whose tree it is.
    towers : Towers
        How both are run: whole and in float32 by default.
    """
    levels, parent = [level.name for level in taxonomy.levels], _parent(taxonomy, 0).to(batch.indices.device)
    images, texts = towers.images(model, batch.images), towers.texts(model, batch.texts)
    terms: dict[str, Tensor] = {}
    # A loop of one's own may be under autocast, the geometry never is.
    with torch.autocast(images.device.type, enabled=False):
        space, cones = model.space, model.space.has_cones
        unit: Tensor | float = 1.0
        if cones:
            (images, c), (texts, _) = space.tangents(images), space.tangents(texts)
            c = torch.as_tensor(c).detach()
            space = LorentzTangents(scale=space.scale, c=c, min_radius=tree.min_radius)
            # The tree is of curvature -1; the same figure in curvature -c is smaller by √c.
            unit = c.sqrt()
        for depth, (level, pairing) in enumerate(zip(levels, batch.pairings, strict=True)):
            points, own = tree.points[depth].to(images.dtype) / unit, pairing.caption_ids
            captions = texts[pairing.row]
            contrast = F.cross_entropy(space.logits(images, points), own)
            if depth == 0:
                contrast = contrast + ContrastiveLoss()(images, captions, space=space, caption_ids=own)
            terms[f"contrastive_{level}_loss"] = contrast
            # A caption that many images of the batch share counts once: rare labels must land as exactly as
            # frequent ones.
            label = own.new_full((len(texts),), -1).scatter(0, pairing.row, own)
            there = label >= 0
            told, goal = texts[there], points[label[there]]
            near = space.matched(told, goal)
            off = (near / goal.norm(dim=-1)).square() if cones else 2 - 2 * near
            landing = (NAME_WEIGHT if depth == 0 else TEXT_WEIGHT) * off.mean()
            if cones:
                broad = captions if depth == 0 else points[own]
                terms[f"entailment_{level}_loss"] = entailment_weight * _inside(space, broad, images)
            if cones and depth == 0:
                above = tree.points[1].to(images.dtype)[parent[label[there]]] / unit
                rung = (told.norm(dim=-1) / goal.norm(dim=-1) - 1).square().mean()
                landing = landing + NEST_WEIGHT * _inside(space, above, told) + RADIUS_WEIGHT * rung
            elif cones:
                aperture = tangent.half_aperture(points, c, tree.min_radius)
                wrong = F.relu(aperture / 20 - space.outside(images, points))
                terms[f"wrong_{level}_loss"] = wrong.scatter(1, own[:, None], 0.0).sum(1).mean()
            terms[f"text_{level}_loss"] = landing
        if cones:
            reach = space.radius(images) / tree.image_radius
            terms["radius_loss"] = IMAGE_WEIGHT * (
                F.relu(1 - reach).square().mean() + F.relu(reach - 1.4).square().mean() / 2
            )
    return terms


def _inside(space: Space, broad: Tensor, narrow: Tensor) -> Tensor:
    """How far outside nine tenths of their apertures cones leave what they are to hold, on average."""
    c = space.tangents(broad)[1]
    aperture = tangent.half_aperture(broad, c, space.min_radius)
    return F.relu(space.cones(broad, narrow).outside + aperture / 10).mean()


def _directions(
    taxonomy: Taxonomy, meanings: Sequence[Tensor], radii: Sequence[float], min_radius: float
) -> list[Tensor]:
    """Unit vectors to start from: each label off its parent's direction, to the side of its own meaning."""
    top = F.normalize(meanings[-1].float() - meanings[-1].float().mean(0), dim=-1)
    # More labels than dimensions have no orthonormal directions.
    orthonormal = len(top) <= top.shape[1]
    if orthonormal:
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
        own = meaning
        if depth > 0:
            # An only child is all that its siblings have in common: the difference would have no direction.
            own = torch.where(alone, meaning, meaning - common[parent])
            # Toward no other topmost label either, whose half-space begins not far from here.
            own = own - (own @ top.mT) @ top if orthonormal else own
        base = directions[0][parent]
        # Orthogonal to the parent's direction, so that the angle below is the one between them.
        side = F.normalize(own - (own * base).sum(-1, keepdim=True) * base, dim=-1)
        angle = _widest(radii[depth + 1], radii[depth], min_radius)
        directions.insert(0, math.cos(angle) * base + math.sin(angle) * side)
    return directions


def _widest(parent: float, child: float, min_radius: float) -> float:
    """Angle at the origin at which a child lies at a share of its parent's aperture, by bisection."""
    low, high = 0.0, math.pi / 2
    broad = torch.tensor([parent, 0.0], dtype=torch.float64)
    bound = tangent.half_aperture(broad, 1.0, min_radius) * WIDEST
    # 50 halvings of π/2 leave 1.4e-15.
    for _ in range(50):
        middle = (low + high) / 2
        narrow = child * torch.tensor([math.cos(middle), math.sin(middle)], dtype=torch.float64)
        # The exterior angle grows with the angle at the origin.
        low, high = (middle, high) if tangent.exterior_angle(broad, narrow, 1.0) < bound else (low, middle)
    # The end at which the bound still holds.
    return low


def _nesting(taxonomy: Taxonomy, vectors: Sequence[Tensor], space: LorentzTangents) -> Tensor:
    """How far labels lie outside nine tenths of their parents' cones."""
    total = vectors[0].new_zeros(())
    for depth in range(len(vectors) - 1):
        total = total + 3 * _inside(space, vectors[depth + 1][_parent(taxonomy, depth)], vectors[depth])
    return total


def _apart(
    taxonomy: Taxonomy, vectors: Sequence[Tensor], space: LorentzTangents, generator: torch.Generator
) -> Tensor:
    """Stand-ins of some concepts: how far outside their own broad cones they lie, and how deep in others'."""
    concepts = torch.randperm(len(taxonomy.concepts), generator=generator)[:CONCEPTS]
    radius = IMAGES * ladder(len(vectors), space.min_radius)[0]
    # On the concept's ray: the gradient of where images lie goes to the concept's direction.
    images = radius * F.normalize(vectors[0][concepts], dim=-1)
    total = images.new_zeros(())
    # Not at the most specific level: a stand-in lies on the axis of its own cone there, and what is alike may
    # share the others.
    for depth, labels in enumerate(vectors[1:], start=1):
        own = taxonomy.ancestor(depth)[concepts]
        broad = labels[own]
        aperture = tangent.half_aperture(broad, 1.0, space.min_radius)
        outside = space.cones(broad, images).outside
        total = total + 3 * F.relu(outside + 0.4 * aperture).mean()
        others = torch.randperm(len(labels), generator=generator)[:LABELS]
        outside = space.outside(images, labels[others])
        wrong = others[None] != own[:, None]
        total = total + torch.where(wrong, F.relu(MARGIN - outside), 0.0).sum(1).mean()
    return total


def _parent(taxonomy: Taxonomy, depth: int) -> Tensor:
    """Index of each label's own at the level above ``depth``."""
    return torch.as_tensor(taxonomy.levels[depth].parent)
