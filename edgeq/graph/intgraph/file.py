"""An `IntGraph` as a file: a zip of numpy arrays, one of them the structure as JSON. Nothing in it is code.

The bytes depend on the network alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.arrays import read_arrays, write_arrays
from edgeq.errors import EdgeqError, ModelError
from edgeq.graph.intgraph import graph as kinds
from edgeq.graph.intgraph.arithmetic import Dyadic
from edgeq.graph.intgraph.graph import IntGraph, IntTensor, Op, Patches, Port, Weights, Window
from edgeq.graph.intgraph.patches import reach

SCHEMA = "edgeq.intgraph/1"
_STRUCTURE = "structure"
_KINDS: Mapping[str, type] = MappingProxyType(
    {cls.__name__: cls for cls in (Dyadic, Weights, Window, IntTensor, Port, Patches)}
    | {name: cls for name, cls in vars(kinds).items() if isinstance(cls, type) and issubclass(cls, Op)}
)
# What reading a file, and the dataclasses of a structure that somebody else wrote, raise.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


def save(graph: IntGraph, path: Path) -> None:
    """Write `graph` to `path`."""
    arrays: list[NDArray[Any]] = []
    structure = {
        "schema": SCHEMA,
        "name": graph.name,
        "tensors": [_packed(tensor, arrays) for tensor in graph.tensors.values()],
        "ops": [_packed(op, arrays) for op in graph.ops],
        "constants": {name: _packed(codes, arrays) for name, codes in graph.constants.items()},
        "inputs": [_packed(port, arrays) for port in graph.inputs],
        "outputs": [_packed(port, arrays) for port in graph.outputs],
    }
    if graph.patches.ops:
        structure["patches"] = _packed(graph.patches, arrays)
    text = np.frombuffer(json.dumps(structure, sort_keys=True).encode(), np.uint8)
    write_arrays(path, {_STRUCTURE: text, **{f"array_{i}": a for i, a in enumerate(arrays)}})


def load(path: str | Path) -> IntGraph:
    """Read a network.

    Raises:
        ModelError: EQ-M600, the file is damaged or was not written by `save`.
    """
    try:
        store = read_arrays(Path(path))
        structure = json.loads(store[_STRUCTURE].tobytes())
        if structure["schema"] != SCHEMA:
            raise ValueError(f"its schema is {structure['schema']!r}")
        parts = _unpacked({k: v for k, v in structure.items() if k not in ("schema", "name")}, store)
        tensors = {tensor.name: tensor for tensor in parts["tensors"]}
        constants = {name: codes.astype(tensors[name].dtype) for name, codes in parts["constants"].items()}
        patches = parts.get("patches", Patches())
        loaded = IntGraph(
            structure["name"], parts["ops"], tensors, constants, parts["inputs"], parts["outputs"], patches
        )
        if patches.ops > reach(loaded):
            raise ValueError(f"operation {reach(loaded)} cannot run in patches")
        return loaded
    except (*_UNREADABLE, EdgeqError) as error:
        message = f"{Path(path).name} cannot be read as a network of integers: {error}"
        hint = "restore the file, or export the model again"
        raise ModelError(message, code="EQ-M600", place=str(path), hint=hint) from error


def _packed(value: Any, arrays: list[NDArray[Any]]) -> Any:
    """`value` in JSON's types; arrays go to `arrays`, in the narrowest type that holds them."""
    if isinstance(value, np.ndarray):
        low, high = (int(value.min()), int(value.max())) if value.size else (0, 0)
        arrays.append(value.astype(np.promote_types(np.min_scalar_type(min(low, 0)), _signed(high))))
        return {"array": len(arrays) - 1}
    if is_dataclass(value):
        held = {f.name: _packed(getattr(value, f.name), arrays) for f in fields(value)}
        return {"kind": type(value).__name__, **held}
    if isinstance(value, tuple):
        return [_packed(item, arrays) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _signed(high: int) -> np.dtype[Any]:
    """The narrowest signed type that holds `high`."""
    return np.min_scalar_type(-high - 1)


def _unpacked(value: Any, store: Mapping[str, NDArray[Any]]) -> Any:
    """Inverse of `_packed`: arrays of 64 bits."""
    if isinstance(value, list):
        return tuple(_unpacked(item, store) for item in value)
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return store[f"array_{int(value['array'])}"].astype(np.int64)
    held = {name: _unpacked(item, store) for name, item in value.items() if name != "kind"}
    return _KINDS[value["kind"]](**held) if "kind" in value else held
