"""Calibration: run samples through a float graph and collect the statistics of chosen tensors as they are produced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, fx

from edgeq.errors import DataError, InternalError, ModelError
from edgeq.quant.statistics import TensorStatistics


def calibrate(
    graph: fx.GraphModule,
    tensors: Sequence[str],
    batches: Iterable[tuple[Tensor, ...]],
    progress: Callable[[int], None] | None = None,
) -> dict[str, TensorStatistics]:
    """Statistics of the named tensors over all batches, in the order of `tensors`.

    Memory is that of one forward pass with every intermediate freed after its last use, plus 64 KiB per tensor: it
    does not grow with the number of samples.

    Args:
        graph: Canonical float graph.
        tensors: Names of the nodes (placeholders included) to watch.
        batches: Inputs of the graph, one tuple a batch; consumed lazily.
        progress: Called with 1 after each batch.

    Raises:
        InternalError: A name is no tensor of the graph, or a batch has the wrong number of inputs.
        DataError: There is no batch, or an input holds NaN or infinity.
        ModelError: The graph fails on a batch, or a watched tensor becomes NaN or infinite.
    """
    calibrator = Calibrator(graph, tensors)
    for batch in batches:
        calibrator.observe(batch)
        if progress is not None:
            progress(1)
    if calibrator.batches == 0:
        raise DataError("there is nothing to calibrate with", code="EQ-D030", hint="pass --calib FOLDER with photos")
    return calibrator.statistics


class Calibrator(fx.Interpreter):
    """Runs a graph node by node and feeds watched tensors to their statistics.

    Args:
        graph: Canonical float graph.
        tensors: Names of the nodes to watch.
    """

    def __init__(self, graph: fx.GraphModule, tensors: Sequence[str]) -> None:
        super().__init__(graph, garbage_collect_values=True)
        known = {node.name for node in graph.graph.nodes if node.op != "output"}
        if missing := [name for name in tensors if name not in known]:
            raise InternalError(f"no such tensors in the graph: {', '.join(missing[:5])}", code="EQ-Z020")
        self.statistics = {name: TensorStatistics() for name in tensors}
        self.batches = 0
        self._inputs = sum(node.op == "placeholder" for node in graph.graph.nodes)

    @torch.no_grad()
    def observe(self, batch: tuple[Tensor, ...]) -> None:
        """Add one batch; raises as `calibrate`."""
        if len(batch) != self._inputs:
            raise InternalError(f"the graph takes {self._inputs} inputs, got {len(batch)}", code="EQ-Z020")
        for position, value in enumerate(batch):
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise DataError(
                    f"input {position} of calibration batch {self.batches} holds NaN or infinite values",
                    code="EQ-D034",
                    hint="remove the sample, or check the preprocessing",
                )
        self.run(*batch)
        self.batches += 1

    def run_node(self, n: fx.Node) -> object:
        """Run one node and record its value if it is watched."""
        try:
            value = super().run_node(n)
        except RuntimeError as error:
            raise ModelError(
                f"{n.name} ({n.target}) fails on calibration batch {self.batches}: {error}",
                code="EQ-M032",
                place=n.name,
                hint="check that the samples have the shape the model expects",
            ) from error
        statistics = self.statistics.get(n.name)
        if statistics is not None:
            if not isinstance(value, Tensor):
                raise InternalError(f"{n.name} is not a tensor but {type(value).__name__}", code="EQ-Z020")
            statistics.update(value)
            if statistics.non_finite:
                raise ModelError(
                    f"{n.name} becomes NaN or infinite on calibration batch {self.batches}",
                    code="EQ-M031",
                    place=n.name,
                    hint="the float model overflows on this sample: check the weights and the preprocessing",
                )
        return value
