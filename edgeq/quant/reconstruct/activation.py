"""Fake quantization of an activation with a scale that can be learned, and values that are dropped back to float."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from edgeq.errors import UsageError
from edgeq.quant.rounding.soft import round_straight
from edgeq.quant.uniform import fake_quantize
from edgeq.spec import PerChannel, PerTensor, QParams


class LearnedScale(nn.Module):
    """Quantizes what passes through it; to be put into a block behind each activation that gets a grid.

    LSQ (Esser et al. 2020, arXiv 1902.08153, equations 1 to 3) with a fixed zero point. Deviations: the logarithm of
    the scale is learned, relative to the scale it started with, so that one step size suits activations of any size and
    no scale becomes negative; the gradient is not divided by the root of the number of values, which Adam would undo.
    In learning, a share of the values stays float (QDrop, Wei et al. 2022, arXiv 2203.05740, equation 10).

    Outside of learning the result is `edgeq.quant.uniform.fake_quantize`, bit for bit, and carries no gradient.

    Args:
        qparams: The grid to start with, per tensor or per channel.

    Raises:
        UsageError: One scale per group.
    """

    def __init__(self, qparams: QParams) -> None:
        super().__init__()
        if not isinstance(qparams.spec.granularity, PerTensor | PerChannel):
            raise UsageError(
                f"an activation has no scales for {qparams.spec.granularity}",
                code="EQ-U285",
                hint="use one scale per tensor, or per channel where the runtime has it",
            )
        self.start = qparams
        self.log_factor = nn.Parameter(torch.zeros(qparams.scale.shape))
        self._learning: tuple[torch.Generator, float] | None = None

    def qparams(self) -> QParams:
        """The grid as learned so far."""
        factor = self.log_factor.detach().double().exp().numpy()
        return replace(self.start, scale=(self.start.scale.astype("float64") * factor).astype("float32"))

    def learn(self, generator: torch.Generator | None, drop: float = 0.0) -> None:
        """Switch learning on, or off with None.

        Args:
            generator: Draws the values that stay float.
            drop: Their share, 0 to 1.
        """
        self._learning = None if generator is None else (generator, drop)

    def forward(self, x: Tensor) -> Tensor:
        """`x` on the grid, of the same shape."""
        if self._learning is None:
            return fake_quantize(x, self.qparams())
        generator, drop = self._learning
        spec, shape = self.start.spec, _broadcast(self.start, x)
        start = torch.from_numpy(self.start.scale).reshape(shape)
        zero_point = torch.from_numpy(self.start.zero_point).reshape(shape).float()
        scale = start * self.log_factor.reshape(shape).exp()
        codes = torch.clamp(round_straight(x / scale) + zero_point, spec.qmin, spec.qmax)
        quantized: Tensor = (codes - zero_point) * scale
        if drop == 0:
            return quantized
        return torch.where(torch.rand(x.shape, generator=generator) < drop, x, quantized)


def _broadcast(qparams: QParams, x: Tensor) -> list[int]:
    granularity = qparams.spec.granularity
    shape = [1] * x.ndim
    if isinstance(granularity, PerChannel):
        fits = -x.ndim <= granularity.axis < x.ndim and x.shape[granularity.axis] == math.prod(qparams.scale.shape)
        if not fits:
            raise UsageError(
                f"scales of shape {qparams.scale.shape} along axis {granularity.axis} for {tuple(x.shape)}",
                code="EQ-U285",
                hint="choose the grid from the tensor that it quantizes",
            )
        shape[granularity.axis] = -1
    return shape
