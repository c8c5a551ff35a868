"""From a depth network's output to a map of the photo: units, size, pictures for people.

numpy and Pillow only and without imports of its own package: bundles carry a copy beside `run.py`, so that what was
measured is what runs on the device. Python 3.9 is enough.

The dictionary `head` that describes the output is the manifest's `postprocess`:

    decode    `depth`
    kind      what the network puts out: `metric` depth in metres, `log`, its natural logarithm, `relative` depth up to
              scale and shift, or `disparity`, inverse depth up to scale and shift (the larger the nearer)
"""

from __future__ import annotations

from typing import Any

import numpy as np

KINDS = ("disparity", "relative", "metric", "log")
METRIC = ("metric", "log")
"""Kinds that are metres after `read_map`."""

DEEPEST = 65.535
"""Metres that a 16-bit picture in millimetres can hold."""

LARGEST = 20.0
"""Bound of a logarithm: metres stay finite in float32."""

_INK = ((0, 0, 20), (60, 15, 100), (150, 40, 100), (225, 90, 50), (250, 180, 60), (255, 255, 190))
_CLIP = (2, 98)


def read_map(output: Any, head: Any) -> Any:
    """The output as a map `(rows, columns)` float32: metres from 0 on, or in no unit; not-numbers become 0.

    Args:
        output: `(1, 1, rows, columns)`, or without some of the leading ones.
        head: See above.
    """
    raw = np.asarray(output, dtype=np.float32)
    raw = np.nan_to_num(raw.reshape(raw.shape[-2:]), nan=0.0, posinf=0.0, neginf=0.0)
    if head["kind"] == "log":
        return np.exp(np.minimum(raw, np.float32(LARGEST)))
    return np.maximum(raw, np.float32(0)) if head["kind"] == "metric" else raw


def resize_map(found: Any, size: tuple[int, int]) -> Any:
    """A map over a photo of `size` (width, height): bilinear, corners on corners; float32."""
    from PIL import Image

    return np.asarray(Image.fromarray(np.ascontiguousarray(found)).resize(size, 2))  # Pillow's number of bilinear


def summarize(found: Any, head: Any) -> dict[str, Any]:
    """Least, median and largest value of a map, and their unit."""
    low, middle, high = (float(v) for v in np.quantile(found, (0.0, 0.5, 1.0)))
    return {"unit": "m" if head["kind"] in METRIC else head["kind"], "min": low, "median": middle, "max": high}


def write_maps(found: Any, head: Any, size: tuple[int, int], stem: str) -> list[str]:
    """Write a map as two pictures of `size`; returns their paths.

    `STEM-depth.png` has 16 bits: millimetres, or, of maps without unit, the range of `summarize` from 0 to 65535.
    `STEM-colour.png` is for people: near things are bright.

    Args:
        found: Of `read_map`.
        head: See above.
        size: Width and height of the photo.
        stem: Path without suffix.
    """
    from PIL import Image

    whole = resize_map(found, size)
    if head["kind"] in METRIC:
        codes = np.rint(1000 * np.minimum(whole, DEEPEST))
    else:
        codes = np.rint(65535 * (whole - whole.min()) / max(float(np.ptp(whole)), 1e-12))
    files = [f"{stem}-depth.png", f"{stem}-colour.png"]
    Image.fromarray(codes.astype(np.uint16)).save(files[0])
    Image.fromarray(painted(whole, head)).save(files[1])
    return files


def painted(whole: Any, head: Any) -> Any:
    """Colours `(H, W, 3)` by nearness, without the extremes."""
    near = {"disparity": whole, "relative": -whole}.get(head["kind"])
    if near is None:
        near = 1 / np.maximum(whole, 1e-3)
    low, high = np.percentile(near, _CLIP)
    share = np.clip((near - low) / max(float(high - low), 1e-12), 0, 1)
    places = np.linspace(0, 1, len(_INK))
    channels = [np.interp(share, places, [ink[c] for ink in _INK]) for c in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
