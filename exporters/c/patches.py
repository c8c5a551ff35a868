"""The operations that run in patches as C: a table says what changes from patch to patch, the kernels stay the same.

A row of a table: rows to write, rows of the operand from where the kernel reads on, border above it, place of the first
row in the result's buffer; the place and number of the rows of that buffer that are moved to its start beforehand; and
for each operand the row of its buffer where reading begins.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from edgeq.exporters.c.calls import Array, Call, Writer
from edgeq.graph.intgraph.graph import AveragePool, Conv, Depthwise, MaxPool, Op, Requantize
from edgeq.graph.intgraph.patches import Bands, bands, image_rows

_ROWS, _HEIGHT, _BORDER, _TO, _MOVED_FROM, _MOVED, _FROM = range(7)


def calls_of(writer: Writer) -> list[Call]:
    """Every operation in order; those of the graph's patches for one patch, whose number C calls `patch`."""
    graph = writer.graph
    together = graph.patches.ops
    found = bands(graph, graph.patches)
    first = [BandWriter(writer, index, found).banded() for index in range(together)]
    return first + [writer.call_of(index, op) for index, op in enumerate(graph.ops[together:], together)]


class BandWriter(Writer):
    """Writes the call of one operation for one patch.

    Args:
        writer: Of the network.
        index: The operation's place.
        found: Rows of every patch.
    """

    def __init__(self, writer: Writer, index: int, found: Bands) -> None:
        super().__init__(writer.graph, writer.arena, writer.prefix)
        self._index, self._bands = index, found
        self._op = self.graph.ops[index]

    def banded(self) -> Call:
        """The call, what it needs from patch to patch before it."""
        table = Array(self.name(self._index, "band"), "int16_t", np.array(self._table(), np.int64))
        call = self.call_of(self._index, self._op)
        columns = table.values.shape[1]
        lines = [f"const int16_t *band = {table.name} + patch * {columns};"]
        if table.values[:, _MOVED].any():
            start = super().at(self._op.output)
            row = self._row(self._op.output)
            lines.append(
                f"memmove({start}, {start} + (size_t)band[{_MOVED_FROM}] * {row}, (size_t)band[{_MOVED}] * {row});"
            )
        lines += ["if (band[0] > 0) {", *(f"    {part}" for line in call.lines for part in line.splitlines()), "}"]
        return replace(call, arrays=(*call.arrays, table), lines=tuple(lines))

    def at(self, name: str, cast: str = "") -> str:
        """See `Writer`: the first row that the patch reads or writes."""
        if name in self.graph.constants:
            return super().at(name, cast)
        column = _TO if name == self._op.output else _FROM + self._op.inputs.index(name)
        start = super().at(name)
        if name in self._ports:
            start = f"({'' if column == _TO else 'const '}int8_t *){start}"
        return f"{cast}({start} + (size_t)band[{column}] * {self._row(name)})"

    def amount(self, whole: int) -> str:
        """See `Writer`: of the rows of a patch."""
        return f"band[{_ROWS}] * {whole // image_rows(self.tensor(self._op.output))}"

    def parameters(self, kind: str, index: int, values: Iterable[object]) -> str:
        """See `Writer`: a copy, in which the sizes are those of the patch."""
        declared = super().parameters(kind, index, values)
        changes = self._changes(kind)
        if not changes:
            return declared
        name = f"{kind}{index}"
        whole = declared.replace(f" {name} =", f" {name}_whole =")
        copy = f"{self.prefix}_{kind} {name} = {name}_whole;"
        return "\n".join([whole, copy, *(f"{name}.{field} = {value};" for field, value in changes.items())])

    def _changes(self, kind: str) -> dict[str, str]:
        size = self.tensor(self._op.output).size
        if kind == "window":
            return {field: f"band[{i}]" for field, i in (("rows", _ROWS), ("height", _HEIGHT), ("pad_h", _BORDER))}
        if kind in ("sum", "factor"):
            alike = self.tensor(self._op.inputs[1]).size == size
            return {"count": self.amount(size)} | ({"period": self.amount(size)} if alike else {})
        if kind == "gather":
            assert isinstance(self._op, Requantize)
            return {f"dims[{5 - len(self._op.dims)}]": self.amount(self._op.dims[0])}
        return {}

    def _row(self, name: str) -> int:
        tensor = self.tensor(name)
        return tensor.bytes // image_rows(tensor)

    def _table(self) -> list[list[int]]:
        return [self._line(patch) for patch in range(self.graph.patches.count)]

    def _line(self, patch: int) -> list[int]:
        output, op = self._op.output, self._op
        first, end = self._bands.written(output, patch)
        base = self._bands.held(output, patch)
        moved = base - self._bands.held(output, patch - 1) if patch else 0
        line = [end - first, 0, 0, first - base, moved, first - base if moved else 0]
        for name in op.inputs:
            held = self._bands.held(name, patch)
            place, line[_HEIGHT], line[_BORDER] = self._window(op, name, first, held, patch)
            line.append(place)
        return line

    def _window(self, op: Op, name: str, first: int, held: int, patch: int) -> tuple[int, int, int]:
        """Where reading begins in an operand's buffer, rows from there on, and border above."""
        if name in self.graph.constants:
            return 0, 0, 0
        if not isinstance(op, (Conv, Depthwise, AveragePool, MaxPool)):
            return first - held, 0, 0
        begin = first * op.window.stride[0] - op.window.padding[0] - held
        end = self._bands.written(name, patch)[1] if name in self._bands.done else op.window.height
        return max(0, begin), end - held - max(0, begin), max(0, -begin)
