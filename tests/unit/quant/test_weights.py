"""Grids of weights: shapes, dead channels, and clips that pay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.errors import ModelError, UsageError
from edgeq.quant.uniform import dequantize, fake_quantize
from edgeq.quant.weights import cover_bias, round_weights, weight_qparams
from edgeq.spec import Granularity, PerChannel, PerGroup, PerTensor, QuantSpec

WHOLE, ROWS, COLUMNS, GROUPS = PerTensor(), PerChannel(0), PerChannel(1), PerGroup(8)


def weight(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(w: torch.Tensor, spec: QuantSpec) -> torch.Tensor:
    """Squared error per row."""
    return ((fake_quantize(w, weight_qparams(w, spec)) - w) ** 2).flatten(1).sum(1)


@pytest.mark.parametrize(
    ("granularity", "shape"), [(WHOLE, ()), (ROWS, (6,)), (COLUMNS, (16,)), (PerChannel(-1), (16,)), (GROUPS, (6, 2))]
)
def test_scales_have_the_shape_of_the_granularity(granularity: Granularity, shape: tuple[int, ...]) -> None:
    for observer in ("minmax", "mse", "percentile:0.99"):
        grid = weight_qparams(weight(6, 16), QuantSpec(4, True, granularity, observer))
        assert grid.scale.shape == shape


def test_a_convolution_groups_its_flattened_rows() -> None:
    w = weight(5, 8, 3, 3)
    grid = weight_qparams(w, QuantSpec(8, True, PerGroup(24)))
    assert grid.scale.shape == (5, 3)
    assert grid.scale[1, 2] == pytest.approx(float(w[1].flatten()[48:].abs().max()) / 127)
    assert round_weights(w, grid).shape == w.shape


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([2, 3, 4, 8]),
    st.booleans(),
    st.sampled_from([WHOLE, ROWS, GROUPS]),
    st.integers(0, 2**31),
    st.floats(1, 6),
)
def test_mse_is_never_worse_than_minmax(
    bits: int, symmetric: bool, granularity: Granularity, seed: int, tail: float
) -> None:
    w = weight(4, 16, seed=seed)
    w = w.sign() * w.abs() ** tail
    clipped = error(w, QuantSpec(bits, symmetric, granularity, "mse"))
    plain = error(w, QuantSpec(bits, symmetric, granularity, "minmax"))
    if isinstance(granularity, PerTensor):
        clipped, plain = clipped.sum(), plain.sum()
    # relative to the weight: near-lossless rows differ by float32 rounding only
    assert bool((clipped <= plain + 1e-6 * (w**2).sum()).all())


@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_clips_outliers_at_four_bits(symmetric: bool) -> None:
    w = weight(8, 512)
    w[:, 0] = 12
    clipped, plain = (error(w, QuantSpec(4, symmetric, ROWS, observer)) for observer in ("mse", "minmax"))
    assert bool((clipped < 0.9 * plain).all())


def test_rows_are_searched_independently() -> None:
    w = weight(5, 64) ** 3
    spec = QuantSpec(4, True, ROWS, "mse", narrow=True)
    together = weight_qparams(w, spec)
    alone = [weight_qparams(w[i : i + 1], spec).scale[0] for i in range(5)]
    assert together.scale.tolist() == alone


@pytest.mark.parametrize("observer", ["minmax", "mse", "percentile:0.999"])
@pytest.mark.parametrize("granularity", [WHOLE, ROWS, GROUPS])
def test_dead_channels_become_zeros(granularity: Granularity, observer: str) -> None:
    w = weight(4, 16)
    w[1] = 0
    for value in (w, torch.zeros(4, 16)):
        spec = QuantSpec(8, True, granularity, observer, narrow=True)
        grid = weight_qparams(value, spec)
        codes = round_weights(value, grid)
        assert codes.dtype == torch.int32
        assert int(codes.min()) >= -127
        assert bool((codes[1] == 0).all())
        assert bool(torch.isfinite(dequantize(codes, grid)).all())


@pytest.mark.parametrize("granularity", [WHOLE, ROWS])
def test_biases_of_weak_channels_fit_an_int32(granularity: Granularity) -> None:
    w = weight(4, 16)
    w[1] *= 1e-7
    bias, input_scale = torch.tensor([0.5, -0.5, 100.0, 0.0]), 1e-4
    plain = weight_qparams(w, QuantSpec(8, True, granularity, narrow=True))
    grid = cover_bias(plain, bias, input_scale)
    steps = bias.double().numpy() / (input_scale * grid.scale.astype(np.float64))
    assert np.abs(steps).max() <= 2**30 * (1 + 1e-6)
    assert bool((grid.scale >= plain.scale).all())
    if granularity is ROWS:
        assert np.abs(bias.numpy() / (input_scale * plain.scale)).max() > 2**31
        assert grid.scale[[0, 2, 3]].tolist() == plain.scale[[0, 2, 3]].tolist()
    assert cover_bias(plain, torch.zeros(4), input_scale) == plain


def test_the_weight_is_not_changed() -> None:
    w = weight(4, 16).requires_grad_()
    before = w.detach().clone()
    round_weights(w, weight_qparams(w, QuantSpec(4, True, ROWS, "mse")))
    assert torch.equal(w.detach(), before)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    w = weight(2, 3)
    grid = weight_qparams(w, QuantSpec(8, True))
    w[1, 1] = bad
    for call in (lambda: weight_qparams(w, QuantSpec(), name="head.weight"), lambda: round_weights(w, grid)):
        with pytest.raises(ModelError) as caught:
            call()
        assert caught.value.code == "EQ-M030"
    with pytest.raises(ModelError, match="no values"):
        weight_qparams(torch.zeros(0, 3), QuantSpec())


def test_bad_requests_are_usage_errors() -> None:
    for granularity in (PerChannel(2), PerChannel(-3), PerGroup(5)):
        with pytest.raises(UsageError) as caught:
            weight_qparams(weight(2, 16), QuantSpec(granularity=granularity))
        assert caught.value.code == "EQ-U023"
    with pytest.raises(UsageError) as unknown:
        round_weights(weight(2, 3), weight_qparams(weight(2, 3), QuantSpec()), "nearst")
    assert unknown.value.code == "EQ-U025"
    assert "nearest" in str(unknown.value.hint)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([2, 3, 4]), st.integers(0, 2**31), st.floats(1, 5))
def test_two_level_scales_are_never_worse_than_those_of_rows_or_rounded_ones(bits: int, seed: int, tail: float) -> None:
    w = weight(6, 64, seed=seed)
    w = w.sign() * w.abs() ** tail
    two = QuantSpec(bits, True, PerGroup(8, two_level=True), "mse", narrow=True)
    found = error(w, two)
    free = weight_qparams(w, replace(two, granularity=PerGroup(8)))
    plain = ((fake_quantize(w, replace(free, spec=two)) - w) ** 2).sum(1)
    rows = error(w, replace(two, granularity=ROWS))
    # relative to the weight: steps have 16 bits
    assert bool((found <= torch.minimum(rows, plain * 1.02) + 1e-4 * (w**2).sum(1)).all())


def test_groups_and_rows_of_zeros_change_no_other_scale() -> None:
    w = weight(4, 32, seed=3)
    w[1] = 0
    w[2, 8:16] = 0
    w[3] *= 1e-3
    spec = QuantSpec(4, True, PerGroup(8, two_level=True), "mse", narrow=True)
    assert bool((error(w, spec) <= 0.01 * (w**2).sum(1)).all())
    assert not fake_quantize(w, weight_qparams(w, spec))[1].any()
