"""The command line: ``riemann-unlearn run | train | evaluate | stability | report | list``.

Only argparse is imported before a command is known, so that ``--help`` answers at once. What goes
wrong ends in one sentence on standard error and an exit code: 2 for a request that cannot be carried
out, 1 for one that failed on the way, 3 for a manifold that is not stable, 130 for an interrupted one.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from riemann_unlearn._version import __version__

DEFAULT_FORGET = "food-fruit"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    # geoopt's import, not the user's concern.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    # A polite kill is an interruption like Ctrl-C: the run keeps its checkpoint and says so.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code: int | None = options.command(options)
    except KeyboardInterrupt as interruption:
        return _complain(str(interruption) or "interrupted", 130)
    except ValueError as error:
        return _complain(str(error), 2)
    except (RuntimeError, OSError, ImportError) as error:
        return _complain(str(error), 1)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return code or 0


def _complain(message: str, code: int) -> int:
    print(f"riemann-unlearn: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="riemann-unlearn",
        description="Make a vision-language model forget a concept, and measure what it forgot and kept.",
        epilog="Start with: riemann-unlearn run --forget food-fruit",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_stability(commands)
    _add_report(commands)
    _add_list(commands)
    _add_bench(commands)
    return parser


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
    run.add_argument(
        "--forget",
        action="append",
        metavar="CONCEPT",
        help=f"an emoji name, a subcategory or a category; repeatable (default: {DEFAULT_FORGET})",
    )
    run.add_argument("--model", help="bundled model or checkpoint (default: meru-emoji)")
    run.add_argument("--data", help="bundled dataset or folder of shards (default: emoji)")
    run.add_argument("--method", help="see 'riemann-unlearn list methods' (default: tilt)")
    run.add_argument("--seed", type=int, help="decides batches, views and captions (default: 0)")
    run.add_argument("--steps", type=int, help="optimizer steps (default: the method's)")
    run.add_argument(
        "--saliency",
        type=float,
        metavar="SHARE",
        help="move only this share of the weights, those that the forgotten depend on most (default: 1)",
    )
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a setting of the method, such as alpha=0.5; repeatable",
    )
    run.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        help="run directory (default: a new folder under runs/)",
    )
    run.add_argument("--resume", action="store_true", help="go on with the run in --output")
    run.add_argument("--config", metavar="FILE", help="YAML file of these options; flags override it")
    run.add_argument("--json", action="store_true", help="print metrics.json instead of a table")
    run.set_defaults(command=_run)


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train CLIP or MERU from scratch",
        description=(
            "Train CLIP or MERU from scratch. The bundled models were made with "
            "'riemann-unlearn train --model NAME --output DIR'."
        ),
    )
    train.add_argument(
        "--model",
        required=True,
        help="a bundled model, to train it again as it was, or an open_clip-style JSON configuration",
    )
    train.add_argument("--output", metavar="DIR", type=Path, required=True, help="folder to write to")
    train.add_argument(
        "--config", metavar="FILE", help="YAML of training settings (default: the bundled model's)"
    )
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
    evaluate.add_argument("--model", default="meru-emoji", help="bundled model, checkpoint or run")
    evaluate.add_argument("--data", help="dataset or folder of shards (default: the run's, else emoji)")
    evaluate.add_argument(
        "--forget",
        action="append",
        metavar="CONCEPT",
        help="what counts as forgotten; repeatable (default: what the run forgot, else food-fruit)",
    )
    evaluate.add_argument(
        "--audit",
        choices=("quick", "full"),
        default="quick",
        help="full also asks the features, relearning, membership inference, alignment and hierarchy: about "
        "a minute (default: quick)",
    )
    evaluate.add_argument(
        "--before", metavar="MODEL", help="untouched model, for a full audit (default: the one the run is of)"
    )
    evaluate.add_argument(
        "--oracle", metavar="MODEL", help="model trained without the forgotten, for a full audit"
    )
    evaluate.add_argument("--seed", type=int, default=0, help="of a full audit (default: 0)")
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
        help="also draw held-out images with what they were called before and after (needs matplotlib)",
    )
    report.set_defaults(command=_report)


def _add_list(commands: Any) -> None:
    listing = commands.add_parser(
        "list",
        help="list models, methods or concepts",
        description="List what --model, --method and --forget can be.",
    )
    listing.add_argument("what", choices=("models", "methods", "concepts"))
    listing.add_argument("--data", help="whose concepts: dataset or folder of shards (default: emoji)")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(command=_list)


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser(
        "bench",
        help="measure: optimizers, their speed, WordNet and more",
        description=(
            "Run one of the benchmarks of the source tree, as 'python -m benchmarks.NAME' does. "
            "'riemann-unlearn bench NAME --help' tells its options."
        ),
    )
    bench.add_argument("name", metavar="NAME", help="such as optimizers, optimizer_step or wordnet")
    bench.add_argument("arguments", nargs=argparse.REMAINDER, help="options of the benchmark")
    bench.set_defaults(command=_bench)


def _run(options: argparse.Namespace) -> None:
    from riemann_unlearn.report import metrics_table, write_report
    from riemann_unlearn.unlearning import RunConfig, read_config, unlearn

    asked: dict[str, Any] = {
        name: value
        for name in ("forget", "model", "data", "method", "seed", "saliency")
        if (value := getattr(options, name)) is not None
    }
    settings = dict(map(parse_setting, options.set))
    if options.steps is not None:
        settings["steps"] = options.steps
    if options.resume and options.output is None:
        raise ValueError("--resume needs --output DIR, the run directory to go on with")
    source = options.output / "config.yaml" if options.resume else options.config
    if source is None:
        config = RunConfig(**{"forget": [DEFAULT_FORGET], **asked, "settings": settings})
    else:
        config = read_config(source, **asked)
        config = read_config(source, **asked, settings={**config.settings, **settings})
    output = options.output or _new_folder(config.method, config.forget, config.seed)
    result = unlearn(
        config.model,
        config.data,
        forget=config.forget,
        method=config.method,
        settings=config.settings,
        seed=config.seed,
        forget_batch=config.forget_batch,
        retain_batch=config.retain_batch,
        saliency=config.saliency,
        output=output,
        resume=options.resume,
    )
    write_report(output)
    if options.json:
        print(json.dumps(result.metrics, indent=2))
    else:
        print(metrics_table(result.metrics))
        print(f"\nWritten to {output}; open {output / 'report.html'} in a browser.")


def _train(options: argparse.Namespace) -> None:
    import yaml

    from riemann_unlearn.models import list_models
    from riemann_unlearn.training import TrainConfig, train

    bundled = {info.name: info.path for info in list_models()}
    if options.model in bundled:
        model_file = bundled[options.model] / "open_clip_config.json"
        config_file = Path(options.config or bundled[options.model] / "train.yaml")
    else:
        model_file, config_file = Path(options.model), Path(options.config or "")
    try:
        model_config = json.loads(model_file.read_text(encoding="utf-8"))
        settings = yaml.safe_load(config_file.read_text(encoding="utf-8")) if config_file.name else {}
    except (OSError, yaml.YAMLError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read the configuration: {error}") from None
    try:
        config = TrainConfig(**settings)
    except TypeError as error:
        raise ValueError(f"{config_file}: {error}") from None
    train(model_config, config, options.output, resume=options.resume)
    print(f"Written to {options.output}.")


def _evaluate(options: argparse.Namespace) -> None:
    from riemann_unlearn.evaluation import evaluate
    from riemann_unlearn.io import atomic_write
    from riemann_unlearn.report import AUDIT_NAME, evaluation_table, write_report

    run = _run_in(Path(options.model))
    forget = options.forget or run.get("forget") or [DEFAULT_FORGET]
    data = options.data or run.get("data") or "emoji"
    full = options.audit == "full"
    if options.output is not None and not full:
        raise ValueError("--output is for a full audit; add --audit full")
    report = evaluate(
        options.model,
        data,
        forget=forget,
        audit=options.audit,
        before=options.before or (run.get("model") if full else None),
        oracle=options.oracle,
        seed=options.seed,
        progress=True,
    )
    report = {"model": options.model, "data": data, "forgotten": forget, **report}
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        atomic_write(options.output / AUDIT_NAME, json.dumps(report, indent=1) + "\n")
        write_report(options.output)
    print(json.dumps(report, indent=2) if options.json else evaluation_table(report))


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
        try:
            write_picture(options.run, options.picture)
        except ImportError as error:
            raise ValueError(f"a picture needs matplotlib: pip install matplotlib ({error})") from None
        print(f"Written to {options.picture}")


def _list(options: argparse.Namespace) -> None:
    from dataclasses import fields

    if options.data is not None and options.what != "concepts":
        raise ValueError(f"--data is for concepts; {options.what} are the same for any data")
    rows: list[dict[str, Any]]
    if options.what == "models":
        from riemann_unlearn.models import list_models

        rows = [
            {"name": m.name, "architecture": m.architecture, "description": m.description}
            for m in list_models()
        ]
    elif options.what == "methods":
        from riemann_unlearn.unlearning import list_methods

        rows = [
            {
                "name": method.name,
                "description": method.description,
                "paper": method.paper,
                "geometries": ", ".join(method.geometries),
                "settings": ", ".join(f"{f.name}={f.default:g}" for f in fields(method)),
            }
            for method in list_methods()
        ]
    else:
        from riemann_unlearn.data import load

        rows = [
            {"category": c.category, "subcategory": c.subcategory, "name": c.name}
            for c in load(options.data or "emoji").taxonomy.concepts
        ]
    if options.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        for row in rows:
            print("  ".join(str(value) for value in row.values()))


def _bench(options: argparse.Namespace) -> None:
    import importlib
    import pkgutil

    sys.path.append(str(Path.cwd()))
    try:
        package = importlib.import_module("benchmarks")
        known = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    except ModuleNotFoundError:
        raise ValueError("the benchmarks are part of the source tree: run this in its folder") from None
    if options.name not in known:
        raise ValueError(f"there is no benchmark {options.name!r}; there are {', '.join(known)}")
    importlib.import_module(f"benchmarks.{options.name}").main(options.arguments)


def parse_setting(text: str) -> tuple[str, float]:
    """The name and the number of NAME=NUMBER; ValueError for anything else."""
    name, equals, value = text.partition("=")
    try:
        number = int(value) if value.lstrip("+-").isdecimal() else float(value)
    except ValueError:
        equals = ""
    if not equals:
        raise ValueError(f"--set takes NAME=NUMBER, such as alpha=0.5; got {text!r}")
    return name, number


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
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


if __name__ == "__main__":
    sys.exit(main())
