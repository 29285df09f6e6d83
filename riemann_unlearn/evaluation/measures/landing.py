r"""Where it went: the cones that hold the forgotten images, and how far from home they are.

With E(y, x) = ext(y, x) - aper(y) ≤ 0 the image x is a kind of the caption y. A concept that was forgotten
by generalizing leaves its own cone and stays in that of its parent, in no child's; one that was forgotten by
being called something else lies in a sibling's; one that was flung away lies in none, at a radius of its own.
Of the forgotten images, each by its label at the level that was asked for (or above it, where nothing is left
there either):

- *own*, *parent*: the share inside the cone of that label, and of the label above;
- *sibling*, *foreign*: the share inside the cone of a retained label of the same level, under the same parent
  or under another;
- *landed*: in the parent's cone and in no child's of it, the own one included, which is the zone of
  :class:`~riemann_unlearn.data.zone.Zone`. Above the topmost level is a root whose cone holds everything, so
  there it is to be in none;
- *wrong*: how many of the labels of the level that are not the image's own hold it, on average. Cones tell
  something only if wrong ones do not hold, so it stands beside the others;
- *steps*: edges of the tree between the image's label and the deepest caption whose cone holds it (of several
  at one level the most similar), counted through the first label above both; an image that no cone holds is
  counted from above the topmost level.

The same is said of retained images next to the forgotten ones, which should not move at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from riemann_unlearn.data.zone import Zone, level_to_leave
from riemann_unlearn.evaluation.measures.base import (
    ROLE_COLOURS,
    ROLE_NAMES,
    Measure,
    number,
    percent,
    share,
)
from riemann_unlearn.evaluation.subject import Part, Subject, evenly
from riemann_unlearn.registry import register
from riemann_unlearn.spaces import Space

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAIRS = 2**15
"""Pairs of caption and image whose cones are asked for at a time: 16 MiB a side with 128 dimensions."""


@register
@dataclass(frozen=True)
class Landing(Measure):
    """Cones that hold the forgotten images, before and after."""

    name: ClassVar[str] = "landing"
    title: ClassVar[str] = "Where it went"
    reading: ClassVar[str] = (
        "Share of the images inside each kind of cone. Gone from its own and still in its parent's is "
        "generalized; in a sibling's is called something else; at a radius far from before is thrown out. "
        "Read each beside the model before and a retrained one."
    )
    range: ClassVar[str] = "shares: 0 to 1; radius: ≥ 0; steps: ≥ 0"
    paper: ClassVar[str] = "Ganea et al. 2018, arXiv 1804.01882"
    order: ClassVar[int] = 85

    most: int = 2000
    """Images of either kind that are looked at, at even steps."""
    drawn: int = 60
    """Forgotten images in the picture."""

    def on(self, subject: Subject) -> str:
        """Both parts, each in rows of its own."""
        return " and ".join(part.what for part in subject.parts)

    def unmet(self, subject: Subject, references: Mapping[str, Subject]) -> str | None:
        """It needs cones, and forgotten images."""
        if not subject.space.has_cones:
            return f"the model's space ({subject.space.name}) has no entailment cones"
        if not any(part.forgotten.any() for part in subject.parts):
            return "no image shows what is forgotten"
        if not subject.selection.concepts.any():
            return "single images are forgotten, and no label that they could have landed out of"
        return None

    @torch.no_grad()
    def compute(self, subject: Subject, references: Mapping[str, Subject], seed: int = 0) -> dict[str, Any]:
        """By part and group, which cones hold the images.

        ``parts[what][group]`` is ``{"images", "own", "parent", "sibling", "foreign", "landed", "wrong",
        "steps", "radius"}``, None for a group without images; ``level`` and ``above`` are the names of the
        level that is left and of the one above it (None at the top); ``picture`` has what :meth:`figure`
        draws: radii and angles to the parent's axis.
        """
        levels, depth = subject.taxonomy.levels, _level(subject)
        return {
            "level": levels[depth].name,
            "above": levels[depth + 1].name if depth + 1 < len(levels) else None,
            "parts": {
                part.what: {
                    "forget": self._group(subject, part, part.forgotten),
                    "neighbours": self._group(subject, part, subject.neighbours[part.concept]),
                }
                for part in subject.parts
            },
            "picture": self._picture(subject),
        }

    def rows(self, value: Any) -> dict[str, str]:
        """By part and group, the shares in percent, the median radius and the steps."""
        level, above = value["level"], value["above"]
        labels = {
            "own": f"in the cone of its own {level}, %",
            "parent": f"in the cone of its {above}, %",
            "sibling": f"in the cone of another {level}{'' if above is None else f' of its {above}'}, %",
            "foreign": f"in the cone of another {level} elsewhere, %",
            "landed": f"in the cone of {'' if above is None else f'its {above} and of '}no {level} there, %",
            "wrong": f"cones of wrong {level} labels that hold it, %",
        }
        result = {}
        for what, groups in value["parts"].items():
            for group, figures in groups.items():
                if figures is None:
                    continue
                where = f"{group}, {what}"
                for key, label in labels.items():
                    if figures[key] is not None:
                        # Of "wrong", a mean of shares, the interval is too wide: what lies in [0, 1] varies
                        # most where it is 0 or 1.
                        result[f"{where}: {label}"] = percent(figures[key], figures["images"])
                result[f"{where}: median radius"] = number(figures["radius"], 2)
                result[f"{where}: steps in the tree to the deepest cone"] = number(figures["steps"], 2)
        return result

    def figure(self, values: Mapping[str, Any]) -> Figure | None:
        """The neighbourhood on a Poincaré disk: captions around the parent's axis, and the forgotten images.

        A point's distance from the centre is tanh(r/2), as on the Poincaré ball; its angle is that to the
        parent's direction, to the side on which the forgotten label lies. Both are exact; that several
        directions share one plane is not.
        """
        from matplotlib.figure import Figure

        shown = {role: value["picture"] for role, value in values.items() if value["picture"] is not None}
        if not shown:
            return None
        figure = Figure(figsize=(7, 3.1), layout="constrained")
        panels = figure.subplots(1, len(shown), squeeze=False)[0]
        for axes, (role, picture) in zip(panels, shown.items(), strict=True):
            _draw_disk(axes, picture, ROLE_COLOURS[role])
            axes.set_title(ROLE_NAMES[role], fontsize=9)
        first = next(iter(shown.values()))
        figure.suptitle(
            f"Forgotten images (dots) around {first['parent']!r} (square), {first['label']!r} (diamond) and "
            "its siblings (crosses)",
            fontsize=8,
        )
        return figure

    def _group(self, subject: Subject, part: Part, mask: Tensor) -> dict[str, Any] | None:
        rows = evenly(mask.nonzero()[:, 0], self.most)
        if not len(rows):
            return None
        levels, depth, space = subject.taxonomy.levels, _level(subject), subject.space
        features = part.features[rows]
        holds = [_holds(space, captions.features, features) for captions in subject.captions]
        own = part.labels(depth)[rows]
        inside = holds[depth]
        mine = inside.gather(1, own[:, None])[:, 0]
        others = inside.clone().scatter_(1, own[:, None], False)
        retained = others & ~subject.selection.forgotten[depth]
        zone = Zone.of(subject.taxonomy, depth, own.device)
        same = zone.children(own)
        landed = ~(inside & same).any(1)
        result: dict[str, Any] = {
            "images": len(rows),
            "own": share(mine),
            "parent": None,
            "sibling": share((retained & same).any(1)),
            "foreign": None,
            # Of the labels that are not its own; a level of one label has none, and 0 of none is 0.
            "wrong": (others.sum(1).double() / max(1, len(levels[depth]) - 1)).mean().item(),
            "steps": _steps(subject, part, rows, holds).mean().item(),
            "radius": space.radius(features).median().item(),
        }
        if not zone.rooted:
            in_parent = holds[depth + 1].gather(1, zone.parent[own][:, None])[:, 0]
            result["parent"] = share(in_parent)
            result["foreign"] = share((retained & ~same).any(1))
            landed &= in_parent
        result["landed"] = share(landed)
        return result

    def _picture(self, subject: Subject) -> dict[str, Any] | None:
        """Radius and angle to the parent's axis of what is drawn; None without a level above."""
        depth, part = _level(subject), subject.test
        level = subject.taxonomy.levels[depth]
        rows = part.forgotten.nonzero()[:, 0]
        if level.parent is None or not len(rows):
            return None
        # One label, the most frequent, and one parent: a disk shows one neighbourhood.
        label = int(torch.mode(part.labels(depth)[rows]).values)
        parent = int(level.parent[label])
        rows = evenly(rows[part.labels(depth)[rows] == label], self.drawn)
        siblings = [i for i in (level.parent == parent).nonzero()[:, 0].tolist() if i != label]
        captions = [captions.features for captions in subject.captions]
        space = subject.space
        vectors = [
            space.tangents(features)[0].double()
            for features in (captions[depth + 1][[parent]], captions[depth][[label]], part.features[rows])
        ]
        vectors.append(space.tangents(captions[depth][siblings])[0].double())
        axis = torch.nn.functional.normalize(vectors[0], dim=-1)
        side = torch.nn.functional.normalize(
            vectors[1] - (vectors[1] * axis).sum(-1, keepdim=True) * axis, dim=-1
        )
        _, c = space.tangents(captions[depth + 1][[parent]])

        def polar(v: Tensor) -> list[list[float]]:
            along = (v * axis).sum(-1)
            across = (v - along[:, None] * axis).norm(dim=-1)
            # A label that lies on the axis has no side. normalize then gives 0, and all go to the same one.
            sign = torch.where((v * side).sum(-1) < 0, -1.0, 1.0)
            radius = float(c) ** 0.5 * v.norm(dim=-1)
            # Not by arccos, whose slope is infinite at 0 and π: near the axis it would lose half the digits.
            return torch.stack([radius, sign * torch.atan2(across, along)], 1).tolist()

        names = ("parent_at", "label_at", "images_at", "siblings_at")
        return {
            "parent": subject.taxonomy.levels[depth + 1].labels[parent],
            "label": level.labels[label],
            **{name: polar(v) for name, v in zip(names, vectors, strict=True)},
        }


def _level(subject: Subject) -> int:
    """The lowest of the levels that forgotten images have to leave."""
    return int(level_to_leave(subject.taxonomy, subject.selection)[subject.selection.concepts].min())


def _holds(space: Space, captions: Tensor, images: Tensor) -> Tensor:
    """Whether each image lies in the cone of each caption; bool, shape (images, captions)."""
    # Both sides are written out once for every pair, so only so many images are asked about at a time.
    at_once = max(1, _PAIRS // len(captions))
    return torch.cat([space.outside(some, captions) <= 0 for some in torch.split(images, at_once)])


def _steps(subject: Subject, part: Part, rows: Tensor, holds: list[Tensor]) -> Tensor:
    """Edges between each image's label at the level asked for and the deepest caption that holds it."""
    levels, start = subject.taxonomy.levels, _level(subject)
    ancestors = [part.labels(depth)[rows] for depth in range(len(levels))]
    # What no cone holds keeps this: the edges from its label to a root above the topmost level.
    steps = torch.full((len(rows),), float(len(levels) - start), device=rows.device)
    settled = torch.zeros_like(rows, dtype=torch.bool)
    for depth, inside in enumerate(holds):
        # Levels come from specific to general, so the first that holds an image is the deepest.
        here = inside.any(1) & ~settled
        if not here.any():
            continue
        similarity = subject.space.pairwise(part.features[rows[here]], subject.captions[depth].features)
        label = similarity.masked_fill(~inside[here], -torch.inf).argmax(1)
        # Up from the caption until it meets the image's own line, which begins at the level asked for.
        up = torch.full_like(label, len(levels) - depth)
        # Two lines that never meet do so at the root above the topmost level, hence these two values.
        meeting = torch.full_like(label, len(levels))
        met = torch.zeros_like(label, dtype=torch.bool)
        for above in range(depth, len(levels)):
            now = (label == ancestors[above][here]) & ~met
            up[now], meeting[now] = above - depth, above
            met |= now
            parent = levels[above].parent
            if parent is not None:
                label = parent.to(label.device)[label]
        # Below the level asked for, the image's own line goes on down to its concept: a caption met there is
        # start - meeting edges beneath the label, one met above it meeting - start.
        steps[here] = (up + (meeting - start).abs()).to(steps.dtype)
        settled |= here
    return steps


def _draw_disk(axes: Any, picture: Mapping[str, Any], colour: str) -> None:
    from matplotlib.patches import Circle

    axes.add_patch(Circle((0, 0), 1, fill=False, color="#b8c2cf", linewidth=0.8))
    axes.plot(0, 0, ".", color="#b8c2cf", markersize=3)
    for name, marker, ink, size in (
        ("siblings_at", "x", "#586474", 4),
        ("images_at", "o", colour, 3),
        ("label_at", "D", "#c2410c", 5),
        ("parent_at", "s", "#1c2430", 5),
    ):
        points = torch.tensor(picture[name], dtype=torch.float64).reshape(-1, 2)
        radius = torch.tanh(points[:, 0] / 2)
        # The parent's axis points up.
        axes.plot(
            radius * torch.sin(points[:, 1]),
            radius * torch.cos(points[:, 1]),
            marker,
            color=ink,
            markersize=size,
            alpha=0.7,
            linestyle="none",
        )
    axes.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
