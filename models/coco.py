"""COCO mean average precision by pycocotools, split so that any choice of photos can be scored again at once.

Matching boxes to the truth is done photo by photo by `COCOeval.evaluate`; `COCOeval.accumulate` then makes a score of
any list of photos, the same photo twice included, as the bootstrap draws them.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeq.detection import overlap
from edgeq.errors import MissingError

LIMIT = 100
"""Boxes of a photo that count."""

RESAMPLES = 100
"""Draws of the bootstrap: a score takes a tenth of a second."""

OVERLAPS = 10
"""From .50 to .95."""

MATCH = 0.5
"""Overlap from which two networks are said to show the same thing."""

_EVERYTHING = [0, 1e10]


Judged: TypeAlias = dict[str, Any]
"""What a detector said about one photo, in the types of JSON: `shown`, boxes `[left, top, right, bottom, score, class]`
that a user would see, and `matches`, what `COCOeval.accumulate` reads, by class."""


def judge_boxes(
    found: NDArray[np.float32], truth: Sequence[tuple[int, float, float, float, float]], score: float
) -> Judged:
    """Match the boxes of one photo with the truth.

    Args:
        found: `(n, 6)` corners, score, class, the surest first.
        truth: Class, left, top, width, height, in the same units.
        score: Least score of what is shown.

    Raises:
        MissingError: EQ-P650, pycocotools is not installed.
    """
    evaluation, coco = _pycocotools()
    kinds = sorted({t[0] for t in truth} | {int(k) for k in found[:, 5]})
    annotations = [
        {"id": i, "image_id": 1, "category_id": t[0], "bbox": list(t[1:]), "area": t[3] * t[4], "iscrowd": 0}
        for i, t in enumerate(truth, start=1)
    ]
    detections = [
        {"id": i, "image_id": 1, "category_id": int(k), "bbox": box, "area": box[2] * box[3], "score": s, "iscrowd": 0}
        for i, (box, s, k) in enumerate(_rows(found), start=1)
    ]
    run = evaluation(_table(coco, annotations, kinds), _table(coco, detections, kinds), "bbox")
    run.params.catIds, run.params.imgIds = kinds, [1]
    _limit(run.params)
    with contextlib.redirect_stdout(io.StringIO()):
        run.evaluate()
    matches = {str(kind): _plain(entry) for kind, entry in zip(kinds, run.evalImgs, strict=True) if entry is not None}
    return {"shown": found[found[:, 4] >= score].tolist(), "matches": matches}


def _plain(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What the score needs of one photo and class; matches are yes or no, since numbers of boxes say nothing here."""
    found = {name: np.asarray(entry[name], dtype=bool).astype(int).tolist() for name in ("dtMatches", "dtIgnore")}
    return {**found, "dtScores": [float(s) for s in entry["dtScores"]], "gtIgnore": [int(g) for g in entry["gtIgnore"]]}


def _arrays(entry: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Inverse of `_plain`, as far as pycocotools wants arrays."""
    if entry is None:
        return None
    shape = (OVERLAPS, len(entry["dtScores"]))
    return {k: np.asarray(v).reshape(shape) if k in ("dtMatches", "dtIgnore") else v for k, v in entry.items()}


def mean_average_precision(records: Sequence[Judged], overlaps: slice = slice(None)) -> float:
    """COCO mAP in percent over overlaps .50 to .95; NaN where no photo holds a labelled box.

    Args:
        records: One a photo.
        overlaps: Which of the ten overlaps; `slice(1)` for .50 alone.
    """
    evaluation, _ = _pycocotools()
    kinds = sorted({k for r in records for k, m in r["matches"].items() if m["gtIgnore"]}, key=int)
    if not kinds:
        return float("nan")
    run = evaluation(iouType="bbox")
    run.params.catIds, run.params.imgIds = [int(k) for k in kinds], list(range(len(records)))
    _limit(run.params)
    run.evalImgs = [_arrays(record["matches"].get(kind)) for kind in kinds for record in records]
    run._paramsEval = run.params
    with contextlib.redirect_stdout(io.StringIO()):
        run.accumulate()
    precision = run.eval["precision"][overlaps]
    return 100 * float(np.mean(precision[precision > -1]))


def same_boxes(reference: Judged, test: Judged) -> float:
    """Agreement of two detectors on what they show of a photo: matched boxes over all boxes, 0 to 1 (F1).

    Boxes match when they are of one class and overlap by half; each is matched once, the surest first.
    """
    first, second = (np.asarray(r["shown"], dtype=np.float32).reshape(-1, 6) for r in (reference, test))
    if len(first) + len(second) == 0:
        return 1.0
    free = np.ones(len(first), dtype=bool)
    matched = 0
    for row in second:
        common = overlap(row[:4], first[:, :4]) * (free & (first[:, 5] == row[5]))
        if len(common) and common.max() >= MATCH:
            free[int(common.argmax())] = False
            matched += 1
    return 2 * matched / (len(first) + len(second))


def _rows(found: NDArray[np.float32]) -> list[tuple[list[float], float, int]]:
    sizes = np.concatenate([found[:, :2], found[:, 2:4] - found[:, :2]], axis=1)
    return [(box, float(row[4]), int(row[5])) for box, row in zip(sizes.tolist(), found, strict=True)]


def _limit(params: Any) -> None:
    params.areaRng, params.areaRngLbl, params.maxDets = [_EVERYTHING], ["all"], [LIMIT]


def _table(coco: Any, rows: list[dict[str, Any]], kinds: Sequence[int]) -> Any:
    table = coco()
    table.dataset = {"images": [{"id": 1}], "annotations": rows, "categories": [{"id": k} for k in kinds]}
    with contextlib.redirect_stdout(io.StringIO()):
        table.createIndex()
    return table


def _pycocotools() -> tuple[Any, Any]:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise MissingError(
            "scoring a detector needs pycocotools", code="EQ-P650", hint="pip install 'edgeq[yolo]'"
        ) from error
    return COCOeval, COCO
