"""WordNet nouns embedded on a hyperbolic manifold, and a subtree unlearned again.

    python -m benchmarks.wordnet [--manifold lorentz|poincare] [--dim 5] [--forget canine.n.02]

The transitive closure of the hypernyms below a root is embedded as Nickel & Kiela (2017, 2018) do, with
their ranking loss and Riemannian gradient descent, and measured by their mean rank and MAP over the
reconstructed closure. Then the pairs within a subtree are unlearned with a calibration loss while the other
pairs are held by the ranking loss. WordNet 3.0 comes with Debian's ``wordnet-base``.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geoopt
import torch
from torch import Tensor
from tqdm import tqdm

import riemann_unlearn as ru
from riemann_unlearn.io import atomic_write

WORDNET = Path("/usr/share/wordnet")
NEGATIVES = 50
"""Nodes that a true ancestor is ranked against, as in the papers."""


@dataclass(frozen=True)
class Taxonomy:
    """Nodes, and their (node, ancestor) pairs."""

    names: list[str]
    pairs: Tensor
    """(E, 2)."""

    def below(self, name: str) -> Tensor:
        """Mask of the nodes in the subtree of a node, itself included."""
        root = self.names.index(name)
        mask = torch.zeros(len(self.names), dtype=torch.bool)
        mask[self.pairs[self.pairs[:, 1] == root, 0]] = True
        mask[root] = True
        return mask


def read_nouns(folder: Path) -> tuple[dict[int, str], dict[int, list[int]]]:
    """Names such as ``canine.n.02``, and hypernyms, of all noun synsets, by offset.

    The format is wndb(5WN): ``offset file type words [word id]… pointers [symbol offset pos source]… |``,
    then the gloss; the count of words is hexadecimal. A name's number is that of the sense of its first word.
    """
    words: dict[int, str] = {}
    hypernyms: dict[int, list[int]] = {}
    for line in (folder / "data.noun").read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):  # the licence
            continue
        fields = line.split("|")[0].split()
        offset, count = int(fields[0]), int(fields[3], 16)
        words[offset] = fields[4].lower()
        pointers = fields[5 + 2 * count :]
        hypernyms[offset] = [
            int(target)
            for symbol, target in zip(pointers[::4], pointers[1::4], strict=False)
            if symbol in ("@", "@i")
        ]
    senses: dict[str, list[int]] = {}
    for line in (folder / "index.noun").read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):
            fields = line.split()
            senses[fields[0]] = [int(offset) for offset in fields[-int(fields[2]) :]]
    names = {o: f"{word}.n.{senses[word].index(o) + 1:02d}" for o, word in words.items()}
    return names, hypernyms


def closure(folder: Path, root: str) -> Taxonomy:
    """All nodes below ``root`` and all (node, ancestor) pairs among them."""
    names, hypernyms = read_nouns(folder)
    ancestors: dict[int, frozenset[int]] = {}

    def above(node: int) -> frozenset[int]:
        if node not in ancestors:
            parents = hypernyms[node]
            ancestors[node] = frozenset(parents).union(*(above(parent) for parent in parents))
        return ancestors[node]

    (top,) = (offset for offset, name in names.items() if name == root)
    nodes = [offset for offset in names if offset == top or top in above(offset)]
    number = {offset: index for index, offset in enumerate(nodes)}
    pairs = [(number[o], number[a]) for o in nodes for a in sorted(above(o)) if a in number]
    return Taxonomy([names[o] for o in nodes], torch.tensor(pairs))


def ranks(distances: Callable[[Tensor], Tensor], pairs: Tensor) -> Tensor:
    """Rank of each pair's ancestor, by distance from its node, among the nodes that are no ancestors of it.

    ``distances`` gives, for (C,) nodes, their distances from all nodes, (C, N). ``pairs`` are all pairs.
    """
    found = torch.empty(len(pairs), dtype=torch.long)
    order = pairs[:, 0].argsort()
    nodes, counts = pairs[order, 0].unique_consecutive(return_counts=True)
    places = iter(order.split(counts.tolist()))
    for part in nodes.split(64):
        for node, row in zip(part.tolist(), distances(part), strict=True):
            place = next(places)
            ancestors = pairs[place, 1]
            near, by_distance = row[ancestors].sort()
            row[node] = torch.inf
            row[ancestors] = torch.inf
            # Of how many ancestors a node is beyond; those that are beyond the k-th are not before it.
            beyond = torch.bucketize(row, near, right=True)
            before = torch.bincount(beyond, minlength=len(near) + 1).cumsum(0)[:-1]
            found[place[by_distance]] = before + 1
    return found


def quality(ranks: Tensor, pairs: Tensor) -> tuple[float, float]:
    """Mean rank and MAP of pairs with these ranks."""
    by_rank = ranks.argsort()
    by_rank = by_rank[pairs[by_rank, 0].argsort(stable=True)]
    _, counts = pairs[by_rank, 0].unique_consecutive(return_counts=True)
    hits = torch.cat([torch.arange(1, count + 1) for count in counts.tolist()])
    precision = (hits / (ranks[by_rank] + hits - 1)).double()
    average = torch.stack([part.mean() for part in precision.split(counts.tolist())])
    return ranks.double().mean().item(), average.mean().item()


def ranking_loss(manifold: geoopt.Manifold, points: Tensor, pairs: Tensor, negatives: Tensor) -> Tensor:
    """Cross-entropy of each pair's ancestor among itself and nodes drawn at random, by -distance."""
    others = torch.cat([pairs[:, 1:], negatives], 1)
    distances = manifold.dist(points[pairs[:, 0]][:, None], points[others])
    return torch.nn.functional.cross_entropy(-distances, torch.zeros(len(pairs), dtype=torch.long))


class Negatives:
    """Draws nodes that are no ancestors of a pair's node."""

    def __init__(self, taxonomy: Taxonomy, generator: torch.Generator) -> None:
        count = len(taxonomy.names)
        self.count, self.generator = count, generator
        self.keys = (taxonomy.pairs[:, 0] * count + taxonomy.pairs[:, 1]).sort().values

    def draw(self, nodes: Tensor) -> Tensor:
        """(N, NEGATIVES) nodes for N nodes."""
        drawn = torch.randint(self.count, (len(nodes), NEGATIVES), generator=self.generator)
        keys = nodes[:, None] * self.count + drawn
        found = torch.searchsorted(self.keys, keys).clamp_max(len(self.keys) - 1)
        bad = (self.keys[found] == keys) | (drawn == nodes[:, None])
        # An ancestor drawn by chance is replaced by the node's neighbour in the list of nodes.
        return torch.where(bad, (nodes[:, None] + 1) % self.count, drawn)


def embed(
    taxonomy: Taxonomy,
    manifold: geoopt.Manifold,
    dim: int,
    *,
    epochs: int,
    batch: int,
    lr: float,
    seed: int,
    checkpoint: Path | None = None,
) -> geoopt.ManifoldParameter:
    """Points of all nodes, trained with the ranking loss; goes on from ``checkpoint`` if that is a file."""
    generator = torch.Generator().manual_seed(seed)
    count = len(taxonomy.names)
    start = torch.randn(count, dim, generator=generator) * 1e-2
    if isinstance(manifold, geoopt.Lorentz):
        start = torch.nn.functional.pad(start, (1, 0))
    else:
        start = start.double()  # in float32, geoopt's ball ends at a radius of 6.2
    points = geoopt.ManifoldParameter(manifold.expmap0(start).detach(), manifold)
    optimizer = ru.optim.RiemannianSGD([points], lr=lr, max_step=1.0, retraction=False)
    steps = epochs * -(-len(taxonomy.pairs) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, cycle_momentum=False)
    negatives = Negatives(taxonomy, generator)
    done = 0
    if checkpoint is not None and checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        points.data = saved["points"]
        schedule.load_state_dict(saved["schedule"])
        optimizer.param_groups[0]["lr"] = schedule.get_last_lr()[0]
        generator.set_state(saved["generator"])
        done = saved["epochs"]
    for epoch in tqdm(range(done, epochs), desc=f"embed {count} nodes", unit="epoch", disable=None):
        for part in taxonomy.pairs[torch.randperm(len(taxonomy.pairs), generator=generator)].split(batch):
            optimizer.zero_grad()
            ranking_loss(manifold, points, part, negatives.draw(part[:, 0])).backward()
            optimizer.step()
            schedule.step()
        if checkpoint is not None:
            buffer = io.BytesIO()
            state = {"points": points.detach().as_subclass(Tensor), "schedule": schedule.state_dict()}
            state |= {"generator": generator.get_state(), "epochs": epoch + 1}
            torch.save(state, buffer)
            atomic_write(checkpoint, buffer.getvalue())
    return points


def unlearn(
    taxonomy: Taxonomy,
    points: geoopt.ManifoldParameter,
    forget: Tensor,
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
) -> None:
    """Unlearn the pairs of the mask ``forget``, in place: the twenty lines of a user's own loop."""
    manifold = points.manifold
    generator = torch.Generator().manual_seed(seed)
    negatives = Negatives(taxonomy, generator)
    calibration = ru.losses.HyperbolicAlignmentCalibration(
        alpha=0, beta=1, gamma=0, omega=0, eta=0, entailment_weight=0, manifold=manifold
    )
    optimizer = ru.optim.RiemannianAdam([points], lr=lr)
    surgery = ru.optim.GradientSurgery(optimizer)
    gone, kept = taxonomy.pairs[forget], taxonomy.pairs[~forget]
    for _ in tqdm(range(steps), desc="unlearn", unit="step", disable=None):
        lost = gone[torch.randint(len(gone), (batch,), generator=generator)]
        held = kept[torch.randint(len(kept), (4 * batch,), generator=generator)]
        both = torch.cat([lost, held[:batch]])
        mask = torch.arange(2 * batch) < batch
        terms = calibration(points[both[:, 0]], points[both[:, 1]], mask, logit_scale=1.0, output_dict=True)
        surgery.step(
            terms["positive_alignment_loss"], ranking_loss(manifold, points, held, negatives.draw(held[:, 0]))
        )


def distances(points: geoopt.ManifoldParameter) -> Callable[[Tensor], Tensor]:
    """The distances of given nodes from all, (C, N), as cosh d = -<p, q>, which is in the same order.

    In float64, one product tells apart what is 1e-3 from each other at a radius of 12.
    """
    found = points.detach().as_subclass(Tensor).double()
    if isinstance(points.manifold, geoopt.Lorentz):
        space = found[:, 1:]
    else:
        space = ru.geometry.from_poincare(found, 1.0)
    ambient = ru.geometry.to_ambient(space, 1.0)
    mirrored = ambient.clone()
    mirrored[:, 1:] *= -1
    return lambda nodes: ambient[nodes] @ mirrored.T


def report(taxonomy: Taxonomy, distances: Callable[[Tensor], Tensor], forget: Tensor) -> dict[str, float]:
    """Mean rank and MAP of all pairs, of what is to be forgotten and of the rest."""
    found = ranks(distances, taxonomy.pairs)
    parts = {"": slice(None), "forget_": forget, "rest_": ~forget}
    return {
        prefix + name: value
        for prefix, part in parts.items()
        for name, value in zip(("mean_rank", "map"), quality(found[part], taxonomy.pairs[part]), strict=True)
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print what it finds; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--manifold", choices=("lorentz", "poincare"), default="lorentz")
    parser.add_argument("--dim", type=int, default=5)
    parser.add_argument("--root", default="mammal.n.01")
    parser.add_argument("--forget", default="canine.n.02")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=20.0, help="of gradient descent (default: 20)")
    parser.add_argument("--unlearn-steps", type=int, default=300, help="0: embed only (default: 300)")
    parser.add_argument("--unlearn-lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, help="file to keep the training in, and to go on from")
    parser.add_argument("--output", type=Path, help="also write what is printed to this file")
    parser.add_argument(
        "--wordnet", type=Path, default=WORDNET, help=f"folder of data.noun (default: {WORDNET})"
    )
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning)
    manifold = ru.Lorentz() if options.manifold == "lorentz" else geoopt.PoincareBall()
    taxonomy = closure(options.wordnet, options.root)
    inside = taxonomy.below(options.forget)
    forget = inside[taxonomy.pairs].all(1)
    count = len(taxonomy.names)
    started = time.perf_counter()
    points = embed(
        taxonomy,
        manifold,
        options.dim,
        epochs=options.epochs,
        batch=options.batch,
        lr=options.lr,
        seed=options.seed,
        checkpoint=options.checkpoint,
    )
    embedded = time.perf_counter()
    result: dict[str, Any] = {
        "manifold": options.manifold,
        "dim": options.dim,
        "root": options.root,
        "nodes": count,
        "pairs": len(taxonomy.pairs),
        "epochs": options.epochs,
        "batch": options.batch,
        "lr": options.lr,
        "seed": options.seed,
        "embed_seconds": round(embedded - started, 1),
        "before": report(taxonomy, distances(points), forget),
    }
    if options.unlearn_steps:
        draw = torch.Generator().manual_seed(0)
        started = time.perf_counter()
        unlearn(
            taxonomy,
            points,
            forget,
            steps=options.unlearn_steps,
            batch=64,
            lr=options.unlearn_lr,
            seed=options.seed,
        )
        result |= {
            "forget": options.forget,
            "forget_pairs": int(forget.sum()),
            "unlearn_seconds": round(time.perf_counter() - started, 1),
            "after": report(taxonomy, distances(points), forget),
            "chance": report(taxonomy, lambda nodes: torch.rand(len(nodes), count, generator=draw), forget),
        }
    if options.output:
        atomic_write(options.output, json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
