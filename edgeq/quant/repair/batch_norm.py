"""Batch-norm statistics of a network whose weights have changed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeq.errors import DataError, ModelError, UsageError
from edgeq.progress import Advance
from edgeq.quant.evaluation import evaluation_mode

Batches = Sequence[tuple[Tensor, ...]]


@dataclass(frozen=True)
class BatchNormRepair:
    """What the new statistics brought.

    Args:
        layers: Names of the batch norms that were estimated.
        before: Mean squared output error against the reference, before.
        after: The same afterwards; equal to `before` when the old statistics were put back.
        applied: Whether the new statistics are in place.
    """

    layers: tuple[str, ...]
    before: float
    after: float
    applied: bool


@torch.no_grad()
def reestimate_batch_norm(
    module: nn.Module,
    reference: nn.Module,
    batches: Batches,
    *,
    holdout: Batches = (),
    progress: Advance | None = None,
) -> BatchNormRepair:
    """Recompute the running mean and variance of every batch norm for weights as they are now, in place.

    Rounded kernels shift and shrink what batch norms receive; AdaQuant (arXiv 2006.10518) and adaptive batch
    normalization (arXiv 2204.04215) re-estimate with the quantizers on. One pass, before batch norms are folded: each
    normalizes by its batch, as in training, and moments are pooled over the batches exactly (a moving average would
    forget the first ones and leave out the variance between batches). The old statistics come back when the output
    error does not fall.

    Args:
        module: Network with quantized weights (and activations, if they are simulated) and unfolded batch norms.
        reference: The float network.
        batches: Inputs, one tuple a batch; larger batches estimate better.
        holdout: Inputs to judge by; `batches` when empty.
        progress: Called with 1 after each batch of the pass.

    Raises:
        ModelError: There is no batch norm with running statistics, or an output is not finite.
        UsageError: There is no batch.
        DataError: A batch has a single value for each channel.
    """
    norms = {name: m for name, m in module.named_modules() if isinstance(m, _BatchNorm) and m.running_var is not None}
    if not norms:
        raise ModelError(
            "there is no batch norm with running statistics to re-estimate",
            code="EQ-M244",
            hint="only for networks with batch norms, before they are folded; use bias correction elsewhere",
        )
    if not batches:
        raise UsageError("batch norms need data to be re-estimated from", code="EQ-U244", hint="give a batch or more")
    judge = holdout or batches
    before = _output_error(module, reference, judge)
    pooled = {name: _Pooled() for name in norms}
    with evaluation_mode(module), ExitStack() as hooks:
        for name, norm in norms.items():
            hooks.callback(norm.register_forward_pre_hook(pooled[name].hook).remove)
            hooks.enter_context(_by_batch(norm))
        for batch in batches:
            module(*batch)
            if progress is not None:
                progress(1)
    seen = {name: norm for name, norm in norms.items() if pooled[name].count}
    after = _try([(norm, pooled[name]) for name, norm in seen.items()], before, module, reference, judge)
    return BatchNormRepair(tuple(seen), before, min(after, before), applied=after < before)


def _try(
    found: Sequence[tuple[_BatchNorm, _Pooled]], before: float, module: nn.Module, reference: nn.Module, judge: Batches
) -> float:
    """Set new statistics and return the output error with them; the old ones come back where it does not fall."""
    old = [(_buffer(norm.running_mean).clone(), _buffer(norm.running_var).clone()) for norm, _ in found]
    for norm, pooled in found:
        _set(norm, pooled.mean, pooled.variance)
    after = math.inf
    try:
        after = _output_error(module, reference, judge)
    finally:
        if not after < before:
            for (norm, _), values in zip(found, old, strict=True):
                _set(norm, *values)
    return after


class _Pooled:
    """Exact mean and variance of each channel over all batches, by the update of Chan, Golub and LeVeque 1979."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self._squares = torch.zeros(())

    @property
    def variance(self) -> Tensor:
        """Unbiased, as batch norms keep it."""
        return self._squares / (self.count - 1)

    def hook(self, norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Take in what a batch norm is about to receive, `(N, C, ...)` or `(N, C)`."""
        values = inputs[0].detach().to(torch.float64).movedim(1, 0).flatten(1)
        count = values.shape[1]
        if count < 2:
            raise DataError(
                f"a batch has {count} value for each channel of a {type(norm).__name__}: its variance is unknown",
                code="EQ-D241",
                hint="use larger batches",
            )
        mean = values.mean(1)
        total, delta = self.count + count, mean - self.mean
        self._squares = self._squares + (values - mean[:, None]).square().sum(1)
        self._squares = self._squares + delta.square() * self.count * count / total
        self.mean = self.mean + delta * count / total
        self.count = total


@contextmanager
def _by_batch(norm: _BatchNorm) -> Iterator[None]:
    """Normalize by the batch without touching the running statistics."""
    kept = norm.running_mean, norm.running_var
    norm.running_mean = norm.running_var = None  # batch norms without running statistics use those of the batch
    try:
        yield
    finally:
        norm.running_mean, norm.running_var = kept


def _output_error(module: nn.Module, reference: nn.Module, batches: Batches) -> float:
    total, count = 0.0, 0
    for batch in batches:
        for got, wanted in zip(_outputs(module, batch), _outputs(reference, batch), strict=True):
            total += float((got.double() - wanted.double()).square().sum())
            count += got.numel()
    if not count or total != total or total == float("inf"):
        raise ModelError("an output is empty, NaN or infinite", code="EQ-M241", hint="check the network in float")
    return total / count


def _outputs(module: nn.Module, batch: tuple[Tensor, ...]) -> list[Tensor]:
    with evaluation_mode(module):
        result = module(*batch)
    return [result] if isinstance(result, Tensor) else [value for value in result if isinstance(value, Tensor)]


def _set(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    _buffer(norm.running_mean).copy_(mean)
    _buffer(norm.running_var).copy_(variance)


def _buffer(value: Tensor | None) -> Tensor:
    assert value is not None, "only batch norms with running statistics are touched"
    return value
