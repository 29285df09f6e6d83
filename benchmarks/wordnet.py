"""WordNet nouns embedded on a hyperbolic manifold, and a subtree unlearned again.

    python -m benchmarks.wordnet [--manifold lorentz|poincare] [--dim 5] [--forget canine.n.02]

The transitive closure of the hypernyms below a root is embedded as Nickel & Kiela (2017, 2018) do, with
their ranking loss, and measured by their mean rank and MAP over the reconstructed closure. Then the pairs
within a subtree are unlearned with a calibration loss while the other pairs are held by the ranking loss.
WordNet 3.0 comes with Debian's ``wordnet-base``.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import geoopt
import torch
from torch import Tensor
from tqdm import tqdm

import riemann_unlearn as ru

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


def quality(distances: Tensor, pairs: Tensor, known: Tensor) -> tuple[float, float]:
    """Mean rank and MAP of ``pairs``.

    The ancestors of a node are ranked by distance among the nodes that are no ancestors of it by ``known``,
    which is all pairs also where ``pairs`` are some.
    """
    truth = torch.zeros_like(distances, dtype=torch.bool)
    truth[known[:, 0], known[:, 1]] = True
    of_node = defaultdict(list)
    for node, ancestor in pairs.tolist():
        of_node[node].append(ancestor)
    ranks, precisions = [], []
    for node, ancestors in of_node.items():
        row = distances[node].clone()
        row[node] = torch.inf
        others = row[~truth[node]].sort().values
        rank = torch.searchsorted(others, row[ancestors].sort().values) + 1
        hits = torch.arange(1, len(ancestors) + 1)
        ranks.append(rank.double())
        precisions.append((hits / (rank + hits - 1)).mean())
    return torch.cat(ranks).mean().item(), torch.stack(precisions).mean().item()


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
    taxonomy: Taxonomy, manifold: geoopt.Manifold, dim: int, *, epochs: int, batch: int, lr: float, seed: int
) -> geoopt.ManifoldParameter:
    """Points of all nodes, trained with the ranking loss."""
    generator = torch.Generator().manual_seed(seed)
    count = len(taxonomy.names)
    start = torch.randn(count, dim, generator=generator) * 1e-2
    if isinstance(manifold, geoopt.Lorentz):
        start = torch.nn.functional.pad(start, (1, 0))
    points = geoopt.ManifoldParameter(manifold.expmap0(start).detach(), manifold)
    optimizer = ru.optim.RiemannianAdam([points], lr=lr)
    steps = epochs * -(-len(taxonomy.pairs) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, cycle_momentum=False)
    negatives = Negatives(taxonomy, generator)
    for _ in tqdm(range(epochs), desc=f"embed {count} nodes", unit="epoch", disable=None):
        for part in taxonomy.pairs[torch.randperm(len(taxonomy.pairs), generator=generator)].split(batch):
            optimizer.zero_grad()
            ranking_loss(manifold, points, part, negatives.draw(part[:, 0])).backward()
            optimizer.step()
            schedule.step()
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


def distances(points: geoopt.ManifoldParameter) -> Tensor:
    """All distances between points, (N, N)."""
    with torch.no_grad():
        return torch.cat([points.manifold.dist(part[:, None], points[None]) for part in points.split(64)])


def report(taxonomy: Taxonomy, between: Tensor, forget: Tensor) -> dict[str, float]:
    """Mean rank and MAP of all pairs, of what is to be forgotten and of the rest."""
    pairs = taxonomy.pairs
    parts = {"": pairs, "forget_": pairs[forget], "rest_": pairs[~forget]}
    found = {prefix: quality(between, part, pairs) for prefix, part in parts.items()}
    return {
        prefix + name: value
        for prefix, both in found.items()
        for name, value in zip(("mean_rank", "map"), both, strict=True)
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print what it finds; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--manifold", choices=("lorentz", "poincare"), default="lorentz")
    parser.add_argument("--dim", type=int, default=5)
    parser.add_argument("--root", default="mammal.n.01")
    parser.add_argument("--forget", default="canine.n.02")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.03)
    parser.add_argument("--unlearn-steps", type=int, default=300)
    parser.add_argument("--unlearn-lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
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
    )
    embedded = time.perf_counter()
    result = {
        "manifold": options.manifold,
        "dim": options.dim,
        "nodes": count,
        "pairs": len(taxonomy.pairs),
        "forget_pairs": int(forget.sum()),
        "chance": report(
            taxonomy, torch.rand(count, count, generator=torch.Generator().manual_seed(0)), forget
        ),
        "embed_seconds": round(embedded - started, 1),
        "before": report(taxonomy, distances(points), forget),
    }
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
        "unlearn_seconds": round(time.perf_counter() - started, 1),
        "after": report(taxonomy, distances(points), forget),
    }
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
