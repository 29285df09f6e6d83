"""Null-space projection: the forgotten captions' directions, out of the image tower's last layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from riemann_unlearn.evaluation.features import encode_texts
from riemann_unlearn.unlearning.methods.base import DirectMethod, setting
from riemann_unlearn.unlearning.problem import Problem, unmet_of_captions


@dataclass(frozen=True)
class NullSpace(DirectMethod):
    r"""Closed form, without images and without steps (Mishra et al. 2025, on CLIP).

    With U an orthonormal basis of the span of the forgotten captions' features, the image features become

    .. math:: v ← (I - λ U U^⊤)\,v,

    folded into the weights of the tower's last layer. The basis holds the leading ``rank`` singular
    vectors. On the hyperboloid v is the tangent vector at the origin, so that with λ = 1 the image is
    moved to the totally geodesic subspace perpendicular to the forgotten directions: the Lorentz
    counterpart. (The orthogonal projection of the *point* onto that subspace has the same direction, and a
    radius that no linear layer can give: artanh of tanh r times the cosine, instead of r times the cosine.)
    """

    name: ClassVar[str] = "nullspace"
    description: ClassVar[str] = "Closed-form projection of the forgotten captions' subspace"
    paper: ClassVar[str] = "arXiv 2512.14137"

    rank: int = setting(8, 1, 1_000_000, "largest dimension of the subspace that is removed")
    strength: float = setting(1.0, 0, 1, "λ: 1 removes the subspace, less leaves a part of it")

    def apply(self, problem: Problem, *, seed: int, folder: Path | None, progress: bool) -> None:
        """Multiply the last layer's weights."""
        basis = self.basis(problem)
        problem.model.transform_image_features_(
            torch.eye(len(basis), dtype=basis.dtype, device=basis.device) - self.strength * basis @ basis.mT
        )

    def unmet(self, problem: Problem) -> str | None:
        """It removes captions, so it cannot forget an image whose caption is retained."""
        return unmet_of_captions(problem)

    def basis(self, problem: Problem) -> Tensor:
        """Orthonormal columns that span the forgotten captions, shape (D, at most ``rank``)."""
        captions = [
            level.captions[label]
            for number, level in enumerate(problem.taxonomy.levels)
            for label in problem.forgotten(number).nonzero()[:, 0].tolist()
        ]
        # float64 from here on: the projection is multiplied into the weights, and rounded once, there.
        features = encode_texts(problem.model, captions).double()
        # One caption a column, so the left singular vectors span the captions. Not centred: what goes is the
        # span itself, through the origin, the captions' common direction included.
        left, values, _ = torch.linalg.svd(features.mT, full_matrices=False)
        # Captions that are linear combinations of others add no direction, but for rounding.
        # The features come in float32, whose spacing is 1.2e-7: 1e-6 of the largest value is above that.
        significant = int((values > values[0] * 1e-6).sum())
        basis: Tensor = left[:, : min(self.rank, significant)]
        return basis
