"""Sampling and neighbours against brute force, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq import points
from edgeq.data import open_clouds
from edgeq.errors import MissingError
from edgeq.points import Unusable, farthest_points, nearest_points, network_inputs, read_cloud, unit_sphere

HOW: dict[str, Any] = {
    "kind": "points",
    "count": 32,
    "columns": 6,
    "sample": "farthest",
    "scale": "sphere",
    "stages": [[16, 4], [8, 4]],
}


def cloud(count: int, columns: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, columns)).astype(np.float32)


def slow_sample(places: np.ndarray, count: int) -> list[int]:
    """Farthest point sampling by its definition."""
    exact = places.astype(np.float64)
    chosen = [int(((exact - exact.mean(0)) ** 2).sum(1).argmax())]
    while len(chosen) < count:
        nearest = ((exact[:, None] - exact[chosen][None]) ** 2).sum(-1).min(1)
        chosen.append(int(nearest.argmax()))
    return chosen


@given(st.integers(0, 10_000), st.integers(5, 60))
def test_farthest_points_are_those_of_the_definition(seed: int, count: int) -> None:
    places = cloud(count, seed=seed)
    assert farthest_points(places, count // 2).tolist() == slow_sample(places, count // 2)


@given(st.integers(0, 10_000))
def test_the_order_of_the_points_does_not_matter(seed: int) -> None:
    given_cloud = cloud(60, 6, seed)
    shuffled = np.random.default_rng(seed + 1).permutation(60)
    here, there = (network_inputs(c, {**HOW, "scale": "none"}) for c in (given_cloud, given_cloud[shuffled]))
    for a, b in zip(here, there, strict=True):
        np.testing.assert_array_equal(a, b)


@given(st.integers(0, 10_000))
def test_sampling_a_sample_gives_its_beginning(seed: int) -> None:
    """Why the centres of a stage are the first points of the stage before."""
    places = cloud(80, seed=seed)
    order = places[farthest_points(places, 40)]
    left = np.full(40, np.inf)
    current, found = 0, []
    for _ in range(20):
        found.append(current)
        left = np.minimum(left, ((order - order[current]) ** 2).sum(1))
        current = int(left.argmax())
    assert found == list(range(20))


@given(st.integers(0, 10_000), st.integers(1, 24))
def test_nearest_points_are_the_nearest(seed: int, count: int) -> None:
    places, centres = cloud(24, seed=seed), cloud(5, seed=seed + 1)
    found = nearest_points(centres, places, count)
    assert found.dtype == np.int32
    distance = ((centres[:, None].astype(np.float64) - places[None]) ** 2).sum(-1)
    for row, near in zip(distance, found, strict=True):
        assert len(set(near.tolist())) == count
        np.testing.assert_allclose(np.sort(row[near]), np.sort(row)[:count], rtol=1e-5)


def test_of_equal_points_the_first_are_taken() -> None:
    places = np.zeros((9, 3), np.float32)
    assert nearest_points(places[:1], places, 4).tolist() == [[0, 1, 2, 3]]
    assert farthest_points(places, 3).tolist() == [0, 0, 0]


def test_inputs_have_the_shapes_of_the_network() -> None:
    inputs = network_inputs(cloud(50, 7), HOW)
    assert [(x.shape, x.dtype) for x in inputs] == [
        ((1, 32, 6), np.float32),
        ((64,), np.int32),
        ((32,), np.int32),
    ]
    assert inputs[1].max() < 32
    assert inputs[2].max() < 16
    first = network_inputs(cloud(50, 6), {**HOW, "sample": "first", "scale": "none", "stages": []})
    np.testing.assert_array_equal(first[0][0], cloud(50, 6)[:32])


def test_the_sphere_moves_and_scales_coordinates_only() -> None:
    given_cloud = cloud(40, 6) + 100
    ball = unit_sphere(given_cloud)
    assert np.abs(ball[:, :3].mean(0)).max() < 1e-5
    assert np.linalg.norm(ball[:, :3], axis=1).max() == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(ball[:, 3:], given_cloud[:, 3:])
    assert np.isfinite(unit_sphere(np.ones((4, 3), np.float32))).all()


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.txt", "a.xyz", "a.csv"])
def test_files_are_read(tmp_path: Path, name: str) -> None:
    wanted, path = cloud(6, 6), tmp_path / name
    if name.endswith(".npy"):
        np.save(path, wanted)
    elif name.endswith(".npz"):
        np.savez(path, points=wanted)
    else:
        np.savetxt(path, wanted, delimiter="," if name.endswith(".csv") else " ", fmt="%.9g")
    np.testing.assert_array_equal(read_cloud(path), wanted)


def ply(path: Path, columns: str, rows: str, element: str = "vertex") -> Path:
    """A text file of one element whose rows are `rows`, one a line."""
    properties = "".join(f"property float {name}\n" for name in columns.split())
    head = f"ply\nformat ascii 1.0\nelement {element} {len(rows.splitlines())}\n{properties}end_header\n"
    path.write_text(f"{head}{rows}\n")
    return path


def test_vertices_of_ply_files_are_read_by_name(tmp_path: Path) -> None:
    plyfile = pytest.importorskip("plyfile")
    wanted = cloud(5, 6)
    named = [*"xyz", "red", "nx", "ny", "nz"]
    table = np.zeros(5, [(name, "u1" if name == "red" else "f4") for name in named])
    for name, column in zip(("x", "y", "z", "nx", "ny", "nz"), wanted.T, strict=True):
        table[name] = column
    faces = np.array([([0, 1, 2],)], dtype=[("vertex_indices", "i4", (3,))])
    parts = [plyfile.PlyElement.describe(table, "vertex"), plyfile.PlyElement.describe(faces, "face")]
    for text, order in ((True, "="), (False, "<"), (False, ">")):
        plyfile.PlyData(parts, text=text, byte_order=order).write(str(tmp_path / "a.ply"))
        np.testing.assert_allclose(read_cloud(tmp_path / "a.ply"), wanted, atol=1e-5)
    np.testing.assert_array_equal(read_cloud(ply(tmp_path / "b.ply", "z x y", "3 1 2")), [[1, 2, 3]])


def test_ply_files_that_hold_no_cloud_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("plyfile")
    cases = {
        points.COLUMNS: ply(tmp_path / "a.ply", "x y", "1 2"),
        points.SHAPE: ply(tmp_path / "b.ply", "x y z", "1 2 3", element="face"),
        points.VALUES: ply(tmp_path / "c.ply", "x y z", "1 2 nan"),
        points.COUNT: ply(tmp_path / "d.ply", "x y z", ""),
        points.FILE: ply(tmp_path / "e.ply", "x y z", "1 2"),
    }
    for reason, path in cases.items():
        with pytest.raises(Unusable) as caught:
            read_cloud(path)
        assert caught.value.reason == reason, path
        assert caught.value.hint


def test_without_plyfile_the_hint_is_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plyfile", None)
    path = ply(tmp_path / "a.ply", "x y z", "1 2 3")
    with pytest.raises(Unusable, match="plyfile is not installed") as caught:
        read_cloud(path)
    assert caught.value.reason == points.PACKAGE
    assert "pip install plyfile" in caught.value.hint
    with pytest.raises(MissingError) as missing:
        open_clouds(path, role="evaluation")
    assert missing.value.code == "EQ-P961"


def bad_files(folder: Path) -> list[tuple[Path, str]]:
    """Files that are no clouds, and why."""
    values: dict[str, tuple[Any, str]] = {
        "cube.npy": (np.zeros((2, 3, 4)), points.SHAPE),
        "flat.npy": (np.zeros((5, 2)), points.COLUMNS),
        "none.npy": (np.zeros((0, 3)), points.COUNT),
        "nan.npy": (np.array([[0, 0, 0], [0, np.nan, 0]]), points.VALUES),
        "words.npy": (np.array([["a", "b", "c"]]), points.SHAPE),
    }
    for name, (array, _) in values.items():
        np.save(folder / name, array)
    np.savez(folder / "other.npz", pixels=np.zeros(3))
    for name, data in (
        ("ragged.txt", b"1 2 3\n1 2\n"),
        ("words.txt", b"x y z\n"),
        ("empty.txt", b"\n"),
        ("cut.npy", b"\x93NUMPY"),
    ):
        (folder / name).write_bytes(data)
    (folder / "bytes.xyz").write_bytes(bytes(range(128, 256)))
    (folder / "scan.pcd").write_bytes(b"VERSION .7")
    others = {"empty.txt": points.SHAPE}
    files = ("other.npz", "ragged.txt", "words.txt", "empty.txt", "cut.npy", "bytes.xyz", "scan.pcd")
    return [(folder / n, r) for n, (_, r) in values.items()] + [(folder / n, others.get(n, points.FILE)) for n in files]


def test_what_is_no_cloud_is_refused_with_its_reason(tmp_path: Path) -> None:
    for path, reason in bad_files(tmp_path):
        with pytest.raises(Unusable) as caught:
            read_cloud(path)
        assert caught.value.reason == reason, path
        assert caught.value.hint


@pytest.mark.parametrize(
    ("shape", "reason"), [((31, 6), points.COUNT), ((40, 3), points.COLUMNS), ((40, 5), points.COLUMNS)]
)
def test_too_few_points_or_columns_are_refused(shape: tuple[int, int], reason: str) -> None:
    with pytest.raises(Unusable) as caught:
        network_inputs(cloud(*shape), HOW)
    assert caught.value.reason == reason
