"""The noisy bias: its theorem, its algebra, and that it never loses on the data it is fitted to."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.errors import DataError, UsageError
from edgeq.quant import dequantize, fake_quantize, quantize
from edgeq.quant.grids import fit_noisy


def layer(tokens: int = 200, width: int = 24, outputs: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.gelu(torch.randn(tokens, width, generator=generator) * 2)
    return x, torch.randn(outputs, width, generator=generator)


def output_error(xhat: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> float:
    return float(((xhat - x) @ weight.T).double().square().sum())


@settings(max_examples=40)
@given(st.floats(0, 1), st.floats(0.05, 2))
def test_noise_helps_near_boundaries_as_the_theorem_says(distance: float, amplitude: float) -> None:
    # codes at odd numbers, boundaries at even ones: half a step is 1
    if not distance <= amplitude <= 2 - distance:
        return
    noise = (np.arange(40_001) + 0.5) / 40_001 * 2 * amplitude - amplitude
    noisy = np.square(2 * np.floor((distance + noise) / 2) + 1 - (distance + noise)).mean()
    plain = (1 - distance) ** 2
    bound = amplitude * (1 - math.sqrt(amplitude / 3))
    if abs(distance - bound) > 1e-3:
        assert (noisy <= plain) == (distance <= bound)


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([3, 4, 6]))
def test_the_bias_takes_the_noise_out(seed: int, bits: int) -> None:
    x, weight = layer(60, seed=seed)
    grid = fit_noisy(x, weight, bits, seed=seed)
    codes = grid.quantize(x)
    with_bias = dequantize(codes, grid.qparams).double() @ weight.double().T + grid.bias_correction(weight)
    assert torch.allclose(with_bias, grid.dequantize(codes).double() @ weight.double().T, atol=1e-4)
    assert grid.noise_codes.dtype == torch.int16
    assert int(codes.abs().max()) < 1 << (bits - 1)
    assert torch.equal(codes, quantize(x + grid.noise, grid.qparams))


@pytest.mark.parametrize("bits", [4, 6])
def test_the_fit_never_loses_to_its_own_grid(bits: int) -> None:
    x, weight = layer()
    grid = fit_noisy(x, weight, bits)
    noisy = output_error(grid.dequantize(grid.quantize(x)), x, weight)
    assert noisy <= output_error(fake_quantize(x, grid.qparams), x, weight)


def test_noise_pays_where_values_crowd_at_a_boundary() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(8, 16, generator=generator)
    x = torch.full((300, 16), 0.5) + 0.02 * torch.randn(300, 16, generator=generator)
    x[0, 0] = 3.0  # 3 bits: codes at whole numbers, and nearly all values half way between two
    grid = fit_noisy(x, weight, 3)
    plain = output_error(fake_quantize(x, grid.qparams), x, weight)
    assert output_error(grid.dequantize(grid.quantize(x)), x, weight) < 0.7 * plain


def test_the_same_seed_gives_the_same_noise() -> None:
    x, weight = layer(50)
    first, second, other = (fit_noisy(x, weight, 4, seed=s) for s in (3, 3, 4))
    assert torch.equal(first.noise_codes, second.noise_codes)
    assert not torch.equal(first.noise_codes, other.noise_codes)


def test_bad_input_is_refused() -> None:
    x, weight = layer(20)
    for bad in (x[:, :-1], x[0], x[None]):
        with pytest.raises(UsageError) as usage:
            fit_noisy(bad, weight, 4)
        assert usage.value.code == "EQ-U205"
    with pytest.raises(UsageError) as width:
        fit_noisy(x, weight, 1)
    assert width.value.code == "EQ-U201"
    for bad in (x[:0], torch.full((2, 24), math.nan)):
        with pytest.raises(DataError) as data:
            fit_noisy(bad, weight, 4)
        assert data.value.code == "EQ-D200"
    with pytest.raises(UsageError) as channels:
        fit_noisy(x, weight, 4).quantize(x[:, :-1])
    assert channels.value.code == "EQ-U205"
    assert fit_noisy(torch.zeros(4, 24), weight, 4).quantize(torch.zeros(4, 24)).shape == (4, 24)
