"""A .tflite file as the objects of its schema: read, looked at, changed, written again."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import MissingError, ModelError

DAMAGED = (struct.error, IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)
"""What reading a file raises that is not as its schema says."""

WEIGHT_OPERAND = {"FULLY_CONNECTED": 1, "CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "TRANSPOSE_CONV": 1}
"""Where operations that have a weight read it."""

_MAGIC = b"TFL3"


@dataclass(frozen=True, eq=False)
class TfliteFile:
    """A file's content.

    Args:
        model: Its `ModelT`; may be changed.
        schema: The module that knows the schema's names.
    """

    model: Any
    schema: Any

    @classmethod
    def read(cls, path: Path) -> TfliteFile:
        """The content of `path`.

        Raises:
            ModelError: EQ-M021, not a TFLite file.
            MissingError: EQ-P001, ai-edge-litert is not installed.
        """
        try:
            from ai_edge_litert import schema_py_generated as schema
        except ImportError as error:
            raise MissingError(
                f"reading .tflite needs ai-edge-litert: {error}", code="EQ-P001", hint="pip install 'edgeq[tflite]'"
            ) from error
        data = path.read_bytes()
        if data[4:8] != _MAGIC:
            raise ModelError(f"{path.name} is not a TFLite file", code="EQ-M021", place=path.name)
        try:
            return cls(schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0)), schema)
        except DAMAGED as error:
            raise ModelError(f"{path.name} is damaged: {error}", code="EQ-M021", place=path.name) from error

    def write(self, path: Path) -> None:
        """Write it as `path`."""
        import flatbuffers

        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), _MAGIC)
        path.write_bytes(bytes(builder.Output()))

    def kind(self, op: Any) -> str:
        """Name of an operation as the schema has it, or that of a custom one."""
        code = self.model.operatorCodes[op.opcodeIndex]
        if code.customCode:
            custom: str = code.customCode.decode()
            return custom
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        return self._names.get(number, f"BUILTIN_{number}")

    def bytes_of(self, tensor: Any) -> NDArray[np.uint8] | None:
        """What a constant holds; None for a tensor that is computed."""
        data = self.model.buffers[tensor.buffer].data
        return None if data is None or len(data) == 0 else np.asarray(data, dtype=np.uint8)

    def layer_weights(self, kinds: Collection[str]) -> Iterator[tuple[Any, Any, NDArray[np.uint8]]]:
        """Subgraph, tensor and bytes of the constants that operations of some kinds read as weights, each once."""
        for graph in self.model.subgraphs:
            found = (int(op.inputs[WEIGHT_OPERAND[k]]) for op in graph.operators if (k := self.kind(op)) in kinds)
            for index in dict.fromkeys(found):
                if (data := self.bytes_of(graph.tensors[index])) is not None:
                    yield graph, graph.tensors[index], data

    @cached_property
    def _names(self) -> dict[int, str]:
        return {v: k for k, v in vars(self.schema.BuiltinOperator).items() if isinstance(v, int)}
