"""The OpenVINO exporter: rules, emission and read-back under one name."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, fx

from edgeq.exporters.base import ReadBack
from edgeq.exporters.openvino.emit import emit_openvino
from edgeq.exporters.openvino.readback import read_openvino
from edgeq.exporters.openvino.rewrite import prepare_openvino
from edgeq.exporters.openvino.rules import OPENVINO, SCHEMES, openvino_config
from edgeq.graph.legalize import Legalized
from edgeq.spec import Precision, QuantConfig, QuantPlan


class OpenVinoExporter:
    """OpenVINO models for the CPU: an `.xml` with its `.bin`."""

    name = "openvino"
    file_name = "model.xml"
    float_format = "openvino"
    rules = OPENVINO
    schemes = SCHEMES

    def config(self, scheme: str, precision: Precision) -> QuantConfig:
        """See `openvino_config`."""
        return openvino_config(scheme, precision)

    def prepare(self, graph: fx.GraphModule) -> fx.GraphModule:
        """See `prepare_openvino`."""
        return prepare_openvino(graph)

    def emit(self, graph: fx.GraphModule, example: tuple[Tensor, ...], plan: QuantPlan | None, path: Path) -> None:
        """See `emit_openvino`."""
        emit_openvino(graph, example, plan, path)

    def read_back(self, path: Path, legalized: Legalized | None) -> ReadBack:
        """See `read_openvino`."""
        return read_openvino(path, legalized)
