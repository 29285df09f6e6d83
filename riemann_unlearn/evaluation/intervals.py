r"""How sure a share is: 95 % intervals of what was counted on so many images.

A share p of n images has Wilson's interval (1927), with z = 1.96:

.. math::
    \frac{p + z^2/2n \pm z\sqrt{p(1-p)/n + z^2/4n^2}}{1 + z^2/n}.

It stays in [0, 1] and has a width at 0 and at 1, where p ± z·√(p(1-p)/n) has none: of 20 images of which none
is found, up to 16 % may be. It takes the images for independent of each other. Those of one concept are not
quite, so what is pooled over several concepts has :func:`over_groups` beside it, which draws whole concepts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Z = 1.959963984540054
"""The normal distribution's 97.5 % quantile."""
FALSE_POSITIVE_RATE = 0.01
"""Of :func:`separation`: an attacker who accuses is only believed if seldom wrong."""


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of ``n`` independent images.

    Parameters
    ----------
    share : float
        In [0, 1].
    n : int
        At least 1.

    Examples
    --------
    >>> [round(bound, 3) for bound in wilson(0.0, 20)]
    [0.0, 0.161]
    >>> [round(bound, 3) for bound in wilson(0.5, 200)]
    [0.431, 0.569]
    """
    shrunk = 1 + Z**2 / n
    middle = (share + Z**2 / (2 * n)) / shrunk
    half = Z / shrunk * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    # At a share of 0 or 1 one end is that share itself, but for rounding.
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_of_two(
    first: float, of_first: tuple[float, float], second: float, of_second: tuple[float, float]
) -> tuple[float, float]:
    """The interval of the mean of two independent figures, from the interval of each.

    By Zou and Donner (2008): each end is as far from the mean as the ends on that side are together, as if
    they were sides of a right angle.

    Examples
    --------
    >>> mean_of_two(0.5, (0.2, 0.9), 0.5, (0.1, 0.8))
    (0.25, 0.75)
    """
    mean = (first + second) / 2
    low = mean - math.hypot(first - of_first[0], second - of_second[0]) / 2
    high = mean + math.hypot(of_first[1] - first, of_second[1] - second) / 2
    return low, high


def over_groups(
    values: Sequence[float], weights: Sequence[float], *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    r"""The 95 % bootstrap interval of a weighted mean, of which whole groups are drawn anew.

    Parameters
    ----------
    values : sequence of float
        One for each group, such as a share of its images.
    weights : sequence of float
        What each counts, such as how many images it has.
    resamples : int
    seed : int

    Examples
    --------
    >>> over_groups([0.25, 0.25, 0.25], [20, 30, 10])
    (0.25, 0.25)
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(values), (resamples, len(values)), generator=generator)
    value, weight = (torch.tensor(part, dtype=torch.float64)[drawn] for part in (values, weights))
    means = (value * weight).sum(1) / weight.sum(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return low, high


def separation(
    members: Tensor, nonmembers: Tensor, seed: int = 0, *, resamples: int = 1000
) -> dict[str, list[float]]:
    """AUC and TPR at 1 % FPR of a score, each with its 95 % bootstrap interval.

    Parameters
    ----------
    members, nonmembers : Tensor, shape (N,), (M,)
        Scores; higher should mean member. A tie counts half in the AUC and not at all in the TPR.
    seed : int
        Decides the resampling.
    resamples : int
        How often; the intervals are made of them.

    Examples
    --------
    >>> import torch
    >>> separation(torch.tensor([2.0, 3.0, 4.0]), torch.tensor([0.0, 1.0]))["auc"]
    [1.0, 1.0, 1.0]
    """
    members, nonmembers = members.double().cpu(), nonmembers.double().cpu()
    n, m = len(members), len(nonmembers)
    generator = torch.Generator().manual_seed(seed)
    order = torch.sort(nonmembers).values
    auc, tpr = [_auc(members, order)], [_tpr(members, nonmembers)]
    for _ in range(resamples):
        # Both kinds are resampled by themselves, so that their numbers stay what they were.
        some = members[torch.randint(n, (n,), generator=generator)]
        others = torch.sort(nonmembers[torch.randint(m, (m,), generator=generator)]).values
        auc.append(_auc(some, others))
        tpr.append(_tpr(some, others))
    return {name: _interval(torch.stack(values)) for name, values in (("auc", auc), ("tpr", tpr))}


def _auc(members: Tensor, nonmembers: Tensor) -> Tensor:
    """Share of pairs in which the member scores higher; ``nonmembers`` are sorted."""
    # How many are below, plus how many are not above: each tie is in one of the two, so half of the sum
    # counts it half. In n log n, without the matrix of pairs.
    lower = torch.searchsorted(nonmembers, members) + torch.searchsorted(nonmembers, members, right=True)
    return lower.double().mean() / (2 * len(nonmembers))


def _tpr(members: Tensor, nonmembers: Tensor) -> Tensor:
    """Share of members above the lowest threshold that at most 1 % of the non-members exceed."""
    # The (allowed + 1)-th largest: no more than `allowed` are above it. Of fewer than 100 non-members none
    # may be, and the threshold is the largest of all.
    allowed = int(FALSE_POSITIVE_RATE * len(nonmembers))
    threshold = torch.topk(nonmembers, allowed + 1).values[-1]
    return (members > threshold).double().mean()


def _interval(values: Tensor) -> list[float]:
    """The first value, and the 2.5 % and 97.5 % quantiles of the rest."""
    # The first is the estimate itself, and no resample.
    low, high = torch.quantile(values[1:], torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return [values[0].item(), low, high]
