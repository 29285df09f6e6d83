"""What every space has from its base class, and the registry."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import riemann_unlearn as ru
from riemann_unlearn import spaces
from riemann_unlearn.spaces import SPACES, Cosine, LorentzTangents, Space, base


@dataclass(frozen=True, eq=False)
class Chebyshev(Space):
    name = "chebyshev"

    def pairwise(self, a: Tensor, b: Tensor) -> Tensor:
        return -torch.cdist(a, b, p=torch.inf)


def test_a_space_of_ones_own_is_registered_by_name() -> None:
    assert list(SPACES)[:4] == ["cosine", "lorentz", "manifold", "sigmoid"]
    assert SPACES["lorentz"] is LorentzTangents
    assert ru.register(Chebyshev) is Chebyshev
    assert SPACES["chebyshev"] is Chebyshev
    with pytest.raises(ValueError, match="no space 'cosin'; did you mean 'cosine'"):
        SPACES["cosin"]


def test_the_matrix_is_held_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(70, 3, generator=generator), torch.randn(40, 3, generator=generator)
    own = torch.arange(70) % 40
    want = Chebyshev().ranks(a, b, own), Chebyshev().nearest(a, b, 3)
    sizes = []

    class Watched(Chebyshev):
        def pairwise(self, a: Tensor, b: Tensor) -> Tensor:
            sizes.append(len(a) * len(b))
            return super().pairwise(a, b)

    monkeypatch.setattr(base, "_ENTRIES", 400)
    assert torch.equal(Watched().ranks(a, b, own), want[0])
    assert torch.equal(Watched().nearest(a, b, 3), want[1])
    assert max(sizes) <= 400
    assert torch.equal(Watched().matched(a[:40], b), Chebyshev().pairwise(a[:40], b).diagonal())
    assert Chebyshev().matched(a[:0], b[:0]).shape == (0,)


def test_a_space_that_says_it_has_cones_must_have_tangent_vectors() -> None:
    class Half(Chebyshev):
        has_cones = True

    x = torch.eye(3)
    with pytest.raises(ValueError, match="the space 'chebyshev' has no entailment cones"):
        Chebyshev().cones(x, x)
    with pytest.raises(NotImplementedError, match="says that it has cones"):
        Half().cones(x, x)


def test_features_that_are_no_batch_are_refused() -> None:
    with pytest.raises(TypeError, match="images must be floating point"):
        Cosine().check("images", torch.ones(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"images must have shape \(B, D\), got \(3,\)"):
        Cosine().check("images", torch.ones(3))


def test_a_curvature_and_a_k_must_be_positive() -> None:
    with pytest.raises(ValueError, match="c must be positive, got -1"):
        LorentzTangents(c=-1.0)
    with pytest.raises(ValueError, match="min_radius must be positive, got 0"):
        LorentzTangents(min_radius=0)


def test_a_mean_of_cosines_is_a_direction() -> None:
    """Digit for digit what the audit's prototypes were before there were spaces."""
    generator = torch.Generator().manual_seed(0)
    features, own = torch.randn(40, 8, generator=generator), torch.randint(0, 5, (40,), generator=generator)
    sums = features.new_zeros(5, 8).index_add(0, own, features) / torch.bincount(own)[:, None]
    assert torch.equal(LorentzTangents().mean(features, own, 5), sums)
    assert torch.equal(Cosine().mean(features, own, 5), torch.nn.functional.normalize(sums, dim=-1))


def test_gradients_reach_what_a_space_was_made_from() -> None:
    log_c, log_scale = torch.zeros((), requires_grad=True), torch.zeros((), requires_grad=True)
    space = LorentzTangents(log_scale.exp(), c=log_c.exp())
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    value = space.statistics(x, x.flip(0)).rows.sum()
    assert all(g.abs() > 0 for g in torch.autograd.grad(value, [log_c, log_scale]))
    assert not space.detached().statistics(x, x.flip(0)).rows.requires_grad


def test_every_public_name_is_there() -> None:
    for name in spaces.__all__:
        assert getattr(spaces, name) is not None


def test_every_feature_is_held_against_every_cone() -> None:
    generator = torch.Generator().manual_seed(0)
    features, bank = (torch.randn(n, 4, generator=generator) for n in (3, 5))
    space = LorentzTangents(c=0.7, min_radius=0.2)
    one_by_one = [[space.cones(bank[[j]], features[[i]]).outside for j in range(5)] for i in range(3)]
    assert torch.equal(space.outside(features, bank), torch.tensor(one_by_one, dtype=torch.float64))
    with pytest.raises(ValueError, match="no entailment cones"):
        Cosine().outside(features, bank)
