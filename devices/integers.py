"""Networks of integers, run by the interpreter that generated C equals bit by bit. Slow; needs numpy alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeq.devices.base import Array, ExecutedOp, Execution
from edgeq.errors import DataError
from edgeq.graph.intgraph.file import load
from edgeq.graph.intgraph.interpret import Codes, dequantize_output, interpret, quantize_input


class IntegerModel:
    """A `.intgraph` file: real arrays in, real arrays out, integers between.

    Args:
        path: The file.
        threads: Not used; the interpreter has one.

    Raises:
        ModelError: EQ-M600, the file cannot be read.
    """

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        self.threads = threads
        self.graph = load(path)
        self._codes: list[Codes] = []

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        """See `RuntimeModel`.

        Raises:
            DataError: EQ-D500 for another shape or values that are not finite, EQ-D600 for another number of inputs.
        """
        self.prepare(*arrays)
        codes = interpret(self.graph, self._codes)
        return tuple(dequantize_output(self.graph, port, c) for port, c in zip(self.graph.outputs, codes, strict=True))

    def prepare(self, *arrays: Array) -> None:
        """See `RuntimeModel`."""
        ports = self.graph.inputs
        if len(arrays) != len(ports):
            message = f"the network has {len(ports)} inputs, not {len(arrays)}"
            raise DataError(message, code="EQ-D600", place=self.graph.name, hint="give one array for each input")
        reals = [np.asarray(array, np.float32) for array in arrays]
        self._codes = [quantize_input(self.graph, port, x) for port, x in zip(ports, reals, strict=True)]

    def invoke(self) -> None:
        """See `RuntimeModel`."""
        interpret(self.graph, self._codes)

    def execution(self) -> Execution:
        """Every operation, by the kernel that the C has for it."""
        return Execution(
            tuple(ExecutedOp(op.output, type(op).__name__, "C99", True, (op.output,)) for op in self.graph.ops)
        )
