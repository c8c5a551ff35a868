"""What a rounder is asked and what it answers, the same for all of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgeq.errors import UsageError
from edgeq.progress import Advance
from edgeq.quant.rounding.grid import WeightGrid, require_matrix
from edgeq.quant.rounding.moments import LayerMoments, Moments
from edgeq.quant.rounding.second_order import Retargeted, excess_error, mean_bias, retarget
from edgeq.spec import QParams


@dataclass(frozen=True, eq=False)
class LayerProblem:
    """One linear-like layer to round: `y = W x + b`, with `x` replaced by `xq` and W by codes.

    The layer's output error is a quadratic function of its weight, so the moments are all that any rounder here
    needs; rows are not kept.

    Args:
        weight: Float weight `(O, I)`; a convolution is flattened, each group is a problem of its own.
        qparams: Its grid.
        moments: Inputs of the layer; empty (`LayerMoments(I)`) where there are none.
        bias: Float bias `(O,)`; None means 0.
        target: What to round in place of `weight`, made by `retarget`; `weight` itself when None.
        adjust_bias: The bias may change, so that errors of the mean do not count; False for a layer without bias.

    Raises:
        UsageError: The shapes do not fit.
        ModelError: A weight is NaN or infinite.
    """

    weight: Tensor
    qparams: QParams
    moments: LayerMoments
    bias: Tensor | None = None
    target: Tensor | None = None
    adjust_bias: bool = True

    def __post_init__(self) -> None:
        for weight in (self.weight, self.goal):
            require_matrix(weight)
        outputs, inputs = self.weight.shape
        bias = () if self.bias is None else tuple(self.bias.shape)
        if self.goal.shape != self.weight.shape or inputs != self.moments.width or bias not in ((), (outputs,)):
            raise UsageError(
                f"weight {tuple(self.weight.shape)}, target {tuple(self.goal.shape)}, bias {bias} and "
                f"{self.moments.width} inputs do not fit",
                code="EQ-U222",
                hint="flatten a convolution to (outputs, inputs * kh * kw)",
            )
        WeightGrid.of(self.qparams, self.goal)

    @property
    def goal(self) -> Tensor:
        """The weight to round: `target`, or `weight`."""
        return self.weight if self.target is None else self.target

    def retargeted(self) -> tuple[LayerProblem, Retargeted]:
        """The problem with its target set by `retarget`, and what that found."""
        found = retarget(self.weight, self.moments, centred=self.adjust_bias)
        return replace(self, target=found.weight), found

    def answer(self, codes: Tensor, qparams: QParams | None = None, note: str = "") -> Rounded:
        """The answer that these codes are, with its bias; on the problem's grid when no other is given."""
        grid = self.qparams if qparams is None else qparams
        rounded = Rounded(codes.to(torch.int32), grid, torch.zeros(codes.shape[0], dtype=torch.float64), note)
        if not self.adjust_bias:
            return rounded
        return replace(rounded, bias_delta=mean_bias(self.weight, rounded.weight, self.moments))

    def error(self, quantized: Tensor, moments: Moments | None = None) -> float:
        """Output error of a rounded weight `(O, I)` up to a constant, by default on the rows that judge."""
        return excess_error(self.weight, quantized, moments or self.moments.judge, centred=self.adjust_bias)


@dataclass(frozen=True, eq=False)
class Rounded:
    """A rounder's answer.

    Args:
        codes: int32 `(O, I)`.
        qparams: The grid of the codes: the problem's, unless the rounder moves grids.
        bias_delta: Float64 `(O,)` to add to the bias, which makes the mean output exact; 0 where it may not change.
        note: What happened, in words; empty when there is nothing to tell.
    """

    codes: Tensor
    qparams: QParams
    bias_delta: Tensor
    note: str = ""

    @property
    def weight(self) -> Tensor:
        """Float32 values of the codes, `(O, I)`."""
        return WeightGrid.of(self.qparams, self.codes).reals(self.codes)


@dataclass(frozen=True)
class Effort:
    """How long a rounder that iterates may work; the others need none.

    Args:
        iterations: Steps; the rounder's own number when None.
        learning_rate: Step size; the rounder's own when None.
        budget_seconds: Stop after this time with the best found; the result then depends on the machine.
        advance: Called with the number of steps done since its last call.

    Raises:
        UsageError: A number is not positive.
    """

    iterations: int | None = None
    learning_rate: float | None = None
    budget_seconds: float | None = None
    advance: Advance | None = None

    def __post_init__(self) -> None:
        for name in ("iterations", "learning_rate", "budget_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{name} must be positive, not {value}", code="EQ-U223")

    def steps(self, iterations: int) -> Iterator[float]:
        """The progress, from 0 to below 1, of each step to make; reports each one when the next is asked for.

        Args:
            iterations: The rounder's own number of steps.
        """
        total = iterations if self.iterations is None else self.iterations
        start = time.monotonic()
        for step in range(total):
            progress = step / total
            if self.budget_seconds is not None:
                spent = (time.monotonic() - start) / self.budget_seconds
                if spent >= 1:
                    return
                progress = max(progress, spent)  # schedules end in time, too
            yield progress
            if self.advance is not None:
                self.advance(1)
