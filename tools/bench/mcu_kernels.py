"""Instructions of the generated kernels on emulated Cortex-M cores, layer by layer, beside CMSIS-NN's.

    python tools/bench/mcu_kernels.py
    python tools/bench/mcu_kernels.py --cores cortex-m4 --layers conv3x3 softmax

Each layer is a network of one operation with random codes: the count does not depend on them. It is built with -O3, run
in QEMU (`edgeq.devices.cortex_m`), and its output compared with the interpreter's; a difference is an error. Counts
are instructions, not cycles. CMSIS-NN: commit 99f736a6 of 2026-07-15 with the same compiler, flags and emulator.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.devices.cortex_m import MACHINES, run_emulated
from edgeq.exporters.c.project import write_project
from edgeq.graph.intgraph.arithmetic import common, dyadic
from edgeq.graph.intgraph.graph import (
    Add,
    Conv,
    Depthwise,
    FullyConnected,
    IntGraph,
    IntTensor,
    MatMul,
    Norm,
    Op,
    Port,
    Softmax,
    Weights,
    Window,
)

RESULT = Path(__file__).parent / "results" / "mcu_kernels.json"
SCHEMA = "edgeq.bench.mcu_kernels/1"


@dataclass(frozen=True)
class Layer:
    """A layer to count.

    Args:
        op: The operation; it reads `x` (and `z`) and writes `y`.
        inputs: Shape of each operand, and whether its codes are wide.
        output: Of the result.
        units: Multiply-accumulates, or elements where there are none.
        anchors: CMSIS-NN's instructions a unit, by core; empty where it has no such kernel.
    """

    op: Op
    inputs: tuple[tuple[tuple[int, ...], bool], ...]
    output: tuple[tuple[int, ...], bool]
    units: int
    anchors: Mapping[str, float]


def _weights(rows: int, inner: int, bits: int = 8) -> Weights:
    chance = np.random.default_rng(rows + inner)
    codes = chance.integers(-7, 8, (rows, inner)) if bits == 4 else chance.integers(-127, 128, (rows, inner))
    bias = chance.integers(-1000, 1000, rows)
    return Weights(codes, bias, dyadic(chance.uniform(0.001, 0.003, rows), 1 << 24, "bench"), bits)


def _anchors(m3: float, m4: float, m55: float) -> dict[str, float]:
    return {"cortex-m3": m3, "cortex-m4": m4, "cortex-m55": m55}


def layers() -> dict[str, Layer]:
    """The layers of the table."""
    return {**_convolutions(), **_products(), **_between()}


def _convolutions() -> dict[str, Layer]:
    image = Window(32, 32, 16, (3, 3), (1, 1), (1, 1))
    point = Window(16, 16, 64, (1, 1), (1, 1), (0, 0))
    across = _weights(16, 9)
    across = Weights(across.codes.T.copy(), across.bias, across.scaling, 8)
    return {
        "conv3x3 32x32x16->16": Layer(
            Conv("y", ("x",), "y", image, _weights(16, 144)),
            (((32, 32, 16), False),),
            ((32, 32, 16), False),
            2359296,
            _anchors(3.42, 2.42, 0.388),
        ),
        "conv3x3 32x32x16->16, 4-bit weights": Layer(
            Conv("y", ("x",), "y", image, _weights(16, 144, 4)),
            (((32, 32, 16), False),),
            ((32, 32, 16), False),
            2359296,
            _anchors(3.51, 4.09, 0.558),
        ),
        "conv1x1 16x16x64->64": Layer(
            Conv("y", ("x",), "y", point, _weights(64, 64)),
            (((16, 16, 64), False),),
            ((16, 16, 64), False),
            1048576,
            _anchors(3.09, 2.07, 0.393),
        ),
        "depthwise3x3 32x32x16": Layer(
            Depthwise("y", ("x",), "y", image, across),
            (((32, 32, 16), False),),
            ((32, 32, 16), False),
            147456,
            _anchors(10.29, 9.25, 3.47),
        ),
    }


def _products() -> dict[str, Layer]:
    tokens = ((64, 64), False)
    return {
        "fully connected 512->128, 1 row": Layer(
            FullyConnected("y", ("x",), "y", 1, _weights(128, 512)),
            (((1, 512), False),),
            ((1, 128), False),
            65536,
            _anchors(3.45, 1.97, 0.496),
        ),
        "fully connected 512->128, 64 rows": Layer(
            FullyConnected("y", ("x",), "y", 64, _weights(128, 512)),
            (((64, 512), False),),
            ((64, 128), False),
            64 * 65536,
            _anchors(3.45, 1.97, 0.496),
        ),
        "fully connected 512->128, 1 row, 4-bit weights": Layer(
            FullyConnected("y", ("x",), "y", 1, _weights(128, 512, 4)),
            (((1, 512), False),),
            ((1, 128), False),
            65536,
            _anchors(5.09, 4.97, 0.416),
        ),
        "matmul 64x64x64": Layer(
            MatMul("y", ("x", "z"), "y", 1, 64, 64, 64, dyadic(0.001, 1 << 24, "bench")),
            (tokens, tokens),
            tokens,
            262144,
            _anchors(3.99, 2.67, 0.706),
        ),
    }


def _between() -> dict[str, Layer]:
    softmax = Softmax("y", ("x",), "y", 64, 64, 20000, 15, 1 << 30, 9, 62)
    norm = Norm("y", ("x",), "y", 64, 128, True, 1000, common([2.0**-10], 1 << 19, "bench"), np.array([256]))
    tokens = ((64, 64), False)
    return {
        "softmax 64x64": Layer(softmax, (tokens,), tokens, 4096, _anchors(513, 517, 549)),
        "softmax 64x64, 16-bit logits": Layer(softmax, (((64, 64), True),), tokens, 4096, {}),
        "add 4096": Layer(
            Add("y", ("x", "z"), "y", common([0.5, 0.4], 256, "bench")),
            (tokens, tokens),
            tokens,
            4096,
            _anchors(84, 81, 13.8),
        ),
        "layer norm 64x128, 16-bit": Layer(norm, (((64, 128), True),), ((64, 128), False), 8192, {}),
    }


def network(layer: Layer) -> IntGraph:
    """A network of one layer."""

    def tensor(name: str, shape: tuple[int, ...], wide: bool) -> IntTensor:
        ends = (-32768, 32767) if wide else (-128, 127)
        return IntTensor(name, shape, 1.0, 3 if name != "y" else 0, *ends, wide)

    names = layer.op.inputs
    tensors = {name: tensor(name, *given) for name, given in zip(names, layer.inputs, strict=True)}
    tensors["y"] = tensor("y", *layer.output)
    ports = tuple(Port(n, t.shape, tuple(range(len(t.shape)))) for n, t in tensors.items())
    return IntGraph("bench", (layer.op,), tensors, {}, ports[:-1], ports[-1:])


def count(layer: Layer, core: str) -> int:
    """Instructions of a layer on a core, its output checked."""
    graph = network(layer)
    chance = np.random.default_rng(0)
    tensors = [graph.tensors[port.tensor] for port in graph.inputs]
    codes = [chance.integers(t.low, t.high + 1, t.size).astype(t.dtype) for t in tensors]
    with tempfile.TemporaryDirectory() as folder:
        write_project(graph, Path(folder), [codes])
        run = run_emulated(Path(folder), core)
    if run.outcome.different:
        raise SystemExit(f"{core}: {run.outcome.different} codes differ")
    return run.layers[0]


def main() -> None:
    """Count, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", nargs="+", default=["cortex-m3", "cortex-m4", "cortex-m55"], choices=list(MACHINES))
    parser.add_argument("--layers", nargs="+", default=[""], help="beginnings of names")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, layer in layers().items():
        if not any(name.startswith(wanted) for wanted in options.layers):
            continue
        for core in options.cores:
            instructions = count(layer, core)
            unit = round(instructions / layer.units, 3)
            anchor = layer.anchors.get(core)
            rows.append(
                {"layer": name, "core": core, "instructions": instructions, "per_unit": unit, "cmsis_nn": anchor}
            )
            print(f"{name:48s} {core:11s} {instructions:9d} {unit:8.3f}  CMSIS-NN {anchor or '-'}", flush=True)
    if not options.no_write:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps({"schema": SCHEMA, "rows": rows}, indent=1) + "\n")
        print(RESULT, file=sys.stderr)


if __name__ == "__main__":
    main()
