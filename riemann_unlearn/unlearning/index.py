"""Forgetting in an index of cached embeddings, where the encoders must not change or are not at hand.

The embeddings of the pairs to be forgotten are themselves the parameters: points of a geoopt manifold, moved
by Riemannian Adam down a calibration loss. Retained embeddings are its context and do not move, so what is
retained can only lose by forgotten items coming too near.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import geoopt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from riemann_unlearn.geometry import Lorentz
from riemann_unlearn.losses import HyperbolicAlignmentCalibration
from riemann_unlearn.losses.similarity import hyperbolic
from riemann_unlearn.ops import topk
from riemann_unlearn.optim import RiemannianAdam

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
    manifold: geoopt.Lorentz | geoopt.PoincareBall,
    loss: nn.Module | None = None,
    logit_scale: float = 50.0,
    move_texts: bool = True,
    steps: int = 200,
    learning_rate: float = 0.05,
    forget_batch: int = 256,
    retain_batch: int = 768,
    seed: int = 0,
    progress: bool = True,
) -> IndexResult:
    """Take pairs apart in an index of embeddings.

    Parameters
    ----------
    images, texts : Tensor, shape (N, d)
        Embeddings of N pairs, points on ``manifold``; with prototypes of concepts as ``texts``, repeat
        each for its images and leave them where they are by ``move_texts=False``. Not changed.
    forget : Tensor, shape (N,)
        bool; the pairs to be forgotten: some, and not all.
    manifold : geoopt.Lorentz (ours or geoopt's) or geoopt.PoincareBall
    loss : nn.Module, optional
        Called as the calibration losses are, on points of ``manifold``; by default
        :class:`riemann_unlearn.losses.HyperbolicAlignmentCalibration` with its default weights.
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

    Returns
    -------
    IndexResult

    Raises
    ------
    ValueError
        For shapes that do not fit, a mask that chooses nothing or everything, points that are not on
        the manifold, or numbers outside their range.
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
    _check(images, texts, forget, manifold)
    for name, value in (("steps", steps), ("forget_batch", forget_batch), ("retain_batch", retain_batch)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    loss = HyperbolicAlignmentCalibration(manifold=manifold) if loss is None else loss
    pool, rest = forget.nonzero()[:, 0], (~forget).nonzero()[:, 0]
    images, texts = images.detach().clone(), texts.detach().clone()
    before = _recalls(images, texts, forget, manifold)
    moving = [geoopt.ManifoldParameter(images[pool].clone(), manifold=manifold)]
    if move_texts:
        moving.append(geoopt.ManifoldParameter(texts[pool].clone(), manifold=manifold))
    optimizer = RiemannianAdam(moving, lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    history: list[dict[str, float]] = []
    for number in tqdm(range(steps), desc="forget", unit="step", disable=None if progress else True):
        chosen = torch.randperm(len(pool), generator=generator)[:forget_batch].to(pool.device)
        kept = rest[torch.randint(len(rest), (retain_batch,), generator=generator).to(rest.device)]
        own = moving[1][chosen] if move_texts else texts[pool[chosen]]
        terms: dict[str, Tensor] = loss(
            torch.cat([moving[0][chosen], images[kept]]),
            torch.cat([own, texts[kept]]),
            torch.arange(len(chosen) + len(kept), device=images.device) < len(chosen),
            logit_scale=logit_scale,
            output_dict=True,
        )
        total = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(total):
            raise RuntimeError(
                f"the loss became {total.item()} at step {number + 1}; a smaller learning_rate mends it"
            )
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        history.append({name: value.item() for name, value in terms.items()})
    images[pool] = moving[0].detach()
    if move_texts:
        texts[pool] = moving[1].detach()
    after = _recalls(images, texts, forget, manifold)
    return IndexResult(images, texts, {"before": before, "after": after}, history)


def _check(images: Tensor, texts: Tensor, forget: Tensor, manifold: geoopt.Manifold) -> None:
    if images.ndim != 2 or images.shape != texts.shape or forget.shape != images.shape[:1]:
        raise ValueError(
            "expected images and texts of shape (N, d) and forget of shape (N,), got "
            f"{tuple(images.shape)}, {tuple(texts.shape)} and {tuple(forget.shape)}"
        )
    if forget.dtype != torch.bool or not forget.any() or forget.all():
        raise ValueError(
            f"forget must be a boolean mask of some pairs and not all: it is {forget.dtype} and chooses "
            f"{int(forget.sum())} of {len(forget)}"
        )
    # geoopt's own check refuses far points of its own making.
    strict = Lorentz(manifold.k.item()) if isinstance(manifold, geoopt.Lorentz) else manifold
    for name, points in (("images", images), ("texts", texts)):
        on, reason = strict.check_point_on_manifold(points, explain=True)
        if not on:
            raise ValueError(f"{name} are not points on {manifold}: {reason}")


@torch.no_grad()
def _recalls(
    images: Tensor, texts: Tensor, forget: Tensor, manifold: geoopt.Manifold
) -> dict[str, dict[str, float]]:
    """Recall at 1 and 5 in both directions, by group, of evenly spaced rows of each."""
    similarity = hyperbolic(manifold)
    (image_side, c), (text_side, _) = similarity.tangents(images, None), similarity.tangents(texts, None)
    report = {}
    for group, mask in (("forget", forget), ("retain", ~forget)):
        rows = mask.nonzero()[:, 0]
        rows = rows[:: max(1, len(rows) // MAX_QUERIES)]
        found = {}
        for direction, queries, bank in (
            ("image_to_text", image_side, text_side),
            ("text_to_image", text_side, image_side),
        ):
            nearest = topk(queries[rows], bank, min(5, len(bank)), c).indices == rows[:, None]
            found[f"{direction}_recall_at_1"] = nearest[:, 0].double().mean().item()
            found[f"{direction}_recall_at_5"] = nearest.any(1).double().mean().item()
        report[group] = found
    return report
