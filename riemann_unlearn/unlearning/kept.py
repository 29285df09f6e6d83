"""What the layers that stay give of images, computed once for a whole run.

A :class:`~riemann_unlearn.unlearning.split.SplitTower` says where the image tower is cut. What reaches it
is an image's *front*. :class:`Fronts` has those of a dataset's images as they are, and the evaluations before
and after go on from there; :func:`keep` makes those of a few random views of some images, for the steps.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from riemann_unlearn.data import Samples
from riemann_unlearn.data.augment import random_view
from riemann_unlearn.evaluation.features import CHUNK, IMAGES
from riemann_unlearn.models import evaluating
from riemann_unlearn.training.towers import WHOLE
from riemann_unlearn.unlearning.problem import Kept, Problem

MOST_BYTES = 2**29
"""Of memory that either of the two takes. Beyond it, images go through the whole tower each time."""
RETAINED = 2048
"""Retained images of which views are kept: half are those nearest to what is forgotten, half are any."""


class Fronts:
    """Of all images of a dataset, as they are: float32, shape (N, K), on the CPU.

    Parameters
    ----------
    problem : Problem
        Whose tower is cut.
    """

    def __init__(self, problem: Problem) -> None:
        # An evaluation is in float32, in whichever precision the steps are.
        self.problem = problem = replace(problem, towers=WHOLE)
        dataset = problem.dataset
        self.seen = _fronts(problem, dataset.seen)
        self.heldout = None if dataset.heldout is None else _fronts(problem, dataset.heldout)

    @staticmethod
    def fit(problem: Problem) -> bool:
        """Whether the tower is cut, and they take no more than :data:`MOST_BYTES`."""
        parts = (problem.dataset.seen, problem.dataset.heldout)
        images = sum(len(part) for part in parts if part is not None)
        return problem.split is not None and 4 * problem.split.width * images <= MOST_BYTES

    def features(self) -> tuple[Tensor, Tensor | None]:
        """Of the seen and of the held-out images, by the model as it is now."""
        return self._features(self.seen), None if self.heldout is None else self._features(self.heldout)

    @torch.no_grad()
    def _features(self, fronts: Tensor) -> Tensor:
        tower = self.problem.tower
        with evaluating(tower):
            return torch.cat(
                [tower.encode_image(some.to(tower.device)) for some in torch.split(fronts, IMAGES)]
            )


@torch.no_grad()
def keep(
    problem: Problem,
    width: int,
    views: int,
    seed: int,
    known: tuple[Tensor, Tensor] | None = None,
) -> Kept | None:
    """Choose images, and keep the fronts of some views; None where memory has no room for one of each kind.

    Chosen are all images to be forgotten and up to :data:`RETAINED` others, as far as :data:`MOST_BYTES` go.

    Parameters
    ----------
    problem : Problem
        Whose tower is cut; the model is what it was.
    width : int
        Of a front.
    views : int
        Of each image, the first being the image itself.
    seed : int
        Decides which images and which views.
    known : tuple of Tensor, optional
        Fronts and features of all seen images. Without them the retained images are all chosen at random, for
        what is near shows in the features.
    """
    # One of its own: batches are drawn as they would be without.
    generator = torch.Generator().manual_seed(seed)
    seen, model = problem.dataset.seen, problem.model
    room = MOST_BYTES // (4 * width * views)
    if room < 2:
        return None
    forgotten, retained = problem.pools
    forgotten = forgotten[torch.randperm(len(forgotten), generator=generator)[: room // 2]]
    count = min(RETAINED, room - len(forgotten), len(retained))
    near = 0
    if known is not None:
        near = count // 2
        # Stable: equal ones, such as copies of an image, stay in the order of the data.
        nearness = _nearness(problem, known[1], forgotten, retained)
        retained = retained[nearness.argsort(descending=True, stable=True)]
    others = retained[near:]
    others = others[torch.randperm(len(others), generator=generator)[: count - near]]
    rows = torch.cat([forgotten, retained[:near], others])
    # Whatever torch's default dtype is: towers are float32, and so is what they give.
    fronts = torch.empty(len(rows), views, width, dtype=torch.float32)
    fronts[:, 0] = _fronts(problem, seen.subset(rows)) if known is None else known[0][rows]
    for view in range(1, views):
        for places in torch.split(torch.arange(len(rows)), IMAGES):
            images = random_view(seen.images[rows[places]], model.image_size, generator, fit=model.resize)
            fronts[places, view] = problem.front(images).cpu()
    return Kept(rows, fronts)


def _nearness(problem: Problem, features: Tensor, forgotten: Tensor, retained: Tensor) -> Tensor:
    """How similar each retained image is to the mean of the nearest concept that is to be forgotten."""
    space = problem.space.detached()
    present, own = torch.unique(problem.dataset.seen.concept[forgotten], return_inverse=True)
    means = space.mean(features[forgotten.to(features.device)], own.to(features.device), len(present))
    chunks = torch.split(features[retained.to(features.device)], CHUNK)
    return torch.cat([space.pairwise(some, means).amax(1) for some in chunks]).cpu()


@torch.no_grad()
def _fronts(problem: Problem, samples: Samples) -> Tensor:
    chunks = torch.split(torch.arange(len(samples)), IMAGES)
    return torch.cat([problem.front(samples.images[rows]).cpu() for rows in chunks])
