r"""What a space is: everything a loss or a measure asks about two sets of features.

With s the similarity of two features, larger for more similar ones, the logits are

.. math:: l_{ab} = τ\,s_{ab} + \text{bias}

and a batch's contrastive loss is made of them and of the logarithms of their normalizers. In the softmax
families (CLIP, MERU) a row's normalizer is :math:`\sum_b e^{l_{ab}}`, in the sigmoid family (SigLIP) it is
:math:`\prod_b (1 + e^{l_{ab}})`, of independent yes-or-no choices. Either way
:math:`\tfrac12(\text{rows}_a + \text{columns}_a) - l_{aa}` is what pair a costs.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from riemann_unlearn import ops
from riemann_unlearn.geometry.precision import Curvature
from riemann_unlearn.ops import Cones, Contrastive, log_sum_exp
from riemann_unlearn.registry import Registry

SPACES: Registry[type[Space]] = Registry("space", home="riemann_unlearn.spaces")
"""Spaces by name."""

Same = TypeVar("Same", bound="Space")

_ENTRIES = 2**22
"""Similarities held at a time where only their order is asked for: 16 MiB of float32."""


# Fields may be tensors, whose == is a tensor again: a space equals itself alone, and hashes by identity.
@dataclass(frozen=True, eq=False)
class Space(ABC):
    """How features compare, and what that takes.

    A subclass gives :meth:`pairwise`; everything else follows from it, by way of the matrix of similarities.
    A space with a faster or more accurate way overrides the rest. Fields are numbers or tensors; a space of
    a model holds its parameters, so gradients reach them.

    Parameters
    ----------
    scale : float or Tensor
        τ, not its logarithm.

    Examples
    --------
    A geometry of one's own:

    >>> import torch
    >>> class Manhattan(Space):
    ...     name = "manhattan"
    ...     def pairwise(self, a, b):
    ...         return -torch.cdist(a, b, p=1)
    >>> space, x = Manhattan(scale=2.0), torch.eye(3)
    >>> space.nearest(x, x, k=1).flatten().tolist()
    [0, 1, 2]
    >>> space.statistics(x, x).rows
    tensor([0.0360, 0.0360, 0.0360])
    """

    name: ClassVar[str]
    registry: ClassVar[Registry[type[Space]]] = SPACES

    scale: Curvature = 1.0

    @property
    def bias(self) -> Curvature:
        """What is added to every logit; 0 where the family has none."""
        return 0.0

    @property
    def has_cones(self) -> bool:
        """Whether there are entailment cones, so that one feature can be a kind of another."""
        return False

    # Without an annotation, which would make it a field, and an argument, of every space.
    min_radius = 0.1
    """K of the entailment cones, where there are any: they open at sinh r = 2K (MERU's is 0.1)."""

    @abstractmethod
    def pairwise(self, a: Tensor, b: Tensor) -> Tensor:
        """Similarity of every row of ``a`` with every row of ``b``, shape (N, M)."""

    def matched(self, a: Tensor, b: Tensor) -> Tensor:
        """Similarity of each row of ``a`` with the same row of ``b``, shape (N,).

        A space whose matrix loses digits for near pairs overrides this by an elementwise formula, for
        training makes exactly these pairs near.
        """
        # Diagonals of small blocks: 64 times the work that is needed, and not N times.
        pieces = [self.pairwise(a[rows], b[rows]).diagonal() for rows in _slices(len(a), 64)]
        return torch.cat(pieces) if pieces else self.pairwise(a, b).diagonal()

    def logits(self, a: Tensor, b: Tensor) -> Tensor:
        """τ·s + bias of every row of ``a`` with every row of ``b``, shape (N, M)."""
        return self.scale * self.pairwise(a, b) + self.bias

    def matched_logits(self, a: Tensor, b: Tensor) -> Tensor:
        """τ·s + bias of each row of ``a`` with the same row of ``b``, shape (N,)."""
        return self.scale * self.matched(a, b) + self.bias

    def normalizer(self, logits: Tensor, among: Tensor, dim: int) -> Tensor:
        """The logarithms of the normalizers along an axis, of those logits that count; softmax's by default.

        Parameters
        ----------
        logits : Tensor, shape (N, M)
        among : Tensor, shape (N, M)
            bool; which logits count.
        dim : int
            The axis along which they are put together.
        """
        return log_sum_exp(logits, among, dim)

    def statistics(
        self, a: Tensor, b: Tensor, *, forget: Tensor | None = None, caption_ids: Tensor | None = None
    ) -> Contrastive:
        """What the contrastive terms need of all pairs of a batch.

        Parameters
        ----------
        a, b : Tensor, shape (B, ...)
            Row i of ``a`` belongs to row i of ``b``.
        forget : Tensor, shape (B,), optional
            bool; which pairs are forget pairs. The normalizer of a retain pair runs over the retain pairs,
            that of a forget pair over the whole batch.
        caption_ids : Tensor, shape (B,), optional
            Integers; pairs with equal ids are not negatives of each other.
        """
        s = self.pairwise(a, b)
        # A product cannot resolve near pairs, and training makes the matched ones near.
        # Out of place: what pairwise returned may be saved for its backward.
        s = torch.diagonal_scatter(s, self.matched(a, b).to(s.dtype))
        return ops.from_similarities(
            s, self.scale, self.bias, forget=forget, caption_ids=caption_ids, normalizer=self.normalizer
        )

    @torch.no_grad()
    def ranks(self, features: Tensor, bank: Tensor, own: Tensor) -> Tensor:
        """How many other rows of ``bank`` are at least as similar to each feature as its own row.

        Parameters
        ----------
        features : Tensor, shape (N, ...)
        bank : Tensor, shape (M, ...)
        own : Tensor, shape (N,)
            Long; the row of ``bank`` that belongs to each feature.

        Returns
        -------
        Tensor, shape (N,)
            Long; 0 where the own row is the most similar. A tie counts against it.

        Raises
        ------
        ValueError
            For a similarity that is NaN: a broken model must not pass for one that has forgotten.
        """
        # The own similarity comes out of the same matrix: that of matched() may be rounded otherwise, and the
        # own row not be found equal to itself. It is, so it is counted once: hence the -1.
        counts = [(s >= s.gather(1, own[rows, None])).sum(1) - 1 for rows, s in self._blocks(features, bank)]
        return torch.cat(counts) if counts else own.new_zeros(0)

    @torch.no_grad()
    def nearest(self, features: Tensor, bank: Tensor, k: int) -> Tensor:
        """The rows of ``bank`` most similar to each feature, the most similar first, shape (N, k).

        Raises
        ------
        ValueError
            For a similarity that is NaN.
        """
        indices = [s.topk(k, dim=1).indices for _, s in self._blocks(features, bank)]
        return torch.cat(indices) if indices else torch.empty(0, k, dtype=torch.int64, device=bank.device)

    def mean(self, features: Tensor, own: Tensor, count: int) -> Tensor:
        """The mean of the features of each class, itself a feature.

        Parameters
        ----------
        features : Tensor, shape (N, ...)
        own : Tensor, shape (N,)
            Long; the class of each feature.
        count : int
            How many classes there are.

        Returns
        -------
        Tensor, shape (count, ...)

        Raises
        ------
        ValueError
            For a class without features, whose mean would be near to everything or to nothing.
        """
        members = torch.bincount(own, minlength=count)
        if not members.all():
            raise ValueError(f"class {int((members == 0).nonzero()[0])} has no features to take the mean of")
        # Each class has a member by now: nothing is divided by 0.
        sums = features.new_zeros(count, *features.shape[1:]).index_add(0, own, features)
        return sums / members.view(-1, *[1] * (features.ndim - 1))

    def tangents(self, x: Tensor) -> tuple[Tensor, Curvature]:
        """Features as tangent vectors at the origin of a Lorentz model, and its curvature magnitude.

        Raises
        ------
        ValueError
            For a space that is not hyperbolic.
        """
        self.require_cones()
        raise NotImplementedError(f"{type(self).__name__} says that it has cones, and has no tangents()")

    def cones(self, broad: Tensor, narrow: Tensor) -> Cones:
        """How far each row of ``narrow`` lies outside the cone of the same row of ``broad``, and both radii.

        Raises
        ------
        ValueError
            For a space without cones.
        """
        # Both c are one number: it belongs to the space and not to the features.
        (broad, c), (narrow, _) = self.tangents(broad), self.tangents(narrow)
        return ops.cones(broad, narrow, c, min_radius=self.min_radius)

    def outside(self, features: Tensor, bank: Tensor) -> Tensor:
        """How far each feature lies outside the cone of every row of ``bank``: ext - aper, in radians.

        It is held whole, and both sides are repeated for it: of many features, ask for some at a time.

        Parameters
        ----------
        features : Tensor, shape (N, ...)
        bank : Tensor, shape (M, ...)
            The broader ones, whose cones are asked about.

        Returns
        -------
        Tensor, shape (N, M)
            Not positive where the cone holds the feature.

        Raises
        ------
        ValueError
            For a space without cones.

        Examples
        --------
        >>> import torch
        >>> from riemann_unlearn.spaces import LorentzTangents
        >>> bank = torch.eye(2)
        >>> (LorentzTangents().outside(2 * bank[:1], bank) <= 0).tolist()
        [[True, False]]
        """
        broad = bank.repeat(len(features), *[1] * (bank.ndim - 1))
        pairs = self.cones(broad, features.repeat_interleave(len(bank), 0)).outside
        return pairs.view(len(features), len(bank))

    def require_cones(self) -> None:
        """Raise ValueError, with the space's name, where there are no entailment cones."""
        if not self.has_cones:
            raise ValueError(
                f"{self._described()} has no entailment cones; for the tangent vectors of a hyperbolic model "
                "pass c=, its curvature magnitude, and for points a manifold= that is hyperbolic"
            )

    def radius(self, x: Tensor) -> Tensor:
        """√c·|v|, the distance from the origin in units of the curvature radius, shape (N,).

        Raises
        ------
        ValueError
            For a space that is not hyperbolic.
        """
        v, c = self.tangents(x)
        r: Tensor = c**0.5 * v.norm(dim=-1)
        return r

    def detached(self: Same) -> Same:
        """The same space, through which no gradient reaches what it was made from."""
        # detach shares memory with the model's tensors and leaves them as they are, requires_grad and all.
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **{name: _detached(value) for name, value in values.items()})

    def check(self, name: str, features: Tensor) -> None:
        """Raise for features that are no batch of this space's.

        Raises
        ------
        TypeError
            For features that are not floating point.
        ValueError
            For features whose shape is not (B, D).
        """
        if not features.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {features.dtype}")
        if features.ndim != 2:
            raise ValueError(f"{name} must have shape (B, D), got {tuple(features.shape)}")

    def _described(self) -> str:
        """What the space is called in messages."""
        return f"the space {self.name!r}"

    def _blocks(self, features: Tensor, bank: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Rows of ``features``, a block at a time, with their similarities to the whole bank."""
        # At least a row at a time, though a bank of more than _ENTRIES rows takes more memory then.
        for rows in _slices(len(features), max(1, _ENTRIES // max(1, len(bank)))):
            s = self.pairwise(features[rows], bank)
            # Of two comparisons with NaN both are false: a feature that is none would have rank 0.
            if s.isnan().any():
                raise ValueError("the similarities contain NaN; the features, or the space, are not finite")
            yield rows, s


def require_finite(*features: Tensor) -> None:
    """Raise ValueError for features with which nothing can be compared.

    The ops count what is no number as more similar; a rank that comes of it would say something about a
    model that nothing can be said about.
    """
    # The features themselves: where there is no matrix, no NaN shows up in one.
    for side in features:
        if not side.isfinite().all():
            raise ValueError("the similarities contain NaN: the features are not finite")


# The last may reach beyond the end, where slicing stops by itself.
def _slices(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, start + size)


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
