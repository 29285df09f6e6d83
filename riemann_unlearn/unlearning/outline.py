"""What a request would forget, before anything is forgotten: which images, and which lie just outside.

What is near an example image or a phrase is found by a model's features, once, and written down as a list of
images: what is forgotten, evaluated and asked again later is then the same list, whichever model is at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from riemann_unlearn.data import Dataset
from riemann_unlearn.data.images import EXTENSIONS, decode
from riemann_unlearn.evaluation.features import CHUNK, encode_images, encode_texts
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.spaces import Space
from riemann_unlearn.unlearning.checks import check_seen

_STEPS = 5
"""Thresholds on either side of the one asked for that counts are given for."""


@dataclass(frozen=True)
class Outline:
    """Images of a dataset, those of the seen part first, and which of them a request is about."""

    dataset: Dataset
    chosen: Tensor
    """bool, shape (N,)."""
    score: Tensor
    """Shape (N,): similarity to the nearest example, or where none was given, to the nearest chosen image."""
    threshold: float | None
    """The least score of what was found by examples; None without such."""

    def ids(self) -> list[str]:
        """What the chosen images are called, each once: the lines of a list for ``@FILE``.

        Raises
        ------
        ValueError
            When the dataset's images have no names.
        """
        if not self.dataset.ids:
            raise ValueError(f"the images of {self.dataset.name} have no names; a list could not say which")
        number = torch.cat([part.number for part in self.dataset.parts if part.number is not None])
        return list(dict.fromkeys(self.dataset.ids[i] for i in number[self.chosen].tolist()))

    def counts(self) -> dict[str, int]:
        """How many images there are of each kind: seen and held out, chosen and not."""
        seen = len(self.dataset.seen)
        chosen, heldout = int(self.chosen[:seen].sum()), int(self.chosen[seen:].sum())
        return {
            "forget": chosen,
            "retain": seen - chosen,
            "forget_heldout": heldout,
            "retain_heldout": len(self.chosen) - seen - heldout,
        }

    def at_thresholds(self) -> list[tuple[float, int]]:
        """Thresholds about the one asked for, the strictest first, with how many seen images each chooses.

        Each takes in about twice as many as the one before it.
        """
        if self.threshold is None:
            return []
        seen = self.score[: len(self.dataset.seen)].sort(descending=True).values
        here = int((seen >= self.threshold).sum())
        counts = {min(len(seen), max(1, round(max(here, 1) * 2.0**k))) for k in range(-_STEPS, _STEPS + 1)}
        return [(float(seen[count - 1]), count) for count in sorted(counts)]

    def shown(self, most: int) -> tuple[list[int], list[int]]:
        """Rows of seen images to look at: chosen ones, the last taken in first, and those just outside."""
        seen = len(self.dataset.seen)
        order = self.score[:seen].argsort(stable=True).tolist()
        inside = [row for row in order if self.chosen[row]]
        outside = [row for row in reversed(order) if not self.chosen[row]]
        return inside[:most], outside[:most]


def outline(
    model: DualEncoder,
    dataset: Dataset,
    *,
    forget: Sequence[str] = (),
    near: Sequence[str] = (),
    threshold: float | None = None,
) -> Outline:
    """What ``forget`` and ``near`` choose of a dataset.

    Parameters
    ----------
    model : DualEncoder
        Whose features say what is near.
    dataset : Dataset
    forget : sequence of str
        As for :meth:`riemann_unlearn.data.Dataset.select`.
    near : sequence of str
        Examples, each the path of an image file or a phrase. What is near one of them is chosen too.
    threshold : float, optional
        The similarity to an example from which on an image is near, as the model's space has it: a cosine,
        or minus a distance on a hyperboloid. Needed with ``near``.

    Raises
    ------
    ValueError
        When nothing is asked for or chosen, everything is, or an example cannot be read.
    """
    if not forget and not near:
        raise ValueError("nothing to select: name something to forget, or give an example it is near to")
    if (threshold is None) == bool(near):
        raise ValueError("examples and a threshold go together: the similarity from which on one is near")
    examples = _examples(model, near)
    parts = dataset.parts
    chosen = torch.zeros(sum(map(len, parts)), dtype=torch.bool)
    if forget:
        check_seen(dataset, forget)
        selection = dataset.select(forget)
        chosen = torch.cat([part.chosen(selection) for part in parts])
    space = model.space.detached()
    features = torch.cat([encode_images(model, part.images) for part in parts])
    if examples is None or threshold is None:
        own = features[: len(dataset.seen)][chosen[: len(dataset.seen)].to(features.device)]
        score = _nearest(space, features, own)
    else:
        score = _nearest(space, features, examples)
        chosen |= score >= threshold
    seen = chosen[: len(dataset.seen)]
    if not seen.any():
        raise ValueError(
            f"no seen image is as near as {threshold}; the nearest is at {float(score.max()):.4g}"
        )
    if seen.all():
        raise ValueError("this is every seen image, and nothing would be left to retain; ask for nearer ones")
    return Outline(dataset, chosen, score, threshold)


def _examples(model: DualEncoder, near: Sequence[str]) -> Tensor | None:
    """Features of image files and phrases."""
    if not near:
        return None
    features = []
    for example in near:
        path = Path(example).expanduser()
        if path.is_file():
            features.append(encode_images(model, [decode(path.read_bytes())]))
        elif path.suffix[1:].lower() in EXTENSIONS:
            raise ValueError(f"cannot read the example {path}: there is no such file")
        else:
            features.append(encode_texts(model, [example]))
    return torch.cat(features)


@torch.no_grad()
def _nearest(space: Space, features: Tensor, bank: Tensor) -> Tensor:
    """Similarity of each feature to the nearest of ``bank``, on the CPU."""
    best = [space.pairwise(chunk, bank).amax(1) for chunk in torch.split(features, CHUNK)]
    return torch.cat(best).float().cpu()
