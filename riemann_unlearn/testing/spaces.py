"""The laws of a space: what every loss and every measure relies on, for any subclass of ``Space``.

The fused ops and a matrix of similarities are two ways to the same numbers, and these laws do not ask which
one a space takes: they compare what it says of a batch with what it says of single pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from riemann_unlearn.spaces import Space

FORGET = torch.tensor([True, False, True, False, False, True, False, False, True])
"""Forget pairs of the laws' batch."""

IDS = torch.tensor([0, 0, 1, 2, 2, 1, 3, 4, 5])
"""Captions of its pairs: two forgotten ones mean the same, and two retained ones; one is in both kinds."""


def devices() -> list[str]:
    """What there is beside the CPU to compute on."""
    return ["cuda"] if torch.cuda.is_available() else []


class SpaceLaws:
    """Subclass this, name it ``Test…``, implement :meth:`make`, and :meth:`features` where they are special.

    Attributes
    ----------
    dims : sequence of int
        Widths of features that are tried.
    tolerance : float
        Of float32, relative to numbers of size one.
    """

    dims: Sequence[int] = (2, 16)
    tolerance: float = 1e-4

    def make(self, dtype: torch.dtype, device: str = "cpu") -> Space:
        """The space, what it holds in a dtype on a device."""
        raise NotImplementedError

    def features(self, count: int, dim: int, seed: int = 0) -> Tensor:
        """Some features, float64, no two alike."""
        return torch.randn(count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    def degenerate(self, dim: int) -> list[tuple[Tensor, Tensor]]:
        """Batches on which formulas break: coincident pairs, and a batch collapsed into one feature."""
        x = self.features(9, dim)
        return [(x, x.clone()), (x[:1].repeat(9, *[1] * (x.ndim - 1)), x[:1].repeat(9, *[1] * (x.ndim - 1)))]

    def sides(self, dim: int) -> tuple[Tensor, Tensor]:
        """Both sides of a batch, float64."""
        return self.features(9, dim, 1), self.features(9, dim, 2)

    def test_a_batch_is_its_pairs(self) -> None:
        """Similarities of single pairs are those of the matrix, and logits are scale times them plus bias."""
        space = self.make(torch.float64)
        for dim in self.dims:
            a, b = self.sides(dim)
            s = space.pairwise(a, b)
            assert s.shape == (9, 9)
            assert torch.allclose(space.pairwise(a[2:5], b[4:6]), s[2:5, 4:6], atol=1e-9)
            assert torch.allclose(space.matched(a, b), s.diagonal(), atol=1e-6)
            assert torch.allclose(space.logits(a, b), space.scale * s + space.bias)
            assert torch.allclose(space.matched_logits(a, b), space.scale * space.matched(a, b) + space.bias)

    def test_a_feature_is_as_similar_to_itself_as_to_anything(self) -> None:
        """So a model that knows an image's caption exactly ranks it first."""
        space = self.make(torch.float64)
        for dim in self.dims:
            x = self.features(9, dim)
            assert (space.pairwise(x, x) <= space.matched(x, x)[:, None] + 1e-6).all()

    def test_statistics_are_what_they_are_called(self) -> None:
        """Matched similarities; the mean of mismatched forget pairs, and how many there are."""
        space = self.make(torch.float64)
        for dim in self.dims:
            a, b = self.sides(dim)
            statistics = space.statistics(a, b, forget=FORGET, caption_ids=IDS)
            negatives = FORGET[:, None] & FORGET & (IDS[:, None] != IDS)
            assert torch.allclose(statistics.matched.double(), space.matched(a, b), atol=1e-9)
            mean = space.pairwise(a, b)[negatives].mean()
            assert torch.allclose(statistics.negative.double(), mean, atol=1e-6)
            assert int(statistics.pairs) == int(negatives.sum())

    def test_a_pair_costs_something(self) -> None:
        """(rows + columns)/2 less the matched logit is positive: no pair is free."""
        space = self.make(torch.float64)
        for dim in self.dims:
            a, b = self.sides(dim)
            statistics = space.statistics(a, b)
            own = space.scale * statistics.matched + space.bias
            assert ((statistics.rows + statistics.columns) / 2 >= own).all()

    def test_retained_pairs_are_compared_with_each_other_alone(self) -> None:
        """Their normalizers are those of the batch without the forgotten."""
        space, keep = self.make(torch.float64), ~FORGET
        for dim in self.dims:
            a, b = self.sides(dim)
            whole = space.statistics(a, b, forget=FORGET, caption_ids=IDS)
            part = space.statistics(a[keep], b[keep], caption_ids=IDS[keep])
            assert torch.allclose(whole.rows[keep], part.rows)
            assert torch.allclose(whole.columns[keep], part.columns)

    def test_forgotten_pairs_are_compared_with_the_whole_batch(self) -> None:
        """Captions that mean the same included, as L_perf asks."""
        space = self.make(torch.float64)
        for dim in self.dims:
            a, b = self.sides(dim)
            whole = space.statistics(a, b, forget=FORGET, caption_ids=IDS)
            plain = space.statistics(a, b)
            assert torch.allclose(whole.rows[FORGET], plain.rows[FORGET])
            assert torch.allclose(whole.columns[FORGET], plain.columns[FORGET])

    def test_equal_captions_are_no_negatives_of_each_other(self) -> None:
        """A retained pair's normalizer is that of the batch without the others that mean the same."""
        space = self.make(torch.float64)
        # All but pair 4, which means what pair 3 means.
        others = (IDS != 2) | (torch.arange(9) == 3)
        for dim in self.dims:
            a, b = self.sides(dim)
            whole = space.statistics(a, b, caption_ids=IDS)
            part = space.statistics(a[others], b[others], caption_ids=IDS[others])
            assert torch.allclose(whole.rows[3], part.rows[others.nonzero()[:, 0] == 3])

    def test_the_order_of_a_batch_does_not_matter(self) -> None:
        """Permuted pairs have permuted statistics."""
        space, order = self.make(torch.float64), torch.tensor([4, 8, 1, 0, 7, 2, 6, 3, 5])
        a, b = self.sides(self.dims[-1])
        plain = space.statistics(a, b, forget=FORGET, caption_ids=IDS)
        turned = space.statistics(a[order], b[order], forget=FORGET[order], caption_ids=IDS[order])
        for name in ("matched", "rows", "columns"):
            assert torch.allclose(getattr(turned, name), getattr(plain, name)[order])
        assert torch.allclose(turned.negative, plain.negative)

    def test_batches_that_lack_a_kind_are_finite(self) -> None:
        """Nothing to forget, nothing to retain, one pair."""
        space = self.make(torch.float64)
        a, b = self.sides(self.dims[-1])
        for forget in (FORGET & False, FORGET | True):
            _finite(space, a, b, forget)
        _finite(space, a[:1], b[:1], FORGET[:1])

    def test_degenerate_features_have_finite_gradients(self) -> None:
        """Where a distance has no derivative its subgradient serves; nothing is NaN or Inf."""
        for dtype in (torch.float32, torch.float64):
            space = self.make(dtype)
            for dim in self.dims:
                for a, b in self.degenerate(dim):
                    _finite(space, _cast(a, dtype), _cast(b, dtype), FORGET)

    def test_float32_is_right(self) -> None:
        """Values and gradients are those of float64, as far as float32 has them."""
        for dim in self.dims:
            sides = self.sides(dim)
            narrow = [_cast(side, torch.float32) for side in sides]
            want, slopes = _value(self.make(torch.float64), sides, FORGET)
            got, mine = _value(self.make(torch.float32), narrow, FORGET)
            assert_near([got, *mine], [want, *slopes], self.tolerance)

    def test_autocast_changes_nothing(self) -> None:
        """A cosine of bfloat16 has two digits."""
        space, (a, b) = self.make(torch.float32), self.sides(self.dims[-1])
        a, b = _cast(a, torch.float32), _cast(b, torch.float32)
        want = space.statistics(a, b).rows, space.pairwise(a, b)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = space.statistics(a, b).rows, space.pairwise(a, b)
        assert_near(got, want, self.tolerance)

    def test_ranks_count_ties_against_the_own_row(self) -> None:
        """How many others are at least as similar; a bank that holds everything twice has no rank 0."""
        space = self.make(torch.float64)
        for dim in self.dims:
            a, b = self.sides(dim)
            own = torch.arange(9)
            s = space.pairwise(a, b)
            want = (s >= s.diagonal()[:, None]).sum(1) - 1
            assert torch.equal(space.ranks(a, b, own), want)
            # Each of the others counts twice now, and the own row's twin, a tie, once.
            assert torch.equal(space.ranks(a, torch.cat([b, b]), own), 2 * want + 1)
            assert torch.equal(space.ranks(a[:0], b, own[:0]), own[:0])

    def test_the_nearest_are_the_most_similar(self) -> None:
        """The most similar first."""
        space = self.make(torch.float64)
        for dim in self.dims:
            a, b = self.sides(dim)
            assert torch.equal(space.nearest(a, b, 3), space.pairwise(a, b).topk(3, dim=1).indices)
            assert space.nearest(a[:0], b, 3).shape == (0, 3)

    def test_what_is_not_a_number_is_refused(self) -> None:
        """A broken model must not pass for one that has forgotten."""
        space = self.make(torch.float64)
        a, b = self.sides(self.dims[-1])
        a[3] = torch.nan
        with pytest.raises(ValueError, match="NaN"):
            space.ranks(a, b, torch.arange(9))
        with pytest.raises(ValueError, match="NaN"):
            space.nearest(a, b, 1)

    def test_the_mean_of_equal_features_is_that_feature(self) -> None:
        """As similar to everything as they are; and a class without any has none."""
        space = self.make(torch.float64)
        for dim in self.dims:
            a, b = self.sides(dim)
            own = torch.arange(9).repeat(2)
            means = space.mean(torch.cat([a, a]), own, 9)
            assert means.shape == a.shape
            assert torch.allclose(space.pairwise(means, b), space.pairwise(a, b), atol=1e-6)
            with pytest.raises(ValueError, match="class 9 has no features"):
                space.mean(a, torch.arange(9), 10)

    def test_cones_open_outward_or_there_are_none(self) -> None:
        """What has cones has tangent vectors and radii; a feature is not outside its own cone."""
        space = self.make(torch.float64)
        a, b = self.sides(self.dims[-1])
        if not space.has_cones:
            for ask in (space.require_cones, lambda: space.cones(a, b), lambda: space.radius(a)):
                with pytest.raises(ValueError, match="no entailment cones"):
                    ask()
            return
        space.require_cones()
        cones = space.cones(a, b)
        assert (cones.outside <= torch.pi).all()
        for radius, side in ((cones.broad_radius, a), (cones.narrow_radius, b)):
            assert torch.allclose(radius, space.radius(side).double())
            v, c = space.tangents(side)
            assert torch.allclose(radius, c**0.5 * v.norm(dim=-1))
        assert (space.cones(a, a.clone()).outside <= 0).all()

    def test_a_detached_space_is_the_same_without_gradients(self) -> None:
        """No gradient reaches what the space was made from."""
        space = self.make(torch.float64)
        a, b = self.sides(self.dims[-1])
        assert torch.equal(space.detached().logits(a, b), space.logits(a, b).detach())
        assert not space.detached().logits(a, b).requires_grad

    def test_it_compiles_into_one_graph(self) -> None:
        """And gives the same."""
        space = self.make(torch.float32)
        a, b = (_cast(side, torch.float32) for side in self.sides(self.dims[-1]))

        def loss(a: Tensor, b: Tensor) -> Tensor:
            return space.statistics(a, b, forget=FORGET).rows.sum()

        torch.compiler.reset()
        assert_near([torch.compile(loss, fullgraph=True, backend="aot_eager")(a, b)], [loss(a, b)], 1e-5)

    @pytest.mark.gpu
    def test_every_device_gives_the_same(self) -> None:
        """Skipped where there is none but the CPU."""
        if not devices():
            pytest.skip("no accelerator")
        sides = [_cast(side, torch.float32) for side in self.sides(self.dims[-1])]
        want, slopes = _value(self.make(torch.float32), sides, FORGET)
        for device in devices():
            moved = [v.to(device) for v in sides]
            got, mine = _value(self.make(torch.float32, device), moved, FORGET.to(device))
            assert_near([v.cpu() for v in (got, *mine)], [want, *slopes], self.tolerance)


def _value(space: Space, sides: Sequence[Tensor], forget: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A loss in which everything takes part, and its gradients."""
    a, b = (side.clone().requires_grad_() for side in sides)
    statistics = space.statistics(a, b, forget=forget)
    value = (statistics.rows + statistics.columns).sum() - statistics.matched.sum() + statistics.negative
    if space.has_cones:
        cones = space.cones(a, b)
        value = value + cones.outside.sum() + (cones.broad_radius - cones.narrow_radius).square().sum()
    return value.detach(), torch.autograd.grad(value, (a, b))


def _finite(space: Space, a: Tensor, b: Tensor, forget: Tensor) -> None:
    value, slopes = _value(space, (a, b), forget)
    for number in (value, *slopes):
        assert number.isfinite().all()


def assert_near(got: Sequence[Tensor], want: Sequence[Tensor], tolerance: float) -> None:
    """Check that tensors are those wanted, to a share of the largest number of each."""
    for mine, theirs in zip(got, want, strict=True):
        wide: Any = torch.promote_types(theirs.dtype, torch.float64)
        mine, theirs = mine.detach().to(wide), theirs.detach().to(wide)
        # The floor is for tensors that are all but 0: a share of nothing would ask for every bit.
        size = float(theirs.abs().max()) if theirs.numel() else 0.0
        assert torch.allclose(mine, theirs, rtol=0, atol=tolerance * max(size, 1e-3))


def _cast(features: Tensor, dtype: torch.dtype) -> Tensor:
    """Features in a dtype, complex ones in its complex one."""
    return features.to(dtype.to_complex() if features.is_complex() else dtype)
