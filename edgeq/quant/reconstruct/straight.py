"""Weights that move freely and are rounded in the forward pass: the plainest of the learned roundings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeq.quant.rounding.soft import SoftRounding, round_straight
from edgeq.spec import QParams


class StraightThrough(SoftRounding):
    """Learns the weights themselves; rounding passes gradients straight through, the grid is kept.

    Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons" (arXiv 1308.3432); what I&S-ViT
    (Zhong et al. 2023, arXiv 2311.10126, section 3.3) fine-tunes its blocks with. Deviation: weights are learned in
    steps of their grid, so that one learning rate suits layers of any size. Unlike in SignRound, a weight may move by
    many steps.

    Args:
        weight: The target, any shape.
        qparams: Its grid.
    """

    def __init__(self, weight: Tensor, qparams: QParams) -> None:
        super().__init__(weight, qparams)
        self.shift = nn.Parameter(torch.zeros_like(self.target))

    def _codes(self) -> Tensor:
        steps = self.target * (1.0 / self.grid.scale) + self.shift
        return torch.clamp(round_straight(steps) + self.grid.zero, self.grid.qmin, self.grid.qmax)

    def weight(self) -> Tensor:
        """The fake-quantized weight."""
        return (self._codes() - self.grid.zero) * self.grid.scale

    @torch.no_grad()
    def codes(self) -> Tensor:
        """The rounded, moved weights."""
        return self._codes().to(torch.int32)

    def learning_rate(self, iterations: int) -> float:
        """1e-3 steps at 1000 iterations: the published 4e-5 for weights whose 4-bit step is some 0.04."""
        return min(1e-2, 1e-3 * 1000 / max(iterations, 1))
