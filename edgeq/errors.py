"""The error tree. Every error a user can meet has a code, a cause, a command to try and an exit code.

    EdgeqError                 1
    ├── GateError              1    EQ-G...   the work is done, the result misses a floor
    ├── UsageError             2    EQ-U...   command line, configuration, unknown names
    ├── InputError             3    EQ-I...   model or data cannot be used
    │   ├── ModelError              EQ-M...   the model file or a place in its graph
    │   └── DataError               EQ-D...   calibration or evaluation data
    ├── MissingError           4    EQ-P...   an optional package or a toolchain is absent
    ├── DeviceError            5    EQ-X...   a device cannot be reached or answers wrongly
    ├── InternalError         70    EQ-Z...   our bug
    └── Interrupted          130    EQ-C...   the user or the system ended the work

The long text behind each code is in `edgeq.explain`; `edgeq explain CODE` prints it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class EdgeqError(Exception):
    """Root of all errors that edgeq raises on purpose.

    Args:
        message: What happened, with the offending value.
        code: Stable identifier such as `EQ-M001`; the key of `edgeq explain`.
        place: File, option, layer or item where it happened, if one can be named.
        hint: A command or an action that gets the user further.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, code: str, place: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.place = place
        self.hint = hint

    def to_dict(self) -> dict[str, object]:
        """The error in the JSON contract `edgeq.error/1`."""
        return {
            "schema": "edgeq.error/1",
            "ok": False,
            "code": self.code,
            "message": self.message,
            "place": self.place,
            "hint": self.hint,
            "exit_code": self.exit_code,
        }


class GateError(EdgeqError):
    """The artifact was built and measured, and misses a floor the user or edgeq set."""

    exit_code = 1


class UsageError(EdgeqError):
    """A command line or a configuration file that cannot be acted on."""

    exit_code = 2


class InputError(EdgeqError):
    """A model or data that cannot be used."""

    exit_code = 3


class ModelError(InputError):
    """A model file that cannot be read, or a place in its graph that cannot be handled."""


class DataError(InputError):
    """Calibration or evaluation data that cannot be used."""


class MissingError(EdgeqError):
    """An optional package or a toolchain is absent; the hint names the install line."""

    exit_code = 4


class DeviceError(EdgeqError):
    """A device cannot be reached, or answers wrongly."""

    exit_code = 5


class InternalError(EdgeqError):
    """A bug in edgeq."""

    exit_code = 70


class Interrupted(EdgeqError):
    """The user or the system ended the work; what was half done has been removed."""

    exit_code = 130


LISTED = 40
"""Names that a hint lists; more would bury what it says."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The entry of `known` most similar to `name`, or None when nothing is close."""
    matches = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown_name(kind: str, name: str, known: Iterable[str], *, code: str, command: str | None = None) -> UsageError:
    """A `UsageError` for a name that is in no table, with the nearest known one in the hint."""
    names = sorted(known)
    close = nearest(name, names)
    hint = f"did you mean {close!r}? " if close else ""
    hint += f"known: {', '.join(names)}" if len(names) <= LISTED else f"{len(names)} names are known"
    if command:
        hint += f" (see `{command}`)"
    return UsageError(f"unknown {kind} {name!r}", code=code, hint=hint)
