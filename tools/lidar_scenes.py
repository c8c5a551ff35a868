"""Streets as a spinning LiDAR sees them, made up: rays against a plane, boxes and posts. No recorded data is in it.

    python tools/lidar_scenes.py OUT_FOLDER [--count 100] [--seed 0]

writes `OUT_FOLDER/clouds/NNNN.npy` (float32 `(points, 3)`, metres, the sensor at the origin 1.7 m above the ground)
and `OUT_FOLDER/boxes/NNNN.txt` (a row an object: class, x, y, length, width, heading). The sensor has 40 beams from -25
to 8 degrees, 720 azimuths, and 2 cm of range noise; a tenth of the returns is lost.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NAMES = ("car", "person")
SIZES = ((4.4, 1.8, 1.5), (0.6, 0.6, 1.75))
"""Length, width and height of the classes in metres; each object differs by up to a tenth."""

HEIGHT, REACH, SEEN = 1.7, 40.0, 15.0
BEAMS, TURNS = 40, 720
LEAST = 8
"""Returns that an object must have to be labelled."""


@dataclass(frozen=True)
class Scene:
    """What a sensor sees and what is there.

    Args:
        cloud: float32 `(points, 3)`.
        boxes: `(objects, 6)` class, x, y, length, width, heading.
    """

    cloud: NDArray[np.float32]
    boxes: Array


def make_scene(random: np.random.Generator) -> Scene:
    """A scene with up to 8 cars, 8 persons, and things that are neither (walls, posts)."""
    placed: list[Array] = []
    for kind, most in ((0, 8), (1, 8), (2, 3), (3, 6)):
        for _ in range(int(random.integers(1, most + 1))):
            box = _placed(kind, random, placed)
            if box is not None:
                placed.append(box)
    objects = np.array(placed)
    cloud, hits = _cast(objects, random)
    returns = np.bincount(hits[hits >= 0], minlength=len(objects))
    labelled = (objects[:, 0] < len(NAMES)) & (returns >= LEAST) & (np.abs(objects[:, 1:3]).max(1) < SEEN)
    return Scene(cloud.astype(np.float32), objects[labelled, :6])


def _placed(kind: int, random: np.random.Generator, others: list[Array]) -> Array | None:
    """An object `(8,)`: class, x, y, length, width, heading, height, radius; None where there is no room for it."""
    sizes = (*SIZES, (8.0, 0.3, 2.5), (0.25, 0.25, 3.0))
    length, width, height = np.array(sizes[kind]) * random.uniform(0.9, 1.1, 3)
    radius = float(np.hypot(length, width) / 2)
    for _ in range(20):
        x, y = random.uniform(-18, 18, 2)
        apart = [np.hypot(x - o[1], y - o[2]) - radius - o[7] for o in others]
        if np.hypot(x, y) > radius + 1.5 and min(apart, default=1.0) > 0.2:
            return np.array([kind, x, y, length, width, random.uniform(-np.pi, np.pi), height, radius])
    return None


def _cast(objects: Array, random: np.random.Generator) -> tuple[Array, NDArray[np.int64]]:
    """Returns `(points, 3)`, and which object each is of (-1 for the ground)."""
    pitch = np.radians(np.linspace(-25, 8, BEAMS))[:, None]
    turn = np.radians(np.arange(TURNS) * 360 / TURNS)[None] + random.uniform(0, 0.01)
    rays = np.stack(np.broadcast_arrays(np.cos(pitch) * np.cos(turn), np.cos(pitch) * np.sin(turn), np.sin(pitch)), -1)
    rays = rays.reshape(-1, 3)
    with np.errstate(divide="ignore"):
        nearest = np.where(rays[:, 2] < 0, -HEIGHT / rays[:, 2], np.inf)
    hits = np.full(len(rays), -1)
    azimuth = np.arctan2(rays[:, 1], rays[:, 0])
    for number, box in enumerate(objects):
        aside = np.abs((azimuth - np.arctan2(box[2], box[1]) + np.pi) % (2 * np.pi) - np.pi)
        near = np.flatnonzero(aside <= np.arcsin(box[7] / np.hypot(box[1], box[2])))
        distance = _box_distance(rays[near], box)
        closer = near[distance < nearest[near]]
        nearest[closer], hits[closer] = distance[distance < nearest[near]], number
    kept = (nearest < REACH) & (random.random(len(rays)) < 0.9)
    reach = nearest[kept] + random.normal(0, 0.02, int(kept.sum()))
    return rays[kept] * reach[:, None], hits[kept]


def _box_distance(rays: Array, box: Array) -> Array:
    """Where each ray from the origin meets an upright box on the ground; infinite where it does not."""
    _, x, y, length, width, heading, height, _ = box
    c, s = np.cos(heading), np.sin(heading)
    middle = np.array([-(c * x + s * y), s * x - c * y, HEIGHT - height / 2])
    turned = np.stack([c * rays[:, 0] + s * rays[:, 1], c * rays[:, 1] - s * rays[:, 0], rays[:, 2]], 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.stack([(side * np.array([length, width, height]) / 2 - middle) / turned for side in (-1, 1)])
    enter, leave = np.nanmax(ends.min(0), axis=1), np.nanmin(ends.max(0), axis=1)
    return np.where((enter > 0) & (enter <= leave), enter, np.inf)


def write(folder: Path, count: int, seed: int) -> None:
    """Write scenes; the same for the same seed."""
    for name in ("clouds", "boxes"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        scene = make_scene(np.random.default_rng([seed, number]))
        np.save(folder / "clouds" / f"{number:04d}.npy", scene.cloud)
        rows = [f"{int(b[0])} " + " ".join(f"{v:.3f}" for v in b[1:]) for b in scene.boxes]
        (folder / "boxes" / f"{number:04d}.txt").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Write a folder of scenes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write(args.out, args.count, args.seed)


if __name__ == "__main__":
    main()
