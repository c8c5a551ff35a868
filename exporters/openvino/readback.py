"""Read an OpenVINO model: operations, kernels, multiply-accumulates, and the weight integers.

The file is the truth: a product counts as integer because of what feeds it in the file, not because the plan says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from edgeq.artifact.run import OPTIONS
from edgeq.errors import MissingError, ModelError
from edgeq.exporters.base import FileOp, ReadBack
from edgeq.exporters.matching import share_out
from edgeq.exporters.openvino.emit import GROUP, INSTALL, weight_name
from edgeq.exporters.openvino.graph import PRODUCTS, Weight, products, tables, weight_of
from edgeq.graph.kinds import op_kind
from edgeq.graph.legalize import Legalized
from edgeq.graph.rewrite import constant_of
from edgeq.spec import QParams, codes_hash

_MOVES = (
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Gather",
    "Slice",
    "StridedSlice",
    "Split",
    "VariadicSplit",
    "Broadcast",
    "DepthToSpace",
    "SpaceToDepth",
    "MaxPool",
    "ReduceMax",
    "ReduceMin",
)
_IDLE = ("Parameter", "Constant", "Result")
_LAST_BITS = 1e-6  # the converter computes a scale from the ends of its grid


def read_openvino(path: Path, legalized: Legalized | None) -> ReadBack:
    """Read `path` and compare its integer constants with the weights of the plan.

    Args:
        path: The `.xml`; its `.bin` lies beside it.
        legalized: Plan and emission that the file should hold; None for a float file.

    Raises:
        ModelError: EQ-M403, OpenVINO cannot read it.
        MissingError: EQ-P400, openvino is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        message = f"reading OpenVINO models needs openvino: {error}"
        raise MissingError(message, code="EQ-P400", hint=INSTALL) from error
    try:
        model = openvino.Core().read_model(path)
    except RuntimeError as error:
        message = f"{path.name} is no OpenVINO model: {' '.join(str(error).split())[:200]}"
        raise ModelError(message, code="EQ-M403", place=path.name, hint="export the model again") from error
    held = [(op.get_friendly_name(), weight, _result(op)) for op, weight in products(model) if weight is not None]
    held += [(name, weight, "") for name, weight in tables(model)]
    weights, missing, extra, sites = _match(held, legalized)
    return ReadBack(tuple(_ops(model)), weights, tuple(missing), tuple(extra), sites=sites)


def _result(op: Any) -> str:
    """Where the result of a product is read: behind the constants that multiply it and are added, its bias among them.

    The converter merges such constants, so that what lies between has no counterpart.
    """
    for kind in ("Multiply", "Add"):
        readers = [port.get_node() for port in op.output(0).get_target_inputs()]
        if len(readers) == 1 and readers[0].get_type_name() == kind and _is_constant(readers[0], beside=op):
            op = readers[0]
    return str(op.get_friendly_name())


def _is_constant(op: Any, beside: Any) -> bool:
    """Whether the other operand of `op` than the result of `beside` is a constant."""
    others = [i.get_node() for i in op.input_values() if i.get_node() != beside]
    node = others[0] if others else beside
    while node.get_type_name() in ("Convert", "Reshape"):
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


def _ops(model: Any) -> list[FileOp]:
    grouped = model.has_rt_info([OPTIONS, GROUP]) and str(model.get_rt_info([OPTIONS, GROUP]).value) != "0"
    result: list[FileOp] = []
    for op in model.get_ordered_ops():
        kind = op.get_type_name()
        if kind in _IDLE:
            continue
        constants = [i.get_node() for i in op.input_values() if i.get_node().get_type_name() == "Constant"]
        weight = weight_of(op) if kind in PRODUCTS else None
        result.append(
            FileOp(
                index=len(result),
                op=kind,
                name=op.get_friendly_name().partition("/")[0],
                macs=_macs(op, kind),
                kernel=_kernel(op, weight, grouped) if kind in PRODUCTS else "float",
                bytes=sum(int(np.asarray(c.data).nbytes) for c in constants),
            )
        )
    return result


def _kernel(op: Any, weight: Weight | None, grouped: bool) -> str:
    """What the file asks of the runtime: integers need a grid on every computed operand."""
    if weight is not None:
        if _on_grid(op.input_value(0)):
            return "int8"
        return "dynamic" if grouped and op.get_type_name() == "MatMul" else "weights"
    return "int8" if all(_on_grid(op.input_value(i)) for i in range(2)) else "float"


def _on_grid(port: Any) -> bool:
    node = port.get_node()
    while node.get_type_name() in _MOVES:
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "FakeQuantize")


def _macs(op: Any, kind: str) -> int:
    if kind not in PRODUCTS:
        return 0
    produced = int(np.prod(list(op.get_output_shape(0)), dtype=np.int64))
    if kind == "MatMul":
        left = list(op.get_input_shape(0))
        return produced * int(left[-2] if op.get_attributes()["transpose_a"] else left[-1])
    kernel = list(op.get_input_shape(1))  # (out, in, ...) or (groups, out, in, ...)
    return produced * int(np.prod(kernel[1 if kind == "Convolution" else 2 :], dtype=np.int64))


def _match(
    held: list[tuple[str, Weight, str]], legalized: Legalized | None
) -> tuple[dict[str, NDArray[np.int32]], list[str], list[str], dict[str, tuple[str, ...]]]:
    """Planned weights that the file holds with equal integers and scales, those it lacks, and what nobody planned.

    And where the results of the layers are that read them.
    """
    planned = legalized.plan.weights() if legalized else []
    factors = _factors(legalized.emission) if legalized else {}
    weights: dict[str, NDArray[np.int32]] = {}
    extra = []
    results: dict[tuple[str, ...], tuple[str, ...]] = {}
    for name, weight, result in held:
        digest = codes_hash(weight.codes)
        fits = [
            t.name for t in planned if t.codes_sha256 == digest and _same(weight, t.uniform, factors.get(t.name, ()))
        ]
        weights.update(dict.fromkeys(fits, weight.codes))
        if not fits:
            extra.append(name)
        elif result:
            results[tuple(fits)] = (*results.get(tuple(fits), ()), result)
    sites: dict[str, tuple[str, ...]] = {}
    for fitting, found in results.items():
        sites.update(share_out(fitting, found))
    return weights, [t.name for t in planned if t.name not in weights], extra, sites


def _same(weight: Weight, planned: QParams, factors: tuple[NDArray[np.float32], ...]) -> bool:
    """Whether scales are those of the plan, or those times a constant that multiplies the layer's result in the graph.

    OpenVINO moves such a constant into the scales, or the steps; the integers stay, multiples among them.
    """
    held, multiples = planned.multiples, weight.multiples
    if (held is None) != (multiples is None):
        return False
    if held is not None and multiples is not None and not np.array_equal(held.reshape(-1), multiples):
        return False
    scale = planned.on_rows().scale.reshape(-1)
    wanted = [scale, *(scale * f for f in factors)]
    found = weight.scales
    return any(found.shape == w.shape and np.allclose(found, w, rtol=_LAST_BITS, atol=0) for w in wanted)


def _factors(emission: fx.GraphModule) -> Mapping[str, tuple[NDArray[np.float32], ...]]:
    """Per-channel constants by which the results of layers are multiplied at once, by weight."""
    found: dict[str, tuple[NDArray[np.float32], ...]] = {}
    for node in emission.graph.nodes:
        users = list(node.users)
        if op_kind(node) not in ("linear", "conv2d") or len(users) != 1 or op_kind(users[0]) != "mul":
            continue
        other = next((a for a in users[0].args if a is not node), None)
        constant = constant_of(emission, other)
        if constant is None and isinstance(other, (int, float)):
            values = np.array([other], np.float32)
        elif constant is not None:
            values = constant.numpy().astype(np.float32).reshape(-1)
        else:
            continue
        found[weight_name(node)] = (*found.get(weight_name(node), ()), values)
    return found
