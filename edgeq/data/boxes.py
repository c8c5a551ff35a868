"""Photos with boxes: `images/` and YOLO `labels/`, one text file a photo, one row a box."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from PIL import Image

from edgeq.data.images import open_images
from edgeq.data.source import OPTION, Source, unreadable
from edgeq.errors import DataError

Box: TypeAlias = tuple[int, float, float, float, float]
"""Class, and centre and size as shares of the photo's width and height."""

SLACK = 1e-3
"""How far a box may reach beyond the photo: labels are rounded."""

_ROW = "class x y width height, numbers from 0 to 1 after the class"


def open_boxes(path: Path, classes: int) -> Source[Image.Image]:
    """Labelled photos: a folder with `images/` and `labels/`.

    The label file of `images/a/b.jpg` is `labels/a/b.txt`; a photo without one, or with an empty one, shows nothing of
    the classes. Item labels are tuples of `Box`.

    Args:
        path: The folder.
        classes: How many classes the network knows.

    Raises:
        DataError: EQ-D650 without labels, EQ-D651 for a row that is none, EQ-D652 for a class the network does not
            know, EQ-D653 for a box outside its photo; or as `open_images`.
    """
    source = open_images(path, role="evaluation")
    folder = path.expanduser() / "labels"
    if not folder.is_dir():
        raise _unlabelled(path, "has no folder `labels`")
    files = [folder / inside_images(item.id).with_suffix(".txt") for item in source.items]
    if not any(file.is_file() for file in files):
        raise _unlabelled(path, "has no label file that is named like one of its photos")
    items = tuple(replace(item, label=_read(file, classes)) for item, file in zip(source.items, files, strict=True))
    return replace(source, items=items)


def parse_boxes(text: str, classes: int, place: str) -> tuple[Box, ...]:
    """The boxes of one label file.

    Args:
        text: Its content.
        classes: How many classes there are.
        place: The file, for messages.

    Raises:
        DataError: EQ-D651, EQ-D652, EQ-D653.
    """
    rows = enumerate(text.splitlines(), start=1)
    return tuple(_parse_row(row.split(), classes, f"{place}:{number}") for number, row in rows if row.strip())


def _parse_row(fields: list[str], classes: int, place: str) -> Box:
    try:
        kind, x, y, width, height = (float(field) for field in fields)
    except ValueError as error:
        outline = len(fields) > 5
        raise DataError(
            f"a label has {len(fields)} fields: {' '.join(fields)[:60]!r}",
            code="EQ-D651",
            place=place,
            hint=f"a row is: {_ROW}" + ("; outlines must be turned into boxes first" if outline else ""),
        ) from error
    if not all(map(math.isfinite, (kind, x, y, width, height))) or kind != int(kind):
        raise DataError(
            f"a label holds what is no number of a box: {' '.join(fields)[:60]!r}",
            code="EQ-D651",
            place=place,
            hint=f"a row is: {_ROW}",
        )
    if not 0 <= kind < classes:
        raise DataError(
            f"class {int(kind)} is not among the {classes} that the network knows",
            code="EQ-D652",
            place=place,
            hint=f"classes count from 0 to {classes - 1}; is this the data set that the network was trained for?",
        )
    outside = max(abs(x - 0.5) + width / 2, abs(y - 0.5) + height / 2) - 0.5
    if width <= 0 or height <= 0 or outside > SLACK:
        raise DataError(
            f"the box {x:g} {y:g} {width:g} {height:g} is empty or reaches beyond the photo",
            code="EQ-D653",
            place=place,
            hint="centre and size are shares of the photo's width and height, not pixels",
        )
    return int(kind), x, y, width, height


def _read(file: Path, classes: int) -> tuple[Box, ...]:
    try:
        text = file.read_text(encoding="utf-8") if file.exists() else ""
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file.name} is no text file", code="EQ-D651", place=str(file), hint=f"a row is: {_ROW}"
        ) from error
    except OSError as error:
        raise unreadable(str(file), error) from error
    return parse_boxes(text, classes, f"labels/{file.name}")


def inside_images(item: str) -> PurePosixPath:
    """Path of an item of `open_images` below `images/`, to find what lies beside it."""
    path = PurePosixPath(item)
    return path.relative_to("images") if path.parts[0] == "images" else path


def _unlabelled(path: Path, what: str) -> DataError:
    return DataError(
        f"{path} {what}",
        code="EQ-D650",
        place=str(path),
        hint=f"{OPTION['evaluation']} takes a folder with images/NAME.jpg and labels/NAME.txt ({_ROW})",
    )
