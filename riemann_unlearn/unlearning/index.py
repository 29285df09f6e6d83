"""Forgetting in an index of cached embeddings, where the encoders must not change or are not at hand.

The embeddings of the pairs to be forgotten are themselves the parameters: points of a geoopt manifold, moved
by Riemannian Adam down a calibration loss. Retained embeddings are its context and do not move, so what is
retained can only lose by forgotten items coming too near.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import geoopt
import torch
from torch import Tensor, nn

from riemann_unlearn.geometry import Lorentz
from riemann_unlearn.losses import AlignmentCalibration, HyperbolicAlignmentCalibration
from riemann_unlearn.optim import RiemannianAdam
from riemann_unlearn.spaces import OnManifold, Space
from riemann_unlearn.training import Callback, Driver, History, ProgressBar, RandomBatches

MAX_QUERIES = 2000
"""Rows of each group that retrieval is measured on, at most."""


@dataclass(frozen=True)
class IndexResult:
    """What :func:`unlearn_index` returns."""

    images: Tensor
    """The image embeddings; rows that were not to be forgotten are bitwise what they were."""
    texts: Tensor
    metrics: dict[str, Any]
    """``{"before": {"forget": recalls, "retain": recalls}, "after": ...}``."""
    history: list[dict[str, float]]
    """The weighted loss terms of each step."""


def unlearn_index(
    images: Tensor,
    texts: Tensor,
    forget: Tensor,
    *,
    manifold: geoopt.Manifold,
    loss: nn.Module | None = None,
    logit_scale: float = 50.0,
    move_texts: bool = True,
    steps: int = 200,
    learning_rate: float = 0.05,
    forget_batch: int = 256,
    retain_batch: int = 768,
    seed: int = 0,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
) -> IndexResult:
    """Take pairs apart in an index of embeddings.

    Parameters
    ----------
    images, texts : Tensor, shape (N, d)
        Embeddings of N pairs, points on ``manifold``; with prototypes of concepts as ``texts``, repeat
        each for its images and leave them where they are by ``move_texts=False``. Not changed.
    forget : Tensor, shape (N,)
        bool; the pairs to be forgotten: some, and not all.
    manifold : geoopt.Manifold
        Any of geoopt's that has a distance, or ours.
    loss : nn.Module, optional
        Called as the calibration losses are, on points of ``manifold``; by default
        :class:`riemann_unlearn.losses.HyperbolicAlignmentCalibration` with α = β = 1/τ and γ = 0.01, or
        :class:`riemann_unlearn.losses.AlignmentCalibration` on a manifold without entailment cones.
    logit_scale : float
        τ, that the embeddings were trained with.
    move_texts : bool
        Whether the forgotten pairs' texts move too, or their images only.
    steps : int
    learning_rate : float
        Of Riemannian Adam: about the geodesic length of a step.
    forget_batch, retain_batch : int
        Pairs of either kind in a batch.
    seed : int
        Decides the batches.
    progress : bool
        Show a progress bar.
    callbacks : sequence of Callback
        Told of every step.

    Returns
    -------
    IndexResult

    Raises
    ------
    ValueError
        For shapes or devices that do not fit, a mask that chooses nothing or everything, points that are
        not on the manifold, or numbers outside their range.
    RuntimeError
        When the loss stops being finite.

    Examples
    --------
    >>> import riemann_unlearn as ru
    >>> manifold = ru.Lorentz()
    >>> generator = torch.Generator().manual_seed(0)
    >>> points = manifold.expmap0(torch.nn.functional.pad(torch.randn(64, 8, generator=generator), (1, 0)))
    >>> result = unlearn_index(points, points, torch.arange(64) < 8, manifold=manifold, progress=False)
    >>> before, after = result.metrics["before"], result.metrics["after"]
    >>> before["forget"]["image_to_text_recall_at_1"], after["forget"]["image_to_text_recall_at_1"]
    (1.0, 0.0)
    >>> after["retain"]["image_to_text_recall_at_1"]
    1.0
    """
    space = OnManifold(manifold=manifold)
    _check(images, texts, forget, space)
    for name, value in (("steps", steps), ("forget_batch", forget_batch), ("retain_batch", retain_batch)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    if loss is None:
        kind = HyperbolicAlignmentCalibration if space.has_cones else AlignmentCalibration
        # Rows move freely, with no tower that other pairs would hold: matched pairs are pushed apart with all
        # the weight with which mismatched ones are pulled together, and both by a distance, not by τ of them.
        loss = kind(alpha=1 / logit_scale, beta=1 / logit_scale, gamma=0.01, manifold=manifold)
    pool, rest = forget.nonzero()[:, 0], (~forget).nonzero()[:, 0]
    images, texts = images.detach().clone(), texts.detach().clone()
    before = _recalls(images, texts, forget, space)
    # Parameters of the forgotten rows only: whatever the optimizer does, it can move no other.
    moving = [geoopt.ManifoldParameter(images[pool].clone(), manifold=manifold)]
    if move_texts:
        moving.append(geoopt.ManifoldParameter(texts[pool].clone(), manifold=manifold))

    def objective(rows: _Rows) -> dict[str, Tensor]:
        chosen, kept = rows.forget, rest[rows.retain]
        # `chosen` counts among the forgotten, as the parameters do; `pool` leads from there to the index.
        # Retained rows are read from the index itself, in which nothing is written while the driver runs.
        own = moving[1][chosen] if move_texts else texts[pool[chosen]]
        terms: dict[str, Tensor] = loss(
            torch.cat([moving[0][chosen], images[kept]]),
            torch.cat([own, texts[kept]]),
            # The mask: the forgotten stand first in both.
            torch.arange(len(chosen) + len(kept), device=images.device) < len(chosen),
            logit_scale=logit_scale,
            output_dict=True,
        )
        return terms

    history = History()
    Driver(
        _Draws(len(pool), len(rest), forget_batch, retain_batch, seed),
        objective,
        RiemannianAdam(moving, lr=learning_rate),
        parameters=moving,
        steps=steps,
        device=images.device,
        callbacks=[*callbacks, history, ProgressBar("forget", progress)],
    ).run()
    images[pool] = moving[0].detach()
    if move_texts:
        texts[pool] = moving[1].detach()
    after = _recalls(images, texts, forget, space)
    terms = [{k: v for k, v in record.items() if k.endswith("_loss")} for record in history.records]
    return IndexResult(images, texts, {"before": before, "after": after}, terms)


@dataclass(frozen=True)
class _Rows:
    """The rows of a batch, counted among the forgotten and among the retained pairs."""

    forget: Tensor
    retain: Tensor

    def to(self, device: torch.device) -> _Rows:
        return _Rows(self.forget.to(device), self.retain.to(device))


class _Draws(RandomBatches):
    """Forgotten pairs without replacement and retained ones with it, for of these there are many."""

    def __init__(
        self, forgotten: int, retained: int, forget_batch: int, retain_batch: int, seed: int
    ) -> None:
        self.forgotten, self.retained = forgotten, retained
        self.forget_batch, self.retain_batch = forget_batch, retain_batch
        # On the CPU, so that a seed means the same batches on every device.
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, number: int) -> _Rows:
        chosen = torch.randperm(self.forgotten, generator=self.generator)[: self.forget_batch]
        return _Rows(chosen, torch.randint(self.retained, (self.retain_batch,), generator=self.generator))


def _check(images: Tensor, texts: Tensor, forget: Tensor, space: OnManifold) -> None:
    # Shapes and devices first: what is checked after them computes with these tensors.
    if images.ndim < 2 or images.shape != texts.shape or forget.shape != images.shape[:1]:
        raise ValueError(
            "expected images and texts of shape (N, d) and forget of shape (N,), got "
            f"{tuple(images.shape)}, {tuple(texts.shape)} and {tuple(forget.shape)}"
        )
    if not images.device == texts.device == forget.device:
        raise ValueError(
            f"images, texts and forget must be on one device, got {images.device}, {texts.device} and "
            f"{forget.device}; move them with .to(device)"
        )
    if forget.dtype != torch.bool or not forget.any() or forget.all():
        raise ValueError(
            f"forget must be a boolean mask of some pairs and not all: it is {forget.dtype} and chooses "
            f"{int(forget.sum())} of {len(forget)}"
        )
    space.check("images", images)
    manifold = space.manifold
    # geoopt's own check refuses far points of its own making.
    strict = Lorentz(manifold.k.item()) if isinstance(manifold, geoopt.Lorentz) else manifold
    for name, points in (("images", images), ("texts", texts)):
        on, reason = strict.check_point_on_manifold(points, explain=True)
        if not on:
            raise ValueError(f"{name} are not points on {manifold}: {reason}")


@torch.no_grad()
def _recalls(images: Tensor, texts: Tensor, forget: Tensor, space: Space) -> dict[str, dict[str, float]]:
    """Recall at 1 and 5 in both directions, by group, of evenly spaced rows of each."""
    report = {}
    for group, mask in (("forget", forget), ("retain", ~forget)):
        rows = mask.nonzero()[:, 0]
        rows = rows[:: max(1, len(rows) // MAX_QUERIES)]
        recalls = {}
        for direction, queries, bank in (("image_to_text", images, texts), ("text_to_image", texts, images)):
            # A row's partner has its number in the other bank. It is sought among all rows, not its group's.
            hits = space.nearest(queries[rows], bank, min(5, len(bank))) == rows[:, None]
            recalls[f"{direction}_recall_at_1"] = hits[:, 0].double().mean().item()
            recalls[f"{direction}_recall_at_5"] = hits.any(1).double().mean().item()
        report[group] = recalls
    return report
