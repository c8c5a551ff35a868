"""The networks and layers that `library_methods.py` measures on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from vit_accuracy import Bench  # beside this file

from edgeq.graph.batch import batched
from edgeq.graph.kinds import op_kind
from edgeq.graph.layers import Recorder
from edgeq.graph.rewrite import fetch
from edgeq.graph.transforms.parameters import argument, parameter
from edgeq.metrics import sqnr_db
from edgeq.models.checkpoint import load_into, load_state_dict
from edgeq.models.cifar_cnn import CifarCnn
from edgeq.quant.search.layer import sample_rows

WEIGHTS = Path(__file__).parents[2] / "models" / "weights"
FITTED, MEASURED = 64, 64
"""Images that a layer is fitted to, and measured on."""

ROWS = 4096
"""Rows of a layer's input that are kept."""


@dataclass(frozen=True, eq=False)
class Site:
    """A linear layer with what it reads.

    Args:
        name: Of the node.
        path: Of its weight.
        weight: `(O, I)`.
        bias: `(O,)`, or None.
        source: Kind of the operation that makes its input.
        fitted: Input rows of calibration images `(ROWS, I)`.
        measured: Input rows of test images `(ROWS, I)`.
    """

    name: str
    path: str
    weight: Tensor
    bias: Tensor | None
    source: str
    fitted: Tensor
    measured: Tensor

    def output_db(self, inputs: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> float:
        """SQNR of the layer's output for other inputs, weight and bias, on the test images."""
        right = self.weight if weight is None else weight.to(self.weight)
        exact = self.measured @ self.weight.T
        found = inputs @ right.T
        if bias is not None:
            found = found + (bias.to(found) - (0 if self.bias is None else self.bias))
        return sqnr_db(exact.numpy(), found.numpy())


class VitBench(Bench):
    """`vit_nano`, its data, and its linear layers."""

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        self.many = batched(self.graph, (self.images[:1],))
        self.linear = [n for n in self.graph.graph.nodes if op_kind(n) == "linear"]
        names = {n.args[0].name for n in self.linear}
        fitted = record(self.many, names, self.calibration[:FITTED])
        measured = record(self.many, names, self.images[:MEASURED])
        self.sites = [self._site(n, fitted, measured) for n in self.linear]

    def _site(self, node: fx.Node, fitted: Mapping[str, Tensor], measured: Mapping[str, Tensor]) -> Site:
        source: Any = node.args[0]
        weight = parameter(self.graph, node, "weight")
        assert weight is not None
        path = path_of(node, "weight")
        rows = [sample_rows(seen[source.name], ROWS, 0).float() for seen in (fitted, measured)]
        return Site(node.name, path, weight.detach(), parameter(self.graph, node, "bias"), op_kind(source), *rows)

    def inner(self) -> list[Site]:
        """All layers but the last, which reads one row an image."""
        return [site for site in self.sites if len(site.fitted) == ROWS]

    @torch.no_grad()
    def with_weights(self, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Logits of the network with other weights, by their paths."""
        changed = copy.deepcopy(self.many)
        for path, weight in weights.items():
            fetch(changed, path).copy_(weight)
        return torch.cat([changed(x)[0] for x in torch.split(images, 100)])


def path_of(node: fx.Node, kind: str) -> str:
    """Attribute path of a layer's `weight` or `bias`."""
    attribute = argument(node, kind)
    assert isinstance(attribute, fx.Node)
    return str(attribute.target)


@torch.no_grad()
def record(graph: fx.GraphModule, names: set[str], images: Tensor) -> dict[str, Tensor]:
    """Values of the named nodes for a batch of images."""
    recorder = Recorder(graph, names)
    recorder.run(images)
    return recorder.values


class CnnBench(Bench):
    """`cifar_cnn` as a module with its batch norms, as a graph, and its data."""

    def __init__(self, data: Path) -> None:
        super().__init__(data, "cifar_cnn", samples=256)
        self.module = CifarCnn().eval()
        path = WEIGHTS / "cifar_cnn.safetensors"
        load_into(self.module, load_state_dict(path), path)

    @torch.no_grad()
    def top1(self, network: nn.Module) -> float:
        """Percent of the test images."""
        logits = torch.cat([_first(network(x)) for x in torch.split(self.images, 100)])
        right: NDArray[np.bool_] = logits.argmax(1).numpy() == self.labels
        return 100 * float(right.mean())


def _first(value: Any) -> Tensor:
    found: Tensor = value[0] if isinstance(value, tuple | list) else value
    return found
