"""Kernels on shapes that no vector register divides, many in one program; random codes, not accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.graph.intgraph.arithmetic import Ints, common, dyadic
from edgeq.graph.intgraph.graph import (
    Add,
    Conv,
    Depthwise,
    FullyConnected,
    IntGraph,
    IntTensor,
    MatMul,
    Op,
    Port,
    Weights,
    Window,
)

KINDS = ("conv", "conv4", "depthwise", "linear", "linear4", "matmul", "add")


class OddKernels:
    """A network of unconnected operations, two of each kind, all drawn from `seed`."""

    def __init__(self, seed: int) -> None:
        self._chance = np.random.default_rng(seed)
        self._tensors: dict[str, IntTensor] = {}
        self._ops: list[Op] = []
        for index, kind in enumerate(KINDS * 2):
            self._add(kind, f"x{index}", f"y{index}")
        results = [op.output for op in self._ops]
        ports = {n: Port(n, t.shape, tuple(range(len(t.shape)))) for n, t in self._tensors.items()}
        inputs = tuple(port for name, port in ports.items() if name not in results)
        self.graph = IntGraph(
            "odd", tuple(self._ops), self._tensors, {}, inputs, tuple(ports[name] for name in results)
        )

    def vectors(self) -> list[list[NDArray[Any]]]:
        """Inputs: likely codes, and extreme ones."""
        tensors = [self.graph.tensors[port.tensor] for port in self.graph.inputs]
        likely = [self._chance.integers(t.low, t.high + 1, t.size).astype(t.dtype) for t in tensors]
        return [likely, [self._chance.choice([t.low, t.high], t.size).astype(t.dtype) for t in tensors]]

    def _draw(self, least: int, most: int) -> int:
        return int(self._chance.integers(least, most + 1))

    def _tensor(self, name: str, shape: tuple[int, ...], wide: bool = False) -> str:
        low, high = (-32768, 32767) if wide else (-128, 127) if self._draw(0, 2) else (-100, 90)
        self._tensors[name] = IntTensor(name, shape, 1.0, self._draw(low // 2, high // 2), low, high, wide)
        return name

    def _weights(self, rows: int, inner: int, bits: int) -> Weights:
        most = 7 if bits == 4 else 127
        codes: Ints = self._chance.integers(-most, most + 1, (rows, inner))
        factors = self._chance.uniform(0.0005, 0.3, rows if self._draw(0, 3) else 1)
        return Weights(codes, self._chance.integers(-1000, 1000, rows), dyadic(factors, 1 << 24, "odd"), bits)

    def _window(self) -> Window:
        kernel, stride, padding = ((self._draw(a, b), self._draw(a, b)) for a, b in ((1, 3), (1, 2), (0, 1)))
        dilation = (1, 1) if self._draw(0, 2) else (2, 1) if self._draw(0, 1) else (1, 2)
        extra = tuple(int(size > 1 and self._draw(0, 1)) for size in kernel)
        channels = int(self._chance.choice([1, 3, 4, 5, 8, 16, 17, 35]))
        sizes = self._draw(7, 11), self._draw(7, 11)
        return Window(*sizes, channels, kernel, stride, padding, dilation, (extra[0], extra[1]))

    def _add(self, kind: str, x: str, y: str) -> None:
        bits = 4 if kind.endswith("4") else 8
        rows, columns, inner, batch = self._draw(1, 9), self._draw(1, 9), self._draw(1, 60), self._draw(1, 3)
        shape: tuple[int, ...] = (rows, columns)
        op: Op
        if kind.startswith(("conv", "depthwise")):
            window = self._window()
            self._tensor(x, (window.height, window.width, window.channels))
            area = window.kernel[0] * window.kernel[1]
            if kind == "depthwise":
                columns, held = window.channels, self._weights(window.channels, area, 8)
                op = Depthwise(y, (x,), y, window, Weights(held.codes.T.copy(), held.bias, held.scaling, 8))
            else:
                op = Conv(y, (x,), y, window, self._weights(columns, area * window.channels, bits))
            shape = (*window.output, columns)
        elif kind.startswith("linear"):
            op = FullyConnected(y, (self._tensor(x, (rows, inner)),), y, rows, self._weights(columns, inner, bits))
        elif kind == "matmul":
            names = self._tensor(x, (batch, rows, inner)), self._tensor(f"{x}b", (batch, columns, inner))
            scaling = dyadic(float(self._chance.uniform(0.001, 0.3)), 1 << 22, "odd")
            op, shape = MatMul(y, names, y, batch, rows, inner, columns, scaling), (batch, rows, columns)
        else:
            wide = [bool(self._draw(0, 1)) for _ in range(2)]
            names = self._tensor(x, (rows, inner), wide[0]), self._tensor(f"{x}b", (inner,), wide[1])
            op = Add(y, names, y, common(self._chance.uniform(-1.5, 1.5, 2), 1 << 17, "odd"))
            shape = (rows, inner)
        self._ops.append(op)
        self._tensor(y, shape, wide=self._draw(0, 3) == 0)
