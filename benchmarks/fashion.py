"""Fashion-MNIST: is what a method leaves behind what the retrained oracle has?

    python -m benchmarks.fashion --output docs/data/fashion.jsonl
    python -m benchmarks.fashion --output docs/data/fashion.jsonl --table --plot docs/figures/fashion.png

For every seed a model is trained, and for every number of classes another from scratch without them: the
oracle, of the same recipe and the same seed. Each method starts from the first and is held to the second.

One JSON line a model that is measured, and a folder in --cache for every model that is trained. What is
there already is not done again, so an interrupted benchmark goes on where it stopped; --table prints the
tables of what is there and runs nothing, of some methods with --methods. --set tries other settings of a
method, which get rows of their own. Needs Debian's package ``dataset-fashion-mnist`` and the extra ``audit``.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import riemann_unlearn as ru
from benchmarks._rows import append, key, label, read, settings
from riemann_unlearn.data import Dataset
from riemann_unlearn.evaluation import Measure, encode, zero_shot
from riemann_unlearn.evaluation.measures.membership import Membership
from riemann_unlearn.evaluation.measures.recovery import Recovery
from riemann_unlearn.evaluation.measures.relearning import Relearning
from riemann_unlearn.evaluation.subject import MOST_SEEN
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.models.origins import WEIGHTS_NAME
from riemann_unlearn.report.text import markdown
from riemann_unlearn.training import TrainConfig, train

CLASSES = ("t-shirt", "trousers", "pullover", "dress", "coat")
"""n classes are the first n of these: the order of the dataset's labels, so that nobody chose them."""
REFERENCES = ("before", "oracle")
METHODS = {
    "tilt": ("MERU", "CLIP"),
    "hac": ("MERU",),
    "ac": ("MERU", "CLIP"),
    "finetune": ("MERU",),
    "gradient-ascent": ("MERU",),
    "l1-sparse": ("MERU",),
    "neggrad-plus": ("MERU",),
    "nullspace": ("MERU", "CLIP"),
    "random-captions": ("MERU",),
}
"""With the models that each is run on; ac compares by the model's own similarity."""
MEASURES: tuple[Measure, ...] = (Recovery(), Relearning(), Membership())
"""What is measured beside zero-shot accuracy."""
PER_CLASS = 1200
"""Training images of each class, the first of 6,000: as many as the audit looks at."""
RECIPE = TrainConfig(
    data="fashion-mnist",
    epochs=8,
    batch_size=128,
    learning_rate=3e-3,
    warmup_epochs=1,
    group=1,
    evaluate_every=8,
)
"""Of the model before and of the oracle alike."""


def model_config(architecture: str) -> dict[str, Any]:
    """A model for small grey images: a residual network of 0.4 million weights and a layer for captions."""
    return {
        "architecture": architecture,
        "model_cfg": {
            "embed_dim": 64,
            "vision_cfg": {
                "timm_model_name": "test_resnet",  # timm's smallest; its name says what timm has it for
                "timm_pool": "avg",
                "timm_proj": "linear",
                "image_size": 40,  # of 28 pixels, the last of the four blocks would see a single one
            },
            "text_cfg": {
                "context_length": 16,
                "vocab_size": 6870,
                "width": 32,
                "heads": 2,
                "layers": 1,
                "tokenizer_kwargs": {"bpe_path": "bpe_emoji.txt.gz"},
            },
        },
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fashion", description=__doc__.split("\n")[0])
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--models", nargs="+", choices=("MERU", "CLIP"), default=["MERU", "CLIP"])
    parser.add_argument(
        "--classes", nargs="+", type=int, choices=range(1, 1 + len(CLASSES)), default=[1, 3, 5]
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the methods")
    parser.add_argument("--cache", type=Path, default=Path("fashion-models"), help="folder of trained models")
    parser.add_argument("--output", type=Path, default=Path("fashion.jsonl"))
    parser.add_argument("--table", action="store_true", help="print the tables of what is there, run nothing")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="recovery against cost, as .png or .svg")
    options = parser.parse_args(arguments)
    rows = read(options.output)
    if not options.table:
        done = {key(row) for row in rows}
        data = training_data()
        for asked in _asked(options):
            if key(asked) not in done:
                rows.append(_run(asked, data, options.cache))
                append(options.output, rows[-1])
    shown = _shown(rows, options.methods)
    print(tables(shown))
    if options.plot:
        plot(shown, options.plot)
    return 0


def _asked(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What is to be measured: of every model and number of classes the references, then the methods."""
    return [
        {
            "model": model,
            "method": method,
            "settings": {} if method in REFERENCES else settings(method, options.set),
            "forget": list(CLASSES[:count]),
            "seed": seed,
        }
        for seed in options.seeds
        for model in options.models
        for count in options.classes
        for method in (*REFERENCES, *(name for name in options.methods if model in METHODS[name]))
    ]


def _shown(rows: list[dict[str, Any]], methods: Sequence[str]) -> list[dict[str, Any]]:
    """The runs of some methods, and their references, in the order of the tables."""
    order = (*REFERENCES, *METHODS)
    return sorted(
        (row for row in rows if row["method"] in (*REFERENCES, *methods)),
        key=lambda row: (row["model"] != "MERU", order.index(row["method"]), label(row) != row["method"]),
    )


def training_data() -> Dataset:
    """The first :data:`PER_CLASS` training images of every class, and all test images."""
    data = ru.data.load("fashion-mnist")
    classes = range(len(data.taxonomy.concepts))
    rows = [(data.seen.concept == label).nonzero()[:PER_CLASS, 0] for label in classes]
    return replace(data, seen=data.seen.subset(torch.cat(rows)))


def trained(architecture: str, forget: Sequence[str], seed: int, data: Dataset, cache: Path) -> DualEncoder:
    """The model trained without the classes ``forget``: from the cache, or made for it."""
    folder = cache / "-".join([architecture, "without", *(forget or ["nothing"]), str(seed)])
    if not (folder / WEIGHTS_NAME).is_file():
        if forget:
            gone = data.taxonomy.select(forget).concepts[data.seen.concept]
            data = replace(data, seen=data.seen.subset(~gone))
        recipe = replace(RECIPE, seed=seed)
        train(model_config(architecture), recipe, folder, data=data, resume=folder.exists())
    return ru.load(folder)


def _run(asked: dict[str, Any], data: Dataset, cache: Path) -> dict[str, Any]:
    """One line: what was asked, and what the audit says of the model."""
    forget, method, seed = asked["forget"], asked["method"], asked["seed"]
    without = forget if method == "oracle" else []
    model = trained(asked["model"], without, seed, data, cache)
    started = time.perf_counter()
    if method not in REFERENCES:
        seen = replace(data, heldout=None)  # a run measures what it is given; the test images come below
        ru.unlearn(model, seen, forget=forget, method=method, settings=asked["settings"], seed=seed)
    seconds = time.perf_counter() - started
    return {
        **asked,
        "seconds": round(seconds, 1),
        **measure(model, data, forget),
        "versions": {"riemann_unlearn": ru.__version__, "torch": torch.__version__},
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def measure(model: DualEncoder, data: Dataset, forget: Sequence[str]) -> dict[str, Any]:
    """The measures of the full audit that an oracle's are compared with."""
    subject = encode(model, data, data.taxonomy.select(forget), most_seen=MOST_SEEN)
    test = subject.test
    groups = {"forget": test.forgotten, "retain": ~test.forgotten}
    return {
        "heldout": zero_shot(model, test.samples, groups, image_features=test.features),
        **{measure.name: measure.compute(subject, {}) for measure in MEASURES},
    }


@dataclass(frozen=True)
class Column:
    """A measure of the table, and the bar it is held to."""

    name: str
    value: Callable[[dict[str, Any]], float]
    holds: Callable[[float, float], bool] = lambda value, oracle: True
    """Whether a value is good enough, given the oracle's; both in percent."""


def _at_most_oracle(value: float, oracle: float) -> bool:
    return value <= oracle + 2


def _as_oracle(value: float, oracle: float) -> bool:
    return abs(value - oracle) <= 2


def _relearned(shots: int) -> Callable[[dict[str, Any]], float]:
    def value(row: dict[str, Any]) -> float:
        curve = row["relearning"]
        return float(curve["accuracy"][curve["shots"].index(shots)])

    return value


COLUMNS = (
    Column("forget accuracy", lambda r: r["heldout"]["forget"]["accuracy"], lambda v, _: v <= 10),  # chance
    Column("retain accuracy", lambda r: r["heldout"]["retain"]["accuracy"], lambda v, o: v >= o - 1),
    Column("their category", lambda r: r["heldout"]["forget"]["parent_accuracy"]),
    Column("linear probe", lambda r: r["recovery"]["linear_probe"]["recall"], _at_most_oracle),
    *(Column(f"relearned, {n}-shot", _relearned(n), _at_most_oracle) for n in (1, 4, 16)),
    Column("confidence AUC", lambda r: r["membership"]["confidence"]["auc"][0], _as_oracle),
    Column("class AUC", lambda r: r["membership"]["class_membership"]["auc"][0], _as_oracle),
)


def tables(rows: list[dict[str, Any]]) -> str:
    """One Markdown table for each number of classes, in percent, means over seeds; ✗ is a bar missed."""
    parts = []
    for count in sorted({len(row["forget"]) for row in rows}):
        chosen = [row for row in rows if len(row["forget"]) == count]
        lines = []
        for (model, name), runs in _groups(chosen).items():
            oracles = _oracles(chosen, runs)
            lines.append([model, name, len(runs), *(_cell(column, runs, oracles) for column in COLUMNS)])
        heads = ["model", "method", "seeds", *(column.name for column in COLUMNS)]
        parts.append(f"**Forgotten: {', '.join(CLASSES[:count])}**\n\n{markdown(heads, lines)}")
    return "\n\n".join(parts)


def _groups(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The runs that differ by nothing but the seed."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["model"], label(row)), []).append(row)
    return groups


def _oracles(rows: list[dict[str, Any]], runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The oracles that some runs are held to: of their model and their seeds."""
    model, seeds = runs[0]["model"], {run["seed"] for run in runs}
    return [r for r in rows if r["method"] == "oracle" and r["model"] == model and r["seed"] in seeds]


def _cell(column: Column, runs: list[dict[str, Any]], oracles: list[dict[str, Any]]) -> str:
    values = [100 * column.value(run) for run in runs]
    mean = statistics.mean(values)
    spread = "" if max(values) - min(values) < 0.05 else f" ({min(values):.1f}–{max(values):.1f})"
    judged = runs[0]["method"] not in REFERENCES
    missed = judged and not column.holds(mean, statistics.mean(100 * column.value(run) for run in oracles))
    return f"{mean:.1f}{spread}{' ✗' if missed else ''}"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """What a linear probe recovers against what retaining costs, both less the oracle's, which is (0, 0)."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    by_name = {column.name: column.value for column in COLUMNS}
    figure, axes = pyplot.subplots(figsize=(8, 6.5), layout="constrained")
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.axvline(0, color="grey", linewidth=0.5)
    shown = [row for row in rows if row["method"] != "oracle"]
    markers = itertools.cycle("osD^vP*X<>")
    for ((model, method), runs), marker in zip(_groups(shown).items(), markers, strict=False):
        oracles = [next(r for r in _oracles(rows, [run]) if r["forget"] == run["forget"]) for run in runs]
        x, y = (
            [100 * (by_name[name](run) - by_name[name](o)) for run, o in zip(runs, oracles, strict=True)]
            for name in ("retain accuracy", "linear probe")
        )
        sizes = [25 + 20 * len(run["forget"]) for run in runs]
        axes.scatter(
            x, y, sizes, marker=marker, label=f"{method}, {model}", edgecolors="black", linewidths=0.5
        )
    axes.set_xlabel("retained test accuracy less the oracle's, points (right is better)")
    axes.set_ylabel("the forgotten by linear probe, less the oracle's, points")
    figure.legend(title="larger: more classes", loc="outside lower center", ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
