"""What a method is given: the problem, and one batch of it at a time.

:class:`Problem` is the manifold side of a run (which model, what it learned from, what of that has to go) and
:class:`Step` a batch with its features, computed when they are first asked for. Neither knows a loss: those
take features, masks and a space (:mod:`riemann_unlearn.losses`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from riemann_unlearn.data import Dataset, Selection, Taxonomy
from riemann_unlearn.data.batch import Batch, make_batch
from riemann_unlearn.losses import functional
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.spaces import Space
from riemann_unlearn.training import RandomBatches
from riemann_unlearn.training.towers import WHOLE, Towers
from riemann_unlearn.unlearning.split import SplitTower, with_tower


@dataclass(frozen=True)
class Problem:
    """What is to be changed, what it learned from, and what of that has to go."""

    model: DualEncoder
    dataset: Dataset
    selection: Selection
    """On the model's device."""
    towers: Towers = WHOLE
    """How the model's towers are run on a batch."""
    split: SplitTower | None = None
    """Where the image tower is cut, if a part of it stays whatever the method does."""
    aside: Tensor | None = None
    """Seen images that take no part in the run: bool, shape (N,), on the CPU."""

    @cached_property
    def tower(self) -> DualEncoder:
        """What takes :meth:`front` and gives image features: the model, or what of it lies behind the cut."""
        return self.model if self.split is None else with_tower(self.model, self.split.behind)

    @cached_property
    def gone(self) -> Tensor:
        """Which seen images are to be forgotten: bool, shape (N,), on the CPU, as the images are."""
        return self.dataset.seen.chosen(self.selection)

    @property
    def pools(self) -> tuple[Tensor, Tensor]:
        """Rows of the seen images to be forgotten and of those to be retained, without what is set aside."""
        takes_part = torch.ones_like(self.gone) if self.aside is None else ~self.aside
        return (self.gone & takes_part).nonzero()[:, 0], (~self.gone & takes_part).nonzero()[:, 0]

    def front(self, images: Any) -> Tensor:
        """What of images does not depend on what moves: preprocessed and, where there is a cut, up to it.

        Parameters
        ----------
        images : Tensor, shape (B, 3, H, W), or sequence of Tensor
            As for :meth:`riemann_unlearn.models.DualEncoder.preprocess`.
        """
        shown = self.model.preprocess(images)
        if self.split is None:
            return shown
        with torch.no_grad():
            return self.towers.run(self.model, self.split.front, shown)

    @property
    def taxonomy(self) -> Taxonomy:
        """Of the data."""
        return self.dataset.taxonomy

    @property
    def space(self) -> Space:
        """In which the model's features are compared, as its parameters are now."""
        return self.model.space

    @property
    def levels(self) -> range:
        """Numbers of the taxonomy's levels, from specific to general."""
        return range(len(self.taxonomy.levels))

    def forgotten(self, level: int) -> Tensor:
        """Which labels of a level are to be forgotten: bool, shape (labels,)."""
        return self.selection.forgotten[level]


def unmet_of_captions(problem: Problem) -> str | None:
    """Why a method that forgets captions cannot be used, in words; None when it can."""
    images = problem.selection.images
    if images is None:
        return None
    return (
        f"{int(images.sum())} images are to be forgotten whose captions other images retain, and it forgets "
        "captions; take one that forgets pairs, such as ac or hac, or forget the captions"
    )


@dataclass(frozen=True)
class Step:
    """One batch, as a method sees it; a tower runs when its features are first asked for."""

    problem: Problem
    batch: Batch
    number: int = 0
    """How many steps were taken before this one."""
    kept: bool = False
    """Whether the batch has :attr:`front` in the place of images, as it was kept."""

    def to(self, device: torch.device | str) -> Step:
        """The same step, its batch on another device."""
        # A new step: what this one has cached, on the device where it is, stays behind.
        return replace(self, batch=self.batch.to(device))

    @property
    def model(self) -> DualEncoder:
        """The model that is being changed."""
        return self.problem.model

    @property
    def space(self) -> Space:
        """In which features are compared, as the model's parameters are now."""
        return self.problem.space

    def encode_images(self, model: DualEncoder) -> Tensor:
        """What an image tower emits for the batch, run as the problem's towers are, shape (B, D).

        Parameters
        ----------
        model : DualEncoder
            :attr:`Problem.tower`, or a copy of it.
        """
        return self.problem.towers.run(model, model.encode_image, self.front)

    @cached_property
    def front(self) -> Tensor:
        """What of the batch's images does not depend on what moves; see :meth:`Problem.front`."""
        return self.batch.images if self.kept else self.problem.front(self.batch.images)

    @cached_property
    def image_features(self) -> Tensor:
        """What the image tower emits for the batch, shape (B, D)."""
        return self.encode_images(self.problem.tower)

    @cached_property
    def text_features(self) -> tuple[Tensor, ...]:
        """By level, the features of each image's caption at that level, shape (B, D)."""
        # Each text is encoded once, and its features go to every image that it belongs to.
        texts = self.problem.towers.texts(self.model, self.batch.texts)
        return tuple(texts[pairing.row] for pairing in self.batch.pairings)

    @cached_property
    def caption_ids(self) -> tuple[Tensor, ...]:
        """By level, which label each image's caption means: long, shape (B,)."""
        return tuple(pairing.caption_ids for pairing in self.batch.pairings)

    @cached_property
    def forget(self) -> tuple[Tensor, ...]:
        """By level, whether the pair is to be forgotten: bool, shape (B,).

        It is where its caption names something to be forgotten; at the most specific level also where its
        image alone is to be forgotten, whatever other images retain the caption.
        """
        masks = [self.problem.forgotten(level)[ids] for level, ids in enumerate(self.caption_ids)]
        if self.problem.selection.images is not None:
            masks[0] = self.problem.gone[self.batch.indices.cpu()].to(masks[0].device)
        return tuple(masks)

    def sum_over_levels(self, loss: Callable[[int], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The terms of a loss of one level, summed by name over the levels."""
        total: dict[str, Tensor] = {}
        for level in self.problem.levels:
            for name, value in loss(level).items():
                total[name] = total[name] + value if name in total else value
        return total

    def contrast(self, *, retained: bool) -> Tensor:
        """The space's contrastive loss of some pairs, summed over the levels.

        Retained pairs are contrasted among themselves, as in AC; forgotten ones with the whole batch, for
        among themselves they may all have the same caption. 0 at a level without such pairs.
        """
        return self.sum_over_levels(lambda level: {"sum": self._contrast(level, retained)})["sum"]

    def _contrast(self, level: int, retained: bool) -> Tensor:
        forget, space, images = self.forget[level], self.space, self.image_features
        # A retained pair's normalizer runs over the retained pairs where the space is told which these are.
        statistics = space.statistics(
            images,
            self.text_features[level],
            forget=forget if retained else None,
            caption_ids=self.caption_ids[level],
        )
        loss = functional.contrastive(
            statistics, space.scale, space.bias, pairs=~forget if retained else forget
        )
        return loss.to(images.dtype)

    def calibrate(self, loss: Callable[..., Any], space: Space | None = None) -> dict[str, Tensor]:
        """A calibration loss of :mod:`riemann_unlearn.losses` applied at every level.

        Parameters
        ----------
        loss : callable
        space : Space, optional
            Another one than the model's.
        """
        space = self.space if space is None else space
        return self.sum_over_levels(
            lambda level: loss(
                self.image_features,
                self.text_features[level],
                self.forget[level],
                space=space,
                caption_ids=self.caption_ids[level],
                output_dict=True,
            )
        )


@dataclass(frozen=True)
class Kept:
    """The fronts of some views of some seen images."""

    rows: Tensor
    """Which images they are of, long, shape (N,)."""
    fronts: Tensor
    """float32, shape (N, views, K)."""


class ForgetAndRetain(RandomBatches):
    """Batches of both kinds of pairs, those to be forgotten first.

    Parameters
    ----------
    problem : Problem
    forget, retain : int
        Pairs of either kind in a batch, as far as there are so many.
    seed : int
        Decides which, their views and the wording of their captions.
    kept : Kept, optional
        Batches are of these images alone, and of views whose fronts are there.
    """

    def __init__(
        self, problem: Problem, forget: int, retain: int, seed: int, kept: Kept | None = None
    ) -> None:
        self.problem, self.kept = problem, kept
        self.generator = torch.Generator().manual_seed(seed)
        # Images are drawn where they are stored, and drawn by a generator of the CPU: a seed means the same
        # batches on every device. With what was kept, places in it are drawn.
        pools = problem.pools
        if kept is not None:
            gone = problem.gone[kept.rows]
            pools = gone.nonzero()[:, 0], (~gone).nonzero()[:, 0]
        self._pools = tuple(zip(pools, (forget, retain), strict=True))

    def draw(self, number: int) -> Step:
        """The step of a number, on the CPU; each kind without replacement."""
        # One generator in one order: forgotten rows, retained rows, wordings, views (kept ones before the
        # wordings). A resumed run has its state, and draws what it would have drawn.
        rows = torch.cat(
            [pool[torch.randperm(len(pool), generator=self.generator)[:count]] for pool, count in self._pools]
        )
        seen, model = self.problem.dataset.seen, self.problem.model
        if self.kept is None:
            batch = make_batch(seen, rows, model.image_size, self.generator, fit=model.resize)
            return Step(self.problem, batch, number)
        view = torch.randint(self.kept.fronts.shape[1], (len(rows),), generator=self.generator)
        batch = make_batch(
            seen, self.kept.rows[rows], model.image_size, self.generator, images=self.kept.fronts[rows, view]
        )
        return Step(self.problem, batch, number, kept=True)
