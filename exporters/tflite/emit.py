"""Write a graph as a .tflite file with LiteRT's converter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from edgeq.errors import MissingError, ModelError
from edgeq.exporters.converter import first_line, quiet_converter
from edgeq.exporters.tflite.groups import hold_codes
from edgeq.exporters.tflite.pack import pack_weights
from edgeq.exporters.tflite.restore import leaves_floats, restore_floats, without_weight_grids
from edgeq.spec import QuantPlan

INSTALL = "pip install 'edgeq[tflite]'"


def emit_tflite(graph: fx.GraphModule, example: tuple[Tensor, ...], plan: QuantPlan | None, path: Path) -> None:
    """Convert `graph` and write `path`.

    The converter reads quantize/dequantize pairs as integers only when it is told the conversion mode; the mode is
    all that its quantizer object contributes, the grids are those in the graph.

    Args:
        graph: Prepared float graph or the emission of a legalized one.
        example: Inputs of the shapes to fix.
        plan: Plan of the emission; None for float.
        path: File to write.

    Raises:
        MissingError: litert-torch is not installed.
        ModelError: The converter refuses the graph.
    """
    try:
        with quiet_converter(1, 2):
            import litert_torch
    except ImportError as error:
        raise MissingError(f"TFLite export needs litert-torch: {error}", code="EQ-P001", hint=INSTALL) from error
    with quiet_converter(1, 2):
        try:
            graph = graph if plan is None else hold_codes(graph, plan)
            edge = litert_torch.convert(graph, example, quant_config=_conversion_mode(plan))
            edge.export(str(path))
            if plan is not None:
                pack_weights(path, plan)
                if leaves_floats(graph, plan):
                    exact = path.with_suffix(".exact")
                    litert_torch.convert(without_weight_grids(graph), example).export(str(exact))
                    restore_floats(path, exact, plan)
                    exact.unlink()
        except Exception as error:
            raise ModelError(
                f"LiteRT's converter refuses the graph: {first_line(error)}",
                code="EQ-M020",
                place=_place(error),
                hint="try another --scheme, or report the model with `edgeq doctor`",
            ) from error


def _conversion_mode(plan: QuantPlan | None) -> Any:
    if plan is None or not plan.tensors:
        return None
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    dynamic = plan.scheme == "dynamic"
    settings = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    return QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(settings))


def _place(error: Exception) -> str | None:
    """The operation that a converter message names, if it names one."""
    match = re.search(r"(aten\.[a-z_0-9.]+|'(?:tfl|stablehlo|odml)\.[a-z_0-9.]+')", str(error))
    return match.group(1).strip("'") if match else None
