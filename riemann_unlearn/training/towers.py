r"""How a model's towers are run on a batch: in which precision, and how much of it at a time.

A contrastive loss couples all pairs of a batch, so its gradient is no sum over parts of the batch, and plain
gradient accumulation descends another loss. But the loss couples the pairs through their features alone:

.. math:: \frac{\partial L}{\partial θ} = \sum_{k} \Bigl(\frac{\partial F_k}{\partial θ}\Bigr)^{\!\top}
          \frac{\partial L}{\partial F_k},

with F_k the features of the k-th part. So the features of all parts are made first, without keeping what
their backward pass needs; the loss of the whole batch gives the gradient of each; and each part is run once
more, its own backward pass right behind it (GradCache: Gao et al. 2021, arXiv 2101.06983). Loss and gradient
are those of the whole batch, the memory is that of one part, and the price is one more forward pass. That is
activation checkpointing with a part of the batch as the segment, which is how it is done here.

Features leave here in float32 whatever the towers ran in, and nothing but the towers is ever under autocast:
distances of near pairs need every digit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from riemann_unlearn import processes
from riemann_unlearn.config import PRECISIONS
from riemann_unlearn.models import DualEncoder


@dataclass(frozen=True)
class Towers:
    """How the towers of a model are run on a batch.

    Parameters
    ----------
    precision : str
        "float32", or "bfloat16" or "float16" for autocast.
    micro_batch : int, optional
        Images, or texts, that a tower is run on at a time; all by default.

    Raises
    ------
    ValueError
        For a precision that there is not, or a part of no rows.

    Examples
    --------
    >>> import torch, riemann_unlearn as ru
    >>> model, images = ru.load("meru-emoji"), torch.rand(5, 3, 56, 56)
    >>> whole, parts = Towers().images(model, images), Towers(micro_batch=2).images(model, images)
    >>> torch.allclose(whole, parts, atol=1e-5)
    True
    """

    precision: str = "float32"
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch must be at least 1, or None for all, got {self.micro_batch}")

    def images(self, model: DualEncoder, images: Tensor) -> Tensor:
        """Features of raw images on the model's device, float32 of shape (N, D).

        Parameters
        ----------
        model : DualEncoder
        images : Tensor, shape (N, 3, H, W)
        """
        return self.run(model, lambda some: model.encode_image(model.preprocess(some)), images)

    def texts(self, model: DualEncoder, texts: Sequence[str]) -> Tensor:
        """Features of texts, float32 of shape (N, D)."""
        return self.run(model, model.encode_text, model.tokenize(texts))

    def scaler(self, device: torch.device) -> torch.amp.GradScaler | None:
        """What keeps small gradients from vanishing in float16; None in the other precisions.

        bfloat16 has float32's exponents, so nothing vanishes there.
        """
        return torch.amp.GradScaler(device.type) if self.precision == "float16" else None

    def run(self, model: DualEncoder, encode: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """What a tower, or a part of one, gives of its inputs, float32.

        Parameters
        ----------
        model : DualEncoder
            Whose it is.
        encode : callable
            From some inputs to what is made of them, row by row.
        rows : Tensor, shape (N, ...)
        """
        dtype = None if self.precision == "float32" else getattr(torch, self.precision)

        def features(part: Tensor) -> Tensor:
            if dtype is None:  # under a caller's own autocast, if there is one
                return encode(part).float()
            # Said here and not around the checkpoint: it is run a second time, in the backward pass.
            with torch.autocast(model.device.type, dtype=dtype):
                return encode(part).float()

        # Of several processes each encodes a share, and has the features of all.
        return processes.gathered(self._in_parts(features, processes.own_rows(rows)), len(rows))

    def _in_parts(self, features: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        if self.micro_batch is None or len(rows) <= self.micro_batch:
            return features(rows)
        parts = torch.split(rows, self.micro_batch)
        # Without a gradient there is nothing to keep, and checkpoint would only warn of it.
        if not torch.is_grad_enabled():
            return torch.cat([features(part) for part in parts])
        # Not the reentrant kind, which needs an input that takes a gradient: pixels and tokens take none. The
        # backward pass comes to the last part first and has done with it before the one before it, so one
        # part's activations are held at a time.
        return torch.cat([checkpoint(features, part, use_reentrant=False) for part in parts])


WHOLE = Towers()
"""The whole batch at once, in float32."""


def prepare_towers(model: DualEncoder, *, grad_checkpointing: bool = False, compile: bool = False) -> None:
    """Have the towers keep fewer activations, and compile them; in place, and for good.

    Parameters
    ----------
    model : DualEncoder
    grad_checkpointing : bool
        Keep what goes into each block alone, and run the block again in the backward pass.
    compile : bool
        By :meth:`torch.nn.Module.compile`, when they first run: names of weights stay as they are.

    Raises
    ------
    ValueError
        When no tower offers activation checkpointing.
    """
    towers = (model.visual, model.text)
    if grad_checkpointing:
        for tower in towers:
            # A tower of one's own need not have it.
            getattr(tower, "set_grad_checkpointing", lambda _: None)(True)
        # Asked of the blocks: open_clip's ResNet and some of timm's take the call and do nothing.
        if not any(_checkpoints(module) for tower in towers for module in tower.modules()):
            raise ValueError(
                f"grad_checkpointing: neither tower of this {model.name} offers it; leave it out, and give "
                "micro_batch, which bounds the memory of any tower"
            )
    if compile:
        for tower in towers:
            tower.compile()


def check_parts(model: DualEncoder, *, micro_batch: int | None) -> None:
    """Refuse to train in parts, or in several processes, what looks at a batch as a whole.

    Raises
    ------
    ValueError
        For batch normalization in training mode: its statistics are of the rows that it is given, so parts
        of a batch would be normalized by their own, and moved by each.
    """
    if micro_batch is None and processes.count() == 1:
        return
    asked = "several processes" if micro_batch is None else "micro_batch"
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"{asked}: {name} normalizes by the statistics of the whole batch, which parts of it do not "
                "have; train in one process without micro_batch, or towers without batch normalization"
            )


def _checkpoints(module: nn.Module) -> bool:
    """Whether a block has been told to checkpoint, in open_clip's and timm's words or in transformers'."""
    return any(getattr(module, name, False) is True for name in _CHECKPOINTING)


_CHECKPOINTING = ("grad_checkpointing", "gradient_checkpointing")
