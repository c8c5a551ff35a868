"""Layers with correlated inputs, and inputs that drifted on their way through quantized layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgeq.quant.rounding.moments import LayerMoments


@dataclass(frozen=True, eq=False)
class Layer:
    """A float layer with calibration rows and unseen rows: float inputs `x`, quantized inputs `xq`."""

    weight: Tensor
    bias: Tensor
    x: Tensor
    xq: Tensor
    unseen_x: Tensor
    unseen_xq: Tensor

    def moments(self, *, drift: bool = True, batches: int = 8, holdout_every: int = 4) -> LayerMoments:
        result = LayerMoments(self.weight.shape[1], holdout_every=holdout_every)
        for x, xq in zip(self.x.chunk(batches), self.xq.chunk(batches), strict=True):
            result.update(xq, x if drift else None)
        return result


def make_layer(
    outputs: int = 24, inputs: int = 32, rows: int = 1024, *, drift: float = 0.1, seed: int = 0, offset: float = 0.5
) -> Layer:
    """Inputs of low effective rank; the drift is a noisy, input-dependent distortion shared by all rows."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    mixing = 0.3 * torch.eye(inputs) + normal(max(inputs // 8, 1), inputs).T @ normal(max(inputs // 8, 1), inputs) / 4
    distortion = normal(inputs, inputs) / inputs**0.5

    def draw(count: int) -> tuple[Tensor, Tensor]:
        x = normal(count, inputs) @ mixing + offset
        xq = x + drift * (x @ distortion) + drift * x.square().mean().sqrt() * normal(count, inputs)
        return x, xq

    x, xq = draw(rows)
    unseen_x, unseen_xq = draw(rows)
    return Layer(normal(outputs, inputs) / inputs**0.5, normal(outputs), x, xq, unseen_x, unseen_xq)
