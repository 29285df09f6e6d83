"""The command line: ``riemann-unlearn run | train | evaluate | stability | report | list``.

A command's flags are made from the dataclass in :mod:`riemann_unlearn.config` that describes it; what stands
here is what a dataclass does not say: where to write, what to print. argparse does it in no time and thirty
lines; of the libraries that make a command line of a dataclass (tyro, simple-parsing, jsonargparse, cyclopts)
none both tells what was given from what is a default, which a file of options that flags override needs, and
leaves the wording of errors to us. Nothing heavy is imported before a command is known.

What goes wrong ends in one sentence on standard error and an exit code (see ``EXIT_CODES``). A traceback
reaches a user only for what nobody foresaw.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from riemann_unlearn._version import __version__
from riemann_unlearn.config import Config, EvaluateConfig, RunConfig, TrainConfig

DEFAULT_FORGET = "food-fruit"
EXIT_CODES = (
    "Exit codes: 0 done; 1 failed on the way, as on a full disk; 2 cannot be done as asked; 3 a manifold "
    "that is not stable; 130 interrupted; 141 what read the output closed it."
)


class Failure(Exception):
    """What went wrong on the way, and what is safe: for the user to read, without a traceback."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show an apple shows a question mark: no print may undo what was done.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # geoopt's import, not the user's concern.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    try:
        with _polite_kill():
            try:
                options = _parser().parse_args(arguments)
                code: int | None = options.command(options)
            finally:
                # Here, where a failure can be told, and not at Python's exit, where it cannot.
                print(end="", flush=True)
    except KeyboardInterrupt as interruption:
        return _complain(str(interruption) or "interrupted", 130)
    except BrokenPipeError:
        # What read the output has enough, as `head` has.
        _abandon_output()
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.filename is None:
            _abandon_output()
        return _complain(_reason(error), 1)
    except (RuntimeError, MemoryError) as error:
        if not _foreseen(error):
            raise
        return _complain(str(error), 1)
    except ValueError as error:
        return _complain(str(error), 2)
    except Failure as failure:
        return _complain(str(failure), 1)
    return code or 0


@contextlib.contextmanager
def _polite_kill() -> Any:
    """Make a polite kill an interruption like Ctrl-C: the run keeps its checkpoint and says so."""
    if threading.current_thread() is not threading.main_thread():  # where signals cannot be handled
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _complain(message: str, code: int) -> int:
    with contextlib.suppress(OSError):  # nobody reads standard error either
        print(f"riemann-unlearn: {' '.join(message.split())}", file=sys.stderr)
    return code


def _reason(error: OSError) -> str:
    """An operating system's error in words: which file, and why."""
    if type(error).__module__.startswith(__package__):
        return str(error)  # of ours, and in words
    # What has no name is a stream: files say theirs (io.atomic_write sees to it).
    writing = error.filename is None or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
    verb = "cannot write" if writing else "cannot read or write"
    return f"{verb} {error.filename or 'the output'}: {error.strerror or error}"


def _foreseen(error: BaseException) -> bool:
    """Whether a sentence says all there is to say: the loss is no longer finite, or memory is full."""
    if isinstance(error, MemoryError):
        return True
    import torch

    from riemann_unlearn.training.driver import Diverged

    return isinstance(error, (Diverged, torch.cuda.OutOfMemoryError))


def _abandon_output() -> None:
    """Let what is still to be printed go nowhere: Python would try it again at its exit, and complain."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="riemann-unlearn",
        description="Make a vision-language model forget a concept, and measure what it forgot and kept.",
        epilog=f"Start with: riemann-unlearn run --forget food-fruit. {EXIT_CODES}",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_stability(commands)
    _add_report(commands)
    _add_list(commands)
    return parser


def _add_options(parser: argparse.ArgumentParser, config: type[Config]) -> None:
    """A flag for each option of a dataclass; the namespace has only those that are given."""
    for entry in fields(config):
        about, kind = entry.metadata, config.kind(entry.name)
        words = about["help"]
        if kind in (Sequence, Mapping):
            words += "; repeatable"
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
            default=argparse.SUPPRESS,
            help=words.replace("%", "%%"),
            **settings,
        )
    parser.add_argument(
        "--config", dest="config_file", metavar="FILE", help="YAML file of these options; flags override it"
    )


def _given(options: argparse.Namespace, config: type[Config]) -> dict[str, Any]:
    """The options of a dataclass that the command line gave, checked."""
    names = [entry.name for entry in fields(config) if hasattr(options, entry.name)]
    return {name: config.parse(name, getattr(options, name)) for name in names}


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="forget a concept, measure before and after, write a run directory",
        description=(
            "Forget a concept and measure before and after. Writes config.yaml, metrics.json, "
            "history.jsonl, model.safetensors and report.html to the output folder."
        ),
        epilog="Ctrl-C keeps a checkpoint; go on with: riemann-unlearn run --output DIR --resume",
    )
    _add_options(run, RunConfig)
    run.add_argument("--steps", metavar="N", help="optimizer steps, as --set steps=N (default: the method's)")
    run.add_argument(
        "--output", metavar="DIR", type=Path, help="run directory (default: a new folder under runs/)"
    )
    run.add_argument("--resume", action="store_true", help="go on with the run in --output")
    run.add_argument("--json", action="store_true", help="print metrics.json instead of a table")
    run.set_defaults(command=_run)


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
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
        help="a bundled model, to train it again as it was (with its own settings where none are given), or "
        "an open_clip-style JSON configuration",
    )
    train.add_argument("--output", metavar="DIR", type=Path, required=True, help="folder to write to")
    _add_options(train, TrainConfig)
    train.add_argument("--resume", action="store_true", help="go on with the training in --output")
    train.set_defaults(command=_train)


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="measure a model on what is forgotten and what is retained",
        description=(
            "Accuracy and recall of a saved model, on forgotten and on retained concepts. A full audit also "
            "asks whether the forgotten is in the features still, comes back, or shows that it was there."
        ),
        epilog="For example: riemann-unlearn evaluate --model runs/DIR --audit full --output runs/DIR",
    )
    _add_options(evaluate, EvaluateConfig)
    evaluate.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        help="write a full audit to audit.json and report.html there; in a run directory it becomes a part "
        "of the run's report",
    )
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of a table")
    evaluate.set_defaults(command=_evaluate)


def _add_stability(commands: Any) -> None:
    stability = commands.add_parser(
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
    stability.add_argument("--plot", metavar="FILE", help="write the errors as a .svg or .png")
    stability.add_argument("--json", action="store_true", help="print JSON instead of tables")
    stability.set_defaults(command=_stability)


def _add_report(commands: Any) -> None:
    report = commands.add_parser(
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
    report.set_defaults(command=_report)


def _add_list(commands: Any) -> None:
    listing = commands.add_parser(
        "list",
        help="list models, methods, concepts and what else there is by name",
        description="List what can be named: what --model, --method, --data and --forget can be, what a full "
        "audit measures, and how features are compared.",
    )
    listing.add_argument("what", choices=tuple(_LISTS))
    listing.add_argument("--data", help="whose concepts: dataset or folder of shards (default: emoji)")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(command=_list)


def _run(options: argparse.Namespace) -> None:
    asked = _given(options, RunConfig)
    settings = {**asked.pop("settings", {})}
    if options.steps is not None:
        settings.update(RunConfig.parse("settings", [f"steps={options.steps}"]))
    source = options.config_file
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
    output = options.output or _new_folder(config.method, config.forget, config.seed)

    from riemann_unlearn.report import metrics_table, write_report
    from riemann_unlearn.unlearning import unlearn

    result = unlearn(output=output, resume=options.resume, **config.to_mapping())
    try:
        write_report(output)
    except OSError as error:
        raise Failure(
            f"{_reason(error)}; the run is whole, write its report with: riemann-unlearn report {output}"
        ) from None
    if options.json:
        _print_json(result.metrics)
    else:
        print(metrics_table(result.metrics))
        print(f"\nWritten to {output}; open {output / 'report.html'} in a browser.")


def _train(options: argparse.Namespace) -> None:
    asked = _given(options, TrainConfig)

    from riemann_unlearn.models import list_models
    from riemann_unlearn.training import train

    bundled = {info.name: info.path for info in list_models()}
    if options.model in bundled:
        model_file = bundled[options.model] / "open_clip_config.json"
        source = options.config_file or bundled[options.model] / "train.yaml"
    else:
        model_file, source = Path(options.model), options.config_file
    config = TrainConfig(**asked) if source is None else TrainConfig.read_yaml(source, **asked)
    try:
        train(_read_json(model_file), config, options.output, resume=options.resume)
    except OSError as error:
        raise Failure(
            f"{_reason(error)}; what is in {options.output} is whole, go on with --resume"
        ) from None
    print(f"Written to {options.output}.")


def _evaluate(options: argparse.Namespace) -> None:
    asked = _given(options, EvaluateConfig)
    source = options.config_file
    config = EvaluateConfig(**asked) if source is None else EvaluateConfig.read_yaml(source, **asked)
    full = config.audit == "full"
    if options.output is not None and not full:
        raise ValueError("--output is for a full audit; add --audit full")
    for name in ("before", "oracle"):
        if getattr(config, name) is not None and not full:
            raise ValueError(f"--{name} is for a full audit; add --audit full")
    run = _run_in(Path(config.model))
    config = replace(
        config,
        forget=config.forget or run.get("forget") or [DEFAULT_FORGET],
        data=config.data or run.get("data") or "emoji",
        before=config.before or (run.get("model") if full else None),
    )
    if options.output is not None:
        _check_can_be_made(options.output)

    from riemann_unlearn.evaluation import evaluate
    from riemann_unlearn.io import atomic_write
    from riemann_unlearn.report import AUDIT_NAME, evaluation_table, write_report

    report = evaluate(**config.to_mapping(), progress=True)
    report = {"model": config.model, "data": config.data, "forgotten": list(config.forget or ()), **report}
    try:
        if options.output is not None:
            options.output.mkdir(parents=True, exist_ok=True)
            atomic_write(options.output / AUDIT_NAME, json.dumps(report, indent=1) + "\n")
            write_report(options.output)
    finally:
        # Also where it could not be written: it took a minute.
        if options.json:
            _print_json(report)
        else:
            print(evaluation_table(report))


def _stability(options: argparse.Namespace) -> int:
    import torch

    from riemann_unlearn.diagnostics import RADII, audit, find, plot

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
        print(json.dumps([one.to_dict() for one in audits], indent=2))
    else:
        print("\n\n".join(map(str, audits)))
    if options.plot:
        plot(audits, options.plot)
    return 0 if all(one.safe for one in audits) else 3


def _report(options: argparse.Namespace) -> None:
    from riemann_unlearn.report import write_picture, write_report

    print(f"Written to {write_report(options.run)}")
    if options.picture is not None:
        write_picture(options.run, options.picture)
        print(f"Written to {options.picture}")


def _list(options: argparse.Namespace) -> None:
    if options.data is not None and options.what != "concepts":
        raise ValueError(f"--data is for concepts; {options.what} are the same for any data")
    rows = _LISTS[options.what](options.data or "emoji")
    if options.json:
        _print_json(rows)
    else:
        for row in rows:
            print("  ".join(str(value) for value in row.values()))


def _models(_: str) -> list[dict[str, Any]]:
    from riemann_unlearn.models import list_models

    return [
        {"name": m.name, "architecture": m.architecture, "description": m.description} for m in list_models()
    ]


def _methods(_: str) -> list[dict[str, Any]]:
    from riemann_unlearn.unlearning import list_methods

    return [
        {
            "name": method.name,
            "description": method.description,
            "paper": method.paper,
            "settings": ", ".join(f"{entry.name}={entry.default}" for entry in fields(method)),
        }
        for method in list_methods()
    ]


def _concepts(data: str) -> list[dict[str, Any]]:
    from riemann_unlearn.data import load

    taxonomy = load(data).taxonomy
    # From general to specific, as a folder's path reads.
    names = [level.name for level in reversed(taxonomy.levels)]
    return [
        dict(zip(names, (*reversed(concept.path), concept.name), strict=True))
        for concept in taxonomy.concepts
    ]


def _measures(_: str) -> list[dict[str, Any]]:
    from riemann_unlearn.evaluation.measures import MEASURES

    return [
        {"name": name, "title": measure.title, "range": measure.range, "paper": measure.paper}
        for name, measure in MEASURES.items()
    ]


def _sources(_: str) -> list[dict[str, Any]]:
    from riemann_unlearn.data import SOURCES

    return [{"name": name, "description": source.description} for name, source in SOURCES.items()]


def _spaces(_: str) -> list[dict[str, Any]]:
    from riemann_unlearn.spaces import SPACES

    return [
        {"name": name, "description": (space.__doc__ or "").strip().split("\n")[0]}
        for name, space in SPACES.items()
    ]


_LISTS = {
    "models": _models,
    "methods": _methods,
    "concepts": _concepts,
    "measures": _measures,
    "sources": _sources,
    "spaces": _spaces,
}


def _print_json(content: Any) -> None:
    # In ASCII: it stays JSON where the terminal's encoding knows no more.
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


def _new_folder(method: str, forget: Sequence[str], seed: int) -> Path:
    """A folder under runs/ that does not exist yet, named for what the run does."""
    words = "".join(ch if ch.isalnum() else "-" for ch in "+".join(forget))
    base = Path("runs") / f"{method}-{words[:60]}-seed{seed}"
    folder, count = base, 1
    while folder.exists():
        count += 1
        folder = base.with_name(f"{base.name}-{count}")
    return folder


def _run_in(folder: Path) -> dict[str, Any]:
    """The metrics of the run in ``folder``, nothing if it holds none."""
    path = folder / "metrics.json"
    return _read_json(path) if path.is_file() else {}


if __name__ == "__main__":
    sys.exit(main())
