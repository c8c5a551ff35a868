"""Long work that continues where it stopped: every result is a line in a file, written when it is there."""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

from edgeq.errors import DataError

Name = tuple[str, int]
"""What a result is called: of what, and which."""


class Journal(MutableMapping[Name, Any]):
    """Results by name: plain JSON values, kept in memory and, with a file, line by line on disk.

    Args:
        schema: Kind of journal.
        key: What the results depend on; a file of another key is refused.
        path: The file, started if there is none; a last line that was cut short is dropped. None keeps nothing.

    Raises:
        DataError: EQ-D240 when the file is damaged or belongs to something else.
    """

    def __init__(self, schema: str, key: str, path: Path | None) -> None:
        self._path = path
        self._known: dict[Name, Any] = {} if path is None else _read(path, schema, key)

    def __getitem__(self, name: Name) -> Any:
        return self._known[name]

    def __setitem__(self, name: Name, value: Any) -> None:
        self._known[name] = value
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([*name, value]) + "\n")

    def __delitem__(self, name: Name) -> None:
        raise TypeError("what is written stays")

    def __iter__(self) -> Iterator[Name]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def _read(path: Path, schema: str, key: str) -> dict[Name, Any]:
    raw = path.read_bytes() if path.exists() else b""
    whole = raw[: raw.rfind(b"\n") + 1]
    if not whole:
        path.write_text(json.dumps({"schema": schema, "key": key}) + "\n", encoding="utf-8")
        return {}
    try:
        header, *rows = [json.loads(line) for line in whole.decode("utf-8").splitlines()]
        found = {(str(what), int(which)): value for what, which, value in rows}
        belongs = header["schema"] == schema and header["key"] == key
    except (KeyError, TypeError, ValueError) as error:
        raise _unusable(path, f"damaged: {error}") from error
    if not belongs:
        raise _unusable(path, "measured with another model, other data or other settings")
    if len(whole) < len(raw):
        path.write_bytes(whole)
    return found


def _unusable(path: Path, cause: str) -> DataError:
    return DataError(
        f"the journal of measurements cannot be used: {cause}",
        code="EQ-D240",
        place=str(path),
        hint="delete the file to measure again, or name another one",
    )
