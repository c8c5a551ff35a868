"""What becomes of exceptions: each one ends as an `EdgeqError` with a code, a place and something to try."""

from __future__ import annotations

import errno
import os
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from edgeq import __version__
from edgeq.errors import EdgeqError, InputError, InternalError, Interrupted, UsageError
from edgeq.places import state_dir

KEPT_REPORTS = 10
_REFUSALS = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.ENAMETOOLONG,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.EFBIG,
    }
)


class Stopped(KeyboardInterrupt):
    """A polite request of the system to end (SIGTERM, SIGHUP), treated like Ctrl-C."""


def as_edgeq_error(exc: BaseException, args: Sequence[str]) -> EdgeqError:
    """The error to show for any exception that reached the top.

    Args:
        exc: What was raised.
        args: The command line, for the crash report.
    """
    if isinstance(exc, EdgeqError):
        return exc
    if isinstance(exc, (KeyboardInterrupt, click.Abort)):
        what = "ended by the system" if isinstance(exc, Stopped) else "interrupted"
        message = f"{what}; nothing half-written was left behind"
        return Interrupted(message, code="EQ-C001", hint="run the same command again; finished calibration is cached")
    if isinstance(exc, click.ClickException):
        ctx = getattr(exc, "ctx", None)
        path = ctx.command_path if ctx is not None else "edgeq"
        return UsageError(exc.format_message(), code="EQ-U001", place=path, hint=f"{path} --help")
    if isinstance(exc, OSError) and exc.errno in _REFUSALS:
        place = None if exc.filename is None else os.fsdecode(exc.filename)
        message = f"the system refused a file operation: {exc.strerror}"
        hint = "check the permissions and the free space there (`df -h`), or choose another folder with `--out`"
        return UsageError(message, code="EQ-U009", place=place, hint=hint)
    if isinstance(exc, ValueError) and "null byte" in str(exc):  # of a path, as Python refuses it
        message, hint = "an argument holds a null byte, which no path has", "type the path again"
        return UsageError(message, code="EQ-U001", hint=hint)
    if isinstance(exc, MemoryError):
        hint = "close other programs, use fewer `--samples` or fewer `--threads`"
        return InputError("the model or the data needs more memory than this machine has", code="EQ-I001", hint=hint)
    return _bug(exc, args)


def _bug(exc: BaseException, args: Sequence[str]) -> InternalError:
    report = save_report(exc, args)
    where = f"the traceback is in {report}" if report else "the traceback could not be saved anywhere"
    hint = "send that file and the output of `edgeq doctor` with your report"
    text = " ".join(str(exc).split())[:300]
    return InternalError(f"a bug in edgeq: {type(exc).__name__}: {text}", code="EQ-Z001", place=where, hint=hint)


def save_report(exc: BaseException, args: Sequence[str]) -> Path | None:
    """Write the traceback of a bug to a file.

    Args:
        exc: The exception.
        args: The command line.

    Returns:
        The file, or None when no folder took it. Only the newest reports are kept.
    """
    lines = [
        f"edgeq {__version__}, Python {sys.version.split()[0]}, {sys.platform}\n",
        f"command: {shlex.join(['edgeq', *args])}\n\n",
        *traceback.format_exception(exc),
    ]
    name = f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (state_dir(), Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / name
            path.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
            for old in sorted(folder.glob("crash-*-*.txt"))[:-KEPT_REPORTS]:
                old.unlink(missing_ok=True)
        except OSError:
            continue
        return path
    return None
