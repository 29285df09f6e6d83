"""What is said of a request before any work: that it cannot be done, or that it cannot be done well."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from riemann_unlearn.data import Dataset, Selection
from riemann_unlearn.data.duplicates import look_alikes
from riemann_unlearn.models import DualEncoder

_SHOWN = 3


def check_seen(dataset: Dataset, forget: Sequence[str]) -> None:
    """Refuse what no seen image shows, and what all of them show.

    Raises
    ------
    ValueError
        With the query that is of no seen image.
    """
    for query in forget:
        if not dataset.seen.chosen(dataset.select([query])).any():
            raise ValueError(
                f"no seen image shows {query!r}, so there is nothing to forget it by; held-out images take "
                "no part in a run. Leave it out, or give images of it among the seen ones"
            )
    if dataset.seen.chosen(dataset.select(forget)).all():
        raise ValueError(
            "every seen image shows something that is to be forgotten; nothing would be left to retain"
        )


def warn_of_look_alikes(dataset: Dataset, selection: Selection) -> None:
    """Warn of retained images that look like forgotten ones: what one teaches, the other unteaches.

    Warns
    -----
    UserWarning
        How many there are, and the first of them by name.
    """
    pairs = look_alikes(dataset.seen.images, dataset.seen.chosen(selection))
    if not pairs:
        return
    number = dataset.seen.number
    # Without ids an image is called by its row.
    named = dataset.ids if number is not None and dataset.ids else ()

    def called(row: int) -> str:
        return repr(named[int(number[row])]) if named and number is not None else f"image {row}"

    shown = _listed([f"{called(a)} like {called(b)}" for a, b in pairs])
    warnings.warn(
        f"{len(pairs)} retained images look the same as images to be forgotten ({shown}): what is "
        "unlearned of one is learned again from the other. Forget them too, as by --forget @FILE, or take "
        "them out of the data",
        stacklevel=4,
    )


def warn_of_captions(model: DualEncoder, dataset: Dataset, selection: Selection) -> None:
    """Warn of captions that the model does not read whole, or cannot tell from one on the other side.

    Warns
    -----
    UserWarning
        How many, and the first of them.
    """
    cut: list[str] = []
    same: list[str] = []
    width = 0
    for level, gone in zip(dataset.taxonomy.levels, selection.forgotten, strict=True):
        tokens = model.tokenize(level.captions).cpu()
        width = tokens.shape[1]
        # Where the last place is not padding a caption may have been cut off. It was if more of it would
        # change nothing; one that fits to the last token looks the same, so the words below say "fill".
        full = (tokens[:, -1] != model.tokenize([""]).cpu()[0, -1]).nonzero()[:, 0]
        if len(full):
            longer = model.tokenize([f"{level.captions[i]} and more" for i in full.tolist()]).cpu()
            unchanged = full[(longer == tokens[full]).all(1)]
            cut += [repr(_short(level.captions[i])) for i in unchanged.tolist()]
        retained: dict[bytes, int] = {}
        rows = [row.tobytes() for row in tokens.numpy()]
        for i in (~gone).nonzero()[:, 0].tolist():
            retained.setdefault(rows[i], i)
        for i in gone.nonzero()[:, 0].tolist():
            if rows[i] in retained:
                same.append(f"{level.labels[i]!r} and {level.labels[retained[rows[i]]]!r}")
    if cut:
        warnings.warn(
            f"{len(cut)} captions fill all of the {width} tokens that the model reads, or are longer and cut "
            f"off there ({_listed(cut)}); shorten them if what matters comes last",
            stacklevel=4,
        )
    if same:
        warnings.warn(
            f"{len(same)} labels to be forgotten read the same to the model as one that is retained "
            f"({_listed(same)}): it cannot forget one and keep the other. Word them differently, or forget "
            "both",
            stacklevel=4,
        )


def _listed(named: Sequence[str]) -> str:
    return "; ".join(named[:_SHOWN]) + ("; ..." if len(named) > _SHOWN else "")


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
