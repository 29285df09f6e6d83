"""Our losses keep the laws of losses, in every space they are for; a wrong one does not."""

from __future__ import annotations

import geoopt
import pytest
import torch
from torch import Tensor, nn

from riemann_unlearn.losses import (
    AlignmentCalibration,
    ContrastiveLoss,
    EntailmentLoss,
    HyperbolicAlignmentCalibration,
)
from riemann_unlearn.spaces import Cosine, OnManifold, Sigmoid, Space
from riemann_unlearn.testing import LossLaws
from tests.losses import reference

WEIGHTS = {"alpha": 0.3, "beta": 0.7, "gamma": 1.3, "epsilon": 0.9}


class TestContrastive(LossLaws):
    takes_forget = False
    similarity = staticmethod(reference.hyperbolic)

    def make(self) -> nn.Module:
        return ContrastiveLoss()

    def reference(
        self, images: Tensor, texts: Tensor, forget: Tensor, caption_ids: Tensor, space: Space
    ) -> dict[str, float]:
        nothing = [False] * len(images)
        terms = reference.terms(
            images.tolist(), texts.tolist(), nothing, caption_ids.tolist(), 5.0, 0.7, self.similarity
        )
        return {"contrastive_loss": terms["contrastive_loss"]}


class TestContrastiveOfCosines(TestContrastive):
    similarity = staticmethod(reference.cosine)

    def space(self, dtype: torch.dtype, device: str = "cpu") -> Space:
        return Cosine(torch.tensor(5.0, dtype=dtype, device=device))


class TestContrastiveOfSigmoids(TestContrastive):
    def space(self, dtype: torch.dtype, device: str = "cpu") -> Space:
        scale, bias = torch.tensor([5.0, -3.0], dtype=dtype, device=device)
        return Sigmoid(scale, bias=bias)

    def reference(
        self, images: Tensor, texts: Tensor, forget: Tensor, caption_ids: Tensor, space: Space
    ) -> dict[str, float]:
        sides = images.tolist(), texts.tolist()
        return {"contrastive_loss": reference.siglip(*sides, caption_ids.tolist(), 5.0, -3.0)}


class TestContrastiveOnTheBall(LossLaws):
    takes_forget = False

    def make(self) -> nn.Module:
        return ContrastiveLoss()

    def space(self, dtype: torch.dtype, device: str = "cpu") -> Space:
        return OnManifold(5.0, manifold=geoopt.PoincareBall(c=0.7).to(device, dtype))

    def features(self, count: int, dim: int, seed: int = 0) -> Tensor:
        return super().features(count, dim, seed) / 8


class TestEntailment(LossLaws):
    takes_forget = False

    def make(self) -> nn.Module:
        return EntailmentLoss()


class TestAC(LossLaws):
    similarity = staticmethod(reference.hyperbolic)

    def make(self) -> nn.Module:
        return AlignmentCalibration(**WEIGHTS)

    def reference(
        self, images: Tensor, texts: Tensor, forget: Tensor, caption_ids: Tensor, space: Space
    ) -> dict[str, float]:
        terms = reference.terms(
            images.tolist(), texts.tolist(), forget.tolist(), caption_ids.tolist(), 5.0, 0.7, self.similarity
        )
        weights = {
            "contrastive_loss": 1.0,
            "negative_alignment_loss": 0.27,
            "positive_alignment_loss": 0.63,
            "performance_loss": 1.17,
        }
        return {name: weight * terms[name] for name, weight in weights.items()}


class TestACOfCosines(TestAC):
    similarity = staticmethod(reference.cosine)

    def space(self, dtype: torch.dtype, device: str = "cpu") -> Space:
        return Cosine(torch.tensor(5.0, dtype=dtype, device=device))


class TestACOfSigmoids(LossLaws):
    def make(self) -> nn.Module:
        return AlignmentCalibration(**WEIGHTS)

    def space(self, dtype: torch.dtype, device: str = "cpu") -> Space:
        return Sigmoid(5.0, bias=torch.tensor(-3.0, dtype=dtype, device=device))


class TestHAC(LossLaws):
    def make(self) -> nn.Module:
        return HyperbolicAlignmentCalibration(**WEIGHTS, omega=0.5, eta=2.0, entailment_weight=0.8)

    def reference(
        self, images: Tensor, texts: Tensor, forget: Tensor, caption_ids: Tensor, space: Space
    ) -> dict[str, float]:
        terms = reference.terms(
            images.tolist(), texts.tolist(), forget.tolist(), caption_ids.tolist(), 5.0, 0.7,
            reference.hyperbolic,
        )  # fmt: skip
        weights = {
            "contrastive_loss": 1.0,
            "negative_alignment_loss": 0.27,
            "positive_alignment_loss": 0.63,
            "performance_loss": 1.17,
            "entailment_loss": 0.8,
            "cone_exit_loss": 0.45,
            "norm_loss": 1.8,
        }
        return {name: weight * terms[name] for name, weight in weights.items()}

    test_gradients_match_differences = None  # none flows through the mean radius of the retained


class TestHACToTheOrigin(LossLaws):
    def make(self) -> nn.Module:
        return HyperbolicAlignmentCalibration(**WEIGHTS, target_radius="origin")


class First(ContrastiveLoss):
    """The first pair counts alone."""

    def terms(self, pairs):  # type: ignore[no-untyped-def]
        return {"first_loss": pairs.statistics.matched[0]}


class Wrong(LossLaws):
    takes_forget = False

    def make(self) -> nn.Module:
        return First()


def test_a_law_can_fail() -> None:
    with pytest.raises(AssertionError):
        Wrong().test_the_order_of_a_batch_does_not_matter()
    with pytest.raises(NotImplementedError):
        LossLaws().make()
