"""A graph captured for one sample at a time, made one for batches of any size."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, fx

from edgeq.errors import ModelError
from edgeq.graph.rewrite import aten, fetch

_RESHAPES = (aten.reshape.default, aten.view.default, aten._unsafe_view.default)
_PROBE = 3  # a batch size that is rarely a width
_TOLERANCE = 0.25
"""Relative difference of outputs that rounding may explain: at 3 bits one flipped code moves them by a tenth."""


def like_batch(constant: Tensor, like: Tensor) -> Tensor:
    """`constant (1, ...)` repeated to the batch of `like (batch, ...)`, as a view."""
    return constant.expand(like.shape[0], *constant.shape[1:])


@torch.no_grad()
def batched(graph: fx.GraphModule, sample: tuple[Tensor, ...]) -> fx.GraphModule:
    """A copy of `graph` that takes any number of samples along the first axis of every input.

    Shapes written into the graph are freed where the batch has an axis of its own; constants that are concatenated to
    tokens are repeated. The result is run on copies of the sample that differ, and compared with single runs.

    Args:
        graph: Captured with a batch of 1, also with grids inserted; not changed. Constants are copied.
        sample: Inputs `(1, ...)`.

    Raises:
        ModelError: A shape mixes the batch with other axes, or single runs give something else.
    """
    copied = copy.deepcopy(graph)
    inputs = [torch.cat([_variant(x, i) for i in range(_PROBE)]) for x in sample]
    _Freeing(copied).run_pair(inputs)
    copied.graph.lint()
    copied.recompile()
    found = _tensors(copied(*inputs))
    for index in range(_PROBE):
        wanted = _tensors(graph(*(x[index : index + 1] for x in inputs)))
        for got, want in zip(found, wanted, strict=True):
            got = got[index : index + 1]
            if got.shape != want.shape:
                raise _refused("its output has no batch axis")
            if float((got - want).norm()) > _TOLERANCE * float(want.norm()) + 1e-6:
                raise _refused("batches give other results than single samples")
    return copied


def _variant(x: Tensor, index: int) -> Tensor:
    """The sample, or another one of its size made of it."""
    if index == 0 or not x.is_floating_point():
        return x
    return x.roll(index, dims=-1) * (-1.0) ** index / index


class _Freeing:
    """Runs a graph for one sample and for several, and frees each written shape when it is reached."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        self.one: dict[fx.Node, Any] = {}
        self.many: dict[fx.Node, Any] = {}

    def run_pair(self, inputs: list[Tensor]) -> None:
        waiting = iter(inputs)
        for node in list(self.gm.graph.nodes):
            if node.op == "output":
                return
            if node.op == "placeholder":
                self.many[node] = next(waiting)
                self.one[node] = self.many[node][:1]
            elif node.op == "get_attr":
                self.one[node] = self.many[node] = fetch(self.gm, str(node.target))
            else:
                self.one[node] = self._compute(node, self.one)
                if node.target in _RESHAPES:
                    self._free(node)
                elif node.target is aten.cat.default:
                    self._repeat(node)
                try:
                    self.many[node] = self._compute(node, self.many)
                except RuntimeError as error:
                    raise _refused(f"{node.name} fails for a batch: {str(error).splitlines()[0]}") from error

    def _compute(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
        if node.op == "call_module":
            return self.gm.get_submodule(str(node.target))(*args, **kwargs)
        target: Any = node.target
        return target(*args, **kwargs)

    def _axis(self, node: fx.Node) -> int | None:
        """Where the batch is in a computed value; None where it is not, such as in constants."""
        one, many = self.one[node], self.many[node]
        axes = [i for i, (a, b) in enumerate(zip(one.shape, many.shape, strict=True)) if a != b]
        return axes[0] if axes else None

    def _free(self, node: fx.Node) -> None:
        source, shape = node.args[0], list(self.one[node].shape)
        assert isinstance(source, fx.Node)
        axis = self._axis(source)
        if axis is None:
            return
        before = math.prod(self.one[source].shape[:axis])
        for position, size in enumerate(shape):
            if size == 1 and math.prod(shape[:position]) == before:
                shape[position] = -1
                node.update_arg(1, shape)
                return
        raise _refused(f"{node.name} merges the batch with other axes")

    def _repeat(self, node: fx.Node) -> None:
        parts = node.args[0]
        assert isinstance(parts, (list, tuple))
        batch = [p for p in parts if isinstance(p, fx.Node) and self._axis(p) == 0]
        if not batch:
            return
        changed: list[Any] = []
        for part in parts:
            assert isinstance(part, fx.Node)
            if self._axis(part) is None and self.one[part].shape[0] == 1:
                with self.gm.graph.inserting_before(node):
                    part = self.gm.graph.call_function(like_batch, (part, batch[0]))
                self.one[part] = self._compute(part, self.one)
                self.many[part] = self._compute(part, self.many)
            changed.append(part)
        node.update_arg(0, changed)


def _tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def _refused(reason: str) -> ModelError:
    return ModelError(
        f"the graph cannot take several samples at once: {reason}",
        code="EQ-M320",
        hint="it runs one sample at a time, only slower",
    )
