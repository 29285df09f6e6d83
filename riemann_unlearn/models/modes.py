"""Evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; each module's own mode is back afterwards, also when an error is raised.

    Parts of a model may be in evaluation mode while it trains, such as frozen batch normalization: its
    ``model.train()`` would set all of them going again.

    Examples
    --------
    >>> import riemann_unlearn as ru
    >>> model = ru.load("clip-emoji").train()
    >>> _ = model.text.eval()
    >>> with evaluating(model):
    ...     model.training
    False
    >>> model.training, model.text.training
    (True, False)
    """
    # Each module's own: a single flag for the whole model would lose which parts were frozen.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            # The flag itself: module.train() would set the mode of everything below it as well.
            module.training = training
