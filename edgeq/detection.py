"""From a detector's raw outputs to boxes in the photo: letterbox geometry, decoding, suppression.

numpy only and without imports of its own package: bundles carry a copy beside `run.py`, so that what was measured is
what runs on the device. Python 3.9 is enough.

The dictionary `head` that describes a detector is the manifest's `postprocess`:

    decode    `yolox` (offsets and logarithms of sizes, in strides), `distances` (distances from the cell's centre to
              the four sides, in strides) or `bins` (the same as a distribution over bins; DFL, arXiv 2006.04388)
    levels    per feature map the indices of the outputs `[boxes, classes]` or `[boxes, objectness, classes]`, each
              `(1, channels, rows, columns)`; scores are logits
    strides   input pixels per cell, per feature map
    names     class names
    suppress  whether neighbours of one class exclude each other; a one-to-one head needs no suppression
    overlap   intersection over union above which they do
    score     least score shown
    limit     most boxes per photo
"""

from __future__ import annotations

from typing import Any

import numpy as np

CANDIDATES = 3000
"""Boxes that suppression looks at, the highest scores first."""

LARGEST = 20.0
"""Bound of a logarithm of a size: areas stay finite in float32."""


def letterbox(width: int, height: int, how: Any) -> tuple[int, int, int, int]:
    """Place of a photo on the network's input: width, height, left, top.

    The longer side fills the input; the rest is a border, on the right and below (`align` `corner`) or around it.

    Args:
        width: Of the photo.
        height: Of the photo.
        how: The manifest's `preprocess`.
    """
    scale = min(how["width"] / width, how["height"] / height)
    wide = min(how["width"], max(1, int(width * scale + 0.5)))
    high = min(how["height"], max(1, int(height * scale + 0.5)))
    if how["align"] == "corner":
        return wide, high, 0, 0
    return wide, high, (how["width"] - wide) // 2, (how["height"] - high) // 2


def detect(outputs: Any, head: Any, how: Any, size: tuple[int, int], score: Any = None) -> Any:
    """Boxes of one photo, the surest first: `(n, 6)` float32 left, top, right, bottom in pixels, score, class.

    Args:
        outputs: The network's outputs.
        head: See above.
        how: The manifest's `preprocess`.
        size: Width and height of the photo.
        score: Least score; None for that of `head`.
    """
    boxes, scores = decode(outputs, head)
    found = select(boxes, scores, head, head["score"] if score is None else score)
    if how["resize"] == "letterbox":
        wide, high, left, top = letterbox(size[0], size[1], how)
    else:
        wide, high, left, top = how["width"], how["height"], 0, 0
    found[:, 0:4:2] = np.clip((found[:, 0:4:2] - left) * (size[0] / wide), 0, size[0])
    found[:, 1:4:2] = np.clip((found[:, 1:4:2] - top) * (size[1] / high), 0, size[1])
    return found


def decode(outputs: Any, head: Any) -> tuple[Any, Any]:
    """All candidates: corners `(cells, 4)` in pixels of the input, scores `(cells, classes)` from 0 to 1."""
    corners, scores = [], []
    for level, stride in zip(head["levels"], head["strides"]):  # noqa: B905 - strict= is not in Python 3.9
        maps = [np.asarray(outputs[i], dtype=np.float32) for i in level]
        rows, columns = maps[0].shape[2:]
        flat = [m.reshape(m.shape[1], rows * columns).T for m in maps]
        y, x = np.divmod(np.arange(rows * columns, dtype=np.float32), np.float32(columns))
        corners.append(_corners(flat[0], np.stack([x, y], axis=1), head["decode"]) * np.float32(stride))
        likely = sigmoid(flat[-1])
        scores.append(likely * sigmoid(flat[1]) if len(flat) == 3 else likely)
    return np.concatenate(corners), np.concatenate(scores)


def _corners(raw: Any, cell: Any, how: str) -> Any:
    """Corners `(cells, 4)` in strides from raw boxes `(cells, channels)` and the cells' corners `(cells, 2)`."""
    if how == "yolox":
        centre, half = raw[:, :2] + cell, np.exp(np.minimum(raw[:, 2:], LARGEST)) / 2
        return np.concatenate([centre - half, centre + half], axis=1)
    if how == "bins":
        bins = raw.reshape(len(raw), 4, -1)
        shares = np.exp(bins - bins.max(axis=2, keepdims=True))
        raw = (shares @ np.arange(bins.shape[2], dtype=np.float32)) / shares.sum(axis=2)
    centre = cell + np.float32(0.5)
    return np.concatenate([centre - raw[:, :2], centre + raw[:, 2:]], axis=1)


def sigmoid(x: Any) -> Any:
    """`1 / (1 + exp(-x))`, without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def select(boxes: Any, scores: Any, head: Any, least: float) -> Any:
    """The boxes to report, the surest first: `(n, 6)` float32 corners, score, class.

    A cell may be of several classes. With `suppress`, a box goes where a surer one of its class overlaps it by more
    than `overlap`.
    """
    cells, classes = np.nonzero(scores > least)
    likely = scores[cells, classes]
    order = np.argsort(-likely, kind="stable")[:CANDIDATES]
    corners, likely, classes = boxes[cells[order]], likely[order], classes[order]
    sound = np.isfinite(corners).all(axis=1)
    corners, likely, classes = corners[sound], likely[sound], classes[sound]
    kept = _suppressed(corners, classes, head) if head["suppress"] else np.arange(min(len(corners), head["limit"]))
    return np.concatenate([corners[kept], likely[kept, None], classes[kept, None]], axis=1).astype(np.float32)


def _suppressed(corners: Any, classes: Any, head: Any) -> Any:
    """Indices that survive, of boxes sorted by falling score."""
    left = np.arange(len(corners))
    kept: list[int] = []
    while len(left) and len(kept) < head["limit"]:
        best, rest = left[0], left[1:]
        kept.append(int(best))
        near = (classes[rest] == classes[best]) & (overlap(corners[best], corners[rest]) > head["overlap"])
        left = rest[~near]
    return np.array(kept, dtype=np.int64)


def overlap(box: Any, others: Any) -> Any:
    """Intersection over union of one box `(4,)` with others `(n, 4)`; 0 where both are empty."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    common = np.prod(np.maximum(sides, 0), axis=1)
    areas = np.prod(np.maximum(others[:, 2:] - others[:, :2], 0), axis=1) + np.prod(np.maximum(box[2:] - box[:2], 0))
    return common / np.maximum(areas - common, np.finfo(np.float32).tiny)
