"""The loop that training, unlearning, relearning and the index have in common.

A step draws a batch, moves it to the device, asks for the loss's terms, descends their sum, and tells the
callbacks. What a batch is, whose loss it is and what is done with the figures is not known here::

    driver = Driver(batches, objective, optimizer, parameters=weights, steps=100, callbacks=[History()])
    driver.run()

A step either is taken whole or is not taken at all, as far as a checkpoint can tell: one that is cut short
before the optimizer moved gives its random draws back, and one that is cut short while the optimizer moves
leaves :attr:`Driver.whole` False, so that nothing is saved of it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from riemann_unlearn import processes
from riemann_unlearn.training.schedules import constant


class Diverged(RuntimeError):
    """The loss stopped being finite; the message says when, by which term, and what mends it."""


class Batches(Protocol):
    """Where batches come from, with all that chance has to do with it."""

    def draw(self, number: int) -> Any:
        """The batch of a step, the first being number 0; moved to the device by its ``to``, if it has one."""

    def state_dict(self) -> dict[str, Any]:
        """All that decides the next draws."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""


class RandomBatches:
    """What draws batches by a generator, on which alone its next draws depend."""

    generator: torch.Generator

    def state_dict(self) -> dict[str, Any]:
        """Of the generator."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Back to it."""
        self.generator.set_state(state["generator"])


class Callback:
    """Something that is told what a driver does; override what you want to hear of.

    A callback may add figures to a step's record, which is what the history keeps. One that carries
    something from step to step returns it as its state, and is given it back when a run is resumed.

    Examples
    --------
    >>> class Printer(Callback):
    ...     def stepped(self, driver, record):
    ...         print(record["step"], round(record["loss"], 3))
    """

    def started(self, driver: Driver) -> None:
        """The first step is about to be taken; of a resumed run, the first one that is left."""

    def updating(self, driver: Driver) -> None:
        """Gradients are there and the optimizer has not moved yet."""

    def updated(self, driver: Driver) -> None:
        """The optimizer has moved: the place to put parameters back into their range."""

    def stepped(self, driver: Driver, record: dict[str, Any]) -> None:
        """A step was taken; ``record`` has its number, its loss and its terms, and takes more figures."""

    def closed(self, driver: Driver) -> None:
        """No more steps: at the end, on an interruption and on an error."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the callback, in plain values and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint kept."""


class Driver:
    """Takes optimizer steps on batches.

    Parameters
    ----------
    batches : Batches
    objective : callable
        The weighted terms of the loss of a batch, by name; their sum is descended.
    optimizer : Optimizer
        Its groups' learning rates are those that ``schedule`` multiplies.
    parameters : sequence of Tensor
        What gradients are computed of and clipped over, in this order.
    steps : int
        How many to take in all.
    schedule : callable
        What the learning rates are multiplied with at a step, the first being 0.
    gradient_clip : float, optional
        Largest norm of all gradients together.
    scaler : GradScaler, optional
        What the loss is multiplied with before gradients are taken, and these divided by before they are
        clipped, so that none vanishes in float16. A step whose gradients overflow all the same moves nothing,
        and counts.
    device : torch.device, optional
        Where batches are moved; None leaves them where they are.
    callbacks : sequence of Callback
        Told of everything in this order.

    Attributes
    ----------
    step : int
        Steps taken so far.
    batch : object
        The batch of the step that is being taken, on the device.
    whole : bool
        Whether the parameters, and what the callbacks keep, are those after ``step`` steps.

    Examples
    --------
    >>> import torch
    >>> weight = torch.nn.Parameter(torch.tensor(4.0))
    >>> class Nothing:
    ...     def draw(self, number): return number
    ...     def state_dict(self): return {}
    ...     def load_state_dict(self, state): pass
    >>> optimizer = torch.optim.SGD([weight], lr=0.25)
    >>> driver = Driver(Nothing(), lambda _: {"square_loss": weight.square()}, optimizer,
    ...                 parameters=[weight], steps=2)
    >>> driver.run()
    >>> driver.step, weight.item()
    (2, 1.0)
    """

    def __init__(
        self,
        batches: Batches,
        objective: Callable[[Any], Mapping[str, Tensor]],
        optimizer: torch.optim.Optimizer,
        *,
        parameters: Sequence[Tensor],
        steps: int,
        schedule: Callable[[int], float] = constant,
        gradient_clip: float | None = None,
        scaler: torch.amp.GradScaler | None = None,
        device: torch.device | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.batches, self.objective, self.optimizer = batches, objective, optimizer
        self.parameters, self.steps, self.schedule = list(parameters), steps, schedule
        self.gradient_clip, self.scaler, self.device = gradient_clip, scaler, device
        self.callbacks = list(callbacks)
        self.step = 0
        self.batch: Any = None
        self.whole = True
        # Read before a checkpoint is: that has the rates as the schedule left them.
        self._rates = [group["lr"] for group in optimizer.param_groups]

    def run(self) -> None:
        """Take the steps that are left.

        Raises
        ------
        Diverged
            When the loss stops being finite. The parameters are those of the last good step.
        """
        # Processes that start from one file have one model; those that were given objects may not.
        processes.share(self.parameters)
        with contextlib.ExitStack() as closing:
            for callback in self.callbacks:
                # Only what was started is closed, the last one first, also when the next one's start fails.
                callback.started(self)
                closing.callback(callback.closed, self)
            while self.step < self.steps:
                self.take_step()

    def take_step(self) -> None:
        """Take one step, whether or not it is one of those to be taken, and tell the callbacks.

        Raises
        ------
        RuntimeError
            As for :meth:`run`.
        """
        # A step that is cut short draws the same again when the run is resumed, or it would end elsewhere.
        drawn_from = self.batches.state_dict()
        try:
            record = self._descend()
        # Also of Ctrl-C, which is no Exception.
        except BaseException:
            self.batches.load_state_dict(drawn_from)  # the step was not taken
            self.batch = None
            raise
        # From here on parameters may move, and callbacks may change gradients and parameters of their own.
        self.whole = False
        for callback in self.callbacks:
            callback.updating(self)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            # From the first rates, at every step: nothing adds up, and a checkpoint's rates do not matter.
            group["lr"] = rate * self.schedule(self.step)
        if self.scaler is None:
            self.optimizer.step()
        else:
            # Leaves the step out where a gradient overflowed, and halves the scale then.
            before = self.scaler.get_scale()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            record["gradient_scale"] = self.scaler.get_scale()
            if record["gradient_scale"] < before:
                # They moved nothing, and whoever looks for a NaN need not hear of them.
                self.optimizer.zero_grad(set_to_none=True)
        for callback in self.callbacks:
            callback.updated(self)
        self.step += 1
        try:
            # Each is told, in their order, also when one before it raises: a history without the record of a
            # step that was taken would not be that of these parameters.
            # A stack calls its last entry first, hence the reversal.
            with contextlib.ExitStack() as telling:
                for callback in reversed(self.callbacks):
                    telling.callback(callback.stepped, self, record)
        finally:
            self.whole = True
        self.batch = None  # the graph that its features hold goes before the next one is made

    def _descend(self) -> dict[str, Any]:
        """Put the gradients of the next batch's loss in place, and say what it was."""
        batch = self.batches.draw(self.step)
        self.batch = batch.to(self.device) if self.device is not None and hasattr(batch, "to") else batch
        terms = self.objective(self.batch)
        loss = torch.stack(list(terms.values())).sum()
        # One question to the device for all figures.
        value, *values = torch.stack([loss.detach(), *(term.detach() for term in terms.values())]).tolist()
        # Before gradients and parameters are touched: both are then those of the last good step.
        if not math.isfinite(value):
            worst = [name for name, figure in zip(terms, values, strict=True) if not math.isfinite(figure)]
            raise Diverged(
                f"the loss became {value} at step {self.step + 1} ({', '.join(worst) or 'its sum'}); "
                "a smaller learning_rate, or smaller weights of the loss's terms, usually mends it"
            )
        # Halved at every overflow: below 1, gradients are too large, or NaN, without any scale.
        if self.scaler is not None and self.scaler.get_scale() < 1:
            raise Diverged(
                f"gradients overflow float16 at every scale down to 1, at step {self.step + 1}; the "
                "precision bfloat16, or a smaller learning_rate, usually mends it"
            )
        # backward adds to what is there, so the last step's gradients have to go.
        self.optimizer.zero_grad(set_to_none=True)
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        # Of these parameters alone: others keep their .grad, and cost nothing.
        # A callback may hold some of them still.
        moved = [p for p in self.parameters if p.requires_grad]
        scaled.backward(inputs=moved)  # type: ignore[no-untyped-call]
        # Each process has the gradient by its own rows; see riemann_unlearn.processes. The same parameters
        # have one in all of them, for all compute the same loss.
        processes.average([p.grad for p in moved if p.grad is not None])
        if self.scaler is not None:
            # After the mean, so that all processes leave out the same steps; before gradients are clipped,
            # for the bound is of these themselves.
            self.scaler.unscale_(self.optimizer)
        if self.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.gradient_clip)
        return {"step": self.step + 1, "loss": value, **dict(zip(terms, values, strict=True))}

    def state_dict(self) -> dict[str, Any]:
        """All that decides the steps that are left, but for the parameters themselves."""
        return {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "batches": self.batches.state_dict(),
            "scaler": {} if self.scaler is None else self.scaler.state_dict(),
            "callbacks": {name: callback.state_dict() for name, callback in self._named()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to where :meth:`state_dict` was called."""
        self.step = state["step"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches.load_state_dict(state["batches"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        for name, callback in self._named():
            # A callback that was added since has nothing to go on from.
            if saved := state["callbacks"].get(name):
                callback.load_state_dict(saved)

    def _named(self) -> list[tuple[str, Callback]]:
        """Each callback with its class's name and, of several of a class, its number."""
        # By class and number rather than by position alone: adding a callback of another kind gives nobody a
        # neighbour's state.
        names = [type(callback).__name__ for callback in self.callbacks]
        return [
            (f"{name} {names[:i].count(name)}", callback)
            for i, (name, callback) in enumerate(zip(names, self.callbacks, strict=True))
        ]


def as_device(device: str | torch.device) -> torch.device:
    """A device that can be computed on.

    Raises
    ------
    ValueError
        For something that names no device, one that is not there, or one GPU for several processes.

    Examples
    --------
    >>> as_device("cpu")
    device(type='cpu')
    >>> as_device("toaster")
    Traceback (most recent call last):
    ...
    ValueError: cannot compute on device 'toaster': expected one such as cpu, cuda or cuda:1
    """
    try:
        known = processes.own_device(torch.device(device))
    except RuntimeError:
        raise ValueError(
            f"cannot compute on device {str(device)!r}: expected one such as cpu, cuda or cuda:1"
        ) from None
    try:
        # torch.device knows the names; only making something there tells whether the device exists.
        torch.empty(0, device=known)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch built without it asserts
        raise ValueError(f"cannot compute on device {str(device)!r}: {str(error).splitlines()[0]}") from None
    return known
