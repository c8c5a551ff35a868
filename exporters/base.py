"""What every exporter offers, and the facts it reads back from the file it wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx

from edgeq.graph.legalize import Legalized
from edgeq.graph.placement import BackendRules
from edgeq.spec import Precision, QuantConfig, QuantPlan


@dataclass(frozen=True)
class FileOp:
    """One operation as the file holds it.

    Args:
        index: Position in execution order.
        op: The runtime's name (`FULLY_CONNECTED`).
        name: Name of its first output tensor.
        macs: Multiply-accumulates per inference; 0 for everything but matrix products and convolutions.
        kernel: `int8` (products of integers), `dynamic` (float input quantized at run time, integer weights),
            `weights` (integer weights turned into float at run time) or `float`.
        bytes: Size of its constants.
    """

    index: int
    op: str
    name: str
    macs: int
    kernel: str
    bytes: int


@dataclass(frozen=True)
class Patched:
    """What it changes that the first operations of a network run in patches.

    Args:
        count: How many patches.
        ops: How many operations.
        ram_whole: Bytes of RAM without them.
        moved: Bytes of rows that are moved for the next patch, in an inference; no product is computed twice.
    """

    count: int
    ops: int
    ram_whole: int
    moved: int


@dataclass(frozen=True)
class Memory:
    """What a network takes on a chip whose memory is counted in kilobytes; its code and the stack are not included.

    Args:
        flash: Bytes of constants.
        ram: Bytes of the arena, the inputs and the outputs.
        arena: Bytes of the arena alone.
        arena_bound: Most bytes of it alive at once; no plan is smaller.
        largest: The operation with most constants, and their bytes.
        widest: The operation during which most of the arena is alive, and how much.
        patches: Where the first operations run in patches, what that changes.
    """

    flash: int
    ram: int
    arena: int
    arena_bound: int
    largest: tuple[str, int]
    widest: tuple[str, int]
    patches: Patched | None = None


@dataclass(frozen=True)
class ReadBack:
    """What a written file really contains, read by the format's own schema.

    Args:
        ops: Operations in execution order.
        weights: Integer codes by plan tensor name, in the plan's layout.
        missing: Plan tensors whose integers or scales the file does not hold.
        extra: Integer constants of the file that no plan tensor accounts for.
        misfits: Layers whose bias is on another grid than their products: numbers of different units would be added.
        memory: Where it becomes a program for a microcontroller, what that takes.
        sites: Tensors of the file that hold the results of the layers that read a weight, in execution order, by plan
            tensor name; what could not be told apart is absent.
    """

    ops: tuple[FileOp, ...]
    weights: Mapping[str, NDArray[np.int32]]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    misfits: tuple[str, ...] = ()
    memory: Memory | None = None
    sites: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def integer_mac_share(self) -> float:
        """Share of all multiply-accumulates whose weights or both operands are integers at run time."""
        return integer_mac_share(self.ops)

    def census(self) -> dict[str, int]:
        """Number of operations by `NAME kernel`."""
        counts: dict[str, int] = {}
        for op in self.ops:
            key = f"{op.op} {op.kernel}"
            counts[key] = counts.get(key, 0) + 1
        return dict(sorted(counts.items()))

    def to_dict(self) -> dict[str, Any]:
        """JSON form for `evidence.json`."""
        return {
            "census": self.census(),
            "integer_mac_share": round(self.integer_mac_share, 4),
            "macs": sum(op.macs for op in self.ops),
            "weights_equal_plan": len(self.weights),
            "missing": list(self.missing),
            "extra": list(self.extra),
            "misfits": list(self.misfits),
            "memory": None if self.memory is None else asdict(self.memory),
        }


def integer_mac_share(ops: Iterable[FileOp]) -> float:
    """Share of the multiply-accumulates of operations whose weights or both operands are integers at run time."""
    macs = [(op.macs, op.kernel in ("int8", "dynamic")) for op in ops]
    total = sum(count for count, _ in macs)
    return sum(count for count, integer in macs if integer) / total if total else 0.0


class Exporter(Protocol):
    """A runtime's file format.

    `float_format` is the format of the float file that a quantized one is compared with: its own, or another one where
    it has no float form. Then nothing is timed against float either.
    """

    name: str
    file_name: str
    float_format: str
    rules: BackendRules
    schemes: tuple[str, ...]

    def config(self, scheme: str, precision: Precision) -> QuantConfig:
        """The rules that make a scheme on this runtime."""

    def prepare(self, graph: fx.GraphModule) -> fx.GraphModule:
        """A copy of the canonical graph with what the runtime lacks rewritten; the same function in float."""

    def emit(self, graph: fx.GraphModule, example: tuple[Tensor, ...], plan: QuantPlan | None, path: Path) -> None:
        """Write the file of a float graph (`plan` None) or of a legalized graph's emission."""

    def read_back(self, path: Path, legalized: Legalized | None) -> ReadBack:
        """Read the file and compare its integers with the plan."""
