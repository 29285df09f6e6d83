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
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import riemann_unlearn as ru
from riemann_unlearn.io import atomic_write

WORDNET = Path("/usr/share/wordnet")
RATES = {"RiemannianSGD": 30.0, "RiemannianAdam": 0.05}
"""Learning rates that suit the mammals."""
LOGIT_SCALE = 4
"""τ: what distances are multiplied by in the loss. At the papers' 1 an embedding is four times as wide."""
NEAREST = 1e-3
"""Two points are counted as no nearer than this in the gradient: a product of float32 tells no less apart."""


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


class RankingLoss:
    r"""Cross-entropy of each ancestor of a batch's nodes among itself and the batch, by distance.

    Of the batch, a node's ancestors take no part. With n for the other nodes, an ancestor a of u costs
    :math:`\log(1 + e^{τ d(u,a)} \sum_n e^{-τ d(u,n)})`: the sum is shared by all ancestors of u, and all of
    its distances come from one matrix product.

    Parameters
    ----------
    taxonomy : Taxonomy
    manifold : geoopt.Manifold, optional
        Of the points; without it they are tangent vectors at the origin of the unit hyperboloid.
    keep : Tensor, shape (E,), optional
        Mask of the pairs that are to be near; the others are left out of the loss. All by default.
    """

    def __init__(
        self, taxonomy: Taxonomy, manifold: geoopt.Manifold | None, keep: Tensor | None = None
    ) -> None:
        self.manifold = manifold
        self.sizes = torch.bincount(taxonomy.pairs[:, 0], minlength=len(taxonomy.names))
        self.starts = self.sizes.cumsum(0) - self.sizes
        order = taxonomy.pairs[:, 0].argsort(stable=True)
        self.ancestors = taxonomy.pairs[order, 1]
        self.keep = torch.ones(len(order), dtype=torch.bool) if keep is None else keep[order]

    def __call__(self, points: Tensor, nodes: Tensor) -> Tensor:
        """The mean over the kept pairs of ``nodes``, which are all different, (B,)."""
        sizes = self.sizes[nodes]
        row = torch.repeat_interleave(sizes)
        place = (self.starts[nodes] - (sizes.cumsum(0) - sizes))[row] + torch.arange(len(row))
        ancestors = self.ancestors[place]
        column = torch.full((len(self.sizes),), -1)
        column[nodes] = torch.arange(len(nodes))
        drawn = column[ancestors]
        inside = drawn >= 0
        keep = self.keep[place]
        row, ancestors, inside_row = row[keep], ancestors[keep], row[inside]
        above, index = ancestors.unique(return_inverse=True)
        found = ambient(self.manifold, F.embedding(torch.cat([nodes, above]), points))
        found, tops = found.split([len(nodes), len(above)])
        others = Closeness.apply(found, inside_row, drawn[inside])
        cosh = (F.embedding(row, found) * F.embedding(index, mirrored(tops))).sum(1)
        distance = cosh.clamp_min(1 + torch.finfo(cosh.dtype).eps).acosh()
        return F.softplus(LOGIT_SCALE * distance + others.log()[row]).mean()


class Closeness(torch.autograd.Function):
    r"""Sums of :math:`e^{-τ d} = (z + \sqrt{z^2-1})^{-τ}`, z = cosh d, over all other points but some.

    The matrix of them is made, and kept for the gradient, without a logarithm or an exponential.
    """

    @staticmethod
    def forward(ctx: Any, points: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """(B,) sums for (B, D+1) ambient points, without the pairs at ``row`` and ``column``."""
        across = mirrored(points)
        z = (points @ across.T).clamp_min_(1)
        sinh = z.square().sub_(1).clamp_min_(NEAREST**2).sqrt_()
        weights = z.add_(sinh).reciprocal_().square_().square_()  # to the power LOGIT_SCALE
        weights[row, column] = 0
        weights.fill_diagonal_(0)
        # Beyond a distance of 17 from all others the logarithm's gradient would leave float32.
        total = weights.sum(1).clamp_min_(1e-30)
        ctx.save_for_backward(across, weights.div_(sinh))
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        """The gradient by the points, on either side of their distances."""
        across, slopes = ctx.saved_tensors
        scaled = -LOGIT_SCALE * gradient[:, None]
        return scaled * (slopes @ across) + slopes.T @ (scaled * across), None, None


def ambient(manifold: geoopt.Manifold | None, points: Tensor) -> Tensor:
    """Points of the unit hyperboloid, time first; without a manifold, of tangent vectors at the origin."""
    if manifold is None:
        space = ru.geometry.expmap0(points, 1.0)
    elif isinstance(manifold, geoopt.Lorentz):
        space = points[:, 1:]
    else:
        space = ru.geometry.from_poincare(points, 1.0)
    return ru.geometry.to_ambient(space, 1.0)


def mirrored(points: Tensor) -> Tensor:
    """Ambient points of which the plain products are cosh d = -<p, q>."""
    return torch.cat([points[:, :1], -points[:, 1:]], 1)


def embed(
    taxonomy: Taxonomy,
    manifold: geoopt.Manifold,
    dim: int,
    *,
    parameters: str,
    optimizer: str,
    epochs: int,
    batch: int,
    lr: float,
    seed: int,
    checkpoint: Path | None = None,
) -> geoopt.ManifoldParameter:
    """Points of all nodes, trained with the ranking loss; goes on from ``checkpoint`` if that is a file.

    ``parameters`` are the points ("manifold"), or tangent vectors at the origin that become points in the end
    ("tangent"); ``optimizer`` is a class of ``ru.optim``.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(taxonomy.names)
    vectors = torch.randn(count, dim, generator=generator) * 1e-2
    table, geodesic = torch.nn.Parameter(vectors), {}
    if parameters == "manifold":
        table, geodesic = lifted(manifold, vectors), {"max_step": 1.0, "retraction": False}
    stepper = getattr(ru.optim, optimizer)([table], lr=lr, **geodesic)
    ranking = RankingLoss(taxonomy, manifold if parameters == "manifold" else None)
    steps = epochs * -(-count // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(stepper, lr, total_steps=steps, cycle_momentum=False)
    done = 0
    if checkpoint is not None and checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        table.data = saved["table"]
        stepper.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        generator.set_state(saved["generator"])
        done = saved["epochs"]
    for epoch in tqdm(range(done, epochs), desc=f"embed {count} nodes", unit="epoch", disable=None):
        for nodes in torch.randperm(count, generator=generator).split(batch):
            stepper.zero_grad()
            ranking(table, nodes).backward()
            stepper.step()
            schedule.step()
        if checkpoint is not None:
            buffer = io.BytesIO()
            state = {"table": table.detach().as_subclass(Tensor), "optimizer": stepper.state_dict()}
            state |= {"schedule": schedule.state_dict(), "generator": generator.get_state()}
            torch.save(state | {"epochs": epoch + 1}, buffer)
            atomic_write(checkpoint, buffer.getvalue())
    return table if isinstance(table, geoopt.ManifoldParameter) else lifted(manifold, table.detach())


def lifted(manifold: geoopt.Manifold, vectors: Tensor) -> geoopt.ManifoldParameter:
    """Points at the length of tangent vectors from the origin, in their directions."""
    if isinstance(manifold, geoopt.Lorentz):
        start = manifold.expmap0(F.pad(vectors, (1, 0)))
    else:
        # The ball's metric is 2 at its centre. In float32, geoopt's ball ends at a radius of 6.2.
        start = manifold.expmap0(vectors.double() / 2)
    return geoopt.ManifoldParameter(start.detach(), manifold)


def unlearn(
    taxonomy: Taxonomy,
    points: geoopt.ManifoldParameter,
    forget: Tensor,
    *,
    steps: int,
    lr: float,
    seed: int,
) -> None:
    """Unlearn the pairs of the mask ``forget``, in place: the twenty lines of a user's own loop."""
    manifold, count = points.manifold, len(points)
    generator = torch.Generator().manual_seed(seed)
    calibration = ru.losses.HyperbolicAlignmentCalibration(
        alpha=0, beta=1, gamma=0, omega=0, eta=0, entailment_weight=0, manifold=manifold
    )
    ranking = RankingLoss(taxonomy, manifold, keep=~forget)
    surgery = ru.optim.GradientSurgery(ru.optim.RiemannianAdam([points], lr=lr))
    lost, all_lost = taxonomy.pairs[forget], torch.ones(64, dtype=torch.bool)
    for _ in tqdm(range(steps), desc="unlearn", unit="step", disable=None):
        child, ancestor = lost[torch.randint(len(lost), (64,), generator=generator)].unbind(1)
        anyone = torch.randint(count, (64,), generator=generator)
        near, chance = (
            calibration(points[child], points[other], all_lost, logit_scale=1.0)
            for other in (ancestor, anyone)
        )
        held = ranking(points, torch.randperm(count, generator=generator)[:4096])
        # As far as any node is, no further: of random pairs nothing is learned but their distance.
        surgery.step(forget=(near - chance.detach()).abs(), retain=held)


def distances(points: geoopt.ManifoldParameter) -> Callable[[Tensor], Tensor]:
    """The distances of given nodes from all, (C, N), as cosh d = -<p, q>, which is in the same order.

    In float64, one product tells apart what is 1e-3 from each other at a radius of 12.
    """
    found = ambient(points.manifold, points.detach().as_subclass(Tensor).double())
    across = mirrored(found).T
    return lambda nodes: found[nodes] @ across


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
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument(
        "--parameters",
        choices=("manifold", "tangent"),
        default="manifold",
        help="points on the manifold, or tangent vectors at its origin (default: manifold)",
    )
    parser.add_argument(
        "--optimizer",
        choices=tuple(RATES),
        help="default: RiemannianSGD of points, RiemannianAdam of tangent vectors",
    )
    parser.add_argument("--batch", type=int, default=600, help="nodes of a step (default: 600)")
    parser.add_argument("--lr", type=float, help="default: 30 of RiemannianSGD, 0.05 of RiemannianAdam")
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
    usual = {"manifold": "RiemannianSGD", "tangent": "RiemannianAdam"}[options.parameters]
    optimizer = options.optimizer or usual
    lr = options.lr or RATES[optimizer]
    started = time.perf_counter()
    points = embed(
        taxonomy,
        manifold,
        options.dim,
        parameters=options.parameters,
        optimizer=optimizer,
        epochs=options.epochs,
        batch=options.batch,
        lr=lr,
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
        "parameters": options.parameters,
        "optimizer": optimizer,
        "lr": lr,
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
