"""What a model's cones hold: its own images and captions, wrong ones, images that it never saw.

    python -m benchmarks.hierarchy
    python -m benchmarks.hierarchy --models meru-emoji runs/flat clip-emoji
    python -m benchmarks.hierarchy --models runs/shuffled --shuffled        # trained by --shuffled, see below

Two tables. The first has for each model what it knows by distance, seen and held out, and how many captions
lie in the cone of the caption above. The second, for models with cones, by level and part: the share of
images inside the cone of their own label; inside that of a wrong one, on average over the wrong ones; inside
that of any sibling; and the AUC of aper - ext, the own label against a random other one of the level. Cones
that are half-spaces hold everything, so the first means nothing without the second and the last.

``python -m benchmarks.hierarchy --train DIR`` trains the control: the bundled recipe on a taxonomy whose
concepts were dealt out to the groups at random. What the control reaches too is no evidence of meaning.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import riemann_unlearn as ru
from benchmarks.tree import percent, shuffled
from riemann_unlearn.data import Dataset, Samples
from riemann_unlearn.evaluation import zero_shot
from riemann_unlearn.evaluation.features import encode_images, encode_texts
from riemann_unlearn.models import list_models
from riemann_unlearn.report.text import markdown
from riemann_unlearn.spaces import Space
from riemann_unlearn.training import TrainConfig, train

KNOWS = ("accuracy", "recall_at_1", "recall_at_5", "parent_accuracy")
PAIRS = 2**18
"""Pairs of image and wrong label among which the AUC is taken: its error is below 0.1 %."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["meru-emoji"])
    parser.add_argument("--data", default="emoji")
    parser.add_argument("--shuffled", action="store_true", help="the taxonomy of the control")
    parser.add_argument("--train", type=Path, metavar="DIR", help="train the control, and measure that")
    parser.add_argument("--epochs", type=int, help="of the control (default: the recipe's)")
    options = parser.parse_args(arguments)
    dataset = ru.data.load(options.data)
    if options.shuffled or options.train:
        dataset = deal(dataset)
    if options.train:
        bundled = next(info.path for info in list_models() if info.name == "meru-emoji")
        epochs = {"epochs": options.epochs} if options.epochs else {}
        train(
            json.loads((bundled / "open_clip_config.json").read_text("utf-8")),
            TrainConfig.read_yaml(bundled / "train.yaml", **epochs),
            options.train,
            data=dataset,
        )
        options.models = [str(options.train)]
    knows, holds = [], []
    for name in options.models:
        model = ru.load(name)
        captions = [encode_texts(model, level.captions) for level in dataset.taxonomy.levels]
        parts = {"seen": dataset.seen}
        if dataset.heldout is not None:
            parts["held out"] = dataset.heldout
        figures = []
        for part, samples in parts.items():
            images = encode_images(model, samples.images)
            figures += [f"{100 * zero_shot(model, samples, image_features=images)[key]:.1f}" for key in KNOWS]
            if model.space.has_cones:
                holds += [[name, part, *row] for row in cones(model.space, images, captions, samples)]
        knows.append([name, *figures, *chain(model.space, captions, dataset)])
    heads = ("accuracy", "recall@1", "recall@5", "one level up")
    print(
        markdown(
            (
                "model",
                *(f"{part}: {head}" for part in parts for head in heads),
                "captions in the cone above",
            ),
            knows,
        )
    )
    print()
    print(
        markdown(
            ("model", "images", "level", "in own, %", "in a wrong one, %", "in any sibling's, %", "AUC"),
            holds,
        )
    )


def deal(dataset: Dataset) -> Dataset:
    """The same images, in the taxonomy of the control."""
    taxonomy = shuffled(dataset.taxonomy)
    heldout = None if dataset.heldout is None else replace(dataset.heldout, taxonomy=taxonomy)
    return replace(dataset, seen=replace(dataset.seen, taxonomy=taxonomy), heldout=heldout)


def chain(space: Space, captions: Sequence[Tensor], dataset: Dataset) -> list[str]:
    """Share of the captions of each level inside the cone of the one above, in one cell."""
    if not space.has_cones:
        return ["–"]
    shares = []
    for depth, level in enumerate(dataset.taxonomy.levels[:-1]):
        outside = space.cones(captions[depth + 1][level.parent], captions[depth]).outside
        shares.append(percent(outside <= 0))
    return [", ".join(shares)]


def cones(
    space: Space, images: Tensor, captions: Sequence[Tensor], samples: Samples
) -> list[tuple[str, ...]]:
    """By level: in the own cone, in wrong ones, in any sibling's, AUC."""
    rows = []
    for depth, (level, texts) in enumerate(zip(samples.taxonomy.levels, captions, strict=True)):
        own = samples.labels(depth)
        outside = torch.cat([space.outside(some, texts) for some in torch.split(images, 64)])
        mine = F.one_hot(own, len(texts)).bool()
        siblings = torch.zeros(0)
        if level.parent is not None:
            siblings = ((level.parent[None] == level.parent[own][:, None]) & ~mine & (outside <= 0)).any(1)
        rows.append(
            (
                level.name,
                percent(outside[mine] <= 0),
                f"{100 * (outside[~mine] <= 0).double().mean():.2f}",
                percent(siblings) if level.parent is not None else "–",
                f"{auc(outside[mine], outside[~mine]):.3f}",
            )
        )
    return rows


def auc(own: Tensor, wrong: Tensor) -> float:
    """Probability that a wrong label is farther outside than an own one."""
    generator = torch.Generator().manual_seed(0)
    wrong = wrong[torch.randint(len(wrong), (min(PAIRS, len(wrong)),), generator=generator)].sort().values
    # How many wrong ones are not farther outside than each own one.
    below = torch.searchsorted(wrong, own, right=True)
    return 1 - float(below.double().mean()) / len(wrong)


if __name__ == "__main__":
    main()
