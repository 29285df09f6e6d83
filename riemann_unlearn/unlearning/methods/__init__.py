"""The registry of methods: a list of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from riemann_unlearn.unlearning.methods.ac import AC
from riemann_unlearn.unlearning.methods.base import DirectMethod, GradientMethod, Method, Problem, Step
from riemann_unlearn.unlearning.methods.finetune import Finetune
from riemann_unlearn.unlearning.methods.gradient_ascent import GradientAscent
from riemann_unlearn.unlearning.methods.hac import HAC
from riemann_unlearn.unlearning.methods.l1_sparse import L1Sparse
from riemann_unlearn.unlearning.methods.neggrad_plus import NegGradPlus
from riemann_unlearn.unlearning.methods.nullspace import NullSpace
from riemann_unlearn.unlearning.methods.random_captions import RandomCaptions
from riemann_unlearn.unlearning.methods.retrain import Retrain
from riemann_unlearn.unlearning.methods.tilt import Tilt

__all__ = [
    "DEFAULT_METHOD",
    "DirectMethod",
    "GradientMethod",
    "Method",
    "Problem",
    "Step",
    "create_method",
    "list_methods",
]

_METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Tilt,
        HAC,
        AC,
        Finetune,
        L1Sparse,
        GradientAscent,
        NegGradPlus,
        RandomCaptions,
        NullSpace,
        Retrain,
    )
}
DEFAULT_METHOD = Tilt.name


def list_methods() -> list[type[Method]]:
    """The methods that ``ru.unlearn`` knows: dataclasses whose fields are their settings.

    Examples
    --------
    >>> [method.name for method in list_methods()][:3]
    ['tilt', 'hac', 'ac']
    """
    return list(_METHODS.values())


def create_method(name: str, settings: Mapping[str, float] | None = None) -> Method:
    """A method by name, with some of its settings changed.

    Raises
    ------
    ValueError
        For an unknown method, an unknown setting, or one outside its range.

    Examples
    --------
    >>> create_method("tilt", {"margin": 5.0})
    Tilt(learning_rate=0.0004, steps=1200, margin=5.0, retain=20.0, target=0.1, mixing=0.1, frozen=0.12)
    """
    if name not in _METHODS:
        raise ValueError(f"no method {name!r}; there are: {', '.join(_METHODS)}")
    settings = dict(settings or {})
    known = [entry.name for entry in fields(_METHODS[name])]
    if unknown := sorted(set(settings) - set(known)):
        raise ValueError(f"{name} has no setting {unknown[0]!r}; it has: {', '.join(known)}")
    return _METHODS[name](**settings)
