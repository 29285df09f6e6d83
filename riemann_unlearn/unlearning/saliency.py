"""Which weights to move: those that the forgotten depend on most.

SalUn (Fan et al. 2024, arXiv 2310.12508) moves only the weights with the largest gradient of the forget loss,
and leaves the others as they are; any method can be run on top of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from riemann_unlearn.training import Callback, Driver


class Saliency(Callback):
    """Puts back, after each step, the weights that are not to move.

    Parameters
    ----------
    parameters : sequence of Tensor
        Those that the optimizer moves.
    masks : sequence of Tensor or None
        One for each: the entries that may move; None for a parameter that stays.
    """

    def __init__(self, parameters: Sequence[Tensor], masks: Sequence[Tensor | None]) -> None:
        self.parameters, self.masks = parameters, masks
        self._kept: list[Tensor] = []

    def updating(self, driver: Driver) -> None:
        """Keep what was."""
        # Clones: the optimizer writes into the parameters themselves.
        self._kept = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def updated(self, driver: Driver) -> None:
        """Put it back. A masked gradient would not do: momentum and weight decay move what has none."""
        for parameter, value, mask in zip(self.parameters, self._kept, self.masks, strict=True):
            parameter.copy_(value if mask is None else torch.where(mask, parameter, value))


def saliency_masks(gradients: Sequence[Tensor | None], share: float) -> list[Tensor | None]:
    """Masks of the ``share`` of all entries that are largest in absolute value.

    Parameters
    ----------
    gradients : sequence of Tensor or None
        Of the forget loss, one for each parameter; None for one it does not depend on.
    share : float
        In (0, 1]. Ties at the threshold are all in.

    Returns
    -------
    list of Tensor or None
        bool, in the shapes of ``gradients``; None where the gradient is.

    Raises
    ------
    ValueError
        For a share outside (0, 1], or when there is no gradient at all.

    Examples
    --------
    >>> saliency_masks([torch.tensor([0.1, -3.0]), None, torch.tensor([2.0, 0.5])], 0.5)
    [tensor([False,  True]), None, tensor([ True, False])]
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    known = [gradient.abs().flatten() for gradient in gradients if gradient is not None]
    if not known:
        raise ValueError("the forget loss depends on none of the parameters")
    # One threshold for all weights together: a share of each tensor would move layers that matter to nothing.
    every = torch.cat(known)
    # A share that rounds to no entry would leave nothing to move.
    count = max(1, round(share * every.numel()))
    # The count-th largest of n is the (n - count + 1)-th smallest.
    threshold = every.kthvalue(every.numel() - count + 1).values
    return [None if gradient is None else gradient.abs() >= threshold for gradient in gradients]
