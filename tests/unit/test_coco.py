"""mAP photo by photo is mAP of all photos."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any

import numpy as np
import pytest

from edgeq.models.coco import judge_boxes, mean_average_precision, same_boxes

Truth = list[tuple[int, float, float, float, float]]
coco = pytest.importorskip("pycocotools.coco")
cocoeval = pytest.importorskip("pycocotools.cocoeval")


def photos(seed: int, count: int) -> list[tuple[np.ndarray[Any, np.dtype[np.float32]], Truth]]:
    generator = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        truth: Truth = []
        found = np.zeros((0, 6), np.float32)
        for _ in range(generator.integers(0, 6)):
            x, y = generator.uniform(0, 100, 2)
            w, h = generator.uniform(10, 60, 2)
            kind = int(generator.integers(0, 4))
            truth.append((kind, x, y, w, h))
            for _ in range(generator.integers(0, 3)):
                dx, dy = generator.normal(0, 4, 2)
                shown = kind if generator.random() < 0.8 else (kind + 1) % 4
                row = [x + dx, y + dy, x + dx + w, y + dy + h, generator.random(), shown]
                found = np.concatenate([found, np.array([row], np.float32)])
        result.append((found[np.argsort(-found[:, 4], kind="stable")], truth))
    return result


def whole(data: list[tuple[Any, Truth]]) -> float:
    """pycocotools as everyone calls it."""
    annotations, detections = [], []
    for image, (found, truth) in enumerate(data):
        for kind, *box in truth:
            entry = {"image_id": image, "category_id": kind, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, **entry})
        for x0, y0, x1, y1, score, kind in found.tolist():
            box = [x0, y0, x1 - x0, y1 - y0]
            detections.append({"image_id": image, "category_id": int(kind), "bbox": box, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        table = coco.COCO()
        images = [{"id": i} for i in range(len(data))]
        table.dataset = {"images": images, "annotations": annotations, "categories": [{"id": i} for i in range(4)]}
        table.createIndex()
        run = cocoeval.COCOeval(table, table.loadRes(detections), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return 100 * float(run.stats[0])


@pytest.mark.parametrize("seed", range(3))
def test_records_of_photos_make_the_score_of_all(seed: int) -> None:
    data = photos(seed, 12)
    records = [judge_boxes(found, truth, 0.25) for found, truth in data]
    assert mean_average_precision(records) == pytest.approx(whole(data))
    assert json.loads(json.dumps(records)) == records  # so that a journal can keep them
    twice = [data[i] for i in (0, 3, 3, 3, 7, 9)]  # as the bootstrap draws
    assert mean_average_precision([records[i] for i in (0, 3, 3, 3, 7, 9)]) == pytest.approx(whole(twice))


def test_right_boxes_score_100_and_none_score_0() -> None:
    truth: Truth = [(1, 10, 10, 20, 20), (2, 50, 50, 30, 10)]
    right = np.array([[10, 10, 30, 30, 0.9, 1], [50, 50, 80, 60, 0.4, 2]], np.float32)
    assert mean_average_precision([judge_boxes(right, truth, 0.25)]) == pytest.approx(100)
    assert mean_average_precision([judge_boxes(right, truth, 0.25)], slice(1)) == pytest.approx(100)
    assert mean_average_precision([judge_boxes(right[:0], truth, 0.25)]) == 0
    assert np.isnan(mean_average_precision([judge_boxes(right, [], 0.25)]))
    assert np.isnan(mean_average_precision([judge_boxes(right[:0], [], 0.25)]))


def test_agreement_is_of_what_is_shown() -> None:
    boxes = np.array([[0, 0, 10, 10, 0.9, 1], [50, 50, 80, 60, 0.4, 2], [0, 0, 5, 5, 0.1, 1]], np.float32)
    moved, other = boxes + np.float32([1, 0, 1, 0, 0, 0]), boxes + np.float32([0, 0, 0, 0, 0, 1])
    first, near, wrong, none = (judge_boxes(b, [], 0.25) for b in (boxes, moved, other, boxes[:0]))
    assert len(first["shown"]) == 2
    assert same_boxes(first, near) == 1
    assert same_boxes(first, wrong) == 0
    assert same_boxes(first, judge_boxes(boxes[:1], [], 0.25)) == pytest.approx(2 / 3)
    assert (same_boxes(none, none), same_boxes(first, none), same_boxes(none, first)) == (1, 0, 0)
