"""The first operations of a network band by band, so that their large images are never whole in memory.

Lin et al. 2021 (MCUNetV2, arXiv:2110.15352) run the first stage patch by patch and compute what patches share again.
Here a patch is a band of rows over the full width, and the rows that the next band reads, too, are kept: no product
is computed twice, for the price of moving those rows. The integers are those of the whole network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from edgeq.graph.intgraph.graph import (
    Add,
    AveragePool,
    Concat,
    Conv,
    Depthwise,
    IntGraph,
    IntTensor,
    MaxPool,
    Mul,
    Op,
    Patches,
    Requantize,
    Table,
)

Windowed = Conv | Depthwise | AveragePool | MaxPool
_WINDOWED = (Conv, Depthwise, AveragePool, MaxPool)


@dataclass(frozen=True)
class Bands:
    """Rows of each tensor that the operations in patches write, patch by patch.

    Args:
        done: By tensor, rows that are written once a patch is over.
        base: By tensor, the first row that its buffer holds during a patch; 0 throughout where it is held whole.
        rows: By tensor, rows that its buffer has.
    """

    done: Mapping[str, tuple[int, ...]]
    base: Mapping[str, tuple[int, ...]]
    rows: Mapping[str, int]

    def written(self, tensor: str, patch: int) -> tuple[int, int]:
        """First row that a patch writes, and the row after the last."""
        done = self.done[tensor]
        return (done[patch - 1] if patch else 0), done[patch]

    def stays(self, tensor: str) -> bool:
        """Whether a patch leaves rows of a tensor to the next one."""
        done, base = self.done[tensor], self.base[tensor]
        return any(base[p] < done[p - 1] for p in range(1, len(done)))

    def held(self, tensor: str, patch: int) -> int:
        """The first row of a tensor's buffer during a patch; of tensors that no patch writes, too."""
        return self.base[tensor][patch] if tensor in self.base else 0


def image_rows(tensor: IntTensor) -> int:
    """Rows of a tensor that is one image in memory order; 0 for any other."""
    shape = tensor.shape
    if len(shape) == 4 and shape[0] == 1:
        return shape[1]
    return shape[0] if len(shape) == 3 else 0


def bands(graph: IntGraph, patches: Patches) -> Bands:
    """The rows of every tensor written in patches.

    Args:
        graph: The network.
        patches: How many of its operations, in how many patches.
    """
    ops, count = graph.ops[: patches.ops], patches.count
    whole = _outside(graph, patches.ops)
    readers = _readers(ops)
    done: dict[str, list[int]] = {op.output: [0] * count for op in ops}
    for op in reversed(ops):
        rows = image_rows(graph.tensors[op.output])
        for patch in range(count):
            wanted = -(-rows * (patch + 1) // count) if op.output in whole else 0
            for reader in readers.get(op.output, ()):
                _, end = _span(reader, rows, 0, done[reader.output][patch])
                wanted = max(wanted, end)
            done[op.output][patch] = wanted
    base = {op.output: [0] * count for op in ops}
    for op in ops:
        rows = image_rows(graph.tensors[op.output])
        for patch in range(1, count if op.output not in whole else 0):
            first = done[op.output][patch - 1]
            for reader in readers[op.output]:
                begun, end = done[reader.output][patch - 1], done[reader.output][-1]
                if begun < end:
                    first = min(first, _span(reader, rows, begun, end)[0])
            base[op.output][patch] = first
    held = {
        name: image_rows(graph.tensors[name])
        if name in whole
        else max(d - b for d, b in zip(done[name], base[name], strict=True))
        for name in done
    }
    return Bands({n: tuple(d) for n, d in done.items()}, {n: tuple(b) for n, b in base.items()}, held)


def reach(graph: IntGraph) -> int:
    """How many of the first operations can run in patches."""
    for index, op in enumerate(graph.ops):
        if not _runs_by_rows(graph, op):
            return index
    return len(graph.ops)


def moved_bytes(graph: IntGraph) -> int:
    """Bytes of rows that are moved within their buffers, in all patches of an inference."""
    found = bands(graph, graph.patches)
    total = 0
    for name, done in found.done.items():
        kept = sum(done[p - 1] - found.base[name][p] for p in range(1, graph.patches.count) if found.base[name][p])
        total += kept * (graph.tensors[name].bytes // image_rows(graph.tensors[name]))
    return total


def patched(graph: IntGraph, patches: Patches) -> IntGraph:
    """The same network, its first operations in patches."""
    return replace(graph, patches=patches)


def _runs_by_rows(graph: IntGraph, op: Op) -> bool:
    """Whether some rows of the operands are all that some rows of the result need."""
    tensors = [graph.tensors[name] for name in op.inputs if name not in graph.constants]
    output = graph.tensors[op.output]
    rows = image_rows(output)
    if not rows or not tensors or not all(image_rows(t) for t in tensors):
        return False
    if isinstance(op, _WINDOWED):
        return op.window.output[0] == rows and op.window.height == image_rows(tensors[0])
    if any(image_rows(t) != rows for t in tensors):
        return False
    if isinstance(op, Concat):
        return op.outer % rows == 0
    if isinstance(op, (Add, Mul)):
        first, second = (graph.tensors[name] for name in op.inputs)
        row = output.size // rows
        alike = second.size == output.size and op.inputs[1] not in graph.constants
        return op.inputs[0] not in graph.constants and first.size == output.size and (alike or row % second.size == 0)
    if isinstance(op, Requantize):
        return not op.by_row and op.offset == 0 and _in_order(op) and output.size // rows % prod(op.dims[1:]) == 0
    return isinstance(op, Table) and tensors[0].size == output.size


def _in_order(op: Requantize) -> bool:
    """Whether codes stay where they are."""
    return all(stride == prod(op.dims[i + 1 :]) for i, stride in enumerate(op.strides))


def _span(op: Op, rows: int, first: int, end: int) -> tuple[int, int]:
    """Rows of an operand with `rows` rows that rows `first` to `end` of the result need."""
    if not isinstance(op, _WINDOWED):
        return first, end
    window = op.window
    stride, padding = window.stride[0], window.padding[0]
    last = (end - 1) * stride - padding + window.dilation[0] * (window.kernel[0] - 1) + 1
    return max(0, min(rows, first * stride - padding)), max(0, min(rows, last)) if end > first else 0


def _outside(graph: IntGraph, count: int) -> set[str]:
    """Tensors that somebody beyond the first operations reads."""
    later = {name for op in graph.ops[count:] for name in op.inputs}
    return later | {port.tensor for port in (*graph.inputs, *graph.outputs)}


def _readers(ops: Sequence[Op]) -> dict[str, list[Op]]:
    found: dict[str, list[Op]] = {}
    for op in ops:
        for name in op.inputs:
            found.setdefault(name, []).append(op)
    return found
