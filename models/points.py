"""Networks on point clouds: PointMLP and PointNet, architectures with a local checkpoint.

Sampling and neighbours are found on the host by `edgeq.points`, here and on the device; the network takes the points
and integer indices, and does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from edgeq.data import Role, Source, open_clouds
from edgeq.data.clouds import Cloud
from edgeq.errors import ModelError, UsageError, unknown_name
from edgeq.graph.capture import capture
from edgeq.hashing import file_sha256
from edgeq.models.base import TOP1, LoadedModel, ModelRequest, Networks, Portrait, judge_top1, say_top1
from edgeq.models.checkpoint import load_state_dict, read_metadata
from edgeq.models.clouds import CloudAdapter
from edgeq.models.pillars import PillarsAdapter, load_pillars
from edgeq.models.point_checkpoints import pointmlp_of, pointnet_of

POINTS, NEIGHBOURS, STAGES = 1024, 24, 4
"""As in the published training: points of a cloud, neighbours of a centre, halvings."""

FLOAT_OPS = ("embedding", "stages_*_neighbour")
"""Layers that stay float. The first reads raw coordinates and normals; differences of what the others write are divided
by the deviation of a neighbourhood, which is small beside the values: their rounding would be multiplied with them."""


SCHEMES = ("dynamic", "static")
"""What `--scheme auto` tries: there is no product of two activations to gain in `integer`, where sums and
normalization in 8 bits cost some 5 dB."""


class PointsAdapter(CloudAdapter):
    """The point-cloud family for one loaded classifier: points `(1, count, columns)`, each stage's neighbours int32."""

    metric = TOP1

    def open(self, path: Path, role: Role) -> Source[Cloud]:
        """Clouds, see `open_clouds`; the first is tried, so that data of another kind is refused at once.

        Labels are those of the network.
        """
        source = open_clouds(path, role=role)
        self.inputs(source.read(0))
        return source.for_classes(self.loaded.classes) if role == "evaluation" else source

    def judge(self, outputs: Sequence[NDArray[np.float32]], sample: Cloud, label: int) -> float:
        """100 when the largest logit is the label's, else 0."""
        del sample
        return judge_top1(outputs, label)

    def portray(self, networks: Networks, sample: Cloud, label: int | None) -> Portrait:
        """The cloud from the front, with the surest class."""
        text = say_top1(networks[""](*self.inputs(sample)), label, self.loaded.classes)
        return Portrait(text, front_view(sample))


def front_view(cloud: Cloud) -> Image.Image:
    """A cloud `(points, columns)` seen along its third axis, near points bright on black, 240 by 240."""
    side, points = 240, np.asarray(cloud, dtype=np.float64)[:, :3]
    low, high = points.min(axis=0), points.max(axis=0)
    shares = (points - (low + high) / 2) / max(float((high - low).max()), 1e-12) + 0.5
    places = np.clip(np.rint((0.05 + 0.9 * shares) * (side - 1)).astype(int), 0, side - 2)
    pixels = np.zeros((side, side), np.uint8)
    for column, row, shade in places[np.argsort(shares[:, 2], kind="stable")]:  # the nearest last
        pixels[side - 2 - row : side - row, column : column + 2] = 90 + 165 * shade // side
    return Image.fromarray(pixels)


@dataclass(frozen=True)
class _Architecture:
    """How a network is built from a checkpoint.

    Args:
        build: `(tensors, file name) -> network`.
        stages: Grouping stages.
        entry: Path of its first layer.
        float_ops: Layers that stay float.
    """

    build: Callable[[Mapping[str, Tensor], str], nn.Module]
    stages: int
    entry: str
    float_ops: tuple[str, ...]


_ARCHITECTURES = {
    "pointmlp_elite": _Architecture(pointmlp_of, STAGES, "embedding", FLOAT_OPS),
    "pointnet": _Architecture(pointnet_of, 0, "layers.0", ("layers_0", "align_layers_0", "matmul")),
}


def load_points(request: ModelRequest) -> PointsAdapter | PillarsAdapter:
    """Load a network on point clouds.

    Raises:
        UsageError: Unknown architecture, or no weights.
        ModelError: The file cannot be used, or is of another architecture.
    """
    if request.variant == "pillars":
        return load_pillars(request)
    if request.variant not in _ARCHITECTURES:
        known = (*_ARCHITECTURES, "pillars")
        raise unknown_name("point network", request.variant, known, code="EQ-U830", command="edgeq models")
    if request.path is None:
        raise UsageError(
            f"edgeq does not download weights, and those of {request.variant} do not ship with it",
            code="EQ-U016",
            hint=f"edgeq export points:{request.variant} --weights CHECKPOINT.safetensors --device ...",
        )
    architecture = _ARCHITECTURES[request.variant]
    network = architecture.build(load_state_dict(request.path), request.path.name)
    columns = int(network.get_submodule(architecture.entry).get_parameter("weight").shape[1])
    how = _host_part(columns, architecture.stages)
    example = _example(how)
    graph = capture(network.eval(), example)
    outputs = graph(*example)[0].shape[-1]
    classes = _classes(request.path, int(outputs))
    loaded = LoadedModel(
        name=request.variant,
        family="points",
        graph=graph,
        input_names=("points", *(f"neighbours_{i}" for i in range(len(example) - 1))),
        input_shapes=tuple(tuple(x.shape) for x in example),
        output_names=("logits",),
        preprocess=None,
        weights_sha256=file_sha256(request.path),
        classes=classes,
        source=request.path.name,
        network="convolution",
        schemes=SCHEMES,
        cloud=how,
        float_ops=architecture.float_ops,
    )
    return PointsAdapter(loaded)


def _host_part(columns: int, stages: int) -> dict[str, Any]:
    """How a cloud becomes the network's inputs, see `edgeq.points`."""
    groups = [[POINTS >> (i + 1), NEIGHBOURS] for i in range(stages)]
    return {
        "kind": "points",
        "count": POINTS,
        "columns": columns,
        "sample": "farthest",
        "scale": "sphere",
        "stages": groups,
    }


def _example(how: Mapping[str, Any]) -> tuple[Tensor, ...]:
    points = torch.zeros(1, how["count"], how["columns"])
    return points, *(torch.zeros(centres * near, dtype=torch.int32) for centres, near in how["stages"])


def _classes(path: Path, count: int) -> tuple[str, ...] | None:
    """Class names that the checkpoint carries: `labels` in the metadata of a safetensors file, separated by commas.

    Raises:
        ModelError: EQ-M831, there are more or fewer than outputs.
    """
    text = read_metadata(path).get("labels", "")
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if names and len(names) != count:
        raise ModelError(
            f"{path.name} names {len(names)} classes, and the network has {count}",
            code="EQ-M831",
            place=path.name,
            hint="correct `labels` in the file's metadata, or leave it out",
        )
    return names or None
