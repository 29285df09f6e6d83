"""What a method is: settings, and the loss terms of one step.

A method is a frozen dataclass whose fields are its settings. The loop (``unlearning.loop``) draws the
batches, encodes them and steps the optimizer, and knows nothing else about methods.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol

from torch import Tensor

from riemann_unlearn.models import DualEncoder


@dataclass(frozen=True)
class Step:
    """One encoded batch, as a method sees it."""

    model: DualEncoder
    image_features: Tensor
    """What the model's image tower emitted, shape (B, D)."""
    text_features: dict[str, Tensor]
    """By level, each image's caption at that level, shape (B, D)."""
    caption_ids: dict[str, Tensor]
    """By level, long, shape (B,): equal ids mean the same concept."""
    forget: dict[str, Tensor]
    """By level, bool, shape (B,): whether the pair's caption names something to be forgotten."""

    def sum_over_levels(self, loss: Callable[..., dict[str, Tensor]]) -> dict[str, Tensor]:
        """A calibration loss applied at each level, its terms summed by name."""
        total: dict[str, Tensor] = {}
        for level, captions in self.text_features.items():
            terms = loss(
                self.image_features,
                captions,
                self.forget[level],
                logit_scale=self.model.logit_scale.exp(),
                c=self.model.curvature,
                caption_ids=self.caption_ids[level],
                output_dict=True,
            )
            for name, value in terms.items():
                total[name] = total[name] + value if name in total else value
        return total


class Method(Protocol):
    """The interface of a method; implementations are frozen dataclasses of settings."""

    name: ClassVar[str]
    description: ClassVar[str]
    paper: ClassVar[str]
    geometries: ClassVar[tuple[str, ...]]

    @property
    def learning_rate(self) -> float:
        """Of the optimizer."""
        ...

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""
        ...

    def terms(self, step: Step) -> dict[str, Tensor]:
        """The weighted loss terms of one step, named ``..._loss``; their sum is the loss."""
        ...


def setting(default: float, low: float, high: float, description: str) -> Any:
    """A dataclass field for a number in [low, high], with what it means."""
    return field(default=default, metadata={"range": (low, high), "description": description})


def check_settings(method: Any) -> None:
    """Raise ValueError for a setting of ``method`` that is outside its range."""
    for entry in fields(method):
        low, high = entry.metadata["range"]
        value = getattr(method, entry.name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{method.name}: {entry.name} must be a number, got {value!r}")
        if isinstance(entry.default, int) and not isinstance(value, int):
            raise ValueError(f"{method.name}: {entry.name} must be a whole number, got {value!r}")
        if not low <= value <= high:
            raise ValueError(f"{method.name}: {entry.name} must be in [{low}, {high}], got {value}")
