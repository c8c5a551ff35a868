"""Pillars: cells against brute force, the network against a plain scatter, objects and their score."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeq.data import open_scenes
from edgeq.errors import DataError, ModelError
from edgeq.models import load_model
from edgeq.models.base import ModelRequest
from edgeq.models.pillars import HOW, average_precision, build_pillars, same_objects
from edgeq.points import find_objects, pillars

SMALL: dict[str, Any] = {**HOW, "corner": [-2.0, -1.0], "cell": 0.5, "grid": [4, 8], "pillars": 6, "points": 3}


def cloud(seed: int, count: int = 60) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-2.5, 2.5, (count, 3)).astype(np.float32)


@given(st.integers(0, 2000), st.integers(1, 80))
def test_pillars_are_the_points_of_their_cells(seed: int, count: int) -> None:
    points = cloud(seed, count)
    features, where = pillars(points, SMALL)
    assert (features.shape, where.shape) == ((1, 6, 3, 8), (32,))
    cells: dict[int, list[int]] = {}
    for i, (x, y, z) in enumerate(points):
        column, row = math.floor((x + 2) / 0.5), math.floor((y + 1) / 0.5)
        if 0 <= column < 8 and 0 <= row < 4 and -1.5 <= z < 1.5:
            cells.setdefault(row * 8 + column, []).append(i)
    kept = sorted(sorted(cells, key=lambda c: (-len(cells[c]), c))[:6])
    assert np.flatnonzero(where < 6).tolist() == kept
    assert where[kept].tolist() == list(range(len(kept)))
    for pillar, cell in enumerate(kept):
        mine = points[cells[cell][:3]]
        found = features[0, pillar, : len(mine)]
        np.testing.assert_array_equal(found[:, :3], mine)
        np.testing.assert_allclose(found[:, 3:6], mine - mine.mean(0), atol=1e-6)
        centre = (cell % 8 * 0.5 - 1.75, cell // 8 * 0.5 - 0.75)
        np.testing.assert_allclose(found[:, 6:], mine[:, :2] - centre, atol=1e-6)
        assert not features[0, pillar, len(mine) :].any()
    assert not features[0, len(kept) :].any()


def test_a_scene_without_points_in_reach_is_empty() -> None:
    features, where = pillars(np.full((5, 3), 99, np.float32), SMALL)
    assert not features.any()
    assert (where == 6).all()


@torch.no_grad()
def test_picking_by_cell_is_a_scatter() -> None:
    """Random weights: structure only."""
    network = build_pillars()
    features, where = (torch.from_numpy(x) for x in pillars(8 * cloud(1, 500), HOW))
    seen = network.scatter(features, where)[0]
    wanted = torch.zeros_like(seen)
    vectors = network.pillar(features).relu().amax(2)[0]
    for cell in torch.nonzero(where < HOW["pillars"]).flatten().tolist():
        wanted[:, cell // 128, cell % 128] = vectors[where[cell]]
    torch.testing.assert_close(seen, wanted)
    assert float((seen == 0).float().mean()) > 0.9
    assert network(features, where).shape == (1, 8, 64, 64)


def maps(*objects: tuple[int, int, int, float]) -> np.ndarray:
    """Maps with objects `(class, row, column, logit)`: offsets of a quarter, 4 by 2 m, heading 0.3."""
    result = np.full((1, 8, 64, 64), -9.0, np.float32)
    result[:, 2:] = np.array([0.25, -0.25, math.log(4), math.log(2), math.sin(0.6), math.cos(0.6)])[:, None, None]
    for kind, row, column, logit in objects:
        result[0, kind, row, column] = logit
    return result


def test_objects_stand_where_the_map_says() -> None:
    found = find_objects([maps((0, 10, 20, 2.0), (0, 10, 21, 1.0), (1, 40, 5, 3.0))], HOW)
    assert found.shape == (2, 7)  # the neighbour with the lower score is the same object
    np.testing.assert_allclose(found[0, :5], [-16 + 5.75 * 0.5, -16 + 40.25 * 0.5, 4, 2, 0.3], atol=1e-5)
    assert found[:, 6].tolist() == [1, 0]
    assert found[0, 5] == pytest.approx(1 / (1 + math.exp(-3)), abs=1e-6)
    assert find_objects([maps()], HOW).shape == (0, 7)
    assert np.isfinite(find_objects([1e4 * maps((0, 1, 1, 1.0))], HOW)).all()


def record(found: list[list[Any]], labelled: list[int]) -> dict[str, Any]:
    return {"found": found, "labelled": labelled, "shown": [[f[0], f[1], 0.0] for f in found]}


def test_average_precision_is_the_area() -> None:
    right, wrong = [0, 0.9, True], [0, 0.8, False]
    assert average_precision([record([right], [1, 0])]) == 100
    assert average_precision([record([right, wrong, [0, 0.7, True]], [2, 0])]) == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert average_precision([record([[0, 0.95, False], right], [1, 1])]) == pytest.approx(25)
    assert math.isnan(average_precision([record([], [0, 0])]))
    assert same_objects(record([right], [1, 0]), record([right], [1, 0])) == 1
    assert same_objects(record([right], [1, 0]), record([], [1, 0])) == 0
    assert same_objects(record([], [1, 0]), record([], [1, 0])) == 1


def scenes(folder: Path, row: str) -> Path:
    for name in ("clouds", "boxes"):
        (folder / name).mkdir()
    np.save(folder / "clouds" / "a.npy", cloud(0))
    np.save(folder / "clouds" / "b.npy", cloud(1))
    (folder / "boxes" / "a.txt").write_text(row)
    return folder


def test_scenes_carry_their_objects(tmp_path: Path) -> None:
    source = open_scenes(scenes(tmp_path, "0 1 2 4.4 1.8 0.1\n\n1 -3 0.5 .6 .6 -3\n"), 2)
    assert [item.label for item in source.items] == [((0, 1, 2, 4.4, 1.8, 0.1), (1, -3, 0.5, 0.6, 0.6, -3)), ()]


@pytest.mark.parametrize(
    "row", ["0 1 2 3", "2 1 2 3 4 5", "0 1 2 0 4 5", "0 1 nan 3 4 5", "0.5 1 2 3 4 5", "x 1 2 3 4 5"]
)
def test_rows_that_are_no_objects_are_refused(tmp_path: Path, row: str) -> None:
    with pytest.raises(DataError) as caught:
        open_scenes(scenes(tmp_path, row), 2)
    assert caught.value.code == "EQ-D838"


def test_scenes_without_boxes_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", cloud(0))
    with pytest.raises(DataError) as caught:
        open_scenes(tmp_path, 2)
    assert caught.value.code == "EQ-D837"


def test_the_shipped_network_judges_a_scene(tmp_path: Path) -> None:
    adapter: Any = load_model(ModelRequest("points", "pillars", None))
    label = [(0, *find_objects([maps((0, 10, 20, 2.0))], HOW)[0, :5].tolist()), (1, 99.0, 0.0, 1.0, 1.0, 0.0)]
    judged = adapter.judge([maps((0, 10, 20, 2.0), (0, 30, 20, -1.0))], None, label)
    assert judged["labelled"] == [1, 0]  # what lies beyond the grid cannot be found
    assert [f[2] for f in judged["found"]] == [True, False]
    assert len(judged["shown"]) == 1
    (tmp_path / "x.pt").write_bytes(b"no weights")
    with pytest.raises(ModelError):
        load_model(ModelRequest("points", "pillars", tmp_path / "x.pt"))
    with pytest.raises(DataError):
        adapter.open(tmp_path, "calibration")
