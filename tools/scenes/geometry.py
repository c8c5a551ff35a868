"""Rays against boxes, spheres and upright cylinders, in numpy; all arrays of a picture at once.

The world is in metres, y up. A ray is `origin + t * direction`; directions need not have unit length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float32]
Kind = Literal["box", "sphere", "cylinder"]

FAR = np.float32(1e6)
"""Distance of what a ray does not meet."""

_TINY = np.float32(1e-6)


@dataclass(frozen=True)
class Solid:
    """A convex body standing upright.

    Args:
        kind: Its form.
        centre: `(x, y, z)` of its middle.
        half: Half extents `(x, y, z)`; of a sphere three times the radius, of a cylinder radius, half height, radius.
        yaw: Turn about the vertical axis, in radians.
        surface: Index of its texture.
        inside: The walls of a room, seen from inside.
    """

    kind: Kind
    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    yaw: float = 0.0
    surface: int = 0
    inside: bool = False


@dataclass(frozen=True)
class Hit:
    """What a bundle of rays meets.

    Args:
        t: Ray parameters `(n,)`, `FAR` where nothing is met.
        normal: Unit normals `(3, n)` towards the ray's origin.
        local: Points in the frame of the solid `(3, n)`, in metres from its centre.
        solid: Index of the solid `(n,)`, -1 for none.
    """

    t: Array
    normal: Array
    local: Array
    solid: NDArray[np.int32]


def cast(solids: list[Solid], origin: Array, direction: Array) -> Hit:
    """The nearest solid along every ray.

    Args:
        solids: What is there.
        origin: `(3, 1)` or `(3, n)`.
        direction: `(3, n)`.
    """
    count = direction.shape[1]
    nearest, index = np.full(count, FAR, np.float32), np.full(count, -1, np.int32)
    for i, solid in enumerate(solids):
        t = distance(solid, *_localized(solid, origin, direction))
        closer = t < nearest
        nearest[closer], index[closer] = t[closer], i
    normal, local = np.zeros((3, count), np.float32), np.zeros((3, count), np.float32)
    for i in np.unique(index[index >= 0]):
        rays = np.flatnonzero(index == i)
        start, towards = _localized(solids[i], origin if origin.shape[1] == 1 else origin[:, rays], direction[:, rays])
        point = start + nearest[rays] * towards
        own = _normal(solids[i], point)
        local[:, rays] = point
        normal[:, rays] = _turned(own if not solids[i].inside else -own, solids[i].yaw)
    return Hit(nearest, normal, local, index)


def blocked(solids: list[Solid], origin: Array, direction: Array) -> NDArray[np.bool_]:
    """Whether a solid lies between the origins and `origin + direction` `(n,)`; rooms block nothing."""
    found = np.zeros(direction.shape[1], np.bool_)
    for solid in solids:
        if not solid.inside:
            found |= distance(solid, *_localized(solid, origin, direction)) < 1
    return found


def distance(solid: Solid, origin: Array, direction: Array) -> Array:
    """Ray parameters `(n,)` at which a solid is met first, in its own frame; `FAR` for misses and what lies behind."""
    if solid.kind == "box":
        near, far = _slabs(solid.half, origin, direction)
        if solid.inside:
            return np.where(far > _TINY, far, FAR)
    else:
        near, far = _quadric(solid, origin, direction)
    return np.where((near < far) & (near > _TINY), near, FAR)


def _slabs(half: tuple[float, ...], origin: Array, direction: Array) -> tuple[Array, Array]:
    near, far = np.full_like(direction[0], -FAR), np.full_like(direction[0], FAR)
    for axis, extent in enumerate(half):
        inverse = 1 / np.where(np.abs(direction[axis]) < _TINY, _TINY, direction[axis])
        middle = -origin[axis] * inverse
        reach = np.abs(np.float32(extent) * inverse)
        near, far = np.maximum(near, middle - reach), np.minimum(far, middle + reach)
    return near, far


def _quadric(solid: Solid, origin: Array, direction: Array) -> tuple[Array, Array]:
    """A sphere, or a cylinder between its two lids."""
    axes = (0, 1, 2) if solid.kind == "sphere" else (0, 2)
    a = sum(direction[i] ** 2 for i in axes) + _TINY
    b = sum(origin[i] * direction[i] for i in axes)
    c = sum(origin[i] ** 2 for i in axes) - np.float32(solid.half[0] ** 2)
    inner = b * b - a * c
    root = np.sqrt(np.maximum(inner, 0))
    near, far = np.where(inner > 0, (-b - root) / a, FAR), np.where(inner > 0, (root - b) / a, -FAR)
    if solid.kind == "cylinder":
        inverse = 1 / np.where(np.abs(direction[1]) < _TINY, _TINY, direction[1])
        middle, reach = -origin[1] * inverse, np.abs(np.float32(solid.half[1]) * inverse)
        near, far = np.maximum(near, middle - reach), np.minimum(far, middle + reach)
    return near, far


def _normal(solid: Solid, point: Array) -> Array:
    """Outward unit normals at points of the surface, in the solid's frame."""
    if solid.kind == "sphere":
        return point / np.float32(solid.half[0])
    share = np.abs(point) / np.array(solid.half, np.float32)[:, None]
    if solid.kind == "cylinder":
        side = np.stack([point[0], np.zeros_like(point[0]), point[2]]) / np.float32(solid.half[0])
        lid = np.stack([np.zeros_like(point[0]), np.sign(point[1]), np.zeros_like(point[0])])
        return np.where(share[1] > np.hypot(point[0], point[2]) / np.float32(solid.half[0]), lid, side)
    face = np.arange(3)[:, None] == share.argmax(axis=0)
    return np.where(face, np.sign(point), 0).astype(np.float32)


def _localized(solid: Solid, origin: Array, direction: Array) -> tuple[Array, Array]:
    moved = origin - np.array(solid.centre, np.float32)[:, None]
    return _turned(moved, -solid.yaw), _turned(direction, -solid.yaw)


def _turned(vector: Array, yaw: float) -> Array:
    """Vectors `(3, n)` turned about the vertical axis."""
    if yaw == 0:
        return vector
    cosine, sine = np.float32(np.cos(yaw)), np.float32(np.sin(yaw))
    return np.stack([cosine * vector[0] + sine * vector[2], vector[1], cosine * vector[2] - sine * vector[0]])
