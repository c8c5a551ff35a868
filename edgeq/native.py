"""What native code writes to the streams of the process, whatever Python has made of them."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

_MOST = 1 << 16  # bytes of a message that anybody reads
_lock = threading.RLock()  # descriptors belong to the process


@contextmanager
def native_output(*descriptors: int) -> Iterator[Callable[[], str]]:
    """Catch what is written to file descriptors: 1 is the standard output, 2 the standard error.

    Libraries in C print what nobody asked for, and `--json` promises one object and nothing else on the standard
    output. A descriptor that is closed, as a daemon's may be, stays so.

    Args:
        descriptors: Which to catch.

    Yields:
        A function that returns the text so far.
    """
    with _lock, tempfile.TemporaryFile() as store, ExitStack() as restored:

        def said() -> str:
            return os.pread(store.fileno(), _MOST, 0).decode(errors="replace")

        _flush()
        for descriptor in descriptors:
            with suppress(OSError):
                restored.callback(_restore, os.dup(descriptor), descriptor)
                os.dup2(store.fileno(), descriptor)
        restored.callback(_flush)  # what Python holds back belongs to the text as well
        yield said


def _restore(saved: int, descriptor: int) -> None:
    os.dup2(saved, descriptor)
    os.close(saved)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or none
            stream.flush()
