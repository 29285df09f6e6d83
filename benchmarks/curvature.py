"""Where MERU's curvature goes in training, and the radii with it: short runs that differ in the entailment.

    python -m benchmarks.curvature --epochs 6 --output docs/data/curvature.jsonl

Prints, for every weight λ of the entailment and initial curvature c₀ (kept within 10 times), the final c and
τ, the median radius √c|v| of images and of names, and the share of images in their names' cones; first for
the bundled model. Cones are half-spaces up to the radius asinh(2K).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from riemann_unlearn import data, models
from riemann_unlearn.evaluation.features import encode_images, encode_texts
from riemann_unlearn.spaces import LorentzTangents
from riemann_unlearn.training import TrainConfig, train


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curvature", description=__doc__)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--weights", nargs="+", type=float, default=[0.0, 0.02, 0.2], help="λ")
    parser.add_argument("--initial", nargs="+", type=float, default=[1.0, 10.0], help="c₀")
    parser.add_argument("--output", type=Path, default=Path("curvature.jsonl"))
    options = parser.parse_args(arguments)
    lines = options.output.read_text("utf-8").splitlines() if options.output.is_file() else []
    rows = [json.loads(line) for line in lines]
    done = {(row["entailment_weight"], row["initial_curvature"], row["epochs"]) for row in rows}
    for weight, initial in itertools.product(options.weights, options.initial):
        if (weight, initial, options.epochs) not in done:
            rows.append(run(weight, initial, options.epochs))
            options.output.parent.mkdir(parents=True, exist_ok=True)
            with options.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    folder = next(info.path for info in models.list_models() if info.name == "meru-emoji-flat")
    last = json.loads((folder / "history.jsonl").read_text("utf-8").splitlines()[-1])
    bundled = {"entailment_weight": "meru-emoji-flat", "initial_curvature": 1.0, "epochs": last["epoch"]}
    model = models.load("meru-emoji-flat")
    rows.insert(0, bundled | measure(model, data.load("emoji"), last))
    if isinstance(model.space, LorentzTangents):
        print(f"Half-spaces up to r = {math.asinh(2 * model.space.min_radius):.3f}\n")
    print("| λ | c₀ | epochs | c | τ | r of images | r of names | inside | accuracy, seen |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(
            f"| {row['entailment_weight']} | {row['initial_curvature']} | {row['epochs']} "
            f"| {row['curvature']:.3f} | {row['logit_scale']:.1f} | {row['radius']['image']:.2f} "
            f"| {row['radius']['name']:.2f} | {100 * row['inside']:.1f} % | {100 * row['accuracy']:.1f} % |"
        )
    return 0


def run(weight: float, initial: float, epochs: int) -> dict[str, Any]:
    """Train the bundled MERU briefly."""
    folder = next(info.path for info in models.list_models() if info.name == "meru-emoji-flat")
    model_config = json.loads((folder / "open_clip_config.json").read_text("utf-8"))
    model_config["model_cfg"]["curvature_init"] = initial
    settings = TrainConfig(**yaml.safe_load((folder / "train.yaml").read_text("utf-8")))
    settings = replace(
        settings, epochs=epochs, warmup_epochs=1, evaluate_every=epochs, entailment_weight=weight
    )
    with tempfile.TemporaryDirectory() as output:
        model = train(model_config, settings, output)
        record = json.loads((Path(output) / "history.jsonl").read_text("utf-8").splitlines()[-1])
    made = {"entailment_weight": weight, "initial_curvature": initial, "epochs": epochs}
    return made | measure(model, data.load(settings.data), record) | {"torch": torch.__version__}


def measure(model: models.DualEncoder, dataset: data.Dataset, record: dict[str, Any]) -> dict[str, Any]:
    """Scalars, radii and cones of a model at the end of its training, whose last record is ``record``."""
    names = [concept.name for concept in dataset.taxonomy.concepts]
    images, texts = encode_images(model, dataset.seen.images), encode_texts(model, names)
    space = model.space.detached()
    _, c = space.tangents(texts)
    inside = space.cones(texts[dataset.seen.concept], images).outside <= 0
    sides = {"image": images, "name": texts}
    return {
        "curvature": float(c),
        "logit_scale": record["logit_scale"],
        "accuracy": record["seen"]["accuracy"],
        "radius": {side: space.radius(v).median().item() for side, v in sides.items()},
        "inside": inside.double().mean().item(),
    }


if __name__ == "__main__":
    sys.exit(main())
