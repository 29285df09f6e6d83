"""What can be asked for on the command line: flags, made from the dataclasses where these describe it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from riemann_unlearn._version import __version__
from riemann_unlearn.cli import commands, listing
from riemann_unlearn.config import EvaluateConfig, RunConfig, SelectConfig, TrainConfig
from riemann_unlearn.options import Config

EXIT_CODES = (
    "Exit codes: 0 done; 1 failed on the way, as on a full disk; 2 cannot be done as asked; 3 a manifold "
    "that is not stable; 130 interrupted; 141 what read the output closed it."
)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets ``command``, the function that does it."""
    parser = argparse.ArgumentParser(
        prog="riemann-unlearn",
        description="Make a vision-language model forget a concept, and measure what it forgot and kept.",
        epilog=f"Start with: riemann-unlearn run --forget food-fruit. {EXIT_CODES}",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_run(subparsers)
    _add_select(subparsers)
    _add_train(subparsers)
    _add_evaluate(subparsers)
    _add_stability(subparsers)
    _add_report(subparsers)
    _add_list(subparsers)
    return parser


def add_options(parser: argparse.ArgumentParser, config: type[Config]) -> None:
    """A flag for each option of a dataclass; the namespace has only those that are given."""
    for entry in fields(config):
        about, kind = entry.metadata, config.kind(entry.name)
        words = about["help"]
        if kind in (Sequence, Mapping):
            words += "; repeatable"
        # None and MISSING are no values that one could give.
        if isinstance(entry.default, (str, int, float)) and "(default" not in words:
            words += f" (default: {entry.default})"
        settings: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        if kind is not bool:
            settings = {"action": "append" if kind in (Sequence, Mapping) else "store"}
            choices = "{" + ",".join(about["choices"]) + "}" if about["choices"] else entry.name.upper()
            settings["metavar"] = about["metavar"] or choices
        parser.add_argument(
            config.flag(entry.name),
            dest=entry.name,
            # Without a default the namespace tells what was given, which a file's options must not override.
            default=argparse.SUPPRESS,
            # argparse formats help by %.
            help=words.replace("%", "%%"),
            **settings,
        )
    parser.add_argument(
        "--config", dest="config_file", metavar="FILE", help="YAML file of these options; flags override it"
    )


def _add_run(subparsers: Any) -> None:
    run = subparsers.add_parser(
        "run",
        help="forget a concept, measure before and after, write a run directory",
        description=(
            "Forget a concept and measure before and after. Writes config.yaml, metrics.json, "
            "history.jsonl, model.safetensors and report.html to the output folder."
        ),
        epilog="Ctrl-C keeps a checkpoint; go on with: riemann-unlearn run --output DIR --resume",
    )
    add_options(run, RunConfig)
    run.add_argument("--steps", metavar="N", help="optimizer steps, as --set steps=N (default: the method's)")
    run.add_argument(
        "--output", metavar="DIR", type=Path, help="run directory (default: a new folder under runs/)"
    )
    run.add_argument("--resume", action="store_true", help="go on with the run in --output")
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="take a few steps on a copy, print what the run will take, and write nothing",
    )
    run.add_argument("--json", action="store_true", help="print metrics.json instead of a table")
    run.set_defaults(command=commands.run)


def _add_select(subparsers: Any) -> None:
    select = subparsers.add_parser(
        "select",
        help="see what a request would forget, and write it down as a list",
        description=(
            "Count the images that a request is about, draw them beside those that lie just outside, and "
            "write their names to a file that --forget @FILE takes."
        ),
        epilog="For example: riemann-unlearn select --data photos --near me.jpg --threshold 0.8 "
        "--preview sheet.png --output me.txt",
    )
    add_options(select, SelectConfig)
    select.add_argument(
        "--preview", metavar="FILE.png", type=Path, help="draw what is selected and what lies just outside"
    )
    select.add_argument(
        "--output", metavar="FILE", type=Path, help="write the selected images' names, one a line"
    )
    select.add_argument("--json", action="store_true", help="print JSON")
    select.set_defaults(command=commands.select)


def _add_train(subparsers: Any) -> None:
    train = subparsers.add_parser(
        "train",
        help="train a model from scratch",
        description=(
            "Train a model from scratch. The bundled ones were made with "
            "'riemann-unlearn train --model NAME --output DIR'."
        ),
    )
    train.add_argument(
        "--model",
        required=True,
        help="a bundled model, to train it again as it was (with its own settings where none are given), "
        "open_clip:ARCHITECTURE, or an open_clip-style JSON configuration",
    )
    train.add_argument("--output", metavar="DIR", type=Path, required=True, help="folder to write to")
    add_options(train, TrainConfig)
    train.add_argument("--resume", action="store_true", help="go on with the training in --output")
    train.set_defaults(command=commands.train)


def _add_evaluate(subparsers: Any) -> None:
    evaluate = subparsers.add_parser(
        "evaluate",
        help="measure a model on what is forgotten and what is retained",
        description=(
            "Accuracy and recall of a saved model, on forgotten and on retained concepts. A full audit also "
            "asks whether the forgotten is in the features still, comes back, or shows that it was there."
        ),
        epilog="For example: riemann-unlearn evaluate --model runs/DIR --audit full --output runs/DIR",
    )
    add_options(evaluate, EvaluateConfig)
    evaluate.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        help="write a full audit to audit.json and report.html there; in a run directory it becomes a part "
        "of the run's report",
    )
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of a table")
    evaluate.set_defaults(command=commands.evaluate)


def _add_stability(subparsers: Any) -> None:
    stability = subparsers.add_parser(
        "stability",
        help="measure how many digits a manifold keeps, at each radius",
        description=(
            "Compare every operation of a manifold, value and gradient, with the exact result of the stored "
            "coordinates. Exit code 0 when everything is finite and keeps its digits, 3 when not."
        ),
        epilog="For geoopt's: riemann-unlearn stability --manifold geoopt:Lorentz",
    )
    stability.add_argument(
        "--manifold",
        action="append",
        metavar="MODULE:ATTR",
        help="a manifold, its class, or a module of functions; or a path of a .py file; repeatable "
        "(default: riemann_unlearn:Lorentz)",
    )
    stability.add_argument(
        "--chart",
        choices=("ambient", "space", "ball", "tangent"),
        help="how points are stored, where that is not known",
    )
    stability.add_argument(
        "--dtype", default="float32", choices=("float64", "float32", "bfloat16", "float16"), help="of points"
    )
    stability.add_argument("--device", default="cpu", help="such as cuda (default: cpu)")
    stability.add_argument("--radii", type=float, nargs="+", metavar="R", help="in units of 1/√c")
    stability.add_argument("--c", type=float, default=1.0, help="curvature magnitude, for a module")
    stability.add_argument(
        "--operations", nargs="+", metavar="NAME", help="such as dist logmap (default: all)"
    )
    stability.add_argument("--plot", metavar="FILE", type=Path, help="write the errors as a .svg or .png")
    stability.add_argument("--json", action="store_true", help="print JSON instead of tables")
    stability.set_defaults(command=commands.stability)


def _add_report(subparsers: Any) -> None:
    report = subparsers.add_parser(
        "report",
        help="write the report of a finished run again, or draw it",
        description="Write report.html of a finished run from its metrics and history, and a picture of it.",
    )
    report.add_argument("run", metavar="DIR", type=Path, help="run directory")
    report.add_argument(
        "--picture",
        metavar="FILE.png",
        type=Path,
        help="also draw held-out images with what they were called before and after",
    )
    report.set_defaults(command=commands.report)


def _add_list(subparsers: Any) -> None:
    lists = subparsers.add_parser(
        "list",
        help="list models, methods, concepts and what else there is by name",
        description="List what can be named: what --model, --method, --data and --forget can be, what a full "
        "audit measures, and how features are compared.",
    )
    lists.add_argument("what", choices=tuple(listing.LISTS))
    lists.add_argument("--data", help="whose concepts: dataset or folder of shards (default: emoji)")
    lists.add_argument("--json", action="store_true", help="print JSON")
    lists.set_defaults(command=listing.run)
