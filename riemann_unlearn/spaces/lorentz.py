"""Tangent vectors at the origin of the Lorentz model, compared by geodesic distance: MERU and its kin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from riemann_unlearn import ops
from riemann_unlearn.geometry import tangent
from riemann_unlearn.geometry.precision import Curvature
from riemann_unlearn.ops import Contrastive
from riemann_unlearn.registry import register
from riemann_unlearn.spaces.base import Space, require_finite


@register
@dataclass(frozen=True, eq=False)
class LorentzTangents(Space):
    """What a hyperbolic encoder emits (MERU, arXiv 2304.09172): v, which stands for the point expmap0(v).

    The similarity is minus the geodesic distance. Points lose their digits with the radius and tangent
    vectors do not, so everything starts from these.

    Parameters
    ----------
    scale : float or Tensor
        τ.
    c : float or Tensor
        Curvature magnitude, c > 0.
    min_radius : float
        K of the entailment cones: within sinh r ≤ 2K a cone is a half-space.

    Examples
    --------
    >>> import torch
    >>> space = LorentzTangents(c=2.0)
    >>> v = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    >>> space.pairwise(v[:1], v), space.radius(v)
    (tensor([[-0., -1.]]), tensor([1.4142, 2.8284]))
    """

    name: ClassVar[str] = "lorentz"

    c: Curvature = 1.0
    min_radius: float = 0.1

    def __post_init__(self) -> None:
        """Refuse a curvature or a K that is none."""
        # A model makes its space anew whenever it is asked for it, with c on its device: to look at a
        # tensor's value would wait for the device each time. Asked as "not c > 0", NaN is refused too.
        if not isinstance(self.c, Tensor) and not self.c > 0:
            raise ValueError(f"c must be positive, got {self.c}: it is the magnitude of a curvature -c")
        if not 0 < self.min_radius < float("inf"):
            raise ValueError(f"min_radius must be positive, got {self.min_radius}")

    @property
    def has_cones(self) -> bool:
        """True."""
        return True

    def pairwise(self, a: Tensor, b: Tensor) -> Tensor:
        """-d, shape (N, M)."""
        # The minus makes near ones similar, as with cosines: every term and rank reads larger as closer.
        return -tangent.cdist(a, b, self.c)

    def matched(self, a: Tensor, b: Tensor) -> Tensor:
        """-d from differences, shape (N,): accurate however near the pairs are."""
        return -tangent.dist(a, b, self.c)

    def statistics(
        self, a: Tensor, b: Tensor, *, forget: Tensor | None = None, caption_ids: Tensor | None = None
    ) -> Contrastive:
        """As :meth:`Space.statistics`, by the fused op, in linear memory."""
        # The fused op takes its matched entries from differences, as matched() does: nothing to put in here.
        return ops.contrastive(a, b, self.scale, self.c, forget=forget, caption_ids=caption_ids)

    def ranks(self, features: Tensor, bank: Tensor, own: Tensor) -> Tensor:
        """As :meth:`Space.ranks`, without the matrix; rows that are equal tie exactly."""
        # Before the op, which counts NaN as more similar: its ranks would look like forgetting.
        require_finite(features, bank)
        return ops.ranks(features, bank, own, self.c)

    def nearest(self, features: Tensor, bank: Tensor, k: int) -> Tensor:
        """As :meth:`Space.nearest`, without the matrix."""
        return ops.topk(features, bank, k, self.c).indices

    def tangents(self, x: Tensor) -> tuple[Tensor, Curvature]:
        """``x`` and c as they are."""
        return x, self.c
