"""Earlier profiles on this machine's record: one SQLite file in the user's state folder."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgeq.errors import InputError
from edgeq.places import state_dir

FILE = "profiles.sqlite"
SHOWN = 8
_COLUMNS = "at, artifact, device, board, runtime, threads, unit, p50, runs, conditions"
_ADDED = "conditions TEXT NOT NULL DEFAULT '{}'"  # to files of before
_TABLE = f"""CREATE TABLE IF NOT EXISTS profiles (
  id INTEGER PRIMARY KEY, model TEXT NOT NULL, {_COLUMNS}
)"""


@dataclass(frozen=True)
class Entry:
    """An earlier profile.

    Args:
        at: When, UTC.
        artifact: SHA-256 of the model's files, shortened to 12 letters.
        device: Its address.
        board: What the device calls itself, empty when it does not.
        runtime: Package and version.
        threads: Of the runtime.
        unit: Of `p50`.
        p50: Median.
        runs: How many.
        conditions: Under which it was measured (`edgeq.profiling.conditions`); empty where nothing is known.
    """

    at: str
    artifact: str
    device: str
    board: str
    runtime: str
    threads: int
    unit: str
    p50: float
    runs: int
    conditions: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def history_file() -> Path:
    """Where the profiles are kept."""
    return state_dir() / FILE


def entry(
    artifact: str, profile: Mapping[str, Any], runtime: str, conditions: Mapping[str, Any] | None = None
) -> Entry | None:
    """A profile (`edgeq.profile/1`) as an entry; None for an incomplete one and one without a median."""
    if not profile["complete"] or profile["p50"] is None:
        return None
    return Entry(
        at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        artifact=artifact[:12],
        device=profile["device"],
        board=profile["board"] or "",
        runtime=runtime,
        threads=profile["threads"] or 1,
        unit=profile["unit"],
        p50=profile["p50"],
        runs=profile["runs"],
        conditions=conditions or {},
    )


def variant(manifest: Mapping[str, Any], format_: str) -> str:
    """What profiles are compared by: the model, and what makes one export of it faster than another.

    Args:
        manifest: Of the bundle.
        format_: Of its file.
    """
    parts = (manifest["model"]["name"], format_, manifest["scheme"], manifest["config"].get("bits", ""))
    return " ".join(str(part) for part in parts if part)


def remember(model: str, new: Entry, file: Path | None = None) -> list[Entry]:
    """Add an entry for the `variant` of a model; returns the earlier ones of the same kind, the newest first.

    Of the same kind are those of the same device, board, unit and number of threads.

    Raises:
        InputError: EQ-I871, the file cannot be used.
    """
    with _opened(file or history_file()) as store:
        same = (model, new.device, new.board, new.unit, new.threads)
        where = "model = ? AND device = ? AND board = ? AND unit = ? AND threads = ?"
        query = f"SELECT {_COLUMNS} FROM profiles WHERE {where} ORDER BY id DESC LIMIT {SHOWN}"
        earlier = [Entry(*(*row[:-1], _read(row[-1]))) for row in store.execute(query, same)]
        held = {**asdict(new), "conditions": json.dumps(dict(new.conditions))}
        marks = ", ".join("?" * (1 + len(Entry.__dataclass_fields__)))
        store.execute(f"INSERT INTO profiles (model, {_COLUMNS}) VALUES ({marks})", (model, *held.values()))
    return earlier


def _read(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def _opened(file: Path) -> Iterator[sqlite3.Connection]:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        store = sqlite3.connect(file, timeout=10)
        try:
            with store:  # commits, or rolls back
                store.execute(_TABLE)
                if "conditions" not in [row[1] for row in store.execute("PRAGMA table_info(profiles)")]:
                    store.execute(f"ALTER TABLE profiles ADD COLUMN {_ADDED}")
                yield store
        finally:
            store.close()
    except (sqlite3.Error, OSError) as error:
        message = f"the record of earlier profiles cannot be used: {error}"
        hint = "delete the file, or leave out --history"
        raise InputError(message, code="EQ-I871", place=str(file), hint=hint) from error
