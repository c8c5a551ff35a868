"""What an interpreter says about the graph it executes: tensors with their grids, operations, delegated parts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Interpreter: TypeAlias = Any  # the runtimes ship no types

_NUMBERED = re.compile(r"(?:args|output)_\d+")


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of the executed graph.

    Args:
        name: Name of the signature's argument for inputs and outputs, else the name in the file.
        index: Number of the tensor in the file.
        shape: Static shape.
        dtype: Stored type.
        scales: Scales of the integer codes; one per tensor or per index of `axis`; empty for floats.
        zero_points: Zero points, as many as `scales`.
        axis: Dimension that `scales` runs along when it has more than one entry.
    """

    name: str
    index: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    axis: int = 0

    @property
    def scale(self) -> float | None:
        """The per-tensor scale, None for floats and per-axis tensors."""
        return self.scales[0] if len(self.scales) == 1 else None

    @property
    def zero_point(self) -> int | None:
        """The per-tensor zero point, None for floats and per-axis tensors."""
        return self.zero_points[0] if len(self.scales) == 1 else None

    @property
    def quantized(self) -> bool:
        """Whether the tensor holds codes of one per-tensor grid."""
        return self.scale is not None and self.dtype.kind in "iu"

    def to_codes(self, values: Array) -> Array:
        """Real values to stored codes: `clip(rint(x * (1 / scale)) + zero_point)`, ties to even, float32."""
        if self.scale is None or self.zero_point is None:
            return np.asarray(values, dtype=self.dtype)
        limits = np.iinfo(self.dtype)
        codes = np.rint(values.astype(np.float32) * np.float32(1.0 / self.scale)) + np.float32(self.zero_point)
        return np.asarray(np.clip(codes, limits.min, limits.max), dtype=self.dtype)

    def to_reals(self, codes: Array) -> Array:
        """Stored codes to real values: `(code - zero_point) * scale`, float32."""
        if self.scale is None or self.zero_point is None:
            return codes
        return np.asarray((codes.astype(np.int32) - self.zero_point) * np.float32(self.scale), dtype=np.float32)


@dataclass(frozen=True)
class OpInfo:
    """An operation of the executed graph.

    Args:
        index: Position in the file.
        name: LiteRT's name (`FULLY_CONNECTED`).
        inputs: Tensor numbers; absent optional inputs are left out.
        outputs: Tensor numbers.
        input_types: Types of `inputs`.
        output_types: Types of `outputs`.
        delegated: Whether an XNNPACK partition runs it.
    """

    index: int
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    input_types: tuple[str, ...]
    output_types: tuple[str, ...]
    delegated: bool


def signature(interpreter: Interpreter) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """Inputs and outputs in the order of the call, named as in the file's signature where it has one."""
    signatures = interpreter._get_full_signature_list() if hasattr(interpreter, "_get_full_signature_list") else {}
    entry = next(iter(signatures.values())) if len(signatures) == 1 else {}
    result = []
    for details, side in ((interpreter.get_input_details(), "inputs"), (interpreter.get_output_details(), "outputs")):
        names = {index: name for name, index in entry.get(side, {}).items()}
        infos = [tensor_info({**d, "name": names.get(d["index"], d["name"])}) for d in details]
        # The file's order need not be the call's order; the converter numbers the arguments.
        if all(_NUMBERED.fullmatch(info.name) for info in infos):
            infos.sort(key=lambda info: int(info.name.rsplit("_", 1)[1]))
        result.append(tuple(infos))
    return result[0], result[1]


def tensor_info(details: Mapping[str, Any]) -> TensorInfo:
    """The interpreter's description of a tensor."""
    grid = details["quantization_parameters"]
    return TensorInfo(
        name=details["name"],
        index=int(details["index"]),
        shape=tuple(int(n) for n in details["shape"]),
        dtype=np.dtype(details["dtype"]),
        scales=tuple(float(s) for s in grid["scales"]),
        zero_points=tuple(int(z) for z in grid["zero_points"]),
        axis=int(grid["quantized_dimension"]),
    )


def tensor_at(interpreter: Interpreter, index: int) -> TensorInfo:
    """A tensor by its number, also one without a name, which the public list leaves out."""
    return tensor_info(interpreter._get_tensor_details(index, 0))


def executed_ops(interpreter: Interpreter) -> tuple[OpInfo, ...]:
    """The file's operations, each told whether a delegate has taken it; valid after allocation."""
    nodes = interpreter._get_ops_details()
    producer = {int(t): n["index"] for n in nodes if n["op_name"] != "DELEGATE" for t in n["outputs"]}
    inputs = {n["index"]: [int(t) for t in n["inputs"] if t >= 0] for n in nodes}
    used = {t for n in nodes for t in (*inputs[n["index"]], *(int(t) for t in n["outputs"]))}
    types = {t: tensor_at(interpreter, t).dtype.name for t in used}
    inside: set[int] = set()
    for node in nodes:
        if node["op_name"] != "DELEGATE":
            continue
        # A delegate node lists only its borders; its operations lie between its outputs and its inputs.
        border = set(inputs[node["index"]])
        pending = [int(t) for t in node["outputs"]]
        while pending:
            op = producer.get(pending.pop())
            if op is not None and op not in inside:
                inside.add(op)
                pending += [t for t in inputs[op] if t not in border]
    return tuple(
        OpInfo(
            index=n["index"],
            name=n["op_name"],
            inputs=tuple(inputs[n["index"]]),
            outputs=tuple(int(t) for t in n["outputs"]),
            input_types=tuple(types[t] for t in inputs[n["index"]]),
            output_types=tuple(types[int(t)] for t in n["outputs"]),
            delegated=n["index"] in inside,
        )
        for n in nodes
        if n["op_name"] != "DELEGATE"
    )
