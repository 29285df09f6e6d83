"""What a method is: settings, and either the loss of one step or the whole change at once.

A method is a frozen dataclass whose fields are its settings. A :class:`GradientMethod` says what loss a batch
has; the driver draws the batches and steps the optimizer, and knows nothing else about it. A
:class:`DirectMethod` changes the model itself, in closed form or by a training of its own. A method from
outside this package is one like any other::

    @ru.register                       # for those who want its name; an instance goes wherever a name goes
    @dataclass(frozen=True)
    class Repel(GradientMethod):
        name = "repel"
        description = "Pushes forgotten images away from their captions"
        paper = "none"
        learning_rate: float = setting(1e-4, 1e-8, 1.0, "of Riemannian Adam")
        steps: int = setting(50, 1, 1_000_000, "optimizer steps")

        def objective(self, problem):
            return lambda step: {"repel_loss": -step.contrast(retained=False).clamp(max=5.0)}

    ru.unlearn(forget="food-fruit", method=Repel(steps=5))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from riemann_unlearn.models import DualEncoder
from riemann_unlearn.registry import Registry, did_you_mean
from riemann_unlearn.unlearning.problem import Problem, Step

METHODS: Registry[type[Method] | Method] = Registry("method", home="riemann_unlearn.unlearning.methods")
"""The methods by name: classes, or instances where a third party registers one."""

Objective = Callable[[Step], Mapping[str, Tensor]]
"""The weighted loss terms of one step, named ``..._loss``; their sum is the loss."""


@dataclass(frozen=True)
class Method(ABC):
    """A way to forget; its fields are its settings."""

    registry: ClassVar[Registry[type[Method] | Method]] = METHODS
    name: ClassVar[str]
    description: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    retired: ClassVar[Mapping[str, str]] = {}
    """Settings that there were, and what to write instead."""

    def __post_init__(self) -> None:
        """Refuse settings outside their ranges; a field that is no :func:`setting` is not looked at."""
        for entry in fields(self):
            if "range" not in entry.metadata:
                continue
            low, high = entry.metadata["range"]
            value = getattr(self, entry.name)
            # True is an int to Python, and would pass for a 1.
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"{self.name}: {entry.name} must be a number, got {value!r}")
            # A default that is whole says that the setting is a count; 10.5 steps would fail far from here.
            if isinstance(entry.default, int) and not isinstance(value, int):
                raise ValueError(f"{self.name}: {entry.name} must be a whole number, got {value!r}")
            # This way round, NaN is refused too: no comparison with it holds.
            if not low <= value <= high:
                raise ValueError(f"{self.name}: {entry.name} must be in [{low}, {high}], got {value}")

    def unmet(self, problem: Problem) -> str | None:
        """Why the method cannot be used on a problem, in words; None when it can.

        Asked before any work is done. A method that needs cones says so here.
        """
        return None

    def settings(self) -> dict[str, Any]:
        """All settings by name, defaults included."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}


@dataclass(frozen=True)
class GradientMethod(Method):
    """A method that takes optimizer steps on batches of forget and retain pairs."""

    forget_batch: ClassVar[int] = 32
    retain_batch: ClassVar[int] = 96

    learning_rate: float
    steps: int

    @abstractmethod
    def objective(self, problem: Problem) -> Objective:
        """The loss to be descended, made once, while the model still is what it was."""

    def parameters(self, model: DualEncoder) -> list[nn.Parameter]:
        """What the optimizer moves: all weights, and not the scalars.

        τ, c and the feature scales define the space; fixed, they keep distances comparable.
        """
        return [p for p in model.parameters() if p.ndim > 0]

    def rate(self, step: int) -> float:
        """What the learning rate is multiplied with at a step, the first being 0."""
        return 1.0


@dataclass(frozen=True)
class DirectMethod(Method):
    """A method that is no sequence of steps on the given model."""

    @abstractmethod
    def apply(self, problem: Problem, *, seed: int, folder: Path | None, progress: bool) -> None:
        """Change the model in place.

        Parameters
        ----------
        problem : Problem
        seed : int
            Decides what is left to chance.
        folder : Path or None
            Where intermediate results may be kept, to be gone on with after an interruption.
        progress : bool
            Show a progress bar, if it takes long.
        """


def setting(default: float, low: float, high: float, description: str) -> Any:
    """A dataclass field for a number in [low, high], with what it means."""
    return field(default=default, metadata={"range": (low, high), "description": description})


def create_method(method: str | type[Method] | Method, settings: Mapping[str, Any] | None = None) -> Method:
    """A method by name, from its class, or the instance itself.

    Parameters
    ----------
    method : str, class or Method
        A name from :func:`riemann_unlearn.list_methods`, a subclass of :class:`Method`, or an instance.
    settings : mapping, optional
        Settings that differ from the defaults; an instance has its own.

    Raises
    ------
    ValueError
        For an unknown method, an unknown setting, or one outside its range.
    TypeError
        For what is no method, or settings beside an instance.

    Examples
    --------
    >>> create_method("tilt", {"margin": 5.0}).margin
    5.0
    """
    entry = METHODS[method] if isinstance(method, str) else method
    settings = dict(settings or {})
    if isinstance(entry, Method):
        if settings and not isinstance(method, str):
            raise TypeError(f"settings are the instance's own; give them to {type(entry).__name__}(...)")
        # An instance that was registered is a preset: settings beside its name change some of it.
        settings = {**entry.settings(), **settings} if settings else {}
        if not settings:
            return entry
        entry = type(entry)
    if not (isinstance(entry, type) and issubclass(entry, Method) and is_dataclass(entry)):
        raise TypeError(
            "expected the name of a method, a subclass of riemann_unlearn.unlearning.Method, or an instance "
            f"of one, got {method!r}"
        )
    # Asked here and not left to __init__, whose TypeError would name neither the method nor its settings.
    known = [setting.name for setting in fields(entry)]
    if unknown := sorted(set(settings) - set(known)):
        if instead := entry.retired.get(unknown[0]):
            raise ValueError(f"{entry.name} has no setting {unknown[0]!r} any more: {instead}")
        hint = did_you_mean(unknown[0], known)
        raise ValueError(f"{entry.name} has no setting {unknown[0]!r}; {hint}It has: {', '.join(known)}")
    needed = [f.name for f in fields(entry) if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in needed if name not in settings]:
        raise ValueError(f"{entry.name} has no default for {missing[0]!r}; give it in settings")
    return entry(**settings)


def list_methods() -> list[type[Method] | Method]:
    """The methods that ``ru.unlearn`` knows: dataclasses whose fields are their settings.

    Examples
    --------
    >>> [method.name for method in list_methods()][:3]
    ['tilt', 'generalize', 'hac']
    """
    return list(METHODS.values())
