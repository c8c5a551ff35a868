"""Scores of depth maps over the pixels of known depth: AbsRel, delta1, RMSE; aligned first where they have no unit.

The definitions are Eigen et al. (arXiv:1406.2283, section 4.1); the alignment by least squares in disparity is that of
MiDaS (Ranftl et al., arXiv:1907.01341, eq. 4). Scores of a data set are means over its photos.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeq.depthmap import METRIC

Map: TypeAlias = NDArray[np.float32]
Judged: TypeAlias = dict[str, Any]
"""What a network said of one photo, in the types of JSON: `abs_rel` and `delta1` in percent, `rmse` in metres, and
`map`, logarithms of its depth on a coarse grid."""

DELTA = 1.25
SAME = 1.05
"""Ratio of depths up to which two networks are said to see the same."""

RESAMPLES = 2000
GRID = (16, 12)
"""Columns and rows of the coarse map."""

_NEAREST = 1e-3
"""Metres: no depth is smaller, so that ratios and logarithms exist."""


def judge_depth(found: Map, truth: Map, kind: str) -> Judged:
    """Score one map.

    Args:
        found: `(H, W)`, of the truth's size: metres for the kinds of `edgeq.depthmap.METRIC`, else in no unit.
        truth: `(H, W)` in metres, 0 where unknown; known somewhere.
        kind: Of `found`.
    """
    known = truth > 0
    depth = np.maximum(found if kind in METRIC else aligned(found, truth, kind), _NEAREST).astype(np.float64)
    seen, wanted = depth[known], truth[known].astype(np.float64)
    ratio = np.maximum(seen / wanted, wanted / seen)
    coarse = Image.fromarray(np.log(depth).astype(np.float32)).resize(GRID, Image.Resampling.BOX)
    return {
        "abs_rel": 100 * float(np.mean(np.abs(seen - wanted) / wanted)),
        "delta1": 100 * float(np.mean(ratio < DELTA)),
        "rmse": float(np.sqrt(np.mean((seen - wanted) ** 2))),
        "map": [round(float(v), 4) for v in np.asarray(coarse).ravel()],
    }


def aligned(found: Map, truth: Map, kind: str) -> Map:
    """Depth in metres of a map without unit: scale and shift that fit the known pixels best.

    Disparity is fitted to inverse depth, and where it says farther than anything known, or behind the camera, the depth
    is that of the farthest known pixel. Relative depth is fitted to depth.

    Args:
        found: `(H, W)`.
        truth: `(H, W)` in metres, 0 where unknown; known somewhere.
        kind: `disparity` or `relative`.
    """
    known = truth > 0
    values, wanted = found[known].astype(np.float64), truth[known].astype(np.float64)
    goal = 1 / wanted if kind == "disparity" else wanted
    spread = values - values.mean()
    power = float(spread @ spread)
    scale = float(spread @ (goal - goal.mean())) / power if power > 0 else 0.0
    fitted = goal.mean() + scale * (found.astype(np.float64) - values.mean())
    if kind == "disparity":
        fitted = 1 / np.maximum(fitted, 1 / wanted.max())
    return np.asarray(fitted, dtype=np.float32)


def mean_of(name: str) -> Callable[[Sequence[Judged]], float]:
    """The score that is the mean of a figure of the records."""

    def total(records: Sequence[Judged]) -> float:
        return float(np.mean([r[name] for r in records]))

    return total


ALSO: Mapping[str, Callable[[Sequence[Judged]], float]] = {"delta1": mean_of("delta1"), "RMSE": mean_of("rmse")}
"""Scores beside AbsRel: percent, metres."""


def same_depth(reference: Judged, test: Judged) -> float:
    """Agreement of two networks on a photo, 0 to 1: share of a coarse grid on which their depths are within 5 %."""
    difference = np.abs(np.subtract(reference["map"], test["map"]))
    return float(np.mean(difference <= math.log(SAME)))
