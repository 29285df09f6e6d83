"""What all losses share: whose space a batch is compared in, what is asked of it, and how terms add up.

A loss is its terms. :class:`PairLoss` checks a batch, makes :class:`Pairs` of it, and sums what ``terms``
gives; a loss of one's own is a subclass with other terms, or with one more::

    class Spread(HyperbolicAlignmentCalibration):
        def terms(self, pairs):
            spread = pairs.cones.narrow_radius.var()
            return {**super().terms(pairs), "spread_loss": 0.1 * spread}
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import geoopt
import torch
from torch import Tensor, nn

from riemann_unlearn.geometry.precision import Curvature
from riemann_unlearn.ops import Cones, Contrastive
from riemann_unlearn.spaces import Cosine, LorentzTangents, OnManifold, Sigmoid, Space


class Pairs:
    """A batch of pairs as the terms see it; a pass over the features is made when it is first asked for.

    Parameters
    ----------
    images, texts : Tensor, shape (B, D)
    space : Space
    forget : Tensor, shape (B,), optional
        bool; which pairs are forget pairs. None by default.
    caption_ids : Tensor, shape (B,), optional
        Integers; pairs with equal ids are not negatives of each other.
    """

    def __init__(
        self,
        images: Tensor,
        texts: Tensor,
        space: Space,
        forget: Tensor | None = None,
        caption_ids: Tensor | None = None,
    ) -> None:
        self.images, self.texts, self.space = images, texts, space
        self.caption_ids = caption_ids
        self._forget = forget
        # Not cached properties, whose lock torch.compile cannot take before Python 3.12.
        self._statistics: Contrastive | None = None
        self._cones: Cones | None = None

    @property
    def forget(self) -> Tensor:
        """Which pairs are forget pairs, bool, shape (B,)."""
        if self._forget is None:
            return torch.zeros(len(self.images), dtype=torch.bool, device=self.images.device)
        return self._forget

    @property
    def retain(self) -> Tensor | None:
        """Which pairs are retain pairs, bool, shape (B,); None if all are."""
        # None and not a mask of ones: a mean over all pairs then is a plain mean, without a mask.
        return None if self._forget is None else ~self._forget

    @property
    def statistics(self) -> Contrastive:
        """What the contrastive terms need of all pairs."""
        if self._statistics is None:
            self._statistics = self.space.statistics(
                self.images, self.texts, forget=self._forget, caption_ids=self.caption_ids
            )
        return self._statistics

    @property
    def cones(self) -> Cones:
        """How far images lie outside their captions' cones, and the radii of both."""
        if self._cones is None:
            # Texts are the broader side: a caption entails the images that it describes.
            self._cones = self.space.cones(self.texts, self.images)
        return self._cones


class PairLoss(nn.Module):
    """A loss over a batch of image-text pairs, the sum of its :meth:`terms`.

    Parameters
    ----------
    space : Space, optional
        How features compare. Without it, what a call is given decides: hyperbolic tangent vectors where there
        is a curvature magnitude ``c``, SigLIP's sigmoid where there is a ``logit_bias``, else cosines.
    manifold : geoopt.Manifold, optional
        Features are points on it: short for ``space=OnManifold(manifold=manifold)``.
    min_radius : float, optional
        K of the entailment cones; the space's own by default.
    """

    needs_cones: ClassVar[bool] = False
    """Whether the terms ask for cones, so that a space without them is refused at once."""
    needs_scale: ClassVar[bool] = True
    """Whether the terms depend on the logit scale."""

    def __init__(
        self,
        *,
        space: Space | None = None,
        manifold: geoopt.Manifold | None = None,
        min_radius: float | None = None,
    ) -> None:
        super().__init__()
        if space is not None and manifold is not None:
            raise ValueError("give space= or manifold=, not both")
        if min_radius is not None and not 0 < min_radius < math.inf:
            raise ValueError(f"min_radius must be positive, got {min_radius}")
        # None stays None: what a call brings decides then, and a loss may serve models of several families.
        self.space = OnManifold(manifold=manifold) if manifold is not None else space
        self.min_radius = min_radius
        # A manifold says nothing about τ; a space does.
        self._has_scale = space is not None
        if self.needs_cones and self.space is not None:
            self.space.require_cones()

    def terms(self, pairs: Pairs) -> dict[str, Tensor]:
        """The weighted terms of a batch, whose names end in ``_loss``."""
        raise NotImplementedError

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        *,
        logit_scale: Curvature | None = None,
        logit_bias: Curvature | None = None,
        c: Curvature | None = None,
        space: Space | None = None,
        caption_ids: Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The loss of a batch of pairs; also as open_clip calls it, ``loss(**model(images, texts))``.

        Parameters
        ----------
        image_features, text_features : Tensor, shape (B, D)
        logit_scale : float or Tensor, optional
            τ, not its logarithm.
        logit_bias : float or Tensor, optional
            What a sigmoid model adds to each logit.
        c : float or Tensor, optional
            Curvature magnitude of hyperbolic tangent features.
        space : Space, optional
            Instead of these three: how the features compare, ``model.space``.
        caption_ids : Tensor, shape (B,), optional
            Integers; pairs with equal ids are not negatives of each other.
        output_dict : bool
            Return the weighted terms, whose sum is the loss.

        Raises
        ------
        TypeError
            For features that are not floating point.
        ValueError
            For arguments whose shapes do not fit, or that do not say how features compare.
        """
        chosen = self._space(space, logit_scale, logit_bias, c)
        return self._loss(image_features, text_features, chosen, None, caption_ids, output_dict)

    def _loss(
        self,
        images: Tensor,
        texts: Tensor,
        space: Space,
        forget: Tensor | None,
        caption_ids: Tensor | None,
        output_dict: bool,
    ) -> Tensor | dict[str, Tensor]:
        # Once, at the door: terms and ops take what they are given.
        _check_batch(space, images, texts, forget, caption_ids)
        terms = self.terms(Pairs(images, texts, space, forget, caption_ids))
        # The ops give float64 where the device has it; callers go on in their features' dtype, or float32.
        dtype = _result_dtype(images, texts)
        if output_dict:
            return {name: term.to(dtype) for name, term in terms.items()}
        # Summed before rounding: the ops work in float64.
        return torch.stack(list(terms.values())).sum().to(dtype)

    def _space(
        self,
        space: Space | None,
        logit_scale: Curvature | None,
        logit_bias: Curvature | None,
        c: Curvature | None,
    ) -> Space:
        """The space that a call is about."""
        # By the names of a space's fields.
        said = {"scale": logit_scale, "bias": logit_bias, "c": c}
        given = {name: value for name, value in said.items() if value is not None}
        if space is not None:
            # What a model's output says beside its space, it has from there.
            # By identity: to compare values would wait for the device, and two parameters may be equal.
            given = {name: value for name, value in given.items() if value is not getattr(space, name, None)}
        if space is not None and given:
            raise ValueError(
                "space= has its own scale, bias and curvature; leave out logit_scale=, logit_bias=, c="
            )
        if space is None:
            # No family starts at τ = 1: where it is left out by mistake, there would be a loss and no error.
            if self.needs_scale and "scale" not in given and not self._has_scale:
                raise ValueError("how features compare is not known: pass logit_scale=, or space=model.space")
            space = _implied(given) if self.space is None else _changed(self.space, given)
        if self.needs_cones:
            space.require_cones()
            # Last, for it belongs to the loss: it wins over the K of whichever space was chosen.
            if self.min_radius is not None:
                space = _changed(space, {"min_radius": self.min_radius})
        return space


def check_weights(**weights: float) -> None:
    """Raise ValueError for weights of terms that no batch could be scored with."""
    for name, weight in weights.items():
        # Turned about like this the comparison refuses NaN too.
        if not 0 <= weight < math.inf:
            raise ValueError(f"{name} is a weight and must be finite and at least 0, got {weight}")


def loss_inputs(space: Space) -> dict[str, Any]:
    """What a loss is called with, by name, to compare features in ``space``: open_clip's names.

    The space itself is among them where its scale, bias and curvature do not say all of it: features might be
    compared in another way than a loss would take them to be, or its cones have another K.

    Examples
    --------
    >>> loss_inputs(Sigmoid(10.0, bias=-10.0))
    {'logit_scale': 10.0, 'logit_bias': -10.0}
    """
    known = {field.name for field in dataclasses.fields(space)}
    # Fields and not attributes: every space has a bias, which is 0 and no field where its family has none,
    # and a logit_bias among the inputs would be read as a sigmoid.
    given: dict[str, Curvature] = {name: getattr(space, name) for name in _NAMES if name in known}
    inputs = {_NAMES[name]: value for name, value in given.items()}
    # No family has both, and _implied raises for it: such a space can only be passed whole.
    implied = None if {"bias", "c"} <= known else _implied(given)
    # The very type: a subclass may compare features in its own way, which no number here would tell.
    if type(implied) is type(space) and implied.min_radius == space.min_radius:
        return inputs
    return {**inputs, "space": space}


_NAMES = {"scale": "logit_scale", "bias": "logit_bias", "c": "c"}
"""A loss's arguments by the field of a space that each is."""


def _implied(given: dict[str, Curvature]) -> Space:
    """The space of a family by what its models say of themselves."""
    if "c" in given and "bias" in given:
        raise ValueError("no family has both a curvature c= and a logit_bias=; pass space= instead")
    scale = given.get("scale", 1.0)
    if "c" in given:
        return LorentzTangents(scale, c=given["c"])
    return Sigmoid(scale, bias=given["bias"]) if "bias" in given else Cosine(scale)


def _changed(space: Space, given: dict[str, Curvature]) -> Space:
    """The space of a loss with what a call says about it."""
    known = {field.name for field in dataclasses.fields(space)}
    if "c" in given and isinstance(space, OnManifold):
        raise ValueError("c belongs to the manifold; leave it out when manifold= is given")
    if unknown := given.keys() - known:
        raise ValueError(f"the space {space.name!r} has no {', '.join(sorted(unknown))}; leave it out")
    return dataclasses.replace(space, **given) if given else space


def _check_batch(
    space: Space, images: Tensor, texts: Tensor, forget: Tensor | None, caption_ids: Tensor | None
) -> None:
    """Raise for features that are not a batch of pairs, or masks that do not belong to it."""
    # Dtypes and shapes alone: to look at values would wait for the device at every step.
    space.check("image_features", images)
    space.check("text_features", texts)
    if images.shape != texts.shape:
        raise ValueError(
            "image_features and text_features must have the same shape (B, D), got "
            f"{tuple(images.shape)} and {tuple(texts.shape)}"
        )
    batch = (len(images),)
    if forget is not None and (forget.dtype != torch.bool or forget.shape != batch):
        raise ValueError(
            f"forget_mask must be a bool tensor of shape {batch}, got {forget.dtype} of shape "
            f"{tuple(forget.shape)}"
        )
    if caption_ids is not None and (caption_ids.is_floating_point() or caption_ids.shape != batch):
        raise ValueError(
            f"caption_ids must be an integer tensor of shape {batch}, got {caption_ids.dtype} of "
            f"shape {tuple(caption_ids.shape)}"
        )


def _result_dtype(*features: Tensor) -> torch.dtype:
    """The widest real dtype of the features and float32."""
    dtype = torch.float32
    for side in features:
        # Points of some manifolds are complex; distances, and so losses, are real.
        dtype = torch.promote_types(dtype, side.real.dtype)
    return dtype
