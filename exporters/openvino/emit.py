"""Write a graph as an OpenVINO model with OpenVINO's converter."""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from edgeq.artifact.run import OPTIONS
from edgeq.errors import MissingError, ModelError
from edgeq.exporters.converter import quiet_converter
from edgeq.exporters.openvino.graph import products
from edgeq.exporters.openvino.pack import pack_weights
from edgeq.exporters.openvino.rules import DYNAMIC_GROUP
from edgeq.graph.kinds import op_kind
from edgeq.graph.legalize import WEIGHT_PATH
from edgeq.spec import QuantPlan, codes_hash

INSTALL = "pip install 'edgeq[openvino]'"
PRECISION = "INFERENCE_PRECISION_HINT"
GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"

_Q_TENSOR = "quantized_decomposed.quantize_per_tensor.default"
_Q_CHANNEL = "quantized_decomposed.quantize_per_channel.default"
_DQ_CHANNEL = "quantized_decomposed.dequantize_per_channel.default"
_WIDEST = (-127, 127)
_NUMBERED = re.compile(r"[A-Za-z]+_\d+")  # the converter's own names have a slash
_INDENTED = re.compile(r">\s+<")  # a sixth of the .xml; values are attributes, where no < can be
_QUANTIZER = re.compile(r"quantize_per_tensor(?:_(\d+))?/")


def emit_openvino(
    graph: fx.GraphModule,
    example: tuple[Tensor, ...],
    plan: QuantPlan | None,
    path: Path,
) -> None:
    """Convert `graph` and write `path` with its `.bin`.

    Args:
        graph: Prepared float graph or the emission of a legalized one.
        example: Inputs of the shapes to fix.
        plan: Plan of the emission; None for float.
        path: The `.xml` to write.

    Raises:
        MissingError: EQ-P400, openvino is not installed.
        ModelError: EQ-M402, the converter refuses the graph.
    """
    try:
        import openvino
    except ImportError as error:
        message = f"OpenVINO export needs openvino: {error}"
        raise MissingError(message, code="EQ-P400", hint=INSTALL) from error
    widened = widen_weights(graph)
    try:
        with quiet_converter():
            model = openvino.convert_model(torch.export.export(widened, example))
            shapes = [openvino.PartialShape(list(x.shape)) for x in example]
            model.reshape(dict(zip(model.inputs, shapes, strict=True)))
    except Exception as error:
        raise ModelError(
            f"OpenVINO's converter refuses the graph: {' '.join(str(error).split())[:300]}",
            code="EQ-M402",
            hint="try --format tflite, or report the model with `edgeq doctor`",
        ) from error
    kept: list[Any] = []
    if plan is not None:
        kept = pack_weights(model, plan)
        name_products(model, graph, plan)  # by the integers that the plan knows, which two-level scales need packed
    name_the_rest(model)
    for key, value in options_of(plan).items():
        model.set_rt_info(value, [OPTIONS, key])
    openvino.save_model(model, path, compress_to_fp16=False)
    del kept
    path.write_text(_INDENTED.sub("><", path.read_text(encoding="utf-8")), encoding="utf-8")


def options_of(plan: QuantPlan | None) -> dict[str, str]:
    """Options of the runtime that a file carries, since OpenVINO chooses them by the machine otherwise.

    Float operations in float32, also where the CPU has bfloat16; inputs of layers are quantized at run time only in the
    scheme `dynamic`.
    """
    dynamic = plan is not None and any(op.mode == "dynamic" for op in plan.ops.values())
    return {PRECISION: "f32", GROUP: str(DYNAMIC_GROUP if dynamic else 0)}


def widen_weights(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy of `graph` whose weight grids all span -127 to 127: 255 levels have kernels, the 15 of 4 bits have none.

    The weights lie on their grids, so the wider ends change no value.
    """
    result = copy.deepcopy(graph)
    for node in result.graph.nodes:
        if str(node.target) in (_Q_CHANNEL, _DQ_CHANNEL):
            low, high = node.args[4:6]
            node.args = (*node.args[:4], min(low, _WIDEST[0]), max(high, _WIDEST[1]), *node.args[6:])
    result.recompile()
    return result


def name_products(model: Any, graph: fx.GraphModule, plan: QuantPlan) -> None:
    """Call every quantized product of `model` by its name in `graph`: by these names the runtime says what it executes.

    A layer is known by the integers of its weight, a product of two activations by the grids it reads: the converter
    numbers quantizers in the order of the graph.
    """
    layers: dict[str, list[str]] = defaultdict(list)
    matmuls: dict[tuple[int | None, ...], list[str]] = defaultdict(list)
    quantizers = {n: i for i, n in enumerate(n for n in graph.graph.nodes if str(n.target) == _Q_TENSOR)}
    for node in graph.graph.nodes:
        if op_kind(node) in ("linear", "conv2d") and plan.ops[node.name].mode != "float":
            layers[plan.tensors[weight_name(node)].codes_sha256].append(node.name)
        elif op_kind(node) in ("matmul", "bmm"):
            matmuls[tuple(quantizers.get(_quantizer(a)) for a in node.args[:2])].append(node.name)
    for op, weight in products(model):
        key = tuple(_number(op.input_value(i).get_node()) for i in range(2))
        waiting = layers.get(codes_hash(weight.codes)) if weight else matmuls.get(key) if None not in key else None
        if waiting:
            _name(op, waiting.pop(0))


def _name(op: Any, name: str) -> None:
    """Name a product, and a constant that multiplies its result at once: the runtime makes the two one."""
    op.set_friendly_name(f"{name}/{op.get_type_name()}")
    readers = [port.get_node() for port in op.output(0).get_target_inputs()]
    if len(readers) == 1 and readers[0].get_type_name() == "Multiply":
        readers[0].set_friendly_name(f"{name}/Multiply")


def name_the_rest(model: Any) -> None:
    """Number the nodes that OpenVINO numbered by what the process had built before: a file must not depend on that."""
    model.set_friendly_name("model")
    for index, op in enumerate(model.get_ordered_ops()):
        if _NUMBERED.fullmatch(op.get_friendly_name()):
            op.set_friendly_name(f"{op.get_type_name()}_{index}")


def _quantizer(node: Any) -> Any:
    """The quantizer that `node` comes from, past its dequantizer and moves; None without one."""
    while isinstance(node, fx.Node) and node.all_input_nodes:
        if str(node.target) == _Q_TENSOR:
            return node
        node = node.args[0]
    return None


def _number(node: Any) -> int | None:
    """Number of the converted quantizer that `node` comes from; None without one."""
    while node.get_type_name() != "FakeQuantize":
        if not node.inputs():
            return None
        node = node.input_value(0).get_node()
    match = _QUANTIZER.match(node.get_friendly_name())
    return int(match[1] or 0) if match else None


def weight_name(node: fx.Node) -> str:
    """Attribute path of the weight behind its quantize and dequantize, or behind the scales of its groups."""
    source: Any = node.args[1]
    if WEIGHT_PATH in source.meta:
        return str(source.meta[WEIGHT_PATH])
    while source.op != "get_attr":
        source = source.args[0]
    return str(source.target)
