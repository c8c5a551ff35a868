"""From raw outputs to boxes: geometry, decoding, suppression."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgeq.data import preprocess
from edgeq.detection import decode, detect, letterbox, overlap, select, sigmoid
from edgeq.spec import Preprocess

HEAD: dict[str, Any] = {
    "decode": "yolox",
    "levels": [[0, 1, 2]],
    "strides": [8],
    "suppress": True,
    "overlap": 0.5,
    "score": 0.25,
    "limit": 100,
    "names": ["a", "b", "c"],
}
HOW = Preprocess(64, 96, (0.0,) * 3, (1.0,) * 3, "letterbox", 1.0, "bilinear")


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from(["center", "corner"]))
def test_a_letterbox_lies_inside_and_fills_one_side(width: int, height: int, align: str) -> None:
    wide, high, left, top = letterbox(width, height, {**asdict(HOW), "align": align})
    scale = min(96 / width, 64 / height)
    assert abs(wide - max(1, width * scale)) <= 0.5 + 1e-9, "the sides keep their ratio"
    assert abs(high - max(1, height * scale)) <= 0.5 + 1e-9
    assert wide == 96 or high == 64
    assert 0 <= left <= 96 - wide
    assert 0 <= top <= 64 - high
    assert align == "center" or (left, top) == (0, 0)


@pytest.mark.parametrize("align", ["center", "corner"])
def test_the_border_is_grey_and_the_order_of_channels_is_kept(align: Any) -> None:
    how = Preprocess(64, 96, (0.0,) * 3, (1 / 255,) * 3, "letterbox", 1.0, "bilinear", 7, align, "bgr")
    pixels = preprocess(Image.new("RGB", (64, 64), (10, 20, 30)), how)
    wide, _, left, _ = letterbox(64, 64, asdict(how))
    np.testing.assert_allclose(pixels[:, :, left : left + wide][:, 5, 5], [30, 20, 10], rtol=1e-6)
    outside = np.delete(pixels, np.s_[left : left + wide], axis=2)
    np.testing.assert_allclose(outside, 7, rtol=1e-6)


@given(st.integers(20, 400), st.integers(20, 400), st.sampled_from(["center", "corner"]))
def test_boxes_return_to_the_pixels_of_the_photo(width: int, height: int, align: str) -> None:
    how = {**asdict(HOW), "align": align}
    wide, high, left, top = letterbox(width, height, how)
    maps = [np.full((1, c, 8, 12), -20, np.float32) for c in (4, 1, 3)]
    # one sure box that covers the photo: centre in cell (4, 5)
    maps[0][0, :, 4, 5] = [(left + wide / 2) / 8 - 5, (top + high / 2) / 8 - 4, np.log(wide / 8), np.log(high / 8)]
    maps[1][0, 0, 4, 5] = maps[2][0, 2, 4, 5] = 20
    found = detect(maps, HEAD, how, (width, height))
    assert found.shape == (1, 6)
    np.testing.assert_allclose(found[0, :4], [0, 0, width, height], atol=0.02)
    assert found[0, 5] == 2


def test_bins_and_distances_say_the_same() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(1, 64, 3, 5)).astype(np.float32)
    scores = generator.normal(size=(1, 2, 3, 5)).astype(np.float32)
    shares = torch.from_numpy(logits).reshape(4, 16, 15).softmax(1)
    distances = (shares * torch.arange(16.0)[None, :, None]).sum(1).reshape(1, 4, 3, 5).numpy()
    head = {**HEAD, "levels": [[0, 1]], "strides": [16]}
    by_bins, likely = decode([logits, scores], {**head, "decode": "bins"})
    by_distance, _ = decode([distances, scores], {**head, "decode": "distances"})
    np.testing.assert_allclose(by_bins, by_distance, rtol=1e-5)
    np.testing.assert_allclose(likely, sigmoid(scores[0].reshape(2, -1).T))
    left, top = by_distance[7, 0], by_distance[7, 1]  # row 1, column 2
    np.testing.assert_allclose(left, 16 * (2.5 - distances[0, 0, 1, 2]), rtol=1e-5)
    np.testing.assert_allclose(top, 16 * (1.5 - distances[0, 1, 1, 2]), rtol=1e-5)


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.floats(0.1, 0.9))
def test_suppression_is_that_of_torchvision(seed: int, count: int, limit: float) -> None:
    generator = np.random.default_rng(seed)
    corners = generator.uniform(0, 50, (count, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + generator.uniform(1, 40, (count, 2)).astype(np.float32)], axis=1)
    scores = np.zeros((count, 3), np.float32)
    classes = generator.integers(0, 3, count)
    scores[np.arange(count), classes] = generator.permutation(count) / count * 0.5 + 0.3
    found = select(boxes, scores, {**HEAD, "overlap": limit}, 0.25)
    tensors = torch.from_numpy(boxes), torch.from_numpy(scores.max(1)), torch.from_numpy(classes)
    expected = torchvision.ops.batched_nms(*tensors, limit).numpy()
    np.testing.assert_array_equal(found[:, :4], boxes[expected])
    np.testing.assert_array_equal(found[:, 5], classes[expected])


def test_limits_thresholds_and_broken_numbers() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [np.nan, 0, 1, 1], [0, 0, np.inf, 1]], np.float32)
    scores = np.array([[0.9, 0.8], [0.7, 0], [1, 1], [1, 1]], np.float32)
    kept = select(boxes, scores, HEAD, 0.25)
    assert [tuple(row[4:]) for row in kept.round(2)] == [(np.float32(0.9), 0), (np.float32(0.8), 1)]
    assert len(select(boxes, scores, {**HEAD, "suppress": False}, 0.25)) == 3
    assert len(select(boxes, scores, {**HEAD, "limit": 1}, 0.25)) == 1
    assert select(boxes, scores, HEAD, 1.0).shape == (0, 6)
    assert select(boxes, np.full_like(scores, np.nan), HEAD, 0.1).shape == (0, 6)


def test_sizes_beyond_float32_and_empty_boxes_do_no_harm() -> None:
    maps = [np.full((1, c, 1, 1), 1e4, np.float32) for c in (4, 1, 3)]
    with np.errstate(all="raise", under="ignore"):
        assert np.isfinite(detect(maps, HEAD, asdict(HOW), (96, 64))).all()
    empty = np.zeros((2, 4), np.float32)
    assert overlap(empty[0], empty).tolist() == [0, 0]
