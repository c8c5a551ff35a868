"""Recordings on disk, with what is said in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from edgeq.data.source import OPTION, Item, Role, Source, file_digest, unreadable
from edgeq.errors import DataError

INDEX = "index.json"
AUDIO = frozenset((".flac", ".wav", ".ogg", ".mp3", ".aiff", ".aif"))

Sample = TypeVar("Sample")


def open_speech(path: Path, *, role: Role, decode: Callable[[bytes, str], Sample]) -> Source[Sample]:
    """Recordings from a folder or a single file.

    A folder with an `index.json` (a list of `{"file", "text"}`, files relative to the folder; other keys are ignored)
    holds what the index lists, labelled with the text where there is one. Any other folder is searched to the bottom
    for audio files, without labels.

    Args:
        path: What to open.
        role: What for, so that a message can name the option.
        decode: Samples from encoded bytes and the place to name in messages.

    Raises:
        DataError: Nothing is there, no recording is in it, or the index cannot be used.
    """
    path = path.expanduser()
    place, option = str(path), OPTION[role]
    if not path.exists():
        raise DataError(f"{path} does not exist", code="EQ-D050", place=place, hint=f"check the path given to {option}")
    try:
        if path.is_file():
            files: list[tuple[Path, str | None]] = [(path, None)]
        elif (path / INDEX).is_file():
            files = _indexed(path)
        else:
            files = [(f, None) for f in sorted(path.rglob("*")) if f.suffix.lower() in AUDIO and f.is_file()]
    except OSError as error:
        raise unreadable(place, error) from error
    if not files:
        raise DataError(
            f"{path} holds no recordings",
            code="EQ-D700",
            place=place,
            hint=f"give {option} a folder with speech ({', '.join(sorted(AUDIO))})",
        )
    root = path if path.is_dir() else path.parent
    items = tuple(Item(f.relative_to(root).as_posix(), file_digest(f), text) for f, text in files)
    return Source(place, items, None, lambda index: files[index][0].read_bytes(), decode, "recording")


def _indexed(folder: Path) -> list[tuple[Path, str | None]]:
    """Files and texts that the index of a folder lists, in its order."""
    index = folder / INDEX
    try:
        entries = json.loads(index.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _bad_index(index, f"not JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise _bad_index(index, "it is not a list of recordings")
    return [_entry(folder, entry, number) for number, entry in enumerate(entries)]


def _entry(folder: Path, entry: Any, number: int) -> tuple[Path, str | None]:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("file"), str):
        raise _bad_index(folder / INDEX, f"entry {number} has no 'file'")
    text = entry.get("text")
    if text is not None and not isinstance(text, str):
        raise _bad_index(folder / INDEX, f"the text of entry {number} is not a string")
    file = folder / entry["file"]
    if not file.resolve().is_relative_to(folder.resolve()):
        raise _bad_index(folder / INDEX, f"{entry['file']!r} leaves the folder")
    return file, text


def _bad_index(index: Path, cause: str) -> DataError:
    return DataError(
        f"{INDEX} cannot be used: {cause}",
        code="EQ-D701",
        place=str(index),
        hint='it is a list of {"file": "name.flac", "text": "what is said"}',
    )
