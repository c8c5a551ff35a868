"""From a point cloud to the inputs of a network, and from its maps to objects: reading, sampling, neighbours, pillars.

numpy only (`.ply` needs plyfile as well) and without imports of its own package: bundles carry a copy beside `run.py`,
so that what was measured is what runs on the device. Python 3.9 is enough.

The dictionary `how` that describes what a network takes is the manifest's `cloud`:

    kind      `points` (the points themselves, and of each stage the neighbours of its centres) or `pillars`
    count     points that the network takes; of `pillars` the fewest that make sense
    columns   figures of a point: 3 (x y z), or 6 with the normal

and for `points`

    sample    what is done with more points than `count`: `farthest` (farthest point sampling) or `first`
    scale     `sphere` (centred, the farthest point at distance 1) or `none`
    stages    `[centres, neighbours]` of each grouping stage, in order; empty where the network groups nothing

and for `pillars`

    corner    x and y of the corner of the grid, metres
    heights   lowest and highest z that counts, metres
    cell      side of a cell, metres
    grid      rows (along y) and columns (along x)
    pillars   most cells with points, those with most points first
    points    most points of a cell, the first in the file
    head      how objects are read from the maps: `stride` (cells of the grid per cell of the maps), `names` of the
              classes, `score` (least shown) and `limit` (most objects)
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

TEXTS = (".txt", ".xyz", ".pts", ".csv")
SUFFIXES = (".npy", ".npz", ".ply", *TEXTS)

_KEYS = ("points", "arr_0")
_POSITION, _NORMAL = ("x", "y", "z"), ("nx", "ny", "nz")


class Unusable(Exception):
    """A cloud that cannot be used: `reason` is one of the words below, `hint` what to do about it."""

    def __init__(self, reason: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.hint = hint


FILE, SHAPE, VALUES, COUNT, COLUMNS, PACKAGE = "file", "shape", "values", "count", "columns", "package"


def read_cloud(path: Any, file: Any = None) -> Any:
    """The cloud in a file, float32 `(points, columns)`.

    `.npy` holds one array; `.npz` one named `points`; text one point a line, figures separated by blanks or commas;
    `.ply` vertices with x y z, and nx ny nz where all three are there: colours and faces are left out.

    Args:
        path: The file.
        file: Its content as an open binary file, where it is not read from `path`.

    Raises:
        Unusable: It is no such file, or what it holds is no cloud.
        OSError: It cannot be opened.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise Unusable(
            FILE,
            f"is of a kind that is not read here ({suffix or 'no suffix'})",
            f"save its points as {', '.join(SUFFIXES)}: one row a point",
        )
    file = io.BytesIO(Path(path).read_bytes()) if file is None else file
    try:
        if suffix in TEXTS:
            lines = file.read().decode("utf-8").splitlines()
            values = np.array([_figures(line) for line in lines if line.strip()])
        elif suffix == ".ply":
            values = _vertices(file)
        else:
            values = np.load(file, allow_pickle=False)
            if suffix == ".npz":
                values = values[next((k for k in _KEYS if k in values.files), _KEYS[0])]
    except Unusable:
        raise
    except Exception as error:  # numpy and zipfile report damage in a dozen ways
        raise Unusable(FILE, f"cannot be read: {error}", "one row a point, equally many numbers each") from error
    return check_cloud(values)


def _vertices(file: Any) -> Any:
    """The vertices of a `.ply`, text or binary, `(points, 3)` or with normals `(points, 6)`."""
    try:
        from plyfile import PlyData
    except ImportError as error:
        raise Unusable(
            PACKAGE, "is a .ply file, and plyfile is not installed", "pip install plyfile, or save it as .npy"
        ) from error
    content = PlyData.read(file)
    if "vertex" not in content:
        raise Unusable(SHAPE, "holds no vertices", "save the points as the element `vertex`")
    rows = content["vertex"].data
    missing = [name for name in _POSITION if name not in rows.dtype.names]
    if missing:
        raise Unusable(
            COLUMNS, f"has vertices without {' '.join(missing)}", "x y z, and nx ny nz where there are normals"
        )
    names = _POSITION + _NORMAL if set(_NORMAL) <= set(rows.dtype.names) else _POSITION
    return np.stack([rows[name].astype(np.float64) for name in names], axis=1)


def check_cloud(values: Any) -> Any:
    """`values` as a cloud, float32 `(points, columns)`.

    Raises:
        Unusable: Another shape, no point, or a figure that is not finite.
    """
    values = np.asarray(values)
    if values.dtype.kind not in "fiu" or values.ndim != 2:
        raise Unusable(
            SHAPE, f"is an array {values.shape} of {values.dtype}", "a cloud is (points, columns), real numbers"
        )
    if not len(values):
        raise Unusable(COUNT, "holds no point", "give a file with points")
    if values.shape[1] < 3:
        raise Unusable(COLUMNS, f"has {values.shape[1]} columns", "x y z, and the normal where the network takes it")
    cloud = values.astype(np.float32)
    bad = ~np.isfinite(cloud).all(axis=1)
    if bad.any():
        raise Unusable(
            VALUES,
            f"holds {int(bad.sum())} points of {len(cloud)} with NaN or infinity, the first in row {int(bad.argmax())}",
            "remove these rows, or look at what wrote them",
        )
    return cloud


def fit_cloud(cloud: Any, how: Any) -> Any:
    """The columns that a network takes of a cloud, if it has enough points.

    Raises:
        Unusable: Too few points or columns.
    """
    if cloud.shape[1] < how["columns"]:
        what = "normals" if how["columns"] == 6 else "columns"
        raise Unusable(
            COLUMNS,
            f"has {cloud.shape[1]} columns; the network takes {how['columns']} and needs {what}",
            "add them (x y z nx ny nz), or take a network of coordinates only",
        )
    if len(cloud) < how["count"]:
        raise Unusable(
            COUNT,
            f"has {len(cloud)} points; the network takes {how['count']}",
            "sample the surface more densely; points are not made up",
        )
    return cloud[:, : how["columns"]]


def network_inputs(cloud: Any, how: Any) -> tuple[Any, ...]:
    """What a network takes of a cloud: points `(1, count, columns)`, of each stage neighbours `(centres * k,)` int32.

    Of the kind `pillars`, what `pillars` returns. Points are in the order of farthest point sampling. Sampling a prefix
    of that order farthest point by farthest point gives the prefix itself, so that the centres of a stage are simply
    the first points of the stage before.

    Args:
        cloud: float32 `(points, columns)`.
        how: See above.

    Raises:
        Unusable: Too few points or columns.
    """
    cloud = fit_cloud(cloud, how)
    if how["kind"] == "pillars":
        return pillars(cloud, how)
    if how["scale"] == "sphere":
        cloud = unit_sphere(cloud)
    if how["sample"] == "first":
        cloud = cloud[: how["count"]]
    if how["stages"] or how["sample"] == "farthest":
        cloud = cloud[farthest_points(cloud[:, :3], how["count"])]
    inputs, known = [cloud[np.newaxis]], cloud[:, :3]
    for centres, count in how["stages"]:
        inputs.append(nearest_points(known[:centres], known, count).reshape(-1))
        known = known[:centres]
    return tuple(inputs)


def pillars(cloud: Any, how: Any) -> tuple[Any, Any]:
    """Points by the cell of a grid that they stand on (PointPillars, arXiv 1812.05784).

    Of each point its columns, its offset from the mean of its cell's points (x y z) and from the cell's centre (x y);
    empty places are zeros. Deviation: where cells or points are too many, the rules above decide and not chance.

    Args:
        cloud: float32 `(points, columns)`, metres.
        how: See above.

    Returns:
        Features `(1, pillars, points, columns + 5)`, and int32 `(rows * columns,)`: for each cell of the grid the
        place of its pillar, or the number of pillars where it has none.
    """
    (rows, columns), most = how["grid"], how["points"]
    across, up = ((cloud[:, i] - np.float32(how["corner"][i])) / np.float32(how["cell"]) for i in (0, 1))
    low, high = how["heights"]
    inside = (across >= 0) & (across < columns) & (up >= 0) & (up < rows) & (cloud[:, 2] >= low) & (cloud[:, 2] < high)
    cloud, across, up = cloud[inside], across[inside].astype(np.int64), up[inside].astype(np.int64)
    order = np.argsort(up * columns + across, kind="stable")
    cloud, cells = cloud[order], (up * columns + across)[order]
    taken, first, counts = np.unique(cells, return_index=True, return_counts=True)
    kept = np.sort(np.argsort(-counts, kind="stable")[: how["pillars"]])
    where = np.full(rows * columns, how["pillars"], dtype=np.int32)
    where[taken[kept]] = np.arange(len(kept), dtype=np.int32)
    place = np.arange(len(cells)) - np.repeat(first, counts)
    used = (place < most) & (where[cells] < how["pillars"])
    cloud, place, pillar, cells = cloud[used], place[used], where[cells[used]], cells[used]
    sizes = np.bincount(pillar, minlength=how["pillars"])[:, np.newaxis]
    means = np.zeros((how["pillars"], 3), dtype=np.float64)
    np.add.at(means, pillar, cloud[:, :3].astype(np.float64))
    means = (means / np.maximum(sizes, 1)).astype(np.float32)
    centres = np.stack([cells % columns, cells // columns], axis=1).astype(np.float32) + np.float32(0.5)
    centres = centres * np.float32(how["cell"]) + np.asarray(how["corner"], dtype=np.float32)
    features = np.zeros((1, how["pillars"], most, how["columns"] + 5), dtype=np.float32)
    features[0, pillar, place] = np.concatenate([cloud, cloud[:, :3] - means[pillar], cloud[:, :2] - centres], axis=1)
    return features, where


def find_objects(outputs: Any, how: Any, score: Any = None) -> Any:
    """Objects on the ground, the surest first: float32 `(n, 7)` x, y, length, width (metres), heading, score, class.

    An object is where a cell of the heatmap scores no less than its eight neighbours (CenterPoint, arXiv 2006.11275).

    Args:
        outputs: `(1, classes + 6, rows, columns)`: logits of the heatmap; offsets of the centre from the cell's, in
            cells; logarithms of length and width in metres; sine and cosine of twice the heading, since a box looks the
            same from behind.
        how: See above.
        score: Least score; None for that of the head.
    """
    head = how["head"]
    maps, classes = np.asarray(outputs[0][0], dtype=np.float32), len(head["names"])
    scores = 1 / (1 + np.exp(-np.clip(maps[:classes], -50, 50)))
    padded = np.pad(scores, ((0, 0), (1, 1), (1, 1)), constant_values=-1)
    rows, columns = scores.shape[1:]
    around = [padded[:, r : r + rows, c : c + columns] for r in range(3) for c in range(3)]
    peaks = (scores >= np.max(around, axis=0)) & (scores >= (head["score"] if score is None else score))
    kind, row, column = np.nonzero(peaks)
    best = np.argsort(-scores[kind, row, column], kind="stable")[: head["limit"]]
    kind, row, column = kind[best], row[best], column[best]
    along, up, long, wide, sine, cosine = maps[classes:, row, column]
    side = how["cell"] * head["stride"]
    found = (
        how["corner"][0] + (column + 0.5 + along) * side,
        how["corner"][1] + (row + 0.5 + up) * side,
        np.exp(np.clip(long, -5, 5)),
        np.exp(np.clip(wide, -5, 5)),
        np.arctan2(sine, cosine) / 2,
        scores[kind, row, column],
        kind,
    )
    return np.stack(found, axis=1).astype(np.float32)


def unit_sphere(cloud: Any) -> Any:
    """The cloud around its mean, the farthest point at distance 1; normals and further columns stay.

    A cloud of equal points is only moved.
    """
    result = cloud.astype(np.float32)
    result[:, :3] -= cloud[:, :3].mean(axis=0, dtype=np.float64).astype(np.float32)
    radius = float(np.sqrt((result[:, :3].astype(np.float64) ** 2).sum(axis=1).max()))
    if radius > 0:
        result[:, :3] /= np.float32(radius)
    return result


def farthest_points(places: Any, count: int) -> Any:
    """Farthest point sampling (Eldar et al. 1997; PointNet++, arXiv 1706.02413): `(count,)` indices into `places`.

    Published networks begin at a random point. Here the first is the point farthest from the mean, so that the same
    points in another order give the same sample; of equal distances the first point is taken.

    Args:
        places: float32 `(points, 3)`.
        count: At most the number of points.
    """
    centre = places.mean(axis=0, dtype=np.float64).astype(np.float32)
    x, y, z = np.ascontiguousarray(places.T)
    chosen = np.empty(count, dtype=np.int64)
    left = _squared(x - centre[0], y - centre[1], z - centre[2])
    current = int(left.argmax())
    left[:] = np.inf
    for i in range(count):
        chosen[i] = current
        np.minimum(left, _squared(x - x[current], y - y[current], z - z[current]), out=left)
        current = int(left.argmax())
    return chosen


def nearest_points(centres: Any, places: Any, count: int) -> Any:
    """The `count` nearest of `places` to each centre, itself included: int32 `(centres, count)`, indices rising.

    Of equally near points the first are taken, so that every machine finds the same.

    Args:
        centres: float32 `(centres, 3)`.
        places: float32 `(points, 3)`.
        count: At most the number of points.
    """
    apart = [centres[:, axis, np.newaxis] - places[np.newaxis, :, axis] for axis in range(3)]
    distance = np.ascontiguousarray(_squared(*apart), dtype=np.float32)
    # distances that are not negative have the order of their bits; with the index behind them no two are equal
    keys = (distance.view(np.uint32).astype(np.uint64) << np.uint64(32)) | np.arange(len(places), dtype=np.uint64)
    nearest = np.partition(keys, count - 1, axis=1)[:, :count] & np.uint64(0xFFFFFFFF)
    return np.sort(nearest.astype(np.int32), axis=1)


def _squared(x: Any, y: Any, z: Any) -> Any:
    return x * x + y * y + z * z


def _figures(line: str) -> list[float]:
    return [float(figure) for figure in line.replace(",", " ").split()]
