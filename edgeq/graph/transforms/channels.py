"""Statistics of each channel of chosen tensors over calibration batches, in one streaming pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from edgeq.errors import DataError
from edgeq.quant.calibrator import Calibrator


@dataclass(frozen=True, eq=False)
class ChannelStatistics:
    """What was seen of the C channels of a tensor; all float64 `(C,)`.

    Args:
        low: Smallest value.
        high: Largest value.
        mean: Mean over samples and positions.
        absmax: Largest magnitude.
        rms: Root of the mean square.

    Raises:
        DataError: The vectors differ in length, are empty, or hold NaN or infinity, or a range is reversed.
    """

    low: Tensor
    high: Tensor
    mean: Tensor
    absmax: Tensor
    rms: Tensor

    def __post_init__(self) -> None:
        parts = [getattr(self, name).to(torch.float64) for name in self.__dataclass_fields__]
        shapes = {tuple(p.shape) for p in parts}
        sound = len(shapes) == 1 and parts[0].dim() == 1 and parts[0].numel() > 0
        if not sound or not all(bool(torch.isfinite(p).all()) for p in parts) or bool((parts[0] > parts[1]).any()):
            message = f"no statistics of channels: shapes {sorted(shapes)}, or values that are not finite or in order"
            raise DataError(message, code="EQ-D260", hint="take them from channel_statistics()")
        for name, part in zip(self.__dataclass_fields__, parts, strict=True):
            object.__setattr__(self, name, part)

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.low.numel()


def channel_statistics(
    graph: fx.GraphModule,
    names: Sequence[str],
    batches: Iterable[tuple[Tensor, ...]],
    axes: Mapping[str, int] | None = None,
) -> dict[str, ChannelStatistics]:
    """Statistics per channel of the named tensors over all batches; memory does not grow with their number.

    Args:
        graph: Canonical float graph.
        names: Tensors to watch.
        batches: Inputs of the graph, one tuple a batch; consumed lazily.
        axes: Axis of the channels by name, where it is not the last.

    Raises:
        InternalError: A name is no tensor of the graph, or a batch has the wrong number of inputs.
        DataError: There is no batch, or an input holds NaN or infinity.
        ModelError: The graph fails on a batch, or a watched tensor becomes NaN or infinite.
    """
    watcher = _Watcher(graph, names, axes or {})
    for batch in batches:
        watcher.observe(batch)
    if watcher.batches == 0:
        raise DataError("there is nothing to calibrate with", code="EQ-D030", hint="pass --calib FOLDER with photos")
    return {name: watcher.sums[name].result() for name in names}


class _Sums:
    """Running ends and sums of the channels of one tensor."""

    def __init__(self) -> None:
        self.count = 0
        self.low = self.high = self.total = self.squares = torch.zeros(0, dtype=torch.float64)

    def update(self, x: Tensor, axis: int) -> None:
        rows = x.detach().movedim(axis, -1).reshape(-1, x.shape[axis])
        low, high = (end.double() for end in torch.aminmax(rows, dim=0))
        total, squares = rows.sum(0, dtype=torch.float64), rows.double().square().sum(0)
        if self.count:
            low, high = torch.minimum(low, self.low), torch.maximum(high, self.high)
            total, squares = total + self.total, squares + self.squares
        self.low, self.high, self.total, self.squares = low, high, total, squares
        self.count += rows.shape[0]

    def result(self) -> ChannelStatistics:
        absmax = torch.maximum(self.low.abs(), self.high.abs())
        return ChannelStatistics(
            self.low, self.high, self.total / self.count, absmax, (self.squares / self.count).sqrt()
        )


class _Watcher(Calibrator):
    """Runs a graph and sums up the channels of watched tensors."""

    def __init__(self, graph: fx.GraphModule, names: Sequence[str], axes: Mapping[str, int]) -> None:
        super().__init__(graph, names)  # which checks the names and, while running, the values
        self.sums = {name: _Sums() for name in names}
        self._axes = axes

    def run_node(self, n: fx.Node) -> object:
        """Run one node and add its value if it is watched."""
        value = super().run_node(n)
        if n.name in self.sums and isinstance(value, Tensor):
            self.sums[n.name].update(value, self._axes.get(n.name, -1))
        return value
