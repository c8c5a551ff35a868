"""Calibration without data: inputs distilled from what batch norms remember of the training set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from edgeq.errors import ModelError, UsageError
from edgeq.progress import Advance
from edgeq.quant.evaluation import evaluation_mode

_RATE = 0.5
_LEAST_RATE = 1e-4
_EPSILON = 1e-5


@dataclass(frozen=True, eq=False)
class Distilled:
    """Synthetic inputs and how well they match.

    Args:
        inputs: Float32 `(count, *shape)`.
        before: Distance of the statistics of plain noise; see `distill_inputs`.
        after: Distance of those of `inputs`.
    """

    inputs: Tensor
    before: float
    after: float


def distill_inputs(
    module: nn.Module,
    shape: Sequence[int],
    *,
    count: int = 32,
    iterations: int = 500,
    seed: int = 0,
    class_weight: float = 0.0,
    progress: Advance | None = None,
) -> Distilled:
    """Inputs for which every batch norm receives the mean and variance it remembers.

    ZeroQ (Cai et al. 2020, arXiv 2001.00281): noise moved by Adam (rate 0.5, divided by ten on a plateau of a fifth of
    the iterations) until the batch's statistics match those of every batch norm, and those of N(0, 1) at the input.
    Deviations: distances are in units of each channel's own deviation, so that no layer drowns another, and the best
    inputs seen are kept, not the last. `class_weight` adds the cross-entropy to an even choice of classes, so that the
    network's confident responses, and with them its largest activations, occur; the idea is that of accurate
    activation clipping (He et al. 2022, arXiv 2204.04215), whose loss differs.

    The distance is the sum over batch norms and input of the mean over channels of
    `((m - mean) / std)^2 + ((s - std) / std)^2`. The inputs are what the network takes: preprocessed to about N(0, 1).

    Args:
        module: Network with batch norms in the form of modules, or a graph with such modules or `aten.batch_norm`.
        shape: Of one input, without the batch: `(C, ...)`.
        count: Inputs; they are moved together, and statistics are over all of them. Call again with another seed for
            more than fit in memory.
        iterations: Steps of Adam.
        seed: Of the noise.
        class_weight: Weight of the cross-entropy; above 0 the network must give logits `(N, classes)`.
        progress: Called with 1 after each iteration.

    Raises:
        UsageError: An option out of bounds.
        ModelError: The network has no batch norms, does not take such inputs, gives no logits, or is not finite.
    """
    _require_options(shape, count, iterations, class_weight)
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, *shape, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([inputs], lr=_RATE)
    patience = max(1, iterations // 5)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, min_lr=_LEAST_RATE, patience=patience)
    best, least, before, after = inputs.detach().clone(), math.inf, math.inf, math.inf
    with evaluation_mode(module), torch.enable_grad(), _watched(module) as network:
        for iteration in range(iterations + 1):
            logits, distance = network.match(inputs)
            loss = distance + class_weight * _class_loss(logits, count) if class_weight > 0 else distance
            value = _finite(loss)
            if iteration == 0:
                before = float(distance.detach())
            if value < least:
                best, least, after = inputs.detach().clone(), value, float(distance.detach())
            if iteration == iterations:
                break
            (inputs.grad,) = torch.autograd.grad(loss, inputs)
            optimizer.step()
            schedule.step(value)
            if progress is not None:
                progress(1)
    return Distilled(best, before, after)


def statistics_distance(module: nn.Module, inputs: Tensor) -> float:
    """Distance of the statistics of given inputs from those remembered; see `distill_inputs`.

    Args:
        module: As for `distill_inputs`.
        inputs: `(count, *shape)`.

    Raises:
        ModelError: As `distill_inputs`.
    """
    with evaluation_mode(module), torch.no_grad(), _watched(module) as network:
        return float(network.match(inputs)[1])


class _Network:
    """A network that adds up the distances of its batch norms as it runs."""

    def __init__(self, module: nn.Module) -> None:
        self._run = _Interpreter(module, self).run if isinstance(module, fx.GraphModule) else module
        self._terms: list[Tensor] = []

    def match(self, inputs: Tensor) -> tuple[Any, Tensor]:
        """Output, and the distance including that of the input itself."""
        self._terms = []
        try:
            output = self._run(inputs)
        except RuntimeError as error:
            raise ModelError(
                f"the network cannot take inputs of shape {tuple(inputs.shape)}: {error}",
                code="EQ-M245",
                hint="give the shape of one preprocessed input, without the batch, and the count it was exported for",
            ) from error
        channels = torch.zeros(inputs.shape[1])
        self.compare(inputs, channels, channels + 1)
        return output, torch.stack(self._terms).sum()

    def compare(self, values: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Add the distance of `values` `(N, C, ...)` from `mean` and `variance` `(C,)`."""
        rows = values.movedim(1, 0).flatten(1)
        deviation = (variance + _EPSILON).sqrt()
        shift = (rows.mean(1) - mean) / deviation
        spread = (rows.var(1, correction=0) + _EPSILON).sqrt() / deviation - 1
        self._terms.append((shift.square() + spread.square()).mean())

    def hook(self, norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Compare what a batch norm is about to receive."""
        assert isinstance(norm, _BatchNorm), "registered on batch norms only"
        if norm.running_mean is not None and norm.running_var is not None:
            self.compare(inputs[0], norm.running_mean, norm.running_var)


class _Interpreter(fx.Interpreter):
    """Runs a graph and compares at its batch-norm functions; its modules have hooks."""

    def __init__(self, graph: fx.GraphModule, network: _Network) -> None:
        super().__init__(graph)
        self._network = network

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compare, then run."""
        if _is_batch_norm(target):
            names = [argument.name for argument in target._schema.arguments]
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            if given.get("running_mean") is not None and given.get("running_var") is not None:
                self._network.compare(given["input"], given["running_mean"], given["running_var"])
        return super().call_function(target, args, kwargs)


@contextmanager
def _watched(module: nn.Module) -> Iterator[_Network]:
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.running_var is not None]
    functions = module.graph.nodes if isinstance(module, fx.GraphModule) else ()
    if not norms and not any(_is_batch_norm(node.target) for node in functions):
        raise ModelError(
            "data-free calibration is only for networks with batch norms: this one remembers no statistics",
            code="EQ-M240",
            hint="calibrate with real samples; batch norms that were folded or fused are gone as well",
        )
    network = _Network(module)
    with ExitStack() as hooks:
        for norm in norms:
            hooks.callback(norm.register_forward_pre_hook(network.hook).remove)
        yield network


def _is_batch_norm(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and "batch_norm" in str(target)


def _finite(loss: Tensor) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise ModelError("the network is not finite", code="EQ-M241", hint="check the network in float")
    return value


def _class_loss(logits: Any, count: int) -> Tensor:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
        raise ModelError(
            "the network gives no logits (N, classes), so there are no classes to aim at",
            code="EQ-M243",
            hint="distill without class_weight",
        )
    return functional.cross_entropy(logits, torch.arange(count) % logits.shape[1])


def _require_options(shape: Sequence[int], count: int, iterations: int, class_weight: float) -> None:
    if not shape or min(shape) < 1 or count < 2 or iterations < 1 or not 0 <= class_weight < math.inf:
        raise UsageError(
            f"cannot distill {count} inputs of shape {tuple(shape)} in {iterations} iterations with a class weight of "
            f"{class_weight}",
            code="EQ-U245",
            hint="use two inputs or more, of a shape without the batch, for example (3, 224, 224)",
        )
