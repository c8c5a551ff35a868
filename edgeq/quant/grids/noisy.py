"""NoisyQuant: a fixed noisy bias, added before quantization and taken out of the product afterwards.

Source: NoisyQuant (Liu et al., CVPR 2023, arXiv 2211.16056). A value at distance d from the nearest boundary between
two codes gains from uniform noise of amplitude n with `d <= n <= 2 h - d` (h: half a step) if
`d <= n (1 - sqrt(n / 3h))` (theorem 1), so that it pays where values crowd at boundaries. Deviations: the noise is
uniform as in the text (the released code draws it from a Gaussian), it is stored on an int16 grid from the start, and
the three searches go from coarse to fine and always include the plain grid, so that they never end worse than it on
the data they see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgeq.errors import UsageError
from edgeq.quant.grids.base import require_bits, require_finite, require_numbers, require_parameters
from edgeq.quant.uniform import dequantize, qparams_from_range, quantize
from edgeq.spec import QParams, QuantSpec

_INT16 = 32767


@dataclass(frozen=True, eq=False)
class NoisyGrid:
    """A symmetric uniform grid and the noise of each input channel: `real = scale * code - noise`.

    Args:
        qparams: Symmetric grid, one scale.
        noise_codes: int16 `(C,)`.
        noise_scale: Real of one step of the noise.
    """

    qparams: QParams
    noise_codes: Tensor
    noise_scale: float

    def __post_init__(self) -> None:
        flat = self.noise_codes.ndim == 1 and self.noise_codes.dtype == torch.int16
        require_parameters("noisy", noise_codes=flat, noise_scale=0 < self.noise_scale < np.inf)

    @property
    def noise(self) -> Tensor:
        """The noise of each channel, float32 `(C,)`."""
        return self.noise_codes.to(torch.float32) * self.noise_scale

    def quantize(self, x: Tensor) -> Tensor:
        """Codes of `x` `(..., C)`, int32, signed: what the matrix product of the layer is fed.

        Raises:
            DataError: `x` holds NaN.
            UsageError: `x` has another number of channels.
        """
        if x.shape[-1:] != self.noise_codes.shape:
            raise _misfit(f"inputs {tuple(x.shape)} do not fit noise for {len(self.noise_codes)} channels")
        return quantize(require_numbers(x) + self.noise, self.qparams)

    def dequantize(self, codes: Tensor) -> Tensor:
        """Reals of `codes` `(..., C)`, float32, the noise taken out again."""
        return dequantize(codes, self.qparams) - self.noise

    def bias_correction(self, weight: Tensor) -> Tensor:
        """What the layer's bias gains, float64 `(O,)`, for the weight `(O, C)` as it is after quantization.

        `Q(x + N) W^T + correction` is `(Q(x + N) - N) W^T`.
        """
        return -(weight.detach().to(torch.float64) @ self.noise.to(torch.float64))


@torch.no_grad()
def fit_noisy(x: Tensor, weight: Tensor, bits: int, *, seed: int = 0) -> NoisyGrid:
    """Grid and noise for the input of a linear layer, by the squared error of its output.

    Clip, then a shift common to all channels within one step, then the amplitude up to one step, each by itself.

    Args:
        x: Inputs of the layer, `(tokens, C)`.
        weight: Its weight, `(O, C)`, best as it is after quantization.
        bits: Width of a code.
        seed: Of the noise.

    Raises:
        DataError: The inputs are empty or hold NaN or infinity.
        UsageError: The shapes do not fit, or impossible bits.
    """
    require_bits("noisy", bits)
    x, weight = require_finite(x), require_finite(weight)
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise _misfit(f"inputs {tuple(x.shape)} do not fit a weight {tuple(weight.shape)}")
    spec = QuantSpec(bits, symmetric=True, narrow=True)
    limit = float(x.abs().amax()) or 1.0
    drawn = torch.rand(x.shape[1], generator=torch.Generator().manual_seed(seed)) * 2 - 1

    def grid(share: float, shift: float, amplitude: float) -> NoisyGrid:
        qparams = qparams_from_range(-limit * share, limit * share, spec)
        noise = (drawn * (amplitude / 2) + shift) * float(qparams.scale)
        scale = max(float(noise.abs().amax()) / _INT16, 2.0**-40)
        return NoisyGrid(qparams, torch.round(noise / scale).to(torch.int16), scale)

    def error(candidate: NoisyGrid) -> float:
        difference = candidate.dequantize(candidate.quantize(x)) - x
        return float((difference @ weight.T).square_().sum(dtype=torch.float64))

    share = _search(lambda value: error(grid(value, 0, 0)), 1.0, 1e-3, 1.0)
    shift = _search(lambda value: error(grid(share, value, 0)), 0.0, -1.0, 1.0)
    amplitude = _search(lambda value: error(grid(share, shift, value)), 0.0, 0.0, 2.0)
    return grid(share, shift, amplitude)


def _misfit(message: str) -> UsageError:
    return UsageError(
        message, code="EQ-U205", hint="give inputs as (tokens, C) and the weight of the same layer as (O, C)"
    )


def _search(error: Callable[[float], float], start: float, low: float, high: float) -> float:
    """The best of `start` and 33 even values, then twice of 9 around the best; the first of equals."""
    best, least = start, error(start)
    values = np.linspace(low, high, 33)
    step = (high - low) / 32
    for _ in range(3):
        for value in values.tolist():
            found = error(value)
            if found < least:
                best, least = value, found
        values = np.clip(best + np.linspace(-1, 1, 9) * step, low, high)
        step /= 4
    return best
