"""The registry of methods: one file a method, and a list of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from riemann_unlearn.unlearning.methods.ac import AC
from riemann_unlearn.unlearning.methods.base import Method, Step
from riemann_unlearn.unlearning.methods.hac import HAC

__all__ = ["AC", "DEFAULT_METHOD", "HAC", "Method", "Step", "create_method", "list_methods"]

_METHODS: dict[str, type[Method]] = {method.name: method for method in (HAC, AC)}
DEFAULT_METHOD = HAC.name


def list_methods() -> list[type[Method]]:
    """The methods that ``ru.unlearn`` knows: dataclasses whose fields are their settings.

    Examples
    --------
    >>> [method.name for method in list_methods()]
    ['hac', 'ac']
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
    >>> create_method("hac", {"alpha": 0.5}).alpha
    0.5
    """
    if name not in _METHODS:
        raise ValueError(f"no method {name!r}; there are: {', '.join(_METHODS)}")
    settings = dict(settings or {})
    known = [entry.name for entry in fields(_METHODS[name])]  # type: ignore[arg-type]
    if unknown := sorted(set(settings) - set(known)):
        raise ValueError(f"{name} has no setting {unknown[0]!r}; it has: {', '.join(known)}")
    return _METHODS[name](**settings)
