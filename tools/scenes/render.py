"""A random furnished room, a camera in it, and what the camera sees: 8-bit RGB and depth in metres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from scenes.geometry import Array, Solid, blocked, cast
from scenes.surfaces import Surface, random_surface

HEIGHT, WIDTH = 96, 128
"""Pixels of a picture."""

FIELD = (56.0, 68.0)
"""Horizontal field of view in degrees, as of phones and laptops."""

_SKIN = np.float32(1e-3)
"""Metres by which shadow rays leave their surface."""

CLASSES = ("furniture", "box", "ball", "can", "column", "table", "lamp", "picture")
"""What things in a room are: boxes and cans stand on furniture, columns on the floor, pictures and doors at walls."""

_SMALLEST = 6
"""Pixels a side from which on a thing counts as seen."""

_SMALL = {"box": "box", "sphere": "ball", "cylinder": "can"}
Point: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """A picture and its truth.

    Args:
        rgb: `(H, W, 3)` uint8.
        depth: `(H, W)` float32, metres along the optical axis (not along the ray), as depth cameras give it.
        boxes: `(things, 5)` float32, what is seen of things: class, then centre x, y, width, height as shares of the
            picture.
    """

    rgb: NDArray[np.uint8]
    depth: Array
    boxes: Array


@dataclass(frozen=True)
class _Room:
    """Solids (the room itself first), their surfaces, extents `(x, y, z)` in metres; the floor is at y = 0.

    `things` tells of each solid which thing it is part of and that thing's class; the room is none, -1.
    """

    solids: list[Solid]
    surfaces: list[Surface]
    things: list[tuple[int, int]]
    extents: tuple[float, float, float]


def draw_scene(seed: int, index: int, height: int = HEIGHT, width: int = WIDTH) -> Scene:
    """Scene `index` of the endless series `seed`.

    Args:
        seed: Of the series; series with different seeds share no scene.
        index: Number of the scene.
        height: Pixels.
        width: Pixels.
    """
    random = np.random.default_rng([seed, index])
    room = _furnished(random)
    origin, axes, focal = _camera(random, room, width)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    across = (x.ravel() + 0.5 - width / 2) / focal
    down = (y.ravel() + 0.5 - height / 2) / focal
    direction = axes[:, :1] * across - axes[:, 1:2] * down + axes[:, 2:]
    hit = cast(room.solids, origin, direction)  # along a direction of depth 1: the parameter is the depth
    point = origin + hit.t * direction
    colours = np.zeros_like(point)
    for i in np.unique(hit.solid):
        of = hit.solid == i
        local, own = hit.local[:, of], hit.normal[:, of]
        surface = room.solids[i].surface + (_wall(own) if room.solids[i].inside else 0)
        if room.solids[i].inside:
            for wall in np.unique(surface):
                part = surface == wall
                places = np.flatnonzero(of)[part]
                colours[:, places] = room.surfaces[int(wall)].colours(local[:, part], own[:, part])
        else:
            colours[:, of] = room.surfaces[room.solids[i].surface].colours(local, own)
    light = _light(random, room, point, hit.normal, direction)
    rgb = _exposed(random, colours * light, height, width)
    boxes = _seen(room.things, hit.solid.reshape(height, width))
    return Scene(rgb, hit.t.reshape(height, width).astype(np.float32), boxes)


def _seen(things: list[tuple[int, int]], solid: NDArray[np.int32]) -> Array:
    """Boxes around what is seen of each thing, where that is large enough, `(things, 5)`; see `Scene`."""
    numbers = np.array([thing for thing, _ in things], np.int32)[solid]
    height, width = solid.shape
    found = []
    for thing, kind in dict.fromkeys(things[1:]):
        rows, columns = np.nonzero(numbers == thing)
        if not len(rows):
            continue
        left, right, top, bottom = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
        if min(right - left, bottom - top) >= _SMALLEST and len(rows) >= _SMALLEST**2:
            centre = (left + right) / 2 / width, (top + bottom) / 2 / height
            found.append((kind, *centre, (right - left) / width, (bottom - top) / height))
    return np.array(found, np.float32).reshape(-1, 5)


def _wall(normal: Array) -> NDArray[np.int64]:
    """Which of the room's three surfaces: 0 floor, 1 walls, 2 ceiling."""
    return np.where(normal[1] > 0.5, 0, np.where(normal[1] < -0.5, 2, 1))


def _furnished(random: np.random.Generator) -> _Room:
    """A room of 3 to 8 m with what stands, hangs and lies in it."""
    x, z = random.uniform(3, 8, 2)
    y = random.uniform(2.3, 3.2)
    surfaces = [random_surface(random) for _ in range(3)]
    solids = [Solid("box", (0.0, y / 2, 0.0), (x / 2, y / 2, z / 2), inside=True)]
    things = [(-1, -1)]

    def add(name: str, kind: str, centre: Point, half: Point, yaw: float = 0.0, part: bool = False) -> None:
        things.append((things[-1][0] + (not part), CLASSES.index(name)))
        surfaces.append(random_surface(random))
        solids.append(Solid(kind, centre, half, yaw, len(surfaces) - 1))  # type: ignore[arg-type]

    for _ in range(random.integers(4, 11)):
        px, pz = random.uniform(-0.46, 0.46) * x, random.uniform(-0.46, 0.46) * z
        form = random.choice(5, p=(0.4, 0.2, 0.15, 0.15, 0.1))
        size = float(np.exp(random.uniform(np.log(0.15), np.log(0.7))))
        if form == 0:  # a piece of furniture, perhaps with something on it
            half = (size, random.uniform(0.15, 0.9), random.uniform(0.5, 1.2) * size)
            add("furniture", "box", (px, half[1], pz), half, random.choice((0.0, random.uniform(0, np.pi))))
            if random.random() < 0.5:
                small = random.uniform(0.05, 0.2)
                on = (px, 2 * half[1] + small, pz)
                kind = str(random.choice(("box", "sphere", "cylinder")))
                add(_SMALL[kind], kind, on, (small,) * 3, random.uniform(0, np.pi))
        elif form == 1:  # a column or a bin
            radius, half_height = 0.5 * size, random.choice((y / 2, random.uniform(0.1, 0.8)))
            add("column", "cylinder", (px, half_height, pz), (radius, half_height, radius))
        elif form == 2:
            add("ball", "sphere", (px, 0.6 * size, pz), (0.6 * size,) * 3)
        elif form == 3:  # a table: its top and a leg
            top = random.uniform(0.4, 0.8)
            add("table", "box", (px, top, pz), (size, 0.02, 0.7 * size), random.uniform(0, np.pi))
            add("table", "cylinder", (px, top / 2, pz), (0.04, top / 2, 0.04), part=True)
        else:  # a lamp
            add("lamp", "sphere", (px, y - random.uniform(0.3, 0.8), pz), (random.uniform(0.08, 0.25),) * 3)
    for _ in range(random.integers(0, 6)):  # doors, windows and pictures
        half_width, half_height = random.uniform(0.2, 0.8), random.uniform(0.2, 0.9)
        middle = random.uniform(half_height, max(half_height, y - half_height))
        side = random.choice((-1, 1))
        if random.random() < 0.5:
            add(
                "picture", "box", (random.uniform(-0.4, 0.4) * x, middle, side * z / 2), (half_width, half_height, 0.04)
            )
        else:
            add(
                "picture", "box", (side * x / 2, middle, random.uniform(-0.4, 0.4) * z), (0.04, half_height, half_width)
            )
    return _Room(solids, surfaces, things, (float(x), float(y), float(z)))


def _camera(random: np.random.Generator, room: _Room, width: int) -> tuple[Array, Array, float]:
    """Position `(3, 1)`, axes `(3, 3)` (right, up, forward, a column each) and focal length in pixels.

    The camera is held at 1.1 to 1.7 m and looks across the room, a little down as a rule; it never starts in a solid.
    """
    x, _, z = room.extents
    for _ in range(50):
        place = np.array([random.uniform(-0.45, 0.45) * x, random.uniform(1.1, 1.7), random.uniform(-0.45, 0.45) * z])
        if not any(_close(solid, place) for solid in room.solids[1:]):
            break
    aim = np.array([random.uniform(-0.3, 0.3) * x, 0, random.uniform(-0.3, 0.3) * z]) - place * (1, 0, 1)
    yaw = np.arctan2(aim[0], aim[2]) + random.normal(0, 0.3)
    pitch, roll = random.normal(-0.15, 0.12), random.normal(0, 0.03)
    forward = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    right = np.cross([0, 1, 0], forward)
    right /= np.linalg.norm(right)
    up = np.cross(forward, right)
    right, up = np.cos(roll) * right + np.sin(roll) * up, np.cos(roll) * up - np.sin(roll) * right
    focal = width / 2 / np.tan(np.radians(random.uniform(*FIELD)) / 2)
    return place[:, None].astype(np.float32), np.stack([right, up, forward], axis=1).astype(np.float32), float(focal)


def _close(solid: Solid, place: NDArray[np.float64]) -> bool:
    """Whether a place is in a solid or less than 25 cm from it, by its surrounding upright cylinder."""
    away = np.hypot(place[0] - solid.centre[0], place[2] - solid.centre[2]) - np.hypot(solid.half[0], solid.half[2])
    return bool(away < 0.25 and abs(place[1] - solid.centre[1]) < solid.half[1] + 0.25)


def _light(random: np.random.Generator, room: _Room, point: Array, normal: Array, direction: Array) -> Array:
    """Light `(3, n)` that leaves a white surface: a lamp with shadows, light from all sides, and a little gloss."""
    x, y, z = room.extents
    lamp = np.array([[random.uniform(-0.4, 0.4) * x], [y - 0.15], [random.uniform(-0.4, 0.4) * z]], np.float32)
    colour = (1 + random.normal(0, 0.08, (3, 1))).astype(np.float32)
    start = point + _SKIN * normal
    towards = lamp - start
    squared = (towards * towards).sum(axis=0)
    facing = np.maximum((towards * normal).sum(axis=0), 0) / np.sqrt(squared)
    shade = 1 - random.uniform(0.5, 1) * blocked(room.solids, start, towards)
    direct = facing * shade / (0.3 + squared)
    ambient = random.uniform(0.03, 0.25) * (0.75 + 0.25 * normal[1])
    headlight = random.uniform(0, 0.12) * np.abs((normal * direction).sum(axis=0)) / np.linalg.norm(direction, axis=0)
    return np.asarray(colour * direct + ambient + headlight, np.float32)


def _exposed(random: np.random.Generator, light: Array, height: int, width: int) -> NDArray[np.uint8]:
    """What a camera with automatic exposure stores: sRGB-like, with noise."""
    level = np.quantile(light.mean(axis=0), 0.9)
    linear = light * np.float32(random.uniform(0.5, 1.0) / max(float(level), 1e-6))
    linear = linear + random.normal(0, random.uniform(0, 0.01), linear.shape)
    coded = np.clip(linear, 0, 1) ** (1 / 2.2)
    return np.rint(255 * coded).astype(np.uint8).T.reshape(height, width, 3)
