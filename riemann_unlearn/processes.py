r"""Several processes that are one run: which rows are whose, and what they tell each other.

``torchrun --nproc-per-node N -m riemann_unlearn run ...`` starts N processes that all do the same: they draw
the same batches, and keep the same parameters. The towers are where the time goes, so their rows are what is
divided: each process encodes its own, all get the features of all, and each computes the whole loss from
them. No loss and no method knows that there are others. With F_r the features of process r's rows,

.. math:: \frac{\partial L}{\partial θ} = \sum_r \Bigl(\frac{\partial F_r}{\partial θ}\Bigr)^{\!\top}
          \frac{\partial L}{\partial F_r} + \frac{\partial L}{\partial θ}\Big|_F ,

and every process knows :math:`\partial L / \partial F` whole: backward, nothing is communicated until the
gradients of the parameters are averaged. Those of its own rows a process multiplies by N beforehand, so that
their mean is the sum, while the mean of what all of them have in common, the last term, is what each has.
(open_clip does the same in other words: ``gather_features`` with its gradient, and DDP's mean.)

What it costs to compute the loss N times over: its products take about 8·B²·D operations, a tower's passes
6·B·P of P weights a token or pixel and more; see ``docs/scale.md``.

Nothing here is about a process that was not :func:`joined`: alone, all is plain.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

Result = TypeVar("Result")

PATIENCE = timedelta(hours=2)
"""How long a process waits for another that lives: the first may be writing, or its data be slow. One that
dies is noticed at once, for its connections close."""


class Lost(RuntimeError):
    """Another process of the run has ended, and this one cannot go on without it."""


@dataclass(frozen=True)
class _Group:
    rank: int
    count: int
    store: Any
    """Where all leave what is to be known once; None alone."""


_ALONE = _Group(0, 1, None)
_group = _ALONE


def rank() -> int:
    """Which process of the run this is, from 0; 0 where there is one."""
    return _group.rank


def count() -> int:
    """How many processes the run has."""
    return _group.count


def first() -> bool:
    """Whether this is the process that writes and prints."""
    return _group.rank == 0


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the processes that torchrun has started, by the environment that it gives; alone without it.

    A program that has made torch's process group by itself keeps it::

        with riemann_unlearn.processes.joined():
            ru.unlearn(model, data, forget="owl")       # by every process, with the same arguments

    Raises
    ------
    Lost
        When the others do not come, or one of them is lost on the way.
    """
    if dist.is_available() and dist.is_initialized():
        with _as(_Group(dist.get_rank(), dist.get_world_size(), _group.store)):
            yield
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    # NCCL for what is on GPUs, and gloo for what is not, such as objects.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _talking():
        store, number, size = next(rendezvous("env://"))
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=PATIENCE)
    try:
        with _as(_Group(number, size, store)):
            yield
    finally:
        dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """In here this process does all by itself, whatever the others do; they are to do the same.

    For what is small and must have the same figures for any number of processes.
    """
    with _as(_ALONE):
        yield


def own_device(device: torch.device) -> torch.device:
    """The GPU that is this process's, where several processes are asked to compute on ``cuda``.

    Raises
    ------
    ValueError
        For one GPU that all of them would share.
    """
    if device.type != "cuda" or count() == 1:
        return device
    # By the number on its machine: the rank goes over all machines.
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank())))
    if device.index not in (None, own.index):
        raise ValueError(f"each process takes a GPU of its own; ask for cuda and not for {device}")
    torch.cuda.set_device(own)
    return own


def own_rows(rows: Tensor) -> Tensor:
    """Its share of ``rows`` for each process: as many as every other has, and at least one.

    Where they cannot be divided evenly the last ones have the last row again, which :func:`gathered` leaves
    out: parts of one size are what collectives take, and a tower need not know an empty batch.
    """
    if count() == 1 or not len(rows):
        return rows
    size = -(-len(rows) // count())
    index = torch.arange(rank() * size, (rank() + 1) * size, device=rows.device)
    return rows[index.clamp(max=len(rows) - 1)]


def gathered(features: Tensor, total: int) -> Tensor:
    """The features of all rows, of which each process has encoded its share.

    Parameters
    ----------
    features : Tensor, shape (n, D)
        Of this process's :func:`own_rows`.
    total : int
        How many rows there are in all.

    Returns
    -------
    Tensor, shape (total, D)
        The same in every process. Its gradient, which must be the same in every process as well, comes back
        to the own rows, N-fold: see above.
    """
    if count() == 1 or not total:
        return features
    everyone: Tensor = _Gather.apply(features)
    return everyone[:total]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        parts = [torch.empty_like(own) for _ in range(count())]
        with _talking():
            dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].chunk(count())[rank()] * count()


def average(tensors: Sequence[Tensor]) -> None:
    """Put the mean over the processes in the place of each tensor; nothing to do for one process."""
    if count() == 1:
        return
    for part in _buckets(tensors):
        # One message for many tensors: a message has a price of its own.
        flat, sizes = torch.cat([tensor.flatten() for tensor in part]), [tensor.numel() for tensor in part]
        with _talking():
            dist.all_reduce(flat)
        flat /= count()
        for tensor, value in zip(part, torch.split(flat, sizes), strict=True):
            tensor.copy_(value.view_as(tensor))


@torch.no_grad()
def share(tensors: Sequence[Tensor]) -> None:
    """Put what the first process has in the place of each tensor."""
    if count() == 1:
        return
    for tensor in tensors:
        # A copy that is dense: parameters may lie with channels last, which not every backend takes.
        value = tensor.detach().contiguous()
        with _talking():
            dist.broadcast(value, 0)
        tensor.copy_(value)


def agreed(work: Callable[[], Result]) -> Result:
    """What the first process gets from ``work``, or its error, in all of them; the others do nothing.

    Parameters
    ----------
    work : callable
        Its result, or what it raises, can be pickled.
    """
    if count() == 1:
        return work()
    said: list[Any] = [None, None]
    problem: Exception | None = None
    if first():
        try:
            said[0] = work()
        except Exception as error:
            problem = said[1] = error
    with _talking():
        dist.broadcast_object_list(said, 0)
    if problem is not None:
        raise problem  # itself, with where it came from
    if said[1] is not None:
        raise said[1]
    result: Result = said[0]
    return result


def exchanged(own: Result) -> list[Result]:
    """What each process gives, by rank; it can be pickled, and is on the CPU."""
    if count() == 1:
        return [own]
    everyone: list[Any] = [None] * count()
    with _talking():
        dist.all_gather_object(everyone, own)
    return everyone


def new(message: str) -> bool:
    """Whether no process of the run has said this yet; it counts as said then."""
    if _group.store is None:
        return True
    # What is in brackets may differ, such as by the address of whoever is lost.
    words = "riemann_unlearn: " + message.partition("(")[0]
    try:
        return int(_group.store.add(words, 1)) == 1
    except RuntimeError:  # whoever kept the list is gone
        return True


@contextmanager
def _as(group: _Group) -> Iterator[None]:
    global _group
    before, _group = _group, group
    try:
        yield
    finally:
        _group = before


@contextmanager
def _talking() -> Iterator[None]:
    """Say of a connection that breaks what that means."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join((str(error) or type(error).__name__).strip().split("\n")[0].split())[:200]
        raise Lost(
            "another process of the run has ended, or cannot be reached, and this one cannot go on without "
            f"it ({reason}). What ended it is for that one to say; a run with a checkpoint can be resumed"
        ) from error


_BUCKET = 2**23
"""Entries of a message, 32 MiB of float32: large enough for its start not to matter, and held twice."""


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors in their order, of one dtype and about ``_BUCKET`` entries each time."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(map(Tensor.numel, bucket)) + tensor.numel() > _BUCKET
        if bucket and (full or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
