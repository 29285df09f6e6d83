"""What each command does, once it is known what was asked; whatever costs time is imported here.

Everything that can be refused is refused before anything is written, and before any work whose result could
then not be kept.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from riemann_unlearn.cli.failures import Failure, reason
from riemann_unlearn.config import EvaluateConfig, RunConfig, SelectConfig, TrainConfig
from riemann_unlearn.options import Config

DEFAULT_FORGET = "food-fruit"


def given(options: argparse.Namespace, config: type[Config]) -> dict[str, Any]:
    """The options of a dataclass that the command line gave, checked."""
    names = [entry.name for entry in fields(config) if hasattr(options, entry.name)]
    return {name: config.parse(name, getattr(options, name)) for name in names}


def run(options: argparse.Namespace) -> None:
    """Forget, and write the run directory and its report."""
    asked = given(options, RunConfig)
    # Taken out, for they are laid over the file's settings one by one and do not replace them.
    settings = {**asked.pop("settings", {})}
    if options.steps is not None:
        settings.update(RunConfig.parse("settings", [f"steps={options.steps}"]))
    source = options.config_file
    if options.resume and options.dry_run:
        raise ValueError("--dry-run plans a new run; leave out --resume")
    if options.resume:
        if options.output is None:
            raise ValueError("--resume needs --output DIR, the run directory to go on with")
        if source is not None:
            raise ValueError("--resume goes on with the run's own config.yaml; leave out --config")
        source = options.output / "config.yaml"
    if source is None:
        config = RunConfig(**{"forget": [DEFAULT_FORGET], **asked})
    else:
        config = RunConfig.read_yaml(source, **asked)
    config = replace(config, settings={**config.settings, **settings})

    # Only now, when what was asked has been checked: torch takes seconds to import.
    from riemann_unlearn import processes
    from riemann_unlearn.report import metrics_table, write_report
    from riemann_unlearn.runs import Unused, run_name
    from riemann_unlearn.unlearning import plan, unlearn

    name = run_name(config.method, config.model, list(config.forget), config.seed)
    target = options.output or Unused(Path("runs") / name)
    if options.dry_run:
        planned = plan(output=target, **config.to_mapping())
        if processes.first() and options.json:
            print_json(planned.to_dict())
        elif processes.first():
            print(planned)
        return
    result = unlearn(output=target, resume=options.resume, **config.to_mapping())
    output = result.folder or Path()
    if not processes.first():
        return
    try:
        write_report(output)
    except OSError as error:
        raise Failure(
            f"{reason(error)}; the run is whole, write its report with: riemann-unlearn report {output}"
        ) from None
    if options.json:
        print_json(result.metrics)
    else:
        print(metrics_table(result.metrics))
        print(f"\nWritten to {output}; open {output / 'report.html'} in a browser.")


def select(options: argparse.Namespace) -> None:
    """Find what a request is about: counts, a list of it, and a sheet to look at."""
    asked = given(options, SelectConfig)
    source = options.config_file
    config = SelectConfig(**asked) if source is None else SelectConfig.read_yaml(source, **asked)
    # Encoding takes a while; what cannot be written afterwards is said before.
    for path in (options.output, options.preview):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"cannot write to {path}: there is no folder {path.absolute().parent}")
    if options.preview is not None and options.preview.suffix != ".png":
        raise ValueError(f"cannot draw {options.preview}: expected a name that ends in .png")

    from riemann_unlearn import data, models
    from riemann_unlearn.io import atomic_write
    from riemann_unlearn.report import write_sheet
    from riemann_unlearn.training.driver import as_device
    from riemann_unlearn.unlearning import outline

    device = as_device(config.device)
    dataset = data.load(config.data)
    found = outline(
        models.load(config.model).to(device).eval(),
        dataset,
        forget=config.forget or (),
        near=config.near or (),
        threshold=config.threshold,
    )
    if options.output is not None:
        atomic_write(options.output, "\n".join(found.ids()) + "\n")
    if options.preview is not None:
        write_sheet(found, options.preview)
    counts, table = found.counts(), found.at_thresholds()
    if options.json:
        print_json({**counts, "thresholds": [{"threshold": t, "images": n} for t, n in table]})
        return
    print(f"To be forgotten: {counts['forget']} seen images, {counts['forget_heldout']} held-out ones.")
    print(f"To be retained: {counts['retain']} seen images, {counts['retain_heldout']} held-out ones.")
    if table:
        print("Other thresholds: " + ", ".join(f"{t:.4g} for {n}" for t, n in table))
    if options.preview is not None:
        print(f"See {options.preview}.")
    if options.output is not None:
        print(f"Forget them with: riemann-unlearn run --data {config.data} --forget @{options.output}")


def train(options: argparse.Namespace) -> None:
    """Train from scratch; a bundled model's own settings are the defaults of its training."""
    asked = given(options, TrainConfig)

    from riemann_unlearn import processes, training
    from riemann_unlearn.evaluation import zero_shot
    from riemann_unlearn.models import list_models
    from riemann_unlearn.models.origins import configuration

    model_config = configuration(options.model)
    # A bundled name goes before a file of that name.
    bundled = {info.name: info.path / "train.yaml" for info in list_models()}
    source = options.config_file or bundled.get(options.model)
    config = TrainConfig(**asked) if source is None else TrainConfig.read_yaml(source, **asked)
    training.train(model_config, config, options.output, measure=zero_shot, resume=options.resume)
    if processes.first():
        print(f"Written to {options.output}.")


def evaluate(options: argparse.Namespace) -> None:
    """Measure a model; of a run, what it does not hear it reads in the run's metrics."""
    asked = given(options, EvaluateConfig)
    source = options.config_file
    config = EvaluateConfig(**asked) if source is None else EvaluateConfig.read_yaml(source, **asked)
    full = config.audit == "full"
    if options.output is not None and not full:
        raise ValueError("--output is for a full audit; add --audit full")
    for name in ("before", "oracle"):
        if getattr(config, name) is not None and not full:
            raise ValueError(f"--{name} is for a full audit; add --audit full")
    known = _metrics_in(Path(config.model))
    config = replace(
        config,
        # What was asked first, then what the run was of, then the default.
        forget=config.forget or known.get("forget") or [DEFAULT_FORGET],
        data=config.data or known.get("data") or "emoji",
        before=config.before or (_untouched(known) if full else None),
    )
    if options.output is not None:
        _check_can_be_made(options.output)

    from riemann_unlearn import evaluation, processes
    from riemann_unlearn.io import atomic_write
    from riemann_unlearn.report import AUDIT_NAME, evaluation_table, write_report

    measured = evaluation.evaluate(**config.to_mapping(), progress=processes.first())
    if not processes.first():
        return
    result = {"model": config.model, "data": config.data, "forgotten": list(config.forget or ()), **measured}
    try:
        if options.output is not None:
            options.output.mkdir(parents=True, exist_ok=True)
            atomic_write(options.output / AUDIT_NAME, json.dumps(result, indent=1) + "\n")
            write_report(options.output)
    finally:
        # Also where it could not be written: it took a minute.
        if options.json:
            print_json(result)
        else:
            print(evaluation_table(result))


def stability(options: argparse.Namespace) -> int:
    """Audit manifolds; 3 where one of them is not stable."""
    import torch

    from riemann_unlearn.diagnostics import RADII, audit, find, plot
    from riemann_unlearn.training.driver import as_device

    # An audit takes a while; what is wrong with its device and picture is said before it begins.
    as_device(options.device)
    if options.plot is not None:
        _check_picture(options.plot)
    audits = [
        audit(
            find(target),
            dtype=getattr(torch, options.dtype),
            device=options.device,
            radii=options.radii or RADII,
            c=options.c,
            chart=options.chart,
            operations=options.operations,
        )
        for target in options.manifold or ["riemann_unlearn:Lorentz"]
    ]
    if options.json:
        print_json([one.to_dict() for one in audits])
    else:
        print("\n\n".join(map(str, audits)))
    if options.plot is not None:
        plot(audits, str(options.plot))
    return 0 if all(one.safe for one in audits) else 3


def report(options: argparse.Namespace) -> None:
    """Write the report of what is in a folder, and the picture."""
    from riemann_unlearn.report import write_picture, write_report

    print(f"Written to {write_report(options.run)}")
    if options.picture is not None:
        write_picture(options.run, options.picture)
        print(f"Written to {options.picture}")


def print_json(content: Any) -> None:
    """Print JSON in ASCII: so it stays JSON where the terminal's encoding knows no more."""
    print(json.dumps(content, indent=2))


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object; ValueError where it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def _check_can_be_made(folder: Path) -> None:
    """Refuse a folder that cannot be written to, before the work whose result is to go there."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"cannot write to {folder}: {existing} is not a folder that can be written to")


def _check_picture(path: Path) -> None:
    """Refuse a picture that cannot be drawn, before the work that it is to show."""
    if path.suffix not in (".svg", ".png", ".pdf"):
        raise ValueError(f"cannot draw {path}: expected a name that ends in .svg, .png or .pdf")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"cannot write to {path}: there is no folder {path.absolute().parent}")


def _metrics_in(folder: Path) -> dict[str, Any]:
    """The metrics of the run in ``folder``, nothing if it holds none."""
    path = folder / "metrics.json"
    return _read_json(path) if path.is_file() else {}


def _untouched(metrics: dict[str, Any]) -> str | None:
    """The model that a run is of, by its metrics; None where it cannot be found any more, which is said."""
    from riemann_unlearn.models.origins import is_name

    model = metrics.get("model")
    if model is None or Path(model).exists() or is_name(model):
        return model
    # A run from Python may have been of a model that was never saved.
    print(
        f"riemann-unlearn: the run's untouched model {model!r} cannot be found; give it by --before",
        file=sys.stderr,
    )
    return None
