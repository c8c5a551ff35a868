"""Exporters: from a legalized graph to the file of a runtime. One line per format; siblings of models and devices."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from edgeq.errors import unknown_name

if __name__ != "edgeq.exporters":
    raise ImportError("import edgeq.exporters, not exporters: the folder is part of the edgeq package")

if TYPE_CHECKING:
    from edgeq.exporters.base import Exporter

EXPORTERS: dict[str, str] = {
    "tflite": "edgeq.exporters.tflite.exporter:TfliteExporter",
    "openvino": "edgeq.exporters.openvino.exporter:OpenVinoExporter",
    "onnx": "edgeq.exporters.onnx.exporter:OnnxExporter",
    "c": "edgeq.exporters.c.exporter:CExporter",
}


def get_exporter(name: str) -> Exporter:
    """The exporter of a format.

    Raises:
        UsageError: No such format.
    """
    if name not in EXPORTERS:
        raise unknown_name("format", name, EXPORTERS, code="EQ-U010", command="edgeq devices")
    module, attribute = EXPORTERS[name].split(":")
    exporter: Exporter = getattr(importlib.import_module(module), attribute)()
    return exporter
