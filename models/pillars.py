"""Objects in LiDAR scenes: a small PointPillars network with a heatmap of centres.

The weights that ship were trained on rendered scenes (`tools/train_pillars.py`): they show that the path works, and
say nothing about a real sensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeq.data import Role, Source, open_clouds, open_scenes
from edgeq.data.clouds import Cloud, Object
from edgeq.graph.capture import capture
from edgeq.hashing import file_sha256
from edgeq.models.base import LoadedModel, Metric, ModelRequest
from edgeq.models.checkpoint import load_into, load_state_dict
from edgeq.models.clouds import CloudAdapter
from edgeq.models.point_networks import Pillars
from edgeq.points import find_objects

NAMES = ("car", "person")
NEAR = 1.0
"""Metres between centres up to which an object is found (nuScenes' measure, at one of its four distances)."""

SCORED, SHOWN = 0.02, 0.3
FLOOR_DB = 10.0
"""Of the maps: logits of empty ground, which nobody reads, make most of their noise."""

RESAMPLES = 500

HOW: Mapping[str, Any] = {
    "kind": "pillars",
    "count": 1,
    "columns": 3,
    "corner": [-16.0, -16.0],
    "heights": [-1.5, 1.5],
    "cell": 0.25,
    "grid": [128, 128],
    "pillars": 512,
    "points": 16,
    "head": {"stride": Pillars.stride, "names": list(NAMES), "score": SHOWN, "limit": 100},
}
"""The host part, see `edgeq.points`; heights are from the sensor, the ground lies below."""

FLOAT_OPS = ("pillar",)
"""The layer that reads metres and centimetres side by side."""


def build_pillars() -> Pillars:
    """The network for `HOW`, with random weights."""
    return Pillars(HOW["columns"] + 5, (HOW["grid"][0], HOW["grid"][1]), len(NAMES))


def average_precision(records: Sequence[Mapping[str, Any]]) -> float:
    """Mean over the classes of the area under precision over recall, in percent; NaN where nothing is labelled."""
    areas = []
    for kind in range(len(NAMES)):
        total = sum(r["labelled"][kind] for r in records)
        if not total:
            continue
        found = sorted((f for r in records for f in r["found"] if f[0] == kind), key=lambda f: -f[1])
        right = np.cumsum([f[2] for f in found])
        precision = right / np.arange(1, len(found) + 1)
        best = np.maximum.accumulate(precision[::-1])[::-1]  # of all that recall as much or more
        areas.append(100 * float(np.sum(best * [f[2] for f in found])) / total)
    return float(np.mean(areas)) if areas else float("nan")


def same_objects(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    """F1 of what two models show of one scene, by class and place."""
    shown = [r["shown"] for r in (first, second)]
    left, matched = list(shown[1]), 0
    for kind, x, y in shown[0]:
        match = next((o for o in left if o[0] == kind and np.hypot(o[1] - x, o[2] - y) <= NEAR), None)
        if match is not None:
            left.remove(match)
            matched += 1
    count = len(shown[0]) + len(shown[1])
    return 2 * matched / count if count else 1.0


class PillarsAdapter(CloudAdapter):
    """LiDAR detection for one loaded network: features of the pillars and their places on the grid."""

    metric = Metric("mAP", "%", total=average_precision, alike=same_objects, resamples=RESAMPLES)

    def open(self, path: Path, role: Role) -> Source[Cloud]:
        """Clouds; for evaluation with `boxes/` beside `clouds/`."""
        return open_clouds(path, role=role) if role == "calibration" else open_scenes(path, len(NAMES))

    def judge(self, outputs: Sequence[NDArray[np.float32]], sample: Cloud, label: Sequence[Object]) -> Any:
        """What is found in a scene, each with whether a labelled object that nothing surer has claimed is near."""
        del sample
        objects = find_objects(outputs, self.how, SCORED)
        left = [o for o in label if self._inside(o)]
        labelled = [sum(o[0] == kind for o in left) for kind in range(len(NAMES))]
        found = []
        for x, y, *_, score, kind in objects.tolist():
            same = [o for o in left if o[0] == int(kind)]
            nearest = min(same, key=lambda o: np.hypot(o[1] - x, o[2] - y), default=None)
            right = nearest is not None and bool(np.hypot(nearest[1] - x, nearest[2] - y) <= NEAR)
            if right and nearest is not None:
                left.remove(nearest)
            found.append([int(kind), round(score, 6), right])
        shown = [[int(o[6]), float(o[0]), float(o[1])] for o in objects if o[5] >= SHOWN]
        return {"found": found, "labelled": labelled, "shown": shown}

    def _inside(self, thing: Object) -> bool:
        (x, y), (rows, columns), cell = self.how["corner"], self.how["grid"], self.how["cell"]
        return bool(x <= thing[1] < x + cell * columns and y <= thing[2] < y + cell * rows)


def load_pillars(request: ModelRequest) -> PillarsAdapter:
    """Load the LiDAR network, with the weights that ship or others of its shape.

    Raises:
        ModelError: The file cannot be used.
    """
    network = build_pillars()
    with resources.as_file(resources.files("edgeq.models") / "weights" / "pillars.safetensors") as shipped:
        path = request.path or shipped
        load_into(network, load_state_dict(path), path)
        digest = file_sha256(path)
    most, points = HOW["pillars"], HOW["points"]
    example = (
        torch.zeros(1, most, points, HOW["columns"] + 5),
        torch.zeros(HOW["grid"][0] * HOW["grid"][1], dtype=torch.int32),
    )
    loaded = LoadedModel(
        name=request.variant,
        family="points",
        graph=capture(network.eval(), example),
        input_names=("pillars", "where"),
        input_shapes=tuple(tuple(x.shape) for x in example),
        output_names=("maps",),
        preprocess=None,
        weights_sha256=digest,
        classes=None,
        source=request.path.name if request.path else "edgeq",
        network="convolution",
        schemes=("dynamic", "static"),
        cloud=HOW,
        floor_db=FLOOR_DB,
        float_ops=FLOAT_OPS,
    )
    return PillarsAdapter(loaded)
