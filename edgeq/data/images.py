"""Images on disk, and how an image becomes a network input."""

from __future__ import annotations

import hashlib
import io
import itertools
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from edgeq.arrays import DamagedArraysError, read_arrays
from edgeq.data.source import OPTION, Item, Role, Source, file_digest, unreadable
from edgeq.detection import letterbox
from edgeq.errors import DataError
from edgeq.spec import Preprocess

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"))
MAX_SIDE_RATIO = 100
"""Longest allowed side in units of the shorter: a resize to the shorter side would blow up a strip."""

NO_IMAGE = (UnidentifiedImageError, ImportError)
"""What opening raises where PIL knows no format: ultralytics, once imported, goes on to look for a decoder of HEIF."""

BAD_IMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    EOFError,
    OverflowError,
    RuntimeError,
    AttributeError,
    MemoryError,
    struct.error,
    zlib.error,
)  # how Pillow's decoders report damage


def open_images(path: Path, *, role: Role) -> Source[Image.Image]:
    """Images from a packed `.npz`, a folder or a single file.

    A packed file holds `jpeg` (uint8, all encoded images one after the other), `offset` (`(n + 1,)` integers) and, when
    labelled, `label` (`(n,)` integers) and `classes` (`(k,)` strings). A folder with a folder `images` inside stands
    for that one. A folder without images of its own but with two or more folders that directly hold images is labelled:
    one class a folder, in the order of their names. Any other folder is unlabelled and searched to the bottom. Hidden
    files, and files without an image's suffix, are skipped; a link cycle is entered once.

    Args:
        path: What to open.
        role: What for, so that a message can name the option.

    Raises:
        DataError: Nothing is there, no image is in it, or the packed file is damaged.
    """
    path = path.expanduser()
    place, option = str(path), OPTION[role]
    try:
        if path.is_dir():
            return _open_folder(path, place, option)
        if not path.exists():
            raise DataError(
                f"{path} does not exist", code="EQ-D050", place=place, hint=f"check the path given to {option}"
            )
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(place, error) from error
    if path.suffix.lower() == ".npz":
        return _open_packed(data, place)
    decode(data, place)  # a wrong path should fail now and not in the middle of the work
    return Source(place, (Item(path.name, hashlib.sha256(data).hexdigest()),), None, lambda _: data, decode)


def decode(data: bytes, place: str) -> Image.Image:
    """Encoded bytes as an upright 8-bit RGB image.

    The orientation that a camera noted is applied; grey is repeated; 16-bit grey loses its low byte; transparency is
    laid over white; CMYK and YCbCr are converted by Pillow.

    Args:
        data: A file's content.
        place: File, for messages.

    Raises:
        DataError: Not an image, truncated, too large, extremely narrow, or of a kind without a sound conversion.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks about metadata are nothing a user can act on
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as opened:
                opened.load()
                image, kind = ImageOps.exif_transpose(opened), opened.format or ""
    except NO_IMAGE as error:
        raise DataError(
            f"{Path(place).name} is not an image edgeq can read",
            code="EQ-D052",
            place=place,
            hint="remove it, or convert it to JPEG or PNG",
        ) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _unsuitable(place, "is too large", "scale it down to less than 80 megapixels") from error
    except BAD_IMAGE as error:
        raise DataError(
            f"{Path(place).name} is damaged or truncated: {error}",
            code="EQ-D053",
            place=place,
            hint="copy the file again, or remove it",
        ) from error
    if max(image.size) > MAX_SIDE_RATIO * min(image.size):
        raise _unsuitable(place, f"is a strip of {image.width} x {image.height} pixels", "crop it, or remove it")
    return _to_rgb(image, kind, place)


def preprocess(image: Image.Image, spec: Preprocess) -> NDArray[np.float32]:
    """The network input `(3, height, width)` of an RGB image; bit for bit the same wherever it runs.

    In this order: (1) `squash`: resize to `width x height`. `crop`: resize so that the image just covers
    `floor(width / crop_fraction) x floor(height / crop_fraction)`, the other side rounded down, then cut the centre,
    with half pixels rounded to even (the order of torchvision and timm). `letterbox`: see `edgeq.detection`. All by
    Pillow in 8 bit, antialiased. (2) Blue first where the network wants it so. (3) As float32: divide by 255, subtract
    the mean, divide by the standard deviation. (4) Channels first.

    Args:
        image: 8-bit RGB.
        spec: Size, resize rule and normalization.
    """
    resample = Image.Resampling.BICUBIC if spec.interpolation == "bicubic" else Image.Resampling.BILINEAR
    if spec.resize == "squash":
        image = image.resize((spec.width, spec.height), resample)
    elif spec.resize == "letterbox":
        width, height, left, top = letterbox(image.width, image.height, asdict(spec))
        border = Image.new("RGB", (spec.width, spec.height), (spec.fill,) * 3)
        border.paste(image.resize((width, height), resample), (left, top))
        image = border
    else:
        # 1e-6: 224 / (224 / 232) must give 232 although the fraction was rounded
        width, height = (int(side / spec.crop_fraction + 1e-6) for side in (spec.width, spec.height))
        if image.width * height <= image.height * width:
            height = width * image.height // image.width
        else:
            width = height * image.width // image.height
        left, top = round((width - spec.width) / 2), round((height - spec.height) / 2)
        image = image.resize((width, height), resample).crop((left, top, left + spec.width, top + spec.height))
    mean, std = np.array(spec.mean, dtype=np.float32), np.array(spec.std, dtype=np.float32)
    colours = np.asarray(image, dtype=np.float32)[..., :: -1 if spec.channels == "bgr" else 1]
    pixels: NDArray[np.float32] = (colours / np.float32(255) - mean) / std
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _open_folder(folder: Path, place: str, option: str) -> Source[Image.Image]:
    inner = folder / "images"
    root = inner if inner.is_dir() else folder
    labelled = root is folder and not any(True for _ in _images_in(folder))
    names = sorted(d.name for d in folder.iterdir() if d.is_dir() and not d.name.startswith(".")) if labelled else []
    by_class = {name: sorted(_images_in(folder / name)) for name in names}
    labels: list[int | None]
    if sum(bool(files) for files in by_class.values()) >= 2:
        files = [file for name in names for file in by_class[name]]
        labels = [label for label, name in enumerate(names) for _ in by_class[name]]
        classes: tuple[str, ...] | None = tuple(names)
    else:
        files = sorted(_walk(root, set()), key=lambda file: file.relative_to(root).as_posix())
        labels, classes = [None] * len(files), None
    if not files:
        raise DataError(
            f"{folder} holds no images",
            code="EQ-D051",
            place=place,
            hint=f"give {option} a folder with photos ({', '.join(sorted(SUFFIXES))})",
        )
    items = tuple(
        Item(file.relative_to(folder).as_posix(), file_digest(file), label)
        for file, label in zip(files, labels, strict=True)
    )
    return Source(place, items, classes, lambda index: files[index].read_bytes(), decode)


def _images_in(folder: Path) -> Iterator[Path]:
    for file in folder.iterdir():
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file():
            yield file


def _walk(folder: Path, entered: set[tuple[int, int]]) -> Iterator[Path]:
    """Images in and below a folder; folders are told apart by device and inode, so that a link cycle ends."""
    status = folder.stat()
    if (status.st_dev, status.st_ino) in entered:
        return
    entered.add((status.st_dev, status.st_ino))
    yield from _images_in(folder)
    for inner in sorted(folder.iterdir()):
        if not inner.name.startswith(".") and inner.is_dir():
            yield from _walk(inner, entered)


def _open_packed(data: bytes, place: str) -> Source[Image.Image]:
    try:
        arrays = read_arrays(data, only=("jpeg", "offset", "label", "classes"))
    except DamagedArraysError as error:
        raise _bad_packed(place, str(error)) from error
    if missing := {"jpeg", "offset"} - arrays.keys():
        raise _bad_packed(place, f"it lacks {' and '.join(sorted(missing))}")
    blob, offset = arrays["jpeg"], arrays["offset"]
    if blob.dtype != np.uint8 or blob.ndim != 1:
        raise _bad_packed(place, f"jpeg must be uint8 of one dimension, not {blob.dtype} of {blob.ndim}")
    if offset.dtype.kind not in "iu" or offset.ndim != 1 or offset.size < 2:
        raise _bad_packed(place, "offset must be n + 1 integers")
    ends = [int(end) for end in offset]  # Python integers: differences of unsigned ones wrap
    if ends[0] != 0 or ends[-1] != blob.size or any(a >= b for a, b in itertools.pairwise(ends)):
        raise _bad_packed(place, f"offset must rise from 0 to {blob.size}")
    labels, classes = _packed_labels(arrays, len(ends) - 1, place)

    def fetch(index: int) -> bytes:
        return bytes(blob[ends[index] : ends[index + 1]])

    items = tuple(Item(f"{i:06d}", hashlib.sha256(fetch(i)).hexdigest(), label) for i, label in enumerate(labels))
    return Source(place, items, classes, fetch, decode)


def _packed_labels(
    arrays: dict[str, NDArray[Any]], count: int, place: str
) -> tuple[list[int | None], tuple[str, ...] | None]:
    if "label" not in arrays:
        return [None] * count, None
    label = arrays["label"]
    if label.dtype.kind not in "iu" or label.shape != (count,) or int(label.min()) < 0:
        raise _bad_packed(place, f"label must be {count} integers from 0")
    if "classes" not in arrays:
        return [int(value) for value in label], None
    names = arrays["classes"]
    if names.dtype.kind != "U" or names.ndim != 1 or int(label.max()) >= names.size:
        raise _bad_packed(place, f"classes must be at least {int(label.max()) + 1} strings")
    return [int(value) for value in label], tuple(str(name) for name in names)


def _to_rgb(image: Image.Image, kind: str, place: str) -> Image.Image:
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N") or (image.mode == "I" and kind == "PNG"):
        # Pillow's own conversion clips at 255 instead of scaling
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        over = Image.new("RGBA", image.size, "white")
        over.alpha_composite(image.convert("RGBA"))
        return over.convert("RGB")
    if image.mode in ("RGB", "RGBX", "L", "1", "P", "CMYK", "YCbCr", "HSV"):
        return image.convert("RGB")
    raise _unsuitable(place, f"has pixels of kind {image.mode}", "convert it to 8-bit RGB")


def _unsuitable(place: str, what: str, hint: str) -> DataError:
    return DataError(f"{Path(place).name} {what}", code="EQ-D055", place=place, hint=hint)


def _bad_packed(place: str, cause: str) -> DataError:
    return DataError(
        f"{Path(place).name} is not a packed image file: {cause}",
        code="EQ-D058",
        place=place,
        hint="it needs the arrays jpeg, offset and, when labelled, label and classes; or give a folder of images",
    )
