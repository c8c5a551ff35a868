"""A folder that appears whole or not at all.

Work happens in a hidden sibling of the wished folder (`.NAME.partial-PID-RANDOM`, so on the same file system) that is
flushed to disk and renamed last. The working folder is held by a lock that the system drops when the process dies,
whatever kills it; the next run for the same name removes what a dead one left.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from edgeq.artifact.files import EVIDENCE, MANIFEST
from edgeq.artifact.manifest import SCHEMA
from edgeq.errors import EdgeqError, UsageError

# Elsewhere there are no such locks, and leftovers of killed runs stay.
fcntl = importlib.import_module("fcntl") if os.name == "posix" else None

Exist = Literal["fail", "replace"]

_MADE = re.compile(r"c/build/(\w+\.[ao]|selftest)")
"""What the Makefile of a generated C project writes: a build of what is replaced is no loss."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NEARLY_FULL = 1 << 16


def check_out(out: str | Path, exist: Exist = "fail") -> Path:
    """Check, before any work, that a bundle can be written to `out`; returns the real path.

    Args:
        out: The wished folder.
        exist: `fail` when it exists, or `replace` it if it holds a bundle and nothing else.

    Raises:
        UsageError: EQ-U042 when `out` exists, EQ-U043 when its place cannot be written to, EQ-U044 when `replace`
            would delete something that edgeq did not write.
    """
    if "\0" in str(out) or not str(out):
        raise UsageError(
            "the output folder has an impossible name", code="EQ-U043", place=repr(str(out)), hint="--out DIR"
        )
    path = Path(os.path.realpath(out))
    if _exists(path):
        if not path.is_dir():
            raise UsageError(
                "the output exists and is a file", code="EQ-U042", place=str(out), hint="choose another --out"
            )
        if exist == "fail":
            hint = "choose another --out, or add --exist replace"
            raise UsageError("the output folder exists", code="EQ-U042", place=str(out), hint=hint)
        _check_ours(path)
    parent = next(p for p in path.parents if _exists(p))
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        reason = "is not writable" if parent.is_dir() else "is a file"
        message = f"cannot write the output: {parent} {reason}"
        raise UsageError(message, code="EQ-U043", place=str(out), hint="choose another --out")
    return path


@contextmanager
def staged(out: str | Path, exist: Exist = "fail", *, needs_bytes: int = 0) -> Iterator[Path]:
    """A working folder that becomes `out` when the block ends well, and vanishes on any exception.

    With `replace` the old bundle is exchanged in one step where the system can (Linux), else moved aside and put back
    if the second move fails; until then it stays untouched.

    Args:
        out: The wished folder.
        exist: As for `check_out`.
        needs_bytes: Expected size, checked against the free space first; 0 skips that.

    Raises:
        UsageError: As `check_out`; EQ-U045 when the disk is full.
    """
    path = check_out(out, exist)
    # What is made is named before it is made: a signal may come in between.
    made = [p for p in path.parents if not _exists(p)]
    run = f"{os.getpid()}-{secrets.token_hex(4)}"
    work, aside = (path.parent / f".{path.name}.{kind}-{run}" for kind in ("partial", "old"))
    lock = None
    try:
        _make_parents(path, made)
        _recover(path)
        path = check_out(out, exist)
        _check_space(path, needs_bytes)
        lock = _make_work(path, work)
        with _disk_errors(path, work, needs_bytes):
            yield work
            _flush(work)
            path = check_out(out, exist)  # another run may have been faster
            _publish(work, path, aside)
    except BaseException:
        _take_back(work, path, aside, made)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def _exists(path: Path) -> bool:
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):
        return False


def _check_ours(path: Path) -> None:
    """Refuse to replace anything but a bundle, or a bundle with foreign files; an empty folder is no loss."""
    hint = "choose another --out, or move the folder away yourself"
    try:
        found = {p.relative_to(path).as_posix() for p in path.rglob("*") if not p.is_dir() or p.is_symlink()}
        if not found and not any(path.iterdir()):
            return
        manifest = json.loads((path / MANIFEST).read_bytes())
        ours = {f["path"] for f in manifest["files"]} | {MANIFEST, EVIDENCE}
        schema = manifest["schema"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        message = "--exist replace refuses: the folder holds no artifact bundle"
        raise UsageError(message, code="EQ-U044", place=str(path), hint=hint) from error
    foreign = sorted(name for name in found - ours if not ("c/Makefile" in ours and _MADE.fullmatch(name)))
    if schema != SCHEMA or foreign:
        named = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        message = f"--exist replace refuses: the folder also holds {named}" if foreign else f"unknown schema {schema!r}"
        raise UsageError(message, code="EQ-U044", place=str(path), hint=hint)
    if Path.cwd().is_relative_to(path):
        message = "--exist replace refuses: the current folder is inside the output"
        raise UsageError(message, code="EQ-U044", place=str(path), hint="change to another folder first")


def _make_parents(path: Path, missing: Sequence[Path]) -> None:
    try:
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _make_work(path: Path, work: Path) -> int | None:
    while True:
        try:
            work.mkdir()
        except OSError as error:
            raise _unwritable(path, error) from error
        lock = _lock(work)
        # A cleaner may have removed the folder between its birth and its lock.
        if _exists(work):
            return lock
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock `folder` for the life of this process; None where it is locked already or cannot be."""
    if fcntl is None:
        return None
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _recover(path: Path) -> None:
    """Remove what dead runs for `path` left; put an old bundle back that was moved aside and never replaced."""
    for kind in ("old", "partial"):
        prefix = f".{path.name}.{kind}-"
        for folder in sorted(p for p in path.parent.iterdir() if p.name.startswith(prefix)):
            lock = _lock(folder)
            if lock is None:
                continue
            try:
                if kind == "old" and not _exists(path):
                    folder.rename(path)
                else:
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _publish(work: Path, path: Path, aside: Path) -> None:
    if not _exists(path):
        work.rename(path)
    elif _exchange(work, path):
        shutil.rmtree(work, ignore_errors=True)
    else:
        path.rename(aside)
        work.rename(path)
        shutil.rmtree(aside, ignore_errors=True)
    _flush_folder(path.parent)


def _take_back(work: Path, path: Path, aside: Path, made: Sequence[Path]) -> None:
    """Undo what was done until an exception, which may have come between any two steps."""
    if _exists(aside) and not _exists(path):
        aside.rename(path)
    for folder in (aside, work):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in made:
        with contextlib.suppress(OSError):  # not made yet, or somebody else uses it by now
            folder.rmdir()


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step (Linux renameat2); False where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0)


def _flush(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for path in (*(p for p in folder.rglob("*") if p.is_dir()), folder):
        _flush_folder(path)


def _flush_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every system lets folders be flushed
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _disk_errors(path: Path, work: Path, needs_bytes: int) -> Iterator[None]:
    """Turn a full disk, however the writer reports it, into one error with figures."""
    try:
        yield
    except EdgeqError:
        raise
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in _FULL
        # Native writers raise what they like; a disk without room is the cause all the same.
        if not full and shutil.disk_usage(path.parent).free >= _NEARLY_FULL:
            raise
        written = sum(p.stat().st_size for p in work.rglob("*") if p.is_file())
        raise _full(path, max(needs_bytes, written)) from error


def _check_space(path: Path, needs_bytes: int) -> None:
    if needs_bytes and shutil.disk_usage(path.parent).free < needs_bytes:
        raise _full(path, needs_bytes)


def _full(path: Path, needed: int) -> UsageError:
    free = shutil.disk_usage(path.parent).free
    message = f"the disk is full: at least {needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free"
    return UsageError(message, code="EQ-U045", place=str(path), hint="free some space, or choose --out on another disk")


def _unwritable(path: Path, error: OSError) -> UsageError:
    if error.errno in _FULL:
        return _full(path, 0)
    message = f"cannot write the output: {error.strerror}"
    return UsageError(message, code="EQ-U043", place=str(path), hint="choose another --out")
