"""The TFLite exporter: rules, emission and read-back under one name."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, fx

from edgeq.exporters.base import ReadBack
from edgeq.exporters.tflite.emit import emit_tflite
from edgeq.exporters.tflite.readback import read_tflite
from edgeq.exporters.tflite.rewrite import prepare_tflite
from edgeq.exporters.tflite.rules import SCHEMES, TFLITE, tflite_config
from edgeq.graph.legalize import Legalized
from edgeq.spec import Precision, QuantConfig, QuantPlan


class TfliteExporter:
    """TFLite flatbuffers for LiteRT (and tflite-runtime on older devices)."""

    name = "tflite"
    file_name = "model.tflite"
    float_format = "tflite"
    rules = TFLITE
    schemes = SCHEMES

    def config(self, scheme: str, precision: Precision) -> QuantConfig:
        """See `tflite_config`."""
        return tflite_config(scheme, precision)

    def prepare(self, graph: fx.GraphModule) -> fx.GraphModule:
        """See `prepare_tflite`."""
        return prepare_tflite(graph)

    def emit(self, graph: fx.GraphModule, example: tuple[Tensor, ...], plan: QuantPlan | None, path: Path) -> None:
        """See `emit_tflite`."""
        emit_tflite(graph, example, plan, path)

    def read_back(self, path: Path, legalized: Legalized | None) -> ReadBack:
        """See `read_tflite`."""
        return read_tflite(path, legalized.plan if legalized else None)
