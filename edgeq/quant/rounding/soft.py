"""Differentiable rounding of one weight: what AdaRound, FlexRound and SignRound learn, for layers and for blocks.

A soft rounding starts at (or near) nearest rounding. Whoever trains it runs the layer with `weight()`, adds
`regularizer(progress)` to a loss that was 1 at nearest rounding, calls `backward()` and steps a `Descent` (blocks are
trained by `edgeq.quant.reconstruct.fit`, with a schedule of its own); `codes()` and `qparams()` are the result at any
moment. Weights may have any shape.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from edgeq.errors import UsageError
from edgeq.quant.rounding.grid import WeightGrid, spread
from edgeq.spec import QParams

_STRETCH = (-0.1, 1.1)  # AdaRound's gamma and zeta: the sigmoid reaches 0 and 1 at finite values
_WARM_UP = 0.2
_BETA = (20.0, 2.0)
_LEAST_CLIP = 0.1


class SoftRounding(nn.Module, ABC):
    """A weight on its way to codes.

    Args:
        weight: The target, any shape; not changed.
        qparams: Its grid, where the learning starts.

    Raises:
        UsageError: The grid does not fit the weight.
        ModelError: The weight holds NaN or infinity.
    """

    sign_descent = False
    """Step by the sign of the gradient instead of by Adam."""

    own_rate = False
    """Its learning rate is its own, whatever rate is set for weights."""

    decay = True
    """Let the step size of a `Descent` fall to 0 linearly."""

    def __init__(self, weight: Tensor, qparams: QParams) -> None:
        super().__init__()
        self.grid = WeightGrid.of(qparams, weight)
        self.start = qparams
        self.register_buffer("target", weight.detach().to(torch.float32).clone())
        self.target: Tensor

    @abstractmethod
    def weight(self) -> Tensor:
        """The fake-quantized weight, float32 of the weight's shape, differentiable in the parameters."""

    @abstractmethod
    def codes(self) -> Tensor:
        """The codes that the parameters stand for now, int32 of the weight's shape."""

    @abstractmethod
    def learning_rate(self, iterations: int) -> float:
        """A step size that suits a training of so many iterations."""

    def qparams(self) -> QParams:
        """The grid of the codes: the one it started with, unless the kind learns scales."""
        return self.start

    def regularizer(self, progress: float) -> Tensor:
        """What to add to a loss that is about 1 at nearest rounding; `progress` runs from 0 to 1. Scalar."""
        del progress
        return self.target.new_zeros(())

    @torch.no_grad()
    def project(self) -> None:
        """Put the parameters back in their ranges after a step."""


class AdaRound(SoftRounding):
    """Learns for every weight whether to round it up or down.

    Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization" (arXiv 2004.10568), section 3:
    `s (clip(floor(W / s) + h(V) + z) - z)` with `h = clip(1.2 sigmoid(V) - 0.1, 0, 1)`, and the regularizer
    `1 - |2h - 1|^beta` with beta falling from 20 to 2 after the first fifth. Deviation: the regularizer is the mean
    over weights, for a loss relative to nearest rounding, in place of 0.01 times the sum for an absolute loss; so it
    does not depend on the size or the units of the layer.

    Args:
        weight: The target.
        qparams: Its grid, which is kept.
        strength: Factor of the regularizer; weaker ones leave weights undecided in short trainings.
    """

    decay = False  # the last decisions are forced at the end

    def __init__(self, weight: Tensor, qparams: QParams, *, strength: float = 10.0) -> None:
        super().__init__(weight, qparams)
        steps = self.target / self.grid.scale
        self._floor = torch.floor(steps)
        low, high = _STRETCH
        share = (steps - self._floor).clamp(0, 1)
        self.logit = nn.Parameter(-torch.log((high - low) / (share - low) - 1))
        self._strength = strength

    def _up(self) -> Tensor:
        low, high = _STRETCH
        return torch.clamp(torch.sigmoid(self.logit) * (high - low) + low, 0, 1)

    def weight(self) -> Tensor:
        """The weight with each value a share `h` of a step above its floor."""
        grid = self.grid
        codes = torch.clamp(self._floor + self._up() + grid.zero, grid.qmin, grid.qmax)
        return (codes - grid.zero) * grid.scale

    @torch.no_grad()
    def codes(self) -> Tensor:
        """Floor or ceiling of each weight, whichever the share is nearer to."""
        up = (self.logit > 0).to(torch.float32)
        return torch.clamp(self._floor + up + self.grid.zero, self.grid.qmin, self.grid.qmax).to(torch.int32)

    def regularizer(self, progress: float) -> Tensor:
        """0 in the first fifth, then the mean indecision: at most `strength`, 0 when every weight is decided."""
        if progress < _WARM_UP:
            return self.target.new_zeros(())
        start, end = _BETA
        beta = end + (start - end) * (1 - min((progress - _WARM_UP) / (1 - _WARM_UP), 1.0))
        return self._strength * (1 - (2 * self._up() - 1).abs().pow(beta)).mean()

    def learning_rate(self, iterations: int) -> float:
        """0.1 up to 1000 iterations, less for more: 5e-3 at 20 000, where the paper's code has 3e-3."""
        return min(0.1, 100 / max(iterations, 1))


class FlexRound(SoftRounding):
    """Learns what to divide each weight by before rounding, and the scale to multiply with after it.

    Lee et al. 2023, "FlexRound: Learnable Rounding based on Element-wise Division" (arXiv 2306.00317), section 3:
    `s1 (clip(round(W / (s1 S2 s3)) + z) - z)`, with S2 for every weight, s3 for every output and, for a convolution,
    s4 for every input; large weights get large gradients and may move several steps. Deviation: factors are learned
    as logarithms, so that they stay positive. Zero points are kept.

    Args:
        weight: The target, `(O, ...)`.
        qparams: Its grid; the scales are learned.
    """

    def __init__(self, weight: Tensor, qparams: QParams) -> None:
        super().__init__(weight, qparams)
        shape = list(weight.shape)
        self.log_scale = nn.Parameter(torch.from_numpy(qparams.scale).log())
        self.log_divisor = nn.Parameter(torch.zeros(shape))
        # s3, and s4 of a convolution
        axes = [0, 1] if len(shape) > 2 else [0]
        self.log_factors = nn.ParameterList(
            nn.Parameter(torch.zeros([n if i == axis else 1 for i, n in enumerate(shape)])) for axis in axes
        )

    def _steps(self) -> tuple[Tensor, Tensor]:
        """Spread scales, and codes without zero point."""
        grid = self.grid
        scale = spread(self.log_scale.exp(), self.start, self.target.shape)
        divisor = self.log_divisor
        for factor in self.log_factors:
            divisor = divisor + factor
        codes = torch.clamp(round_straight(self.target / (scale * divisor.exp())) + grid.zero, grid.qmin, grid.qmax)
        return scale, codes - grid.zero

    def weight(self) -> Tensor:
        """The fake-quantized weight; rounding passes gradients straight through."""
        scale, steps = self._steps()
        return scale * steps

    @torch.no_grad()
    def codes(self) -> Tensor:
        """The rounded quotients."""
        return (self._steps()[1] + self.grid.zero).to(torch.int32)

    def qparams(self) -> QParams:
        """The grid with the learned scales."""
        return replace(self.start, scale=self.log_scale.detach().exp().numpy())

    def learning_rate(self, iterations: int) -> float:
        """0.02 up to 500 iterations, less for more; the step size decays, so it is above the paper's constant ones."""
        return min(0.02, 10 / max(iterations, 1))


class SignRound(SoftRounding):
    """Learns a shift of up to half a step for each weight, and how far to clip, by the sign of the gradient.

    Cheng et al. 2023, "Optimize Weight Rounding via Signed Gradient Descent" (arXiv 2309.05516), section 3:
    `s (clip(round(W / s + V) + z) - z)` with V in [-0.5, 0.5]; the ends of the range are multiplied by factors in
    (0, 1] before the scale is computed. Deviation: the range shrunk is that of the
    given grid, and to no less than a tenth. A symmetric grid has one factor for both ends.

    Args:
        weight: The target.
        qparams: Its grid; range and zero point are learned.
    """

    sign_descent = True

    def __init__(self, weight: Tensor, qparams: QParams) -> None:
        super().__init__(weight, qparams)
        spec = qparams.spec
        scale, zero = torch.from_numpy(qparams.scale), torch.from_numpy(qparams.zero_point)
        self._low, self._high = (spec.qmin - zero) * scale, (spec.qmax - zero) * scale
        self.shift = nn.Parameter(torch.zeros_like(self.target))
        self.clip_high = nn.Parameter(torch.ones_like(scale))
        self.clip_low = nn.Parameter(torch.ones_like(scale), requires_grad=not spec.symmetric)

    def _grid(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, in the shape of the grid."""
        spec = self.start.spec
        start = torch.from_numpy(self.start.scale)
        if spec.symmetric:
            return start * self.clip_high, torch.zeros_like(start)
        low, high = self._low * self.clip_low, self._high * self.clip_high
        scale = (high - low) / (spec.qmax - spec.qmin)
        return scale, torch.clamp(round_straight(spec.qmin - low / scale), spec.qmin, spec.qmax)

    def _steps(self) -> tuple[Tensor, Tensor, Tensor]:
        """Spread scales, spread zero points and codes."""
        scale, zero = (spread(v, self.start, self.target.shape) for v in self._grid())
        codes = torch.clamp(round_straight(self.target / scale + self.shift) + zero, self.grid.qmin, self.grid.qmax)
        return scale, zero, codes

    def weight(self) -> Tensor:
        """The fake-quantized weight; rounding passes gradients straight through."""
        scale, zero, codes = self._steps()
        return (codes - zero) * scale

    @torch.no_grad()
    def codes(self) -> Tensor:
        """The rounded, shifted weights."""
        return self._steps()[2].to(torch.int32)

    @torch.no_grad()
    def qparams(self) -> QParams:
        """The grid of the clipped range."""
        scale, zero = self._grid()
        return replace(self.start, scale=scale.numpy(), zero_point=zero.to(torch.int32).numpy())

    @torch.no_grad()
    def project(self) -> None:
        """Shifts to half a step, factors to (0, 1]."""
        self.shift.clamp_(-0.5, 0.5)
        self.clip_high.clamp_(_LEAST_CLIP, 1.0)
        self.clip_low.clamp_(_LEAST_CLIP, 1.0)

    def learning_rate(self, iterations: int) -> float:
        """1 / iterations: with the linear decay, every shift can just reach half a step."""
        return 1.0 / max(iterations, 1)


SOFT_ROUNDINGS: Mapping[str, Callable[[Tensor, QParams], SoftRounding]] = {
    "adaround": AdaRound,
    "flexround": FlexRound,
    "signround": SignRound,
}
"""Soft roundings by the name of their rounder: `(weight, qparams) -> SoftRounding`."""


class Descent:
    """Steps the parameters of soft roundings: Adam or sign descent, with a constant or falling step size.

    Args:
        roundings: Those trained together, of one kind.
        iterations: Number of steps to come.
        learning_rate: Step size; the kind's own when None.

    Raises:
        UsageError: No rounding, mixed kinds, or numbers that are not positive.
    """

    def __init__(self, roundings: Sequence[SoftRounding], iterations: int, learning_rate: float | None = None) -> None:
        if len({type(r) for r in roundings}) != 1 or iterations < 1:
            raise UsageError(f"cannot train {len(roundings)} roundings for {iterations} iterations", code="EQ-U223")
        rate = roundings[0].learning_rate(iterations) if learning_rate is None else learning_rate
        if not 0 < rate < math.inf:
            raise UsageError(f"the learning rate must be positive, not {rate}", code="EQ-U223")
        self._roundings, self._rate = tuple(roundings), rate
        self._parameters = [p for r in roundings for p in r.parameters() if p.requires_grad]
        self._adam = None if roundings[0].sign_descent else torch.optim.Adam(self._parameters, lr=rate)

    @torch.no_grad()
    def step(self, progress: float) -> None:
        """Use and clear the gradients that `loss.backward()` left; `progress` runs from 0 to 1 over the training."""
        rate = self._rate * (1 - progress) if self._roundings[0].decay else self._rate
        if self._adam is not None:
            for group in self._adam.param_groups:
                group["lr"] = rate
            self._adam.step()
        else:
            for parameter in self._parameters:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad.sign(), alpha=rate)
        for parameter in self._parameters:
            parameter.grad = None
        for rounding in self._roundings:
            rounding.project()


def round_straight(x: Tensor) -> Tensor:
    """Round half to even; the gradient passes as if it did not round (Bengio et al. 2013, arXiv 1308.3432)."""
    return x + (torch.round(x) - x).detach()
