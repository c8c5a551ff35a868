"""What ultralytics notes in its files as text: names of the classes and size of the photos."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from edgeq.errors import ModelError

STRIDE = 32
"""Pixels of the coarsest cells: sides are multiples of it."""


def noted_names(notes: Mapping[str, str]) -> tuple[str, ...] | None:
    """The class names of `names`, such as `{0: 'person', 1: 'car'}`; None where nothing readable is noted."""
    names = _literal(notes.get("names", ""))
    return tuple(str(names[k]) for k in sorted(names)) if isinstance(names, dict) and names else None


def noted_size(notes: Mapping[str, str], place: str) -> tuple[int, int] | None:
    """Rows and columns of `imgsz`, such as `[480, 640]`; None where nothing is noted.

    Args:
        notes: Metadata of the file.
        place: The file, for messages.

    Raises:
        ModelError: EQ-M961, what is noted is no size.
    """
    text = notes.get("imgsz", "")
    size = _literal(text)
    if not text:
        return None
    sides = [size, size] if isinstance(size, int) else size
    if isinstance(sides, (list, tuple)) and len(sides) == 2 and all(_is_side(n) for n in sides):
        return int(sides[0]), int(sides[1])
    raise ModelError(
        f"`imgsz` in the metadata is {text[:40]!r}: not two multiples of {STRIDE} pixels",
        code="EQ-M961",
        place=place,
        hint="correct it in the file's metadata, for example imgsz: [640, 640], or leave it out",
    )


def _is_side(value: object) -> bool:
    return isinstance(value, int) and value > 0 and value % STRIDE == 0


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
