"""Write a graph as an .onnx file with torch's exporter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from edgeq.errors import MissingError, ModelError
from edgeq.exporters.converter import first_line, quiet_converter
from edgeq.exporters.onnx.pack import pack_weights
from edgeq.exporters.onnx.rewrite import lower
from edgeq.spec import QuantPlan

INSTALL = "pip install 'edgeq[onnx]'"
OPSET = 18
RUNTIME = "com.microsoft"
"""Domain of the operations that onnxruntime adds to ONNX."""

_DECOMPOSED = torch.ops.quantized_decomposed


def emit_onnx(graph: fx.GraphModule, example: tuple[Tensor, ...], plan: QuantPlan | None, path: Path) -> None:
    """Convert `graph` and write `path`.

    Args:
        graph: Prepared float graph or the emission of a legalized one.
        example: Inputs of the shapes to fix.
        plan: Plan of the emission; None for float.
        path: File to write.

    Raises:
        MissingError: onnx or onnxscript is not installed.
        ModelError: The exporter refuses the graph.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - what torch's exporter needs
    except ImportError as error:
        raise MissingError(f"ONNX export needs {error.name}", code="EQ-P450", hint=INSTALL) from error
    lowered = graph if plan is None else lower(graph, plan)
    with quiet_converter():
        try:
            program = torch.onnx.export(
                lowered,
                example,
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                custom_translation_table=_translations(),
            )
            assert program is not None
            model = program.model_proto
        except Exception as error:
            raise ModelError(
                f"torch's ONNX exporter refuses the graph: {first_line(error)}",
                code="EQ-M451",
                hint="try another --scheme, or report the model with `edgeq doctor`",
            ) from error
    _strip(model)
    _unshare_zeros(model)
    if plan is not None:
        pack_weights(model, plan)
        _fuse_silu(model)
    onnx.save(model, str(path))


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """ONNX for the operations that `lower` writes; grids go in as constants, as the kernels' patterns want them."""
    from onnxscript import opset18 as op

    def quantize(x: Any, scale: float, zero: int, low: int, high: int, dtype: int) -> Any:
        return op.QuantizeLinear(x, _float(scale), _byte(zero))

    def dequantize(x: Any, scale: float, zero: int, low: int, high: int, dtype: int, out_dtype: Any = None) -> Any:
        return op.DequantizeLinear(x, _float(scale), _byte(zero))

    def dequantize_channels(
        x: Any, scale: Any, zero: Any, axis: int, low: int, high: int, dtype: int, out_dtype: Any = None
    ) -> Any:
        return op.DequantizeLinear(x, scale, zero, axis=axis)

    def dynamic(x: Any, codes: Any, scale: Any) -> Any:
        quantized, step, zero = op.DynamicQuantizeLinear(x)
        total = op.MatMulInteger(quantized, codes, zero)
        return op.Mul(op.Cast(total, to=1), op.Mul(step, scale))

    def gelu(x: Any, approximate: str = "none") -> Any:
        # The order of factors that onnxruntime fuses into one kernel; torch's own is not recognized.
        if approximate == "none":
            gate = op.Add(op.Erf(op.Div(x, _float(2**0.5))), _float(1.0))
            return op.Mul(op.Mul(x, gate), _float(0.5))
        cubic = op.Add(x, op.Mul(_float(0.044715), op.Pow(x, _float(3.0))))
        gate = op.Add(op.Tanh(op.Mul(_float((2 / torch.pi) ** 0.5), cubic)), _float(1.0))
        return op.Mul(op.Mul(_float(0.5), x), gate)

    def _float(value: float) -> Any:
        return op.Constant(value=_tensor(value, "float32"))

    def _byte(value: int) -> Any:
        return op.Constant(value=_tensor(value, "uint8"))

    return {
        _DECOMPOSED.quantize_per_tensor.default: quantize,
        _DECOMPOSED.dequantize_per_tensor.default: dequantize,
        _DECOMPOSED.dequantize_per_channel.default: dequantize_channels,
        torch.ops.edgeq.dynamic_matmul.default: dynamic,
        torch.ops.aten.gelu.default: gelu,
    }


def _tensor(value: float, dtype: str) -> Any:
    import numpy as np
    from onnx import numpy_helper

    return numpy_helper.from_array(np.array(value, dtype=dtype))


def _strip(model: Any) -> None:
    """Remove what the exporter writes for debugging: stack traces with paths of this machine."""
    graph = model.graph
    del model.metadata_props[:]
    for entry in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del entry.metadata_props[:]
        entry.doc_string = ""


def _unshare_zeros(model: Any) -> None:
    """Give every dequantized constant zero points of its own; torch's exporter merges equal constants.

    onnxruntime refuses a file with shared ones when it widens weights on CPUs without VNNI.
    """
    constants = {entry.name: entry for entry in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            own = f"{node.input[0]}_zeros"
            if own not in constants:
                constants[own] = model.graph.initializer.add()
                constants[own].CopyFrom(constants[node.input[2]])
                constants[own].name = own
            node.input[2] = own
    used = {name for node in model.graph.node for name in node.input}
    kept = [entry for entry in model.graph.initializer if entry.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _fuse_silu(model: Any) -> None:
    """Write `x * sigmoid(x)` as onnxruntime's kernel for it.

    onnxruntime does so by itself in float; behind an integer convolution each reader of `x` first gets a dequantization
    of its own, and the pattern is lost.
    """
    from onnx import helper

    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    fused = 0
    for gate in [n for n in model.graph.node if n.op_type == "Sigmoid"]:
        (source,), (product, *others) = gate.input, readers.get(gate.output[0]) or [gate]
        if others or product.op_type != "Mul" or sorted(product.input) != sorted([source, gate.output[0]]):
            continue
        del product.input[:]
        product.input.append(source)
        product.op_type, product.domain = "QuickGelu", RUNTIME
        product.attribute.append(helper.make_attribute("alpha", 1.0))
        model.graph.node.remove(gate)
        fused += 1
    if fused:
        model.opset_import.append(helper.make_opsetid(RUNTIME, 1))
