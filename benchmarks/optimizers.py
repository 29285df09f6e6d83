"""Optimizers on hyperbolic problems: each at its best learning rate, over seeds.

    python -m benchmarks.optimizers [--problems frechet far wordnet meru hac] [--optimizer module:Class]
        [--plot FILE] [--output FILE] [--json]

Every optimizer runs on every problem at every learning rate of a sweep with the first seed; the sweep goes on
while its best is at its end. At its best rate each then runs with all seeds. The table shows the error
reached (lower is better), the steps to come within 10 % of the best error of any optimizer, the time and the
state of a step, how far points are off the manifold, and how many runs of the sweep ended in NaN.

A problem of your own is a class as :class:`Problem` describes it, given as ``--problems module:Class``. An
optimizer of your own is called as ``Class(parameters, lr=lr)`` with geoopt's ManifoldParameters on
``ru.Lorentz``; ``--optimizer module:Class`` adds it.
"""

# ruff: noqa: D102  (the protocol documents the methods of the problems)

from __future__ import annotations

import argparse
import functools
import importlib
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import geoopt
import torch
from torch import Tensor
from tqdm import tqdm

import riemann_unlearn as ru
from benchmarks import wordnet
from riemann_unlearn.data import load as load_data
from riemann_unlearn.evaluation.features import encode_images, encode_texts
from riemann_unlearn.io import atomic_write
from riemann_unlearn.report.text import markdown

RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
FURTHER = 4
"""Steps of a factor of 3 that a sweep may go beyond them."""
NEGATIVES = 50
"""Nodes that a true ancestor is ranked against in WordNet."""
SAMPLES = 25
"""How often the error is measured in a run."""


class Problem(Protocol):
    """What a problem of the benchmark has."""

    name: str
    steps: int

    def start(self, seed: int) -> Tensor:
        """Points to start from, (N, D+1), on the unit hyperboloid."""

    def objective(self, seed: int) -> Callable[[geoopt.Manifold, Tensor], Tensor]:
        """The loss of a step, given manifold and points; may draw a new batch each time."""

    def error(self, manifold: geoopt.Manifold, points: Tensor, seed: int) -> float:
        """How far from solved, 0 at best."""


class Frechet:
    """The means of 16 clouds of 32 points in 8 dimensions; the answer is known to rounding."""

    name, steps = "Fréchet means", 200

    def __init__(self) -> None:
        self.answers: dict[int, Tensor] = {}

    def cloud(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        v = torch.randn(16, 32, 8, generator=generator) + torch.randn(16, 1, 8, generator=generator)
        return lift(v)

    def start(self, seed: int) -> Tensor:
        return lift(torch.zeros(16, 8))

    def objective(self, seed: int) -> Callable[[geoopt.Manifold, Tensor], Tensor]:
        cloud = self.cloud(seed)
        return lambda manifold, points: manifold.dist(points[:, None], cloud).square().mean(1).sum()

    def error(self, manifold: geoopt.Manifold, points: Tensor, seed: int) -> float:
        if seed not in self.answers:
            self.answers[seed] = self.solve(seed)
        return float(ru.Lorentz().dist(points.double(), self.answers[seed]).mean())

    def solve(self, seed: int) -> Tensor:
        """The means, by the fixed-point iteration of Karcher in float64."""
        manifold, cloud = ru.Lorentz(torch.tensor(1.0).double()), self.cloud(seed).double()
        means = self.start(seed).double()
        for _ in range(300):
            logs = manifold.logmap(means[:, None].expand_as(cloud), cloud)
            # Half the squared distance bends by at most d coth d, below 8 for these clouds.
            means = manifold.expmap(means, logs.mean(1) / 8)
        return means


class Far:
    """64 points from radius 8 to targets near the origin, in float32: where geoopt's own step is NaN."""

    name, steps = "from radius 8", 400

    def start(self, seed: int) -> Tensor:
        v = torch.randn(64, 16, generator=torch.Generator().manual_seed(seed))
        return lift(8 * torch.nn.functional.normalize(v, dim=-1))

    def targets(self, seed: int) -> Tensor:
        return lift(torch.randn(64, 16, generator=torch.Generator().manual_seed(seed + 100)) / 4)

    def objective(self, seed: int) -> Callable[[geoopt.Manifold, Tensor], Tensor]:
        targets = self.targets(seed)
        return lambda manifold, points: manifold.dist(points, targets).sum()

    def error(self, manifold: geoopt.Manifold, points: Tensor, seed: int) -> float:
        return float(ru.Lorentz().dist(points, self.targets(seed)).mean())


def ranking_loss(manifold: geoopt.Manifold, points: Tensor, pairs: Tensor, negatives: Tensor) -> Tensor:
    """Cross-entropy of each pair's ancestor among itself and nodes drawn at random, by -distance."""
    others = torch.cat([pairs[:, 1:], negatives], 1)
    distances = manifold.dist(points[pairs[:, 0]][:, None], points[others])
    return torch.nn.functional.cross_entropy(-distances, torch.zeros(len(pairs), dtype=torch.long))


class Negatives:
    """Draws nodes that are no ancestors of a pair's node."""

    def __init__(self, taxonomy: wordnet.Taxonomy, generator: torch.Generator) -> None:
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


class Mammals:
    """WordNet's mammals in 5 dimensions with the ranking loss; the error is 1 - MAP."""

    name, steps = "WordNet mammals", 600

    def __init__(self) -> None:
        self.taxonomy = wordnet.closure(wordnet.WORDNET, "mammal.n.01")

    def start(self, seed: int) -> Tensor:
        count = len(self.taxonomy.names)
        return lift(torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)) * 1e-2)

    def objective(self, seed: int) -> Callable[[geoopt.Manifold, Tensor], Tensor]:
        generator = torch.Generator().manual_seed(seed)
        negatives = Negatives(self.taxonomy, generator)
        pairs = self.taxonomy.pairs

        def loss(manifold: geoopt.Manifold, points: Tensor) -> Tensor:
            part = pairs[torch.randint(len(pairs), (256,), generator=generator)]
            return ranking_loss(manifold, points, part, negatives.draw(part[:, 0]))

        return loss

    def error(self, manifold: geoopt.Manifold, points: Tensor, seed: int) -> float:
        distances = wordnet.distances(geoopt.ManifoldParameter(points, ru.Lorentz()))
        return 1 - wordnet.quality(wordnet.ranks(distances, self.taxonomy.pairs), self.taxonomy.pairs)[1]


@dataclass(frozen=True)
class Embedded:
    """The bundled emoji as the bundled MERU sees them: points of the unit hyperboloid."""

    images: Tensor
    concept: Tensor
    """Which caption each image goes with."""
    heldout: Tensor
    heldout_concept: Tensor
    captions: Tensor
    fruit: Tensor
    """Mask of the captions to forget."""
    logit_scale: float


@functools.cache
def embedded_emoji() -> Embedded:
    """The points, computed once: it takes the image tower a while."""
    model, data = ru.load("meru-emoji"), load_data("emoji")
    if data.heldout is None:
        raise ValueError("the problems on emoji need the held-out vendor")
    space = model.space.detached()

    def points(features: Tensor) -> Tensor:
        v, c = space.tangents(features)
        return lift(v * c**0.5)

    names = [concept.name for concept in data.taxonomy.concepts]
    captions = encode_texts(model, names)
    _, c = space.tangents(captions)
    return Embedded(
        points(encode_images(model, data.seen.images)),
        data.seen.concept,
        points(encode_images(model, data.heldout.images)),
        data.heldout.concept,
        points(captions),
        data.taxonomy.select(["food-fruit"]).concepts,
        float(space.scale / c**0.5),
    )


def found_first(images: Tensor, captions: Tensor, own: Tensor) -> Tensor:
    """Whether each image's own caption is the nearest."""
    mirrored = captions.double()
    mirrored[:, 1:] *= -1  # cosh d = -<p, q>
    nearest: Tensor = (images.double() @ mirrored.T).argmin(1)
    return nearest == own


class Meru:
    """MERU's captions learned anew: a point for each of 1,906 emoji, from images of five vendors.

    The images' points are those of the bundled model, and stay: a MERU's own weights are on no manifold, and
    any optimizer here is torch's Adam on them. The loss is MERU's, contrast and entailment; the error is the
    share of held-out images (a sixth vendor) whose own caption is not the nearest.
    """

    name, steps = "MERU on emoji", 300

    def __init__(self) -> None:
        self.emoji = embedded_emoji()

    def start(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        count, width = self.emoji.captions.shape
        return lift(torch.randn(count, width - 1, generator=generator) * 1e-2)

    def objective(self, seed: int) -> Callable[[geoopt.Manifold, Tensor], Tensor]:
        generator, emoji = torch.Generator().manual_seed(seed), self.emoji

        def loss(manifold: geoopt.Manifold, points: Tensor) -> Tensor:
            part = torch.randint(len(emoji.images), (256,), generator=generator)
            pairs = emoji.images[part], points[emoji.concept[part]]
            contrast = ru.losses.ContrastiveLoss(manifold=manifold)
            entailment = ru.losses.EntailmentLoss(manifold=manifold)
            ids = emoji.concept[part]
            return contrast(*pairs, logit_scale=emoji.logit_scale, caption_ids=ids) + 0.2 * entailment(*pairs)

        return loss

    def error(self, manifold: geoopt.Manifold, points: Tensor, seed: int) -> float:
        emoji = self.emoji
        return 1 - float(found_first(emoji.heldout, points, emoji.heldout_concept).double().mean())


class Unlearning:
    """HAC unlearns "food-fruit" from MERU's captions, with the images' points held.

    The error is the share of the fruit's images that still find their caption first, plus what the other
    images lost (a fifth of them is asked).
    """

    name, steps = "HAC unlearning", 150

    def __init__(self) -> None:
        self.emoji = emoji = embedded_emoji()
        forget = emoji.fruit[emoji.concept]
        self.gone, kept = forget.nonzero()[:, 0], (~forget).nonzero()[:, 0]
        self.kept, self.asked = kept, kept[::5]
        self.before = self.recall(emoji.captions, self.asked)

    def recall(self, points: Tensor, rows: Tensor) -> float:
        own = self.emoji.concept[rows]
        return float(found_first(self.emoji.images[rows], points, own).double().mean())

    def start(self, seed: int) -> Tensor:
        return self.emoji.captions

    def objective(self, seed: int) -> Callable[[geoopt.Manifold, Tensor], Tensor]:
        generator, emoji = torch.Generator().manual_seed(seed), self.emoji
        forget = torch.arange(128) < 32

        def loss(manifold: geoopt.Manifold, points: Tensor) -> Tensor:
            gone, kept = (
                pool[torch.randint(len(pool), (size,), generator=generator)]
                for pool, size in ((self.gone, 32), (self.kept, 96))
            )
            rows = torch.cat([gone, kept])
            ids = emoji.concept[rows]
            # Alignment weighed in similarities, as its optima are of this problem: 1/τ in logits.
            alignment = 1 / emoji.logit_scale
            calibration = ru.losses.HyperbolicAlignmentCalibration(
                alignment, alignment, 0.01, manifold=manifold
            )
            images, captions = emoji.images[rows], points[ids]
            value: Tensor = calibration(
                images, captions, forget, logit_scale=emoji.logit_scale, caption_ids=ids
            )
            return value

        return loss

    def error(self, manifold: geoopt.Manifold, points: Tensor, seed: int) -> float:
        return self.recall(points, self.gone) + max(0.0, self.before - self.recall(points, self.asked))


PROBLEMS: dict[str, type[Problem]] = {
    "frechet": Frechet,
    "far": Far,
    "wordnet": Mammals,
    "meru": Meru,
    "hac": Unlearning,
}


@dataclass(frozen=True)
class Contender:
    """An optimizer, and what it optimizes."""

    name: str
    make: Callable[..., torch.optim.Optimizer]
    manifold: Callable[[], geoopt.Manifold]
    tangent: bool = False
    """The parameters are tangent vectors at the origin, which the loss lifts to points."""


CONTENDERS = (
    Contender("ours: RiemannianAdam", ru.optim.RiemannianAdam, ru.Lorentz),
    Contender("ours: RiemannianSGD", lambda p, lr: ru.optim.RiemannianSGD(p, lr, momentum=0.9), ru.Lorentz),
    Contender("geoopt RiemannianAdam, geoopt Lorentz", geoopt.optim.RiemannianAdam, geoopt.Lorentz),
    Contender("geoopt RiemannianAdam, our Lorentz", geoopt.optim.RiemannianAdam, ru.Lorentz),
    Contender("torch Adam, tangent vectors", torch.optim.Adam, ru.Lorentz, tangent=True),
)


@dataclass(frozen=True)
class Run:
    """What a run came to."""

    errors: list[float]
    """At SAMPLES times."""
    step_ms: float
    drift: float
    """Largest |<p,p> + 1| relative to p_t², in float32 roundings."""
    state_floats: float
    """Numbers of optimizer state for each coordinate of a parameter."""

    @property
    def error(self) -> float:
        """The last error; infinite for a run that ended in NaN."""
        return self.errors[-1]


def lift(v: Tensor) -> Tensor:
    """Points of the unit hyperboloid from tangent vectors at the origin."""
    return ru.geometry.to_ambient(ru.geometry.expmap0(v, 1.0), 1.0)


def run(problem: Problem, contender: Contender, lr: float, seed: int) -> Run:
    """One run."""
    manifold, start = contender.manifold(), problem.start(seed)
    loss = problem.objective(seed)
    parameter: torch.nn.Parameter
    if contender.tangent:
        parameter = torch.nn.Parameter(ru.geometry.logmap0(start[:, 1:], 1.0))
    else:
        parameter = geoopt.ManifoldParameter(ru.Lorentz().origin(*start.shape))
        parameter.manifold = manifold  # geoopt's own check refuses its own points from a radius of about 4
        parameter.data = start.clone()

    def points() -> Tensor:
        return lift(parameter) if contender.tangent else parameter

    optimizer = contender.make([parameter], lr=lr)
    errors: list[float] = []
    seconds: list[float] = []
    for step in range(problem.steps):
        optimizer.zero_grad()
        loss(manifold, points()).backward()
        began = time.perf_counter()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
        if (step + 1) * SAMPLES % problem.steps < SAMPLES:
            found = points().detach()
            finite = bool(torch.isfinite(found).all())
            errors.append(problem.error(manifold, found, seed) if finite else math.inf)
            if not finite:
                break
    wide = points().detach().double()
    drift = (wide[:, 1:].square().sum(-1) + 1 - wide[:, 0].square()).abs() / wide[:, 0].square()
    state = sum(v.numel() for v in optimizer.state[parameter].values() if isinstance(v, Tensor))
    return Run(
        errors,
        1e3 * statistics.median(seconds),
        float(drift.max()) / (torch.finfo(torch.float32).eps / 2),
        state / parameter.numel(),
    )


def least(sweep: dict[float, Run]) -> float:
    """The rate of the least error."""
    return min(sweep, key=lambda rate: sweep[rate].error)


def compare(problem: Problem, contenders: Sequence[Contender], seeds: Iterable[int]) -> list[dict[str, Any]]:
    """A row for each optimizer."""
    seeds = list(seeds)
    best: list[tuple[Contender, float, list[Run], str]] = []
    for contender in tqdm(contenders, desc=problem.name, disable=None):
        sweep = {lr: run(problem, contender, lr, seeds[0]) for lr in RATES}
        lr = least(sweep)
        while (
            len(sweep) < len(RATES) + FURTHER
            and lr in (min(sweep), max(sweep))
            and sweep[lr].error < math.inf
        ):
            further = float(f"{lr * 3 if lr == max(sweep) else lr / 3:.1g}")
            sweep[further] = run(problem, contender, further, seeds[0])
            lr = least(sweep)
        runs = [sweep[lr], *(run(problem, contender, lr, seed) for seed in seeds[1:])]
        failed = sum(math.isinf(each.error) for each in sweep.values())
        best.append((contender, lr, runs, f"{failed}/{len(sweep)}"))
    goal = 1.1 * min(statistics.median(each.error for each in runs) for _, _, runs, _ in best)
    rows = []
    for contender, lr, runs, failed in best:
        curve = [statistics.median(errors) for errors in zip(*(each.errors for each in runs), strict=False)]
        reached = [index for index, error in enumerate(curve) if error <= goal]
        rows.append(
            {
                "problem": problem.name,
                "steps": problem.steps,
                "optimizer": contender.name,
                "lr": lr,
                "error": statistics.median(each.error for each in runs),
                "error_range": [min(e.error for e in runs), max(e.error for e in runs)],
                "steps_to_goal": (reached[0] + 1) * problem.steps // SAMPLES if reached else None,
                "step_ms": statistics.median(each.step_ms for each in runs),
                "drift": None if contender.tangent else max(each.drift for each in runs),
                "state_per_coordinate": runs[0].state_floats,
                "nan_runs": failed,
                "runs": [asdict(each) for each in runs],
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    heads = ("problem", "optimizer", "best lr", "error (range over seeds)", "steps to the best + 10 %")
    heads += ("ms a step", "drift, roundings", "state a coordinate", "NaN in the sweep")
    lines = []
    for row in rows:
        low, high = row["error_range"]
        cells = [
            row["problem"],
            row["optimizer"],
            f"{row['lr']:g}",
            f"{row['error']:.2g} ({low:.2g} to {high:.2g})",
            row["steps_to_goal"] or "–",
            f"{row['step_ms']:.2f}",
            "–" if row["drift"] is None or math.isnan(row["drift"]) else f"{row['drift']:.3g}",
            f"{row['state_per_coordinate']:.2f}",
            row["nan_runs"],
        ]
        lines.append(cells)
    return markdown(heads, lines)


def advice(rows: list[dict[str, Any]]) -> str:
    """What to take for each problem: the quickest step among those within 10 % of the least error."""
    lines = []
    for problem in dict.fromkeys(row["problem"] for row in rows):
        mine = [row for row in rows if row["problem"] == problem]
        good = [row for row in mine if row["error"] <= 1.1 * min(row["error"] for row in mine)]
        quick = min(good, key=lambda row: row["step_ms"])
        unsafe = [row["optimizer"] for row in mine if not row["nan_runs"].startswith("0/")]
        line = f"{problem}: {quick['optimizer']} at lr {quick['lr']:g}"
        if len(good) > 1:
            line += f", of {len(good)} that are as good"
        lines.append(line + (f"; NaN at some rates: {', '.join(unsafe)}" if unsafe else ""))
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Error against steps and against seconds in the optimizer, one row of axes a problem."""
    from matplotlib.figure import Figure

    problems = list(dict.fromkeys(row["problem"] for row in rows))
    figure = Figure(figsize=(11, 3.2 * len(problems)), layout="constrained")
    axes = figure.subplots(len(problems), 2, squeeze=False)
    for (left, right), problem in zip(axes, problems, strict=True):
        for row in (row for row in rows if row["problem"] == problem):
            curves = [each["errors"] for each in row["runs"]]
            curve = [statistics.median(errors) for errors in zip(*curves, strict=False)]
            steps = [(index + 1) * row["steps"] / SAMPLES for index in range(len(curve))]
            left.plot(steps, curve, label=row["optimizer"])
            right.plot([step * row["step_ms"] / 1e3 for step in steps], curve)
        left.set(title=problem, xlabel="steps", ylabel="error", yscale="log")
        right.set(xlabel="seconds in the optimizer", xscale="log", yscale="log")
        left.legend(fontsize="x-small")
    figure.savefig(path)


def _import(path: str) -> Any:
    """``module:Class``."""
    module, colon, name = path.partition(":")
    if not colon:
        raise ValueError(f"expected module:Class, got {path!r}")
    return getattr(importlib.import_module(module), name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its table; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.optimizers",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument(
        "--problems", nargs="+", default=list(PROBLEMS), help=f"of {', '.join(PROBLEMS)}, or module:Class"
    )
    parser.add_argument("--optimizer", action="append", default=[], help="module:Class to add; repeatable")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    parser.add_argument(
        "--output",
        type=Path,
        help="JSON file for all rows, with their curves; problems that are in it are not run again",
    )
    parser.add_argument("--plot", type=Path, help="draw the curves to this file (needs matplotlib)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    added = [Contender(path, _import(path), ru.Lorentz) for path in options.optimizer]
    rows: list[dict[str, Any]] = []
    if options.output and options.output.is_file():
        rows = json.loads(options.output.read_text(encoding="utf-8"))
    for name in options.problems:
        kind = PROBLEMS[name] if name in PROBLEMS else _import(name)
        if kind.name in {row["problem"] for row in rows}:
            continue
        rows += compare(kind(), [*CONTENDERS, *added], range(options.seeds))
        if options.output:
            atomic_write(options.output, json.dumps(rows, indent=1) + "\n")
    if options.plot:
        plot(rows, options.plot)
    print(json.dumps(rows, indent=1) if options.json else f"{table(rows)}\n\n{advice(rows)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
