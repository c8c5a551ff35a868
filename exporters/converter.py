"""Running the converters of others: without their chatter, and with the line of an error that says what is wrong."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from edgeq.native import native_output


@contextmanager
def quiet_converter(*descriptors: int) -> Iterator[None]:
    """Keep loggers, warnings and native writes to file descriptors out of the user's terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with native_output(*descriptors), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def first_line(error: Exception) -> str:
    """The first line of a message that is not empty, or the kind of the error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
