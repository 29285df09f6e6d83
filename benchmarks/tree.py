"""How well the cones of a taxonomy's tree hold what belongs to them, and nothing else.

    python -m benchmarks.tree
    python -m benchmarks.tree --shuffled          # the control: concepts dealt out to the groups at random

The tree of the bundled emoji, from what the bundled model's text tower makes of their captions
(:func:`riemann_unlearn.training.tree.embed_taxonomy`). For each level: the share of labels inside their
parent's cone; and of stand-ins for images (the point on each concept's own ray at the images' radius) the
share inside their own label's cone, inside a wrong one's on average, and inside any wrong one's. A shuffled
taxonomy has no meaning, so what holds for it as well is no evidence of one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

import riemann_unlearn as ru
from riemann_unlearn.data import Taxonomy
from riemann_unlearn.evaluation.features import encode_texts
from riemann_unlearn.report.text import markdown
from riemann_unlearn.spaces import LorentzTangents
from riemann_unlearn.training.tree import Tree, embed_taxonomy


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="meru-emoji", help="whose text tower says what is alike")
    parser.add_argument("--data", default="emoji")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--shuffled", action="store_true", help="deal the concepts out at random")
    options = parser.parse_args(arguments)
    model, taxonomy = ru.load(options.model), ru.data.load(options.data).taxonomy
    if options.shuffled:
        taxonomy = shuffled(taxonomy)
    meanings = [encode_texts(model, level.captions) for level in taxonomy.levels]
    started = time.perf_counter()
    tree = embed_taxonomy(taxonomy, meanings, steps=options.steps, progress=True)
    seconds = time.perf_counter() - started
    print(
        markdown(
            (
                "level",
                "labels",
                "in their parent's cone, %",
                "radius, median",
                "stand-ins in their own, %",
                "in a wrong one, mean %",
                "in any wrong one, %",
            ),
            rows(taxonomy, tree),
        )
    )
    print(f"\n{options.steps} steps in {seconds:.0f} s")


def shuffled(taxonomy: Taxonomy) -> Taxonomy:
    """The same concepts and groups of the same sizes, each concept in a group by chance."""
    order = torch.randperm(len(taxonomy.concepts), generator=torch.Generator().manual_seed(0)).tolist()
    dealt = [
        replace(concept, path=taxonomy.concepts[other].path)
        for concept, other in zip(taxonomy.concepts, order, strict=True)
    ]
    captions = {level.name: dict(zip(level.labels, level.captions, strict=True)) for level in taxonomy.levels}
    return Taxonomy(
        dealt, [level.name for level in taxonomy.levels], lambda level, label: captions[level][label]
    )


def rows(taxonomy: Taxonomy, tree: Tree) -> list[list[str]]:
    space = LorentzTangents(min_radius=tree.min_radius)
    images = tree.image_radius * F.normalize(tree.points[0], dim=-1)
    table = []
    for depth, (level, points) in enumerate(zip(taxonomy.levels, tree.points, strict=True)):
        nested = "–"
        if level.parent is not None:
            outside = space.cones(tree.points[depth + 1][level.parent], points).outside
            nested = percent(outside <= 0)
        inside = torch.cat([space.outside(some, points) <= 0 for some in torch.split(images, 64)])
        own = F.one_hot(taxonomy.ancestor(depth), len(points)).bool()
        wrong = inside & ~own
        table.append(
            [
                level.name,
                str(len(points)),
                nested,
                f"{points.norm(dim=-1).median():.3f}",
                percent(inside[own]),
                f"{100 * wrong.sum(1).double().mean() / (len(points) - 1):.2f}",
                percent(wrong.any(1)),
            ]
        )
    return table


def percent(hits: Tensor) -> str:
    return f"{100 * hits.double().mean():.1f}"


if __name__ == "__main__":
    main()
