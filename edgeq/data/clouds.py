"""Point clouds on disk, with the classes of what they show."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeq.arrays import DamagedArraysError, read_arrays
from edgeq.data.source import OPTION, Item, Role, Source, file_digest, unreadable
from edgeq.errors import DataError, MissingError
from edgeq.points import PACKAGE, SUFFIXES, Unusable, check_cloud, read_cloud

Cloud = NDArray[np.float32]
Object: TypeAlias = tuple[int, float, float, float, float, float]
"""Class; x, y, length and width in metres; heading in radians."""

CODES = {"file": "EQ-D832", "shape": "EQ-D832", "values": "EQ-D833", "count": "EQ-D834", "columns": "EQ-D835"}
"""Error code of each reason for which a cloud is unusable."""


def open_clouds(path: Path, *, role: Role) -> Source[Cloud]:
    """Clouds from a packed `.npz`, a folder or a single file.

    A packed file holds `points` `(n, points, columns)` and, when labelled, `label`: names, or integers which `classes`
    names where it is there. A folder with two or more folders that directly hold clouds (`.npy`, `.npz`, `.ply`, text)
    is labelled, one class a folder; any other is searched to the bottom and unlabelled. A folder with a folder `clouds`
    inside stands for that one.

    Args:
        path: What to open.
        role: What for, so that a message can name the option.

    Raises:
        DataError: EQ-D050, nothing is there; EQ-D830, no cloud is in it; EQ-D831, the packed file is damaged or of
            another kind.
    """
    path = path.expanduser()
    place, option = str(path), OPTION[role]
    try:
        if path.is_dir():
            return _open_folder(path, option)
        if not path.exists():
            raise DataError(
                f"{path} does not exist", code="EQ-D050", place=place, hint=f"check the path given to {option}"
            )
        if path.suffix.lower() == ".npz" and (packed := _packed(path)) is not None:
            return packed
        item = Item(path.name, file_digest(path))
        source = Source(place, (item,), None, lambda _: path.read_bytes(), decode, "cloud")
        source.read(0)  # a wrong path should fail now and not in the middle of the work
    except OSError as error:
        raise unreadable(place, error) from error
    return source


def decode(data: bytes, place: str) -> Cloud:
    """The bytes of a file as a cloud `(points, columns)`.

    Args:
        data: Its content.
        place: Its path, whose suffix says what it is.

    Raises:
        DataError: EQ-D832 to EQ-D835, see `edgeq.points.read_cloud`.
        MissingError: EQ-P961, `.ply` without plyfile.
    """
    with usable(place):
        return np.asarray(read_cloud(place, io.BytesIO(data)))


@contextmanager
def usable(place: str) -> Iterator[None]:
    """Says of what cannot be made of a cloud where the cloud is.

    Raises:
        DataError: EQ-D832 to EQ-D835, for `edgeq.points.Unusable`.
        MissingError: EQ-P961, the package that reads this kind of file is not installed.
    """
    try:
        yield
    except Unusable as error:
        if error.reason == PACKAGE:
            message = f"{Path(place).name} {error}"
            raise MissingError(message, code="EQ-P961", place=place, hint=error.hint) from error
        raise DataError(
            f"{Path(place).name} {error}", code=CODES[error.reason], place=place, hint=error.hint
        ) from error


def _open_folder(folder: Path, option: str) -> Source[Cloud]:
    inner = folder / "clouds"
    root = inner if inner.is_dir() else folder
    names = sorted(d.name for d in folder.iterdir() if d.is_dir() and not d.name.startswith("."))
    by_class = {name: _clouds_in(folder / name) for name in names} if root is folder else {}
    labelled = not _clouds_in(folder) and sum(bool(files) for files in by_class.values()) >= 2
    found: list[tuple[Path, int | None]]
    if labelled:
        names = [name for name in names if by_class[name]]
        found = [(file, label) for label, name in enumerate(names) for file in by_class[name]]
    else:
        found = [(file, None) for file in sorted(root.rglob("*")) if _is_cloud(file)]
    if not found:
        raise DataError(
            f"{folder} holds no point clouds",
            code="EQ-D830",
            place=str(folder),
            hint=f"give {option} a folder with clouds ({', '.join(SUFFIXES)}), or a packed .npz",
        )
    files = [file for file, _ in found]
    items = tuple(Item(file.relative_to(folder).as_posix(), file_digest(file), label) for file, label in found)
    classes = tuple(names) if labelled else None
    return Source(str(folder), items, classes, lambda index: files[index].read_bytes(), decode, "cloud", True)


def _clouds_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if _is_cloud(file))


def _is_cloud(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()


def _packed(path: Path) -> Source[Cloud] | None:
    """The clouds of a packed file; None for a file that holds a single one."""
    place = str(path)
    try:
        arrays = read_arrays(path)
    except DamagedArraysError as error:
        raise _damaged(place, str(error)) from error
    points = arrays.get("points")
    if points is None:
        raise _damaged(place, f"it has no array `points` but {', '.join(arrays) or 'nothing'}")
    if points.ndim == 2:
        return None
    if points.ndim != 3 or points.dtype.kind not in "fiu" or not len(points):
        raise _damaged(place, f"points must be (clouds, points, columns), not {points.shape} of {points.dtype}")
    labels, classes = _labels(arrays, len(points), place)

    def fetch(index: int) -> bytes:
        return bytes(points[index].tobytes())

    def opened(data: bytes, place: str) -> Cloud:
        with usable(place):
            return np.asarray(check_cloud(np.frombuffer(data, points.dtype).reshape(points.shape[1:])))

    ids = enumerate(labels)
    # the shape belongs to the bytes: the same ones in another shape are another cloud
    items = tuple(Item(f"{i:06d}", hashlib.sha256(fetch(i)).hexdigest(), label) for i, label in ids)
    return Source(place, items, classes, fetch, opened, "cloud", True)


def _labels(arrays: dict[str, NDArray[Any]], count: int, place: str) -> tuple[list[int | None], tuple[str, ...] | None]:
    label, names = arrays.get("label"), arrays.get("classes")
    if label is None:
        return [None] * count, None
    if label.shape != (count,) or label.dtype.kind not in "iuU":
        raise _damaged(place, f"label must be {count} names or integers, not {label.shape} of {label.dtype}")
    if label.dtype.kind == "U":
        known = tuple(str(name) for name in (np.unique(label) if names is None else names))
        if missing := sorted(set(label.tolist()) - set(known)):
            raise _damaged(place, f"classes lacks {missing[0]!r}, which is a label")
        return [known.index(str(name)) for name in label], known
    if names is not None and (names.dtype.kind != "U" or names.ndim != 1 or int(label.max()) >= names.size):
        raise _damaged(place, f"classes must be at least {int(label.max()) + 1} strings")
    if int(label.min()) < 0:
        raise _damaged(place, "label must not be negative")
    return [int(value) for value in label], None if names is None else tuple(str(name) for name in names)


def _damaged(place: str, cause: str) -> DataError:
    return DataError(
        f"{Path(place).name} is not a packed file of point clouds: {cause}",
        code="EQ-D831",
        place=place,
        hint="it needs points (clouds, points, columns) and, when labelled, label; or give a folder of clouds",
    )


def open_scenes(path: Path, classes: int) -> Source[Cloud]:
    """Clouds with objects: a folder with `clouds/` and `boxes/`.

    The objects of `clouds/a.npy` stand in `boxes/a.txt`, one row `class x y length width heading` each, in metres and
    radians; a cloud without that file, or with an empty one, shows none. Item labels are tuples of `Object`.

    Args:
        path: The folder.
        classes: How many classes the network knows.

    Raises:
        DataError: EQ-D837 without boxes, EQ-D838 for a row that is none; or as `open_clouds`.
    """
    source = open_clouds(path, role="evaluation")
    folder = path.expanduser()
    files = [
        folder / "boxes" / Path(item.id).relative_to("clouds").with_suffix(".txt")
        for item in source.items
        if Path(item.id).parts[0] == "clouds"
    ]
    if len(files) < len(source) or not any(file.is_file() for file in files):
        raise DataError(
            f"{path} has no boxes",
            code="EQ-D837",
            place=str(path),
            hint="a folder with clouds/NAME.npy and boxes/NAME.txt, one row an object: class x y length width heading",
        )
    items = tuple(
        Item(item.id, item.sha256, _objects(file, classes)) for item, file in zip(source.items, files, strict=True)
    )
    return Source(source.place, items, None, source.fetch, source.decode, "cloud")


def _objects(file: Path, classes: int) -> tuple[Object, ...]:
    rows = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    return tuple(_object(row.split(), classes, f"{file}:{n}") for n, row in enumerate(rows, 1) if row.strip())


def _object(fields: list[str], classes: int, place: str) -> Object:
    try:
        kind, x, y, length, width, heading = (float(field) for field in fields)
        right = bool(np.isfinite([x, y, heading]).all()) and length > 0 and width > 0 and kind in range(classes)
    except ValueError:
        right = False
    if not right:
        raise DataError(
            f"a label is no object: {' '.join(fields)[:60]!r}",
            code="EQ-D838",
            place=place,
            hint=f"a row is class (0 to {classes - 1}) x y length width heading, metres and radians",
        )
    return int(kind), x, y, length, width, heading
