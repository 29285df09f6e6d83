"""What a measure is: one object in one file, from which the audit, its tables and its page are made.

A third party's is filed by :func:`riemann_unlearn.register`, or given as an instance::

    @ru.register
    class Norms(Measure):
        name = "norms"
        title = "Norms of the features"
        reading = "How long the image features are."
        range = "≥ 0"

        def compute(self, subject, references, seed=0):
            return {"mean": subject.test.features.norm(dim=-1).mean().item()}

        def rows(self, value):
            return {"mean norm": number(value["mean"], 3)}

    ru.evaluate("meru-emoji", "emoji", forget="food-fruit", audit="full")
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from riemann_unlearn.data import Selection, Taxonomy
from riemann_unlearn.evaluation.intervals import wilson
from riemann_unlearn.registry import Registry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from riemann_unlearn.evaluation.subject import Part, Subject

ROLES = ("before", "after", "oracle")
"""The models of an audit: the untouched one, the one in question, and one trained without the forgotten."""
ROLE_NAMES = {"before": "before", "after": "after", "oracle": "retrained"}
"""What they are called in tables and figures."""
ROLE_COLOURS = {"before": "#8a97a8", "after": "#2563a8", "oracle": "#15803d"}
"""The colour that each has in every figure."""

MEASURES: Registry[Measure | type[Measure]] = Registry("measure", home="riemann_unlearn.evaluation.measures")
"""Every measure by name; the files beside this one are found by themselves."""


class Measure(ABC):
    """Something asked about a model that has, or should have, forgotten.

    A subclass sets the words, and implements :meth:`compute` and :meth:`rows`; the rest has defaults. What
    can be chosen about it are fields of a (frozen) dataclass, all with defaults.

    Attributes
    ----------
    name : str
        By which it is asked for, and under which its value stands in reports.
    title : str
        Heading of its table. It does not say on which images: :meth:`on` does.
    reading : str
        How to read it, in a sentence or two.
    range : str
        Of its values, with the unit if there is one: "0 to 1", "≥ 0, nats".
    guess : str
        What a guess scores, in words; "" where that means nothing.
    paper : str
        Whose it is, with the arXiv number; several are parted by "; ".
    order : int
        Its place among the others, from top to bottom.
    quick : bool
        Whether it belongs to the quick audit too; then its value is ``{"forget": share, "retain": share}``.
    label : str
        Of a quick measure: its row beside those of zero-shot accuracy, where there is no room for a title.
        Then ``chance`` is one figure.
    packages : tuple of str
        Modules that must be installed for it beside what the library itself needs.
    """

    registry: ClassVar[Registry[Any]] = MEASURES
    name: ClassVar[str]
    title: ClassVar[str]
    reading: ClassVar[str]
    range: ClassVar[str] = "0 to 1"
    guess: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    order: ClassVar[int] = 100
    quick: ClassVar[bool] = False
    label: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ()

    def on(self, subject: Subject) -> str:
        """What it is measured on, such as "held-out images"; by default :attr:`Subject.test`."""
        return subject.test.what

    def unmet(self, subject: Subject, references: Mapping[str, Subject]) -> str | None:
        """Why it cannot be measured, in words that follow "not measured:"; None where it can be."""
        return None

    def chance(self, taxonomy: Taxonomy, selection: Selection) -> Any:
        """What a guess scores, where that can be said without a model: a figure, or several by name."""
        return None

    @abstractmethod
    def compute(self, subject: Subject, references: Mapping[str, Subject], seed: int = 0) -> Any:
        """The value, of what JSON can hold; it is asked for only where nothing is :meth:`unmet`.

        Parameters
        ----------
        subject : Subject
            The model, its data and its features.
        references : mapping of str to Subject
            By role, the models of the same audit; "before" and "oracle" are there only where they were given.
            The subject itself is among them.
        seed : int
            Decides all randomness; the same for every model.
        """

    @abstractmethod
    def rows(self, value: Any) -> dict[str, str]:
        """One model's column of the table: for each label the text of its cell.

        Labels are the same for every model (one that another model lacks gives it a "–"); "–" stands for what
        is not known. Texts are made by :func:`percent`, :func:`number` and :func:`interval`.

        Parameters
        ----------
        value
            What :meth:`compute` gave, perhaps read back from JSON: keys are strings, tuples are lists.
        """

    def figure(self, values: Mapping[str, Any]) -> Figure | None:
        """A picture of the values of all models, or None.

        Parameters
        ----------
        values : mapping
            By role (in the order of :data:`ROLES`), what :meth:`compute` gave, perhaps read back from JSON;
            without the models that it could not be measured of.

        Returns
        -------
        matplotlib.figure.Figure or None
            Made without pyplot, about 7 inches wide, with its own title and legend; the colours are
            :data:`ROLE_COLOURS`. Implementations import matplotlib inside.
        """
        return None


def chosen_measures(
    asked: Sequence[str | Measure | type[Measure]] | None = None, *, quick: bool = False
) -> dict[str, Measure]:
    """Measures by name, in the order of their tables.

    Parameters
    ----------
    asked : sequence of str or Measure, optional
        Names or instances; by default all that are registered.
    quick : bool
        By default only those of the quick audit.

    Raises
    ------
    ValueError
        For an unknown name.
    TypeError
        For what is neither a name nor a measure, or a string in place of a sequence.
    """
    if isinstance(asked, str):
        raise TypeError(f"measures must be a sequence of names or measures, got {asked!r}; write [{asked!r}]")
    entries: Iterable[Any] = MEASURES.values() if asked is None else asked
    measures = []
    for entry in entries:
        # The registry holds classes as well as instances, and all fields of a measure have defaults.
        found = MEASURES[entry] if isinstance(entry, str) else entry
        measure = found() if isinstance(found, type) else found
        if not isinstance(measure, Measure):
            raise TypeError(f"a measure is a name or an instance of Measure, got {entry!r}")
        if asked is not None or measure.quick or not quick:
            measures.append(measure)
    # Sorted stably: of equal order, those registered first come first. An instance given beside the name of
    # its own class takes that one's place.
    return {measure.name: measure for measure in sorted(measures, key=lambda measure: measure.order)}


def require_packages(measures: Iterable[Measure]) -> None:
    """Raise ValueError where a package that a measure is made with is not installed."""
    for measure in measures:
        for package in measure.packages:
            # Looked for without importing it: a measure imports its packages when it computes.
            if importlib.util.find_spec(package) is None:
                raise ValueError(
                    f"the measure {measure.name!r} needs {package}, which is not installed: "
                    "pip install 'riemann-unlearn[audit]'"
                )


def missing(parts: Iterable[Part], *, retained: bool = False) -> str | None:
    """Which of some parts shows nothing forgotten (or nothing retained, if that is needed too), in words."""
    for part in parts:
        if not part.forgotten.any():
            return f"no {part.what} show anything forgotten"
        if retained and part.forgotten.all():
            return f"no {part.what} show anything retained"
    return None


def share(hits: Tensor) -> float | None:
    """The share of True, None of nothing."""
    # bool has no mean, and float64 holds every count exactly.
    return hits.double().mean().item() if hits.numel() else None


def percent(value: float | None, images: int | None = None) -> str:
    """A share in percent: "97.5", or with the images it is of and its interval "97.5 [92.3, 99.2] of 112".

    The interval is Wilson's at 95 % (:mod:`riemann_unlearn.evaluation.intervals`).
    """
    if value is None:
        return "–"
    if images is None:
        return f"{100 * value:.1f}"
    low, high = wilson(value, images)
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}] of {images}"


def number(value: float | None, digits: int) -> str:
    """A figure with so many decimals."""
    return "–" if value is None else f"{value:.{digits}f}"


def interval(triple: Sequence[float]) -> str:
    """A value with its interval, such as "0.50 [0.41, 0.59]"."""
    return "{:.2f} [{:.2f}, {:.2f}]".format(*triple)
