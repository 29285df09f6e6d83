"""The model as it was, beside the one that moves."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from riemann_unlearn.unlearning.problem import Problem, Step


class FrozenCopy:
    """A model as it is now, to hold against what it becomes.

    Where the image tower is cut (:class:`~riemann_unlearn.unlearning.split.SplitTower`) the layers that stay
    give the same in both models, and run once: of the tower, what lies behind the cut is all that is copied.

    Parameters
    ----------
    problem : Problem
        Its model is in evaluation mode: layers that draw at random give nothing twice.

    Attributes
    ----------
    model : DualEncoder
        The copy, of :attr:`Problem.tower`; without gradients.

    Examples
    --------
    >>> import riemann_unlearn as ru
    >>> from riemann_unlearn.unlearning.problem import ForgetAndRetain
    >>> model, data = ru.load("meru-emoji").eval(), ru.data.load("emoji")
    >>> problem = ru.unlearning.Problem(model, data, data.taxonomy.select(["food-fruit"]))
    >>> frozen = FrozenCopy(problem)
    >>> step = ForgetAndRetain(problem, forget=1, retain=1, seed=0).draw(0)
    >>> bool((frozen.image_features(step) == step.image_features).all())
    True
    """

    def __init__(self, problem: Problem) -> None:
        self.model = copy.deepcopy(problem.tower).requires_grad_(False)
        # The copy of a compiled tower would be compiled anew, for what it gives without gradients alone.
        self.model.visual = getattr(self.model.visual, "_orig_mod", self.model.visual)

    @torch.no_grad()
    def image_features(self, step: Step) -> Tensor:
        """What :attr:`Step.image_features` was when the copy was made, shape (B, D)."""
        return step.encode_images(self.model)
