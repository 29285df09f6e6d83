"""Our own methods keep the laws that a third party's are held to."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from riemann_unlearn.testing import DirectMethodLaws, GradientMethodLaws
from riemann_unlearn.unlearning import GradientMethod, Problem, Step, setting
from riemann_unlearn.unlearning.methods import (
    AC,
    HAC,
    METHODS,
    Finetune,
    Generalize,
    GradientAscent,
    L1Sparse,
    NegGradPlus,
    NullSpace,
    Objective,
    RandomCaptions,
    Retrain,
    Tilt,
)


class TestTilt(GradientMethodLaws):
    def make(self) -> Tilt:
        return Tilt(learning_rate=1e-3)


class TestGeneralize(GradientMethodLaws):
    def make(self) -> Generalize:
        return Generalize(learning_rate=1e-3)


class TestHAC(GradientMethodLaws):
    def make(self) -> HAC:
        return HAC()


class TestAC(GradientMethodLaws):
    def make(self) -> AC:
        return AC()


class TestACByCosine(GradientMethodLaws):
    def make(self) -> AC:
        return AC(cosine=1)


class TestFinetune(GradientMethodLaws):
    def make(self) -> Finetune:
        return Finetune()


class TestL1Sparse(GradientMethodLaws):
    def make(self) -> L1Sparse:
        return L1Sparse()


class TestGradientAscent(GradientMethodLaws):
    def make(self) -> GradientAscent:
        return GradientAscent()


class TestNegGradPlus(GradientMethodLaws):
    def make(self) -> NegGradPlus:
        return NegGradPlus()


class TestRandomCaptions(GradientMethodLaws):
    order_matters = True

    def make(self) -> RandomCaptions:
        return RandomCaptions()


class TestNullSpace(DirectMethodLaws):
    def make(self) -> NullSpace:
        return NullSpace(rank=3)


class TestRetrain(DirectMethodLaws):
    def make(self) -> Retrain:
        return Retrain(epochs=1, batch_size=6)


def test_every_method_of_ours_is_held_to_them() -> None:
    held = {
        kind().make().name
        for name, kind in globals().items()
        if name.startswith("Test") and issubclass(kind, (GradientMethodLaws, DirectMethodLaws))
    }
    # Those that benchmarks register are not the library's.
    ours = {
        name
        for name, method in METHODS.items()
        if (method if isinstance(method, type) else type(method)).__module__.startswith("riemann_unlearn.")
    }
    assert held == ours


@dataclass(frozen=True)
class Broken(GradientMethod):
    """A method that keeps none of them."""

    name = "broken"
    learning_rate: float = setting(1e-3, 0, 1, "rate")
    steps: int = setting(3, 1, 10, "steps")

    def objective(self, problem: Problem) -> Objective:
        def terms(step: Step) -> dict[str, object]:
            rows = step.forget[0]
            features = step.image_features
            return {
                "first": -features[0, 0],
                "forget_loss": features[rows].square().mean(),  # NaN without a forget pair
            }

        return terms  # type: ignore[return-value]


class Laws(GradientMethodLaws):
    architectures = ("CLIP",)

    def make(self) -> Broken:
        return Broken()


@pytest.mark.parametrize(
    ("law", "arguments"),
    [
        ("test_it_says_what_it_is", ()),
        ("test_terms_are_scalars_by_name_and_finite_with_their_gradients", ()),
        ("test_the_order_of_the_pairs_is_of_no_matter", ()),
        ("test_a_batch_may_lack_either_kind", ("forget",)),
    ],
)
def test_a_method_that_breaks_a_law_is_caught(law: str, arguments: tuple[str, ...]) -> None:
    with pytest.raises(AssertionError):
        getattr(Laws(), law)(*arguments)


def test_a_method_that_fits_no_model_is_not_taken_for_a_good_one() -> None:
    class Nowhere(TestHAC):
        architectures = ("CLIP",)

    with pytest.raises(AssertionError, match="hac can be used on none of CLIP"):
        next(Nowhere().problems())
