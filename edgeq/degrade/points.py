"""What scanners and scenes do to point clouds. Clouds are `(points, columns)` float32, coordinates first.

Levels relate to the cloud's radius, the largest distance from its mean, so that they mean the same in metres and in
shares of a unit sphere. Every result has the shape of its input: a point that is lost becomes a copy of one that is
left, which sampling does not take twice. Normals go with their points; none is estimated anew.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Cloud = NDArray[np.float32]


def jitter(cloud: Cloud, percent: float, random: np.random.Generator) -> Cloud:
    """Coordinates with Gaussian noise of standard deviation `percent` of the radius, along each axis."""
    result = cloud.copy()
    result[:, :3] += percent / 100 * _radius(cloud) * random.normal(size=(len(cloud), 3)).astype(np.float32)
    return result


def thinning(cloud: Cloud, percent: float, random: np.random.Generator) -> Cloud:
    """`percent` of the points are lost, wherever they are."""
    return _left(cloud, random.permutation(len(cloud)) >= percent / 100 * len(cloud), random)


def occlusion(cloud: Cloud, percent: float, random: np.random.Generator) -> Cloud:
    """`percent` of the points, those farthest in a random direction, are hidden: what a plane cuts off."""
    order = np.argsort(np.argsort(_along(cloud, random), kind="stable"), kind="stable")
    return _left(cloud, order < (1 - percent / 100) * len(cloud), random)


def outliers(cloud: Cloud, percent: float, random: np.random.Generator) -> Cloud:
    """`percent` of the points lie anywhere in the cloud's sphere, evenly, with any normal."""
    count = len(cloud)
    places, normals = (_directions(count, random) for _ in range(2))
    places *= _radius(cloud) * random.random((count, 1)).astype(np.float32) ** np.float32(1 / 3)
    stray = random.permutation(count) < percent / 100 * count
    result = cloud.copy()
    result[stray, :3] = (cloud[:, :3].mean(axis=0) + places)[stray]
    if cloud.shape[1] >= 6:
        result[stray, 3:6] = normals[stray]
    return result


def falloff(cloud: Cloud, times: float, random: np.random.Generator) -> Cloud:
    """Seen from one side: the density falls evenly (in logarithm) to one part in `times` at the far side."""
    depth = _along(cloud, random)
    span = float(np.ptp(depth))
    share = (depth - depth.min()) / span if span > 0 else np.zeros(len(cloud))
    kept = random.random(len(cloud)) < times**-share
    kept[int(share.argmin())] = True
    return _left(cloud, kept, random)


def _left(cloud: Cloud, kept: NDArray[np.bool_], random: np.random.Generator) -> Cloud:
    """The cloud with every point that is not kept replaced by one that is; one is always left."""
    sources = np.flatnonzero(kept) if kept.any() else np.zeros(1, dtype=np.int64)
    drawn = sources[(random.random(len(cloud)) * len(sources)).astype(np.int64)]
    return cloud[np.where(kept, np.arange(len(cloud)), drawn)]


def _radius(cloud: Cloud) -> np.float32:
    places = cloud[:, :3]
    return np.float32(np.linalg.norm(places - places.mean(axis=0), axis=1).max())


def _along(cloud: Cloud, random: np.random.Generator) -> NDArray[np.float32]:
    """How far each point lies in a random direction."""
    result: NDArray[np.float32] = cloud[:, :3] @ _directions(1, random)[0]
    return result


def _directions(count: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Unit vectors `(count, 3)`, evenly over the sphere."""
    vectors = random.normal(size=(count, 3))
    result: NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return result
