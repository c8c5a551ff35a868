"""Values on their way into an `IntGraph`: what only moves codes is kept as a view until an operation needs it done.

A transpose, a slice or a reshape of a buffer is a numpy view of its code positions. Chains of them cost nothing; where
an operation wants codes side by side, one gather is written, and a change of grid waits for it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import ModelError
from edgeq.graph.intgraph.arithmetic import dyadic
from edgeq.graph.intgraph.graph import IntGraph, IntTensor, Op, Port, Requantize

MAX_RANK = 5  # axes that a gather walks, after those that lie together are merged
Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Grid:
    """Codes of a tensor: `scale * (code - zero_point)`, written between `low` and `high`."""

    scale: float
    zero_point: int
    low: int
    high: int
    wide: bool

    def narrowed(self, low: float | None, high: float | None) -> Grid:
        """The grid with codes beyond the reals `low` and `high` cut off."""
        least = self.low if low is None else max(self.low, round(low / self.scale) + self.zero_point)
        most = self.high if high is None else min(self.high, round(high / self.scale) + self.zero_point)
        return replace(self, low=min(least, most), high=most)

    def holds(self, other: Grid) -> bool:
        """Whether codes of `other` are codes of this grid as they are."""
        same = (self.scale, self.zero_point, self.wide) == (other.scale, other.zero_point, other.wide)
        return same and self.low <= other.low and other.high <= self.high


def grid_of(tensor: IntTensor) -> Grid:
    """The grid that the codes of `tensor` are on."""
    return Grid(tensor.scale, tensor.zero_point, tensor.low, tensor.high, tensor.wide)


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the float network: a view of a buffer, on its way to a grid.

    Args:
        tensor: Name of the buffer.
        view: Positions in the buffer, in the shape of the float network.
        grid: What readers see.
        factor: Real factor between the buffer and what readers see.
    """

    tensor: str
    view: Positions
    grid: Grid
    factor: float = 1.0


class Builder:
    """Collects tensors and operations.

    Args:
        name: Of the model.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.tensors: dict[str, IntTensor] = {}
        self.constants: dict[str, NDArray[Any]] = {}
        self.ops: list[Op] = []
        self._done: dict[tuple[object, ...], str] = {}

    def new(self, name: str, shape: Sequence[int], grid: Grid) -> IntTensor:
        """A new buffer; its name is made unique."""
        unique, count = name, 1
        while unique in self.tensors:
            count += 1
            unique = f"{name}_{count}"
        tensor = IntTensor(unique, tuple(shape) or (1,), grid.scale, grid.zero_point, grid.low, grid.high, grid.wide)
        self.tensors[unique] = tensor
        return tensor

    def constant(self, name: str, codes: NDArray[np.int64], grid: Grid) -> IntTensor:
        """A new constant, on the codes of `grid`; equal ones are kept once."""
        key = ("constant", grid, codes.shape, codes.tobytes())
        if key not in self._done:
            tensor = self.new(name, codes.shape, grid)
            self.constants[tensor.name] = codes.ravel().astype(tensor.dtype)
            self._done[key] = tensor.name
        return self.tensors[self._done[key]]

    def add(self, op: Op, shape: Sequence[int] | None = None) -> Value:
        """Append an operation, and its result seen in memory order."""
        self.ops.append(op)
        tensor = self.tensors[op.output]
        return Value(tensor.name, positions(shape or tensor.shape), grid_of(tensor))

    def settled(self, value: Value) -> bool:
        """Whether the buffer holds what readers see."""
        return value.factor == 1.0 and value.grid.holds(grid_of(self.tensors[value.tensor]))

    def demand(self, value: Value, order: Sequence[int] | None = None, place: str = "") -> str:
        """A buffer that holds `value` in the memory order `order` of its axes, on its grid; written if there is none.

        Raises:
            ModelError: EQ-M502, the gather has too many axes.
        """
        view = value.view if order is None else value.view.transpose(order)
        if self.settled(value) and dense_in_order(view, self.tensors[value.tensor].size):
            return value.tensor
        key = (value.tensor, value.grid, value.factor, view.shape, view.tobytes())
        if key not in self._done:
            self._done[key] = self._gather(value, view, place).output
        return self._done[key]

    def copied(self, tensor: str) -> str:
        """A new buffer with the codes of another one."""
        source = self.tensors[tensor]
        target = self.new(f"{tensor}_copy", source.shape, grid_of(source))
        self.ops.append(Requantize(target.name, (tensor,), target.name, (source.size,), (1,), 0, None))
        return target.name

    def dense(self, value: Value, place: str) -> Value:
        """`value` as a permutation of a whole buffer, on its grid."""
        size = self.tensors[value.tensor].size
        whole = value.view.size == size and bool((np.sort(value.view, axis=None) == np.arange(size)).all())
        if not whole:
            tensor = self.demand(value, place=place)
            return Value(tensor, positions(value.view.shape), value.grid)
        if self.settled(value):
            return value
        # Codes change, places do not: readers keep their view.
        tensor = self.demand(replace(value, view=positions(self.tensors[value.tensor].shape)), place=place)
        return Value(tensor, value.view, value.grid)

    def _gather(self, value: Value, view: Positions, place: str) -> Op:
        source = self.tensors[value.tensor]
        dims, strides = merged(view)
        if len(dims) > MAX_RANK:
            raise ModelError(
                f"{place} wants codes gathered along {len(dims)} axes; kernels have {MAX_RANK}",
                code="EQ-M502",
                place=place,
                hint="reshape and permute in fewer steps in the model",
            )
        target = self.new(f"{place}_{value.tensor}" if place else value.tensor, view.shape, value.grid)
        scaling = None
        same = (source.scale, source.zero_point, source.wide) == (target.scale, target.zero_point, target.wide)
        if not (same and value.factor == 1.0):
            scaling = dyadic(source.scale * value.factor / value.grid.scale, source.reach, place)
        op = Requantize(target.name, (source.name,), target.name, dims, strides, int(view.flat[0]), scaling)
        self.ops.append(op)
        return op

    def finish(self, inputs: Sequence[Port], outputs: Sequence[Port]) -> IntGraph:
        """The network, without operations and constants that no output needs."""
        needed = {port.tensor for port in outputs}
        kept: list[Op] = []
        for op in reversed(self.ops):
            if op.output in needed:
                kept.append(op)
                needed.update(op.inputs)
        needed.update(port.tensor for port in inputs)
        tensors = {name: tensor for name, tensor in self.tensors.items() if name in needed}
        constants = {name: codes for name, codes in self.constants.items() if name in needed}
        return IntGraph(self.name, tuple(kept[::-1]), tensors, constants, tuple(inputs), tuple(outputs))


def positions(shape: Sequence[int]) -> Positions:
    """Positions of a buffer in memory order."""
    return np.arange(prod(shape), dtype=np.int64).reshape(tuple(shape))


def dense_in_order(view: Positions, size: int) -> bool:
    """Whether `view` is a whole buffer of `size` codes in memory order."""
    return view.size == size and bool((view.ravel() == np.arange(size)).all())


def merged(view: Positions) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes and strides of `view` with single axes dropped and axes that lie together merged."""
    dims: list[int] = []
    strides: list[int] = []
    for size, step in zip(view.shape, view.strides, strict=True):
        stride = step // view.itemsize
        if size == 1:
            continue
        if dims and strides[-1] == stride * size:
            dims[-1], strides[-1] = dims[-1] * size, stride
        else:
            dims.append(size)
            strides.append(stride)
    return tuple(dims) or (1,), tuple(strides) or (1,)
