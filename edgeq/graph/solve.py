"""Weights of a whole graph rounded in order, each layer on what the rounded layers before it really deliver.

The float graph and the quantized one run side by side, node by node, over all calibration samples. At each layer the
second moments of both inputs decide the rounding; then the layer's quantized output is computed with the new weight,
and the run goes on. So every layer is seen once, and makes good what the layers before it did wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from edgeq.errors import DataError, ModelError
from edgeq.graph.kinds import op_kind
from edgeq.graph.rewrite import fetch, shape_of
from edgeq.graph.transforms.parameters import parameter, set_parameter
from edgeq.progress import Advance
from edgeq.quant.rounding import LayerMoments, LayerProblem, Rounded, get_rounder, retarget
from edgeq.quant.uniform import dequantize
from edgeq.spec import QParams

MAX_ROWS = 16384
"""Rows of a layer's input that are used; wide convolutions offer far more, nearly alike."""

_HOLDOUT_EVERY = 4
_ON_GIVEN_GRIDS = "gptq"

Sample = tuple[Tensor, ...]


@dataclass(frozen=True)
class Rounding:
    """How weights reach their grids.

    Args:
        name: Key of `edgeq.quant.rounding.ROUNDERS`.
        samples: Calibration inputs of the graph; read only by rounders that need data.
        retarget: First move each weight to where it makes good the drift of its inputs (ridge regression).
        advance: Called with 1 after each layer.
    """

    name: str = "nearest"
    samples: Callable[[], Sequence[Sample]] = tuple
    retarget: bool = True
    advance: Advance | None = None

    @property
    def needs_data(self) -> bool:
        """Whether the layers' inputs matter."""
        return get_rounder(self.name).needs_data


@dataclass(frozen=True, eq=False)
class Solved:
    """A rounded layer.

    Args:
        qparams: Grid of its weight.
        codes: int32, of the weight's shape.
        bias: Bias `(O,)` that goes with them, or None when the layer had none and needs none.
        note: How it was done.
    """

    qparams: QParams
    codes: Tensor
    bias: Tensor | None
    note: str


GridOf = Callable[[str, Tensor, Tensor | None], QParams]
"""`(layer, weight, bias) -> grid of the weight`, also for a weight that a rounder has moved."""


@torch.no_grad()
def solve_weights(
    graph: fx.GraphModule,
    quantized: fx.GraphModule,
    layers: Mapping[str, str],
    grid_of: GridOf,
    rounding: Rounding,
) -> dict[str, Solved]:
    """Round the weights of `layers` in execution order.

    Args:
        graph: Float graph.
        quantized: The same nodes with quantized activations and float weights; its weights and biases are replaced.
        layers: Attribute path of the weight by layer.
        grid_of: The grid of a layer's weight.
        rounding: Rounder and samples.

    Returns:
        The rounded layers by name; where two share a weight, the first decides and the others are missing.

    Raises:
        ModelError: The quantized network yields NaN or infinity.
        DataError: There are no samples.
    """
    pair = _Lockstep(graph, quantized, rounding.samples())
    solved: dict[str, Solved] = {}
    done: set[str] = set()

    def visit(node: fx.Node, inputs: Inputs) -> None:
        attribute = layers.get(node.name)
        if attribute is None:
            return
        if attribute not in done:
            done.add(attribute)
            solved[node.name] = _solve(graph, pair.originals[node.name], inputs, grid_of, rounding)
            apply_solved(quantized, node, attribute, solved[node.name])
        if rounding.advance is not None:
            rounding.advance(1)

    pair.run(visit)
    return solved


def _solve(graph: fx.GraphModule, node: fx.Node, inputs: Inputs, grid_of: GridOf, rounding: Rounding) -> Solved:
    """Round one layer from its float and quantized inputs."""
    weight, bias = parameter(graph, node, "weight"), parameter(graph, node, "bias")
    assert weight is not None
    flat = weight.reshape(weight.shape[0], -1)
    grouped = flat.shape[1] != _rows(node, weight, inputs.rough[0]).shape[1]
    moments = LayerMoments(flat.shape[1]) if grouped else _moments(node, weight, inputs)
    name, note, target = rounding.name, "", flat
    if grouped:
        name, note = "nearest", "nearest: a grouped convolution"
    elif rounding.retarget:
        found = retarget(flat, moments)
        target, note = found.weight.to(torch.float32), f"{name}, {found.note}"
    problem = LayerProblem(flat, grid_of(node.name, target.reshape(weight.shape), bias), moments, bias, target)
    rounded = get_rounder(name).round(problem)
    shifted = _shifted(bias, rounded)
    if get_rounder(name).moves_grid and _too_fine(node.name, weight, rounded, shifted, grid_of):
        rounded = get_rounder(_ON_GIVEN_GRIDS).round(problem)
        shifted, note = _shifted(bias, rounded), f"{_ON_GIVEN_GRIDS}, since {name} leaves no room for the bias"
    return Solved(rounded.qparams, rounded.codes.reshape(weight.shape), shifted, note or name)


def _shifted(bias: Tensor | None, rounded: Rounded) -> Tensor | None:
    """The bias that goes with a rounded weight, float32; None where there was none and needs none."""
    if bias is None and not bool(rounded.bias_delta.any()):
        return None
    return (rounded.bias_delta if bias is None else bias.double() + rounded.bias_delta).float()


def _too_fine(name: str, weight: Tensor, rounded: Rounded, bias: Tensor | None, grid_of: GridOf) -> bool:
    """Whether the scales that a rounder has moved are finer than `grid_of` allows next to this bias.

    On its own the rounded weight never asks for a coarser grid than the one that it lies on; so what does, is the bias.
    """
    values = rounded.weight.reshape(weight.shape)
    alone, needed = grid_of(name, values, None).scale, grid_of(name, values, bias).scale
    return bool(((needed > alone) & (rounded.qparams.scale < needed)).any())


@torch.no_grad()
def apply_solved(gm: fx.GraphModule, node: fx.Node, attribute: str, solved: Solved) -> None:
    """Put a rounded weight, as floats on its grid for all its readers, and its bias into `gm`, a deep copy."""
    weight = fetch(gm, attribute)
    weight.copy_(dequantize(solved.codes, solved.qparams).reshape(weight.shape))
    if solved.bias is not None:
        set_parameter(gm, node, "bias", solved.bias)


def _moments(node: fx.Node, weight: Tensor, inputs: Inputs) -> LayerMoments:
    """Second moments over all samples, several samples at a time; every fourth chunk is held out."""
    count = len(inputs.rough)
    moments = LayerMoments(weight[0].numel(), holdout_every=_HOLDOUT_EVERY if count >= _HOLDOUT_EVERY else 0)
    size = max(1, count // 8)
    rows = _rows(node, weight, inputs.exact[0]).shape[0]
    stride = max(1, -(-count * rows // MAX_ROWS))
    weighted = all(w.numel() == rows for w in inputs.weights) and len(inputs.weights) == count
    for start in range(0, count, size):
        chunk = slice(start, start + size)
        rough, exact = (
            torch.cat([_rows(node, weight, x)[::stride] for x in part[chunk]]) for part in (inputs.rough, inputs.exact)
        )
        weights = torch.cat([w[::stride] for w in inputs.weights[chunk]]) if weighted else None
        moments.update(rough, exact, weights)
    return moments


def attention_received(probabilities: Tensor) -> Tensor:
    """How much each token matters: 1 plus the attention it receives, relative to an even share.

    A class token takes 10 to 60 times its share in a ViT-S, but is one row in 257: rounding that is fitted to all rows
    alike pays with it. Weights by attention follow RSQ (Sung et al. 2025, arXiv 2503.01820), whose best-performing
    variant they are; deviation: the layers of a block use the attention of the block before, which is known when they
    are rounded, and 1 is added because tokens matter to themselves.

    Args:
        probabilities: `(..., queries, keys)`.

    Returns:
        `(keys,)`.
    """
    keys = probabilities.shape[-1]
    return 1 + probabilities.detach().reshape(-1, keys).mean(0) * keys


def _rows(node: fx.Node, weight: Tensor, x: Tensor) -> Tensor:
    """The input of a linear as rows `(N, I)`, of a convolution as its unfolded patches `(N, I * kh * kw)`."""
    if weight.dim() == 2:
        return x.reshape(-1, x.shape[-1])
    defaults: list[Any] = [None, [1, 1], [0, 0], [1, 1]]
    given = list(node.args[2:6])
    _, stride, padding, dilation = given + defaults[len(given) :]
    kernel = (weight.shape[2], weight.shape[3])
    patches = torch.nn.functional.unfold(x, kernel, dilation, padding, stride)
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a layer reads, one entry per sample.

    Args:
        exact: In the float graph.
        rough: In the quantized graph.
        weights: Importance of each token by the last attention before the layer; empty when there was none.
    """

    exact: list[Tensor]
    rough: list[Tensor]
    weights: list[Tensor]


class _Lockstep:
    """Runs a float and a quantized graph side by side over several samples, freeing what nobody needs any more."""

    def __init__(self, graph: fx.GraphModule, quantized: fx.GraphModule, samples: Sequence[Sample]) -> None:
        if not samples:
            raise DataError("there are no samples to round with", code="EQ-D300", hint="use --rounding nearest")
        self.graph, self.quantized, self.samples = graph, quantized, samples
        self.originals = {n.name: n for n in graph.graph.nodes}
        self._exact: dict[fx.Node, list[Any]] = {}
        self._rough: dict[fx.Node, list[Any]] = {}
        self._weights: list[Tensor] = []

    def run(self, visit: Callable[[fx.Node, Inputs], None]) -> None:
        """Run; `visit` sees each quantized node with what it reads before it is computed."""
        free_exact, free_rough = _last_uses(self.graph), _last_uses(self.quantized)
        inputs = iter(range(len(self.samples[0])))
        for node in list(self.quantized.graph.nodes):
            if node.op == "output":
                return
            original = self.originals.get(node.name)
            if node.op == "placeholder":
                position = next(inputs)
                values = [sample[position] for sample in self.samples]
                self._rough[node] = values
                if original is not None:
                    self._exact[original] = values
                continue
            if node.op == "get_attr":
                continue
            if original is not None:
                self._offer(node, original, visit)
                self._exact[original] = self._compute(self.graph, original, self._exact)
                if op_kind(original) == "softmax" and len(shape_of(original)) >= 3:
                    self._weights = [attention_received(p) for p in self._exact[original]]
                _drop(self._exact, free_exact.get(original, ()))
            self._rough[node] = self._compute(self.quantized, node, self._rough)
            if original is not None:
                self._require_finite(node, self._exact[original])
            _drop(self._rough, free_rough.get(node, ()))

    def _offer(self, node: fx.Node, original: fx.Node, visit: Callable[[fx.Node, Inputs], None]) -> None:
        source, truth = (n.args[0] if n.args else None for n in (node, original))
        if isinstance(source, fx.Node) and isinstance(truth, fx.Node) and truth in self._exact:
            visit(node, Inputs(self._exact[truth], self._rough[source], self._weights))

    def _compute(self, gm: fx.GraphModule, node: fx.Node, values: dict[fx.Node, list[Any]]) -> list[Any]:
        target: Any = node.target
        results = []
        # Constants are read when they are used: layers on the way replace them.
        constants = {n: fetch(gm, str(n.target)) for n in node.all_input_nodes if n.op == "get_attr"}
        for i in range(len(self.samples)):
            sample = constants | {n: values[n][i] for n in node.all_input_nodes if n not in constants}
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), sample.__getitem__)
            results.append(target(*args, **kwargs))
        return results

    def _require_finite(self, node: fx.Node, exact: list[Any]) -> None:
        """Refuse what is finite in float only; masks are infinite in both."""
        for rough, truth in zip(self._rough[node], exact, strict=True):
            if not isinstance(rough, Tensor) or not rough.is_floating_point():
                return
            # A finite sum has finite terms, and is quicker to know.
            if not bool(torch.isfinite(rough.sum())) and bool((torch.isfinite(truth) & ~torch.isfinite(rough)).any()):
                raise ModelError(
                    f"{node.name} {tuple(rough.shape)} becomes NaN or infinite once quantized",
                    code="EQ-M301",
                    place=node.name,
                    hint="try --rounding nearest, or --method minmax",
                )


def _last_uses(gm: fx.GraphModule) -> dict[fx.Node, list[fx.Node]]:
    """After which node which others are needed no more."""
    last: dict[fx.Node, fx.Node] = {}
    for node in gm.graph.nodes:
        for source in node.all_input_nodes:
            last[source] = node
    result: dict[fx.Node, list[fx.Node]] = {}
    for source, node in last.items():
        result.setdefault(node, []).append(source)
    return result


def _drop(values: dict[fx.Node, list[Any]], nodes: Sequence[fx.Node]) -> None:
    for node in nodes:
        values.pop(node, None)
