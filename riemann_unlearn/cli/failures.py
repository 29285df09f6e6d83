"""What a user is told when something goes wrong: one sentence, or a traceback where nobody foresaw it."""

from __future__ import annotations

import errno


class Failure(Exception):
    """What went wrong on the way, and what is safe: for the user to read, without a traceback."""


def reason(error: OSError) -> str:
    """An operating system's error in words: which file, and why."""
    if type(error).__module__.startswith("riemann_unlearn."):
        return str(error)  # of ours, and in words
    # What has no name is a stream: files say theirs (io.atomic_write sees to it).
    writing = error.filename is None or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
    verb = "cannot write" if writing else "cannot read or write"
    return f"{verb} {error.filename or 'the output'}: {error.strerror or error}"


def foreseen(error: BaseException) -> bool:
    """Whether a sentence says all there is to say, so that a traceback would only hide it.

    Of a ValueError: whether this library raised it, by a statement with words for the user. One of torch's,
    or of an interpreter that cannot unpack three values into two, is a fault, and where it happened matters.
    """
    if isinstance(error, ValueError):
        return _raised_here(error)
    if isinstance(error, MemoryError):
        return True
    import torch

    from riemann_unlearn.processes import Lost
    from riemann_unlearn.training.driver import Diverged

    return isinstance(error, (Diverged, Lost, torch.cuda.OutOfMemoryError))


def _raised_here(error: BaseException) -> bool:
    """Whether a ``raise`` statement of this library is where the error began."""
    # The last entry is the frame that raised; those before it called it.
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    import dis

    frame = trace.tb_frame
    # tb_lasti is the instruction that was under way: a raise statement's own, or a call, an unpacking, a
    # subscript in which the interpreter found the fault.
    operation = dis.opname[frame.f_code.co_code[trace.tb_lasti]]
    return operation == "RAISE_VARARGS" and frame.f_globals["__name__"].startswith("riemann_unlearn.")
