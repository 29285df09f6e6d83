"""The command line: ``riemann-unlearn run | train | evaluate | stability | report | list``.

A command's flags are made from the dataclass in :mod:`riemann_unlearn.config` that describes it; what stands
here is what a dataclass does not say: where to write, what to print. argparse does it in no time and thirty
lines; of the libraries that make a command line of a dataclass (tyro, simple-parsing, jsonargparse, cyclopts)
none both tells what was given from what is a default, which a file of options that flags override needs, and
leaves the wording of errors to us. Nothing heavy is imported before a command is known.

``parser`` says what can be asked, ``commands`` and ``listing`` do it, ``failures`` says what went wrong: in
one sentence on standard error, and by an exit code (``parser.EXIT_CODES``). A traceback reaches a user only
for what nobody foresaw.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from riemann_unlearn.cli.failures import Failure, foreseen, reason
from riemann_unlearn.cli.parser import build_parser

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show an apple shows a question mark: no print may undo what was done.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        with _joined():
            return _main(arguments)
    except RuntimeError as error:  # the others did not come
        if not foreseen(error):
            raise
        return _complain(str(error), 1)


def _main(arguments: Sequence[str] | None) -> int:
    try:
        with _polite_kill(), _plain_warnings():
            try:
                options = build_parser().parse_args(arguments)
                code: int | None = options.command(options)
            finally:
                # Here, where a failure can be told, and not at Python's exit, where it cannot.
                print(end="", flush=True)
    except KeyboardInterrupt as interruption:
        return _complain(str(interruption) or "interrupted", 130)
    # Before OSError, which it is a kind of.
    except BrokenPipeError:
        # What read the output has enough, as `head` has.
        _abandon_output()
        return 141  # 128 + SIGPIPE, as a shell says it
    except OSError as error:
        # Without a file it is standard output that failed, as on a full disk.
        if error.filename is None:
            _abandon_output()
        return _complain(reason(error), 1)
    except (ValueError, RuntimeError, MemoryError) as error:
        if not foreseen(error):
            raise
        return _complain(str(error), 2 if isinstance(error, ValueError) else 1)
    except Failure as failure:
        return _complain(str(failure), 1)
    return code or 0


def _joined() -> contextlib.AbstractContextManager[None]:
    """Be one of torchrun's processes, if it is torchrun that started this one."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return contextlib.nullcontext()  # and torch is not imported for it
    from riemann_unlearn.processes import joined

    return joined()


@contextlib.contextmanager
def _polite_kill() -> Iterator[None]:
    """Make a polite kill an interruption like Ctrl-C: the run keeps its checkpoint and says so."""
    if threading.current_thread() is not threading.main_thread():  # where signals cannot be handled
        yield
        return
    # Put back afterwards, for main() may be called by a program that has a handler of its own.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show this library's warnings as sentences, without the line of code that had them to give."""
    with warnings.catch_warnings():
        # geoopt's import, not the user's concern.
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
        usual = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            # The file that a warning is of is where its stacklevel points.
            if "riemann_unlearn" in Path(filename).parts:
                _complain(str(message), 0)
            else:
                usual(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def _complain(message: str, code: int) -> int:
    words = " ".join(message.split())
    # What several processes have to say, one of them says. Not imported for it: that takes seconds.
    processes = sys.modules.get("riemann_unlearn.processes")
    if processes is None or processes.new(words):
        with contextlib.suppress(OSError):  # nobody reads standard error either
            print(f"riemann-unlearn: {words}", file=sys.stderr)
    return code


def _abandon_output() -> None:
    """Let what is still to be printed go nowhere: Python would try it again at its exit, and complain."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
