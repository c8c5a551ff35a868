"""The grid of a weight spread to one scale for each value: what every rounder works on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgeq.errors import ModelError, UsageError
from edgeq.quant.uniform import group_shape
from edgeq.spec import PerChannel, PerGroup, QParams


@dataclass(frozen=True, eq=False)
class WeightGrid:
    """A grid spread over a weight of any shape.

    Args:
        scale: Float32, shape of the weight.
        zero: Zero points as float32, shape of the weight.
        qmin: Lowest code.
        qmax: Highest code.
    """

    scale: Tensor
    zero: Tensor
    qmin: int
    qmax: int

    @classmethod
    def of(cls, qparams: QParams, weight: Tensor) -> WeightGrid:
        """Spread `qparams` over a weight.

        Raises:
            UsageError: The weight is empty, or the grid does not fit it.
            ModelError: The weight holds NaN or infinity.
        """
        require_weight(weight)
        scale, zero = (spread(torch.from_numpy(v), qparams, weight.shape) for v in (qparams.scale, qparams.zero_point))
        return cls(scale.to(torch.float32), zero.to(torch.float32), qparams.spec.qmin, qparams.spec.qmax)

    def codes(self, weight: Tensor) -> Tensor:
        """Nearest codes of a weight, as float32: the arithmetic of `edgeq.quant.uniform.quantize`."""
        steps = torch.round(weight.to(torch.float32) * (1.0 / self.scale))
        return torch.clamp(steps + self.zero, self.qmin, self.qmax)

    def reals(self, codes: Tensor) -> Tensor:
        """Float32 values of codes."""
        return (codes.to(torch.float32) - self.zero) * self.scale


def spread(values: Tensor, qparams: QParams, shape: torch.Size) -> Tensor:
    """Values given for each scale of a grid, repeated for each weight that shares it; differentiable.

    Args:
        values: Shape of `qparams.scale`.
        qparams: The grid, for its granularity.
        shape: Shape of the weight.

    Raises:
        UsageError: The grid does not fit the shape.
    """
    granularity = qparams.spec.granularity
    if values.ndim == 0:
        return values.expand(shape)
    if isinstance(granularity, PerGroup):
        rows, groups, size = group_shape(shape, granularity.size)
        if tuple(values.shape) == (rows, groups):
            return values.repeat_interleave(size, dim=1).reshape(shape)
    elif values.ndim == 1:
        axis = granularity.axis if isinstance(granularity, PerChannel) else 0
        if -len(shape) <= axis < len(shape) and shape[axis] == values.shape[0]:
            view = [1] * len(shape)
            view[axis] = -1
            return values.reshape(view).expand(shape)
    raise UsageError(
        f"scales of shape {tuple(values.shape)} do not fit a weight of shape {tuple(shape)}",
        code="EQ-U222",
        hint="make the grid with weight_qparams() from the same tensor and spec",
    )


def require_weight(weight: Tensor) -> None:
    """Raise unless `weight` is finite and not empty."""
    if weight.numel() == 0:
        raise UsageError(
            f"a weight of shape {tuple(weight.shape)} has no values to round",
            code="EQ-U222",
            hint="remove the empty layer from the model",
        )
    if not bool(torch.isfinite(weight).all()):
        raise ModelError(
            "a weight to round is NaN or infinite",
            code="EQ-M220",
            hint="the checkpoint is damaged, or an earlier weight correction diverged",
        )


def require_matrix(weight: Tensor) -> None:
    """Raise unless `weight` is a finite matrix `(O, I)` that is not empty."""
    if weight.ndim != 2:
        raise UsageError(
            f"this rounder takes a matrix (outputs, inputs), not shape {tuple(weight.shape)}",
            code="EQ-U222",
            hint="flatten a convolution to (outputs, inputs * kh * kw)",
        )
    require_weight(weight)
