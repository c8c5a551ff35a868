"""The ONNX exporter: rules, emission and read-back under one name."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, fx

from edgeq.exporters.base import ReadBack
from edgeq.exporters.onnx.emit import emit_onnx
from edgeq.exporters.onnx.readback import read_onnx
from edgeq.exporters.onnx.rewrite import prepare_onnx
from edgeq.exporters.onnx.rules import ONNX, SCHEMES, onnx_config
from edgeq.graph.legalize import Legalized
from edgeq.spec import Precision, QuantConfig, QuantPlan


class OnnxExporter:
    """ONNX files for onnxruntime's CPU kernels."""

    name = "onnx"
    file_name = "model.onnx"
    float_format = "onnx"
    rules = ONNX
    schemes = SCHEMES

    def config(self, scheme: str, precision: Precision) -> QuantConfig:
        """See `onnx_config`."""
        return onnx_config(scheme, precision)

    def prepare(self, graph: fx.GraphModule) -> fx.GraphModule:
        """See `prepare_onnx`."""
        return prepare_onnx(graph)

    def emit(self, graph: fx.GraphModule, example: tuple[Tensor, ...], plan: QuantPlan | None, path: Path) -> None:
        """See `emit_onnx`."""
        emit_onnx(graph, example, plan, path)

    def read_back(self, path: Path, legalized: Legalized | None) -> ReadBack:
        """See `read_onnx`."""
        return read_onnx(path, legalized.plan if legalized else None)
