"""Photos with measured depth: `images/` and `depth/`, one map a photo of its size and stem."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeq.data.boxes import inside_images
from edgeq.data.images import BAD_IMAGE, NO_IMAGE, open_images
from edgeq.data.source import OPTION, Source, file_digest, require_unchanged, unreadable
from edgeq.errors import DataError

SUFFIXES = (".png", ".npy")
UNITS = "depth.json"
PER_METRE = 1000.0
"""Units of a 16-bit PNG in a metre: millimetres, as NYU Depth v2 and depth cameras are written; KITTI has 256."""

_LAYOUT = "a folder with images/NAME.jpg and depth/NAME.png (16 bit, millimetres, 0 unknown) or NAME.npy (metres)"
_KEY = "per_metre"
_SIXTEEN = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # Pillow's names; some of its versions open 16 bits as "I"
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF: upright only after a quarter turn


@dataclass(frozen=True)
class DepthFile:
    """Measured depth of a photo, read when it is needed.

    Args:
        id: Path below the data folder.
        sha256: Of the file.
        per_metre: Units of a PNG in a metre.
        path: Where it is.
    """

    id: str
    sha256: str
    per_metre: float
    path: Path = field(repr=False, compare=False)

    def read(self) -> NDArray[np.float32]:
        """Depth along the optical axis `(H, W)` in metres, 0 where unknown.

        Raises:
            DataError: EQ-D056 when it changed, EQ-D802 for a file that is no depth map, EQ-D804 for one without a known
                depth.
        """
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise unreadable(self.id, error) from error
        require_unchanged(data, self.sha256, self.id, self.id)
        return decode_depth(data, self.id, self.per_metre)


def open_depth(path: Path) -> Source[Image.Image]:
    """Photos with depth: a folder with `images/` and `depth/`.

    The map of `images/a/b.jpg` is `depth/a/b.png` or `depth/a/b.npy`, of the size of the upright photo: a PNG with 16
    bits in millimetres (`{"per_metre": 256}` in `depth.json` beside the folders for KITTI's units), 0 for unknown;
    a `.npy` with floats in metres, where 0, NaN and infinity are unknown. Item labels are `DepthFile`s; every map is
    read once here, so that a bad one is found before any long work.

    Args:
        path: The folder.

    Raises:
        DataError: EQ-D800 without depth, EQ-D801 for a photo without a map, EQ-D802 for a file that is none, EQ-D803
            for another size than the photo's, EQ-D804 where nothing is known, EQ-D805 for unusable units; or as
            `open_images`.
    """
    source = open_images(path, role="evaluation")
    root = path.expanduser()
    if not (root / "depth").is_dir():
        raise DataError(
            f"{path} has no folder `depth`",
            code="EQ-D800",
            place=str(path),
            hint=f"{OPTION['evaluation']} takes {_LAYOUT}",
        )
    per_metre = _units(root / UNITS)
    items = tuple(
        replace(item, label=_truth(root, item.id, source.fetch(index), per_metre))
        for index, item in enumerate(source.items)
    )
    return replace(source, items=items, classes=None)


def decode_depth(data: bytes, place: str, per_metre: float = PER_METRE) -> NDArray[np.float32]:
    """A depth map `(H, W)` in metres, 0 where unknown, from the bytes of a file.

    Args:
        data: Of a 16-bit grey PNG or a `.npy`.
        place: The file, for messages; its suffix says which of the two.
        per_metre: Units of a PNG in a metre.

    Raises:
        DataError: EQ-D802, EQ-D804.
    """
    depth = _decode_array(data, place) if place.endswith(".npy") else _decode_png(data, place, per_metre)
    if depth.ndim != 2 or not depth.size:
        raise _unusable(place, f"has the shape {depth.shape}", "a map has one number for each pixel: (H, W)")
    depth = np.where(np.isfinite(depth), depth, np.float32(0))
    if float(depth.min()) < 0:
        raise _unusable(place, f"holds {float(depth.min()):g}", "depth is positive, and 0 where it is unknown")
    if not depth.any():
        raise DataError(
            f"{Path(place).name} knows no depth at all: every pixel is 0 or no number",
            code="EQ-D804",
            place=place,
            hint="remove it together with its photo",
        )
    return depth


def _decode_png(data: bytes, place: str, per_metre: float) -> NDArray[np.float32]:
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            mode, values = opened.mode, np.asarray(opened)
    except NO_IMAGE as error:
        raise _unusable(place, "is no image", _LAYOUT) from error
    except (*BAD_IMAGE, Image.DecompressionBombError) as error:
        raise _unusable(place, f"is damaged: {error}", "copy the file again, or remove it with its photo") from error
    if mode not in _SIXTEEN:
        raise _unusable(
            place, f"has pixels of kind {mode}, not 16-bit grey", "a picture of depth is no depth: write millimetres"
        )
    return (values.astype(np.float64) / per_metre).astype(np.float32)


def _decode_array(data: bytes, place: str) -> NDArray[np.float32]:
    try:
        values = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # numpy reports damage in a dozen ways
        raise _unusable(place, f"is no array: {error}", "write it by numpy.save") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
        kind = getattr(values, "dtype", "several arrays")
        raise _unusable(place, f"holds {kind}, not floats", "a .npy holds metres; integers in millimetres go into PNG")
    return values.astype(np.float32)


def _truth(root: Path, item: str, photo: bytes, per_metre: float) -> DepthFile:
    stem = Path("depth") / inside_images(item)
    found = next((f for s in SUFFIXES if (f := root / stem.with_suffix(s)).is_file()), None)
    if found is None:
        raise DataError(
            f"{item} has no depth map: neither {stem.with_suffix('.png')} nor {stem.with_suffix('.npy')} is there",
            code="EQ-D801",
            place=item,
            hint="remove the photo, or add its map; both have the same stem",
        )
    name = found.relative_to(root).as_posix()
    truth = DepthFile(name, file_digest(found), per_metre, found)
    size, shape = _upright_size(photo), truth.read().shape
    if size is not None and shape != size[::-1]:
        raise DataError(
            f"{name} is {shape[1]} x {shape[0]} pixels, its photo {size[0]} x {size[1]}",
            code="EQ-D803",
            place=name,
            hint="a map lies pixel on pixel over its photo: register and resize it (nearest) first",
        )
    return truth


def _upright_size(photo: bytes) -> tuple[int, int] | None:
    """Width and height of a photo as `decode` gives it; None where decoding will find the damage."""
    try:
        with Image.open(io.BytesIO(photo)) as opened:
            turned = opened.getexif().get(_ORIENTATION) in _TURNED
            return (opened.height, opened.width) if turned else (opened.width, opened.height)
    except Exception:  # decoders report damage in a dozen ways, and it is reported where the photo is read
        return None


def _units(file: Path) -> float:
    if not file.is_file():
        return PER_METRE
    try:
        content: Any = json.loads(file.read_bytes())
        value = content[_KEY] if isinstance(content, Mapping) else None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise ValueError(f"{_KEY} must be a positive number")
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise DataError(
            f"{UNITS} cannot be used: {error}",
            code="EQ-D805",
            place=str(file),
            hint=f'it is {{"{_KEY}": 256}} for KITTI; without the file, PNGs are in millimetres',
        ) from error
    return float(value)


def _unusable(place: str, what: str, hint: str) -> DataError:
    return DataError(f"{Path(place).name} {what}", code="EQ-D802", place=place, hint=hint)
