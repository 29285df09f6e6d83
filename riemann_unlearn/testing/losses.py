"""The laws of a loss over pairs, for any module that is called as ``losses.PairLoss`` is.

Nothing is asked of what a loss means, only that it means it in every dtype, order and batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from riemann_unlearn.spaces import LorentzTangents, Space
from riemann_unlearn.testing.spaces import FORGET, IDS, assert_near, devices


class LossLaws:
    """Subclass this, name it ``Test…``, and implement :meth:`make`.

    Attributes
    ----------
    takes_forget : bool
        Whether the loss is called with a mask of the pairs to be forgotten.
    dims : sequence of int
        Widths of features that are tried.
    tolerance : float
        Of float32, relative to the largest number.
    """

    takes_forget: bool = True
    dims: Sequence[int] = (2, 16)
    tolerance: float = 1e-4

    def make(self) -> nn.Module:
        """The loss."""
        raise NotImplementedError

    def space(self, dtype: torch.dtype, device: str = "cpu") -> Space:
        """How its features compare: as tangent vectors at the origin, unless this says otherwise."""
        scale, c = torch.tensor([5.0, 0.7], dtype=dtype, device=device)
        return LorentzTangents(scale, c=c)

    def features(self, count: int, dim: int, seed: int = 0) -> Tensor:
        """Some features of that space, float64."""
        return torch.randn(count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    def reference(
        self, images: Tensor, texts: Tensor, forget: Tensor, caption_ids: Tensor, space: Space
    ) -> dict[str, float] | None:
        """The weighted terms by formulas of one's own, in float64, if there are such."""
        return None

    def sides(self, dim: int) -> tuple[Tensor, Tensor]:
        """Both sides of a batch, float64: captions that have something of their images."""
        images = self.features(9, dim, 1)
        return images, 0.6 * images + 0.4 * self.features(9, dim, 2)

    def call(
        self,
        images: Tensor,
        texts: Tensor,
        forget: Tensor = FORGET,
        caption_ids: Tensor | None = IDS,
        *,
        space: Space | None = None,
        output_dict: bool = False,
    ) -> Any:
        """The loss of a batch."""
        masks = [forget] if self.takes_forget else []
        space = self.space(images.dtype) if space is None else space
        options: dict[str, Any] = {"space": space, "output_dict": output_dict}
        if caption_ids is not None:
            options["caption_ids"] = caption_ids
        return self.make()(images, texts, *masks, **options)

    def test_the_terms_add_up(self) -> None:
        """open_clip's training loop sums the dictionary: it holds terms, weighted, and no total."""
        sides = self.sides(self.dims[-1])
        terms, total = self.call(*sides, output_dict=True), self.call(*sides)
        assert all(name.endswith("_loss") for name in terms)
        assert torch.isclose(sum(terms.values(), total.new_zeros(())), total)
        assert total.shape == ()

    def test_it_is_what_it_is_said_to_be(self) -> None:
        """Term by term, where there is a reference."""
        for dim in self.dims:
            images, texts = self.sides(dim)
            want = self.reference(images, texts, FORGET, IDS, self.space(torch.float64))
            if want is None:
                pytest.skip("no reference")
            got = self.call(images, texts, output_dict=True)
            assert got.keys() == want.keys()
            for name, value in want.items():
                assert got[name].item() == pytest.approx(value, rel=1e-9, abs=1e-12), name

    def test_gradients_match_differences(self) -> None:
        """In float64, by the features. Not a law for a loss that detaches what depends on them."""
        # The smallest width: differences are taken for each coordinate and each of its derivatives.
        sides = [side.requires_grad_() for side in self.sides(self.dims[0])]
        assert torch.autograd.gradcheck(self.call, tuple(sides))

    def test_float32_is_right(self) -> None:
        """Value and gradients are those of float64; half precision is computed in float32."""
        for dim in self.dims:
            sides = self.sides(dim)
            want = self.value(sides[0], sides[1])
            assert_near(self.value(sides[0].float(), sides[1].float()), want, self.tolerance)
            assert self.call(*(side.bfloat16() for side in sides)).dtype == torch.float32

    def test_the_order_of_a_batch_does_not_matter(self) -> None:
        """Nor which pair is first."""
        order = torch.tensor([4, 8, 1, 0, 7, 2, 6, 3, 5])
        images, texts = self.sides(self.dims[-1])
        got = self.call(images[order], texts[order], FORGET[order], IDS[order])
        assert torch.isclose(got, self.call(images, texts))

    def test_batches_that_lack_a_kind_are_finite(self) -> None:
        """Nothing to forget, nothing to retain, one of either, one pair."""
        images, texts = self.sides(self.dims[-1])
        one = torch.arange(9) == 4
        for forget in (one & False, one | True, one, ~one):
            self.finite(images, texts, forget, None)
        for forget in (one[:1], ~one[:1]):
            self.finite(images[:1], texts[:1], forget, None)

    def test_degenerate_features_have_finite_gradients(self) -> None:
        """Coincident pairs, a collapsed batch; where there is no derivative its subgradient serves."""
        for dtype in (torch.float32, torch.float64):
            for dim in self.dims:
                x = self.features(9, dim).to(dtype)
                for images, texts in ((x, x.clone()), (x[:1].repeat(9, 1), x[:1].repeat(9, 1))):
                    self.finite(images, texts, FORGET, IDS)

    def test_autocast_changes_nothing(self) -> None:
        """Distances and cosines are not for bfloat16."""
        sides = [side.float() for side in self.sides(self.dims[-1])]
        want = self.call(*sides)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.isclose(self.call(*sides), want, rtol=1e-5)

    def test_it_compiles_into_one_graph(self) -> None:
        """And gives the same value and gradients."""
        sides = [side.float() for side in self.sides(self.dims[-1])]
        loss, space = self.make(), self.space(torch.float32)
        masks = [FORGET] if self.takes_forget else []

        def plain(images: Tensor, texts: Tensor) -> Any:
            return loss(images, texts, *masks, space=space)

        # plain has one code object for all subclasses, and dynamo allows it only so many compilations.
        # aot_eager traces forward and backward and wants no C++ compiler.
        torch.compiler.reset()
        compiled = torch.compile(plain, fullgraph=True, backend="aot_eager")
        results = []
        for function in (compiled, plain):
            inputs = [side.clone().requires_grad_() for side in sides]
            result = function(*inputs)
            results.append([result.detach(), *torch.autograd.grad(result, inputs, allow_unused=True)])
        assert_near(results[0], results[1], 1e-5)

    @pytest.mark.gpu
    def test_every_device_gives_the_same(self) -> None:
        """Skipped where there is none but the CPU."""
        if not devices():
            pytest.skip("no accelerator")
        sides = [side.float() for side in self.sides(self.dims[-1])]
        want = self.value(sides[0], sides[1])
        for device in devices():
            moved = [side.to(device) for side in (*sides, FORGET, IDS)]
            got = self.value(moved[0], moved[1], moved[2], moved[3], self.space(torch.float32, device))
            assert_near([v.cpu() for v in got], want, self.tolerance)

    def value(
        self,
        images: Tensor,
        texts: Tensor,
        forget: Tensor = FORGET,
        caption_ids: Tensor | None = IDS,
        space: Space | None = None,
    ) -> list[Tensor]:
        """The loss and its gradients by the features."""
        inputs = [side.detach().clone().requires_grad_() for side in (images, texts)]
        result = self.call(inputs[0], inputs[1], forget, caption_ids, space=space)
        # A loss may leave out one side, as where there is nothing to forget: its gradient is 0, not missing.
        gradients = torch.autograd.grad(result, inputs, allow_unused=True, materialize_grads=True)
        return [result.detach(), *gradients]

    def finite(self, images: Tensor, texts: Tensor, forget: Tensor, caption_ids: Tensor | None) -> None:
        """Check that neither the loss nor a gradient is NaN or Inf."""
        for number in self.value(images, texts, forget, caption_ids):
            assert number.isfinite().all()
