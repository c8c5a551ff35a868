"""GPTQ, least-squares targets and matched means, against brute force and on unseen rows."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgeq.errors import DataError, ModelError, UsageError
from edgeq.quant.rounding.moments import LayerMoments, Moments
from edgeq.quant.rounding.second_order import (
    excess_error,
    gptq,
    inverse_factor,
    mean_bias,
    retarget,
    ridge_step,
)
from edgeq.quant.uniform import dequantize, quantize
from edgeq.quant.weights import weight_qparams
from edgeq.spec import Granularity, PerChannel, PerGroup, PerTensor, QParams, QuantSpec
from tests.unit.quant.rounding.layers import Layer, make_layer

GRANULARITIES: list[Granularity] = [PerTensor(), PerChannel(0), PerChannel(1), PerGroup(8)]


def grid(weight: Tensor, bits: int = 4, granularity: Granularity | None = None, *, symmetric: bool = True) -> QParams:
    return weight_qparams(weight, QuantSpec(bits, symmetric, granularity or PerChannel(0), "mse", narrow=symmetric))


def unseen_error(layer: Layer, qparams: QParams, codes: Tensor, moments: LayerMoments) -> float:
    """Mean squared output error on unseen rows, bias matched on the calibration rows."""
    quantized = dequantize(codes, qparams)
    bias = mean_bias(layer.weight, quantized, moments, layer.bias).float()
    wanted = layer.unseen_x @ layer.weight.T + layer.bias
    return float(((layer.unseen_xq @ quantized.T + bias - wanted) ** 2).mean())


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq_beats_nearest_on_unseen_rows(granularity: Granularity, bits: int, symmetric: bool) -> None:
    layer = make_layer(drift=0)
    moments, qparams = layer.moments(), grid(layer.weight, bits, granularity, symmetric=symmetric)
    codes = gptq(layer.weight, qparams, moments)
    assert codes.dtype == torch.int32
    assert int(codes.min()) >= qparams.spec.qmin
    assert int(codes.max()) <= qparams.spec.qmax
    nearest = unseen_error(layer, qparams, quantize(layer.weight, qparams), moments)
    assert unseen_error(layer, qparams, codes, moments) < 0.8 * nearest


def test_uncorrelated_inputs_leave_nothing_to_make_good() -> None:
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    identity = replace(Moments.empty(16), gram=torch.eye(16, dtype=torch.float64), rows=16, mass=16.0)
    for granularity in GRANULARITIES:
        qparams = grid(weight, 3, granularity)
        assert torch.equal(gptq(weight, qparams, identity), quantize(weight, qparams))


def test_block_size_does_not_change_the_codes_and_order_does_not_change_their_places() -> None:
    layer = make_layer(inputs=40)
    moments, qparams = layer.moments(), grid(layer.weight)
    codes = gptq(layer.weight, qparams, moments)
    for block in (1, 7, 64):
        assert torch.equal(codes, gptq(layer.weight, qparams, moments, block=block))
    shuffle = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    moved = LayerMoments(40)
    for batch in layer.xq.chunk(8):
        moved.update(batch[:, shuffle])
    assert torch.equal(codes[:, shuffle], gptq(layer.weight[:, shuffle], qparams, moved))


def test_gptq_is_close_to_the_best_of_all_codes() -> None:
    layer = make_layer(outputs=3, inputs=5, drift=0)
    moments, qparams = layer.moments().total, grid(layer.weight, 2)
    best = [np.inf] * 3
    for row in product(range(-1, 2), repeat=5):
        codes = torch.tensor(row).expand(3, 5)
        step = dequantize(codes, qparams) - layer.weight
        errors = ((step.double() @ moments.covariance()) * step).sum(1)
        best = [min(a, float(b)) for a, b in zip(best, errors, strict=True)]
    found = excess_error(layer.weight, dequantize(gptq(layer.weight, qparams, moments), qparams), moments)
    nearest = excess_error(layer.weight, dequantize(quantize(layer.weight, qparams), qparams), moments)
    assert sum(best) * (1 - 1e-5) <= found <= nearest
    assert found <= 1.5 * sum(best)


def test_excess_error_is_the_measured_error_up_to_the_drift() -> None:
    layer = make_layer()
    moments, quantized = layer.moments(), dequantize(quantize(layer.weight, grid(layer.weight)), grid(layer.weight))

    def centred(rows: Tensor) -> float:
        rows = rows.double()
        return float(((rows - rows.mean(0)) ** 2).sum(1).mean())

    w, q, x, xq = (v.double() for v in (layer.weight, quantized, layer.x, layer.xq))
    measured = centred(x @ w.T - xq @ q.T) - centred((x - xq) @ w.T)
    assert excess_error(layer.weight, quantized, moments) == pytest.approx(measured, rel=1e-5)
    plain = float(((x @ w.T - xq @ q.T) ** 2).sum(1).mean() - (((x - xq) @ w.T) ** 2).sum(1).mean())
    assert excess_error(layer.weight, quantized, moments, centred=False) == pytest.approx(plain, rel=1e-5)


def test_dead_and_duplicated_inputs_are_no_trouble() -> None:
    layer = make_layer(drift=0)
    x = layer.x.clone()
    x[:, 3], x[:, 5], x[:, 7] = 0.0, 4.25, x[:, 6]
    moments = LayerMoments(32)
    for batch in x.chunk(4):
        moments.update(batch)
    qparams = grid(layer.weight)
    codes, nearest = gptq(layer.weight, qparams, moments), quantize(layer.weight, qparams)
    assert torch.equal(codes[:, [3, 5]], nearest[:, [3, 5]])
    errors = [excess_error(layer.weight, dequantize(c, qparams), moments) for c in (codes, nearest)]
    assert errors[0] < errors[1]


def test_without_data_the_codes_are_nearest() -> None:
    weight = make_layer().weight
    assert torch.equal(gptq(weight, grid(weight), LayerMoments(32)), quantize(weight, grid(weight)))
    constant = LayerMoments(32)
    constant.update(torch.ones(100, 32))
    assert torch.equal(gptq(weight, grid(weight), constant), quantize(weight, grid(weight)))


def test_a_gram_that_is_not_positive_semidefinite_is_damped_or_given_up() -> None:
    layer = make_layer(inputs=16)
    qparams, moments = grid(layer.weight), layer.moments().total
    for trouble in (1.0, 1e3, 1e9):
        gram = moments.gram.clone()
        gram.diagonal()[::2] -= trouble * float(gram.diagonal().mean())
        codes = gptq(layer.weight, qparams, replace(moments, gram=gram))
        assert codes.shape == layer.weight.shape
    hopeless = replace(moments, gram=-moments.gram)
    assert torch.equal(gptq(layer.weight, qparams, hopeless), quantize(layer.weight, qparams))


def test_the_inverse_factor_is_one() -> None:
    moments = make_layer().moments().total
    covariance = moments.covariance()
    factor = inverse_factor(covariance, 0.01)
    assert factor is not None
    damped = covariance + 0.01 * covariance.diagonal().mean() * torch.eye(32, dtype=torch.float64)
    torch.testing.assert_close(factor.T @ factor, torch.linalg.inv(damped))
    assert torch.equal(factor, factor.triu())
    assert inverse_factor(torch.zeros(3, 3, dtype=torch.float64), 0.01) is None


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 12),
    st.integers(1, 60),
    st.floats(1e-3, 1e3),
    st.floats(0, 3),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_a_ridge_step_never_increases_the_training_error(
    outputs: int, inputs: int, rows: int, shrink: float, drift: float, centred: bool, seed: int
) -> None:
    layer = make_layer(outputs, inputs, rows, drift=drift, seed=seed)
    moments = Moments.of(layer.xq, layer.x)
    step = ridge_step(layer.weight, moments, shrink, centred=centred)
    own = float((((layer.x - layer.xq).double() @ layer.weight.double().T) ** 2).sum(1).mean())
    assert excess_error(layer.weight, layer.weight + step, moments, centred=centred) <= 1e-9 * own


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_retarget_then_gptq_beats_gptq_when_inputs_drifted(bits: int) -> None:
    layer = make_layer()
    moments, qparams = layer.moments(), grid(layer.weight, bits)
    found = retarget(layer.weight, moments)
    plain = unseen_error(layer, qparams, gptq(layer.weight, qparams, moments), moments)
    aimed = unseen_error(layer, qparams, gptq(found.weight, qparams, moments), moments)
    assert aimed < plain
    assert found.gain > 0
    assert found.shrink in (0.03, 0.3, 3.0)
    assert found.note.startswith("shrink ")


def test_retarget_leaves_noise_alone() -> None:
    # Hardly more rows than inputs, and a drift that is pure noise: the fit would be to the noise.
    layer = make_layer(inputs=48, rows=60, drift=0)
    noise = 0.3 * torch.randn(layer.x.shape, generator=torch.Generator().manual_seed(5))
    moments = LayerMoments(48)
    for x, d in zip(layer.x.chunk(4), noise.chunk(4), strict=True):
        moments.update(x, x + d)
    found = retarget(layer.weight, moments, [1e-6])
    assert found.shrink == 0
    assert found.gain == 0
    assert torch.equal(found.weight, layer.weight.double())
    assert "no step" in found.note


def test_retarget_without_held_out_rows_is_careful() -> None:
    layer = make_layer()
    found = retarget(layer.weight, layer.moments(holdout_every=0))
    assert (found.shrink, found.gain > 0) == (3.0, True)
    few = LayerMoments(32, holdout_every=0)
    few.update(layer.xq[:127], layer.x[:127])
    assert retarget(layer.weight, few).shrink == 0


def test_without_drift_the_target_is_the_weight() -> None:
    layer = make_layer()
    found = retarget(layer.weight, layer.moments(drift=False))
    assert torch.equal(found.weight, layer.weight.double())
    assert "no drift" in found.note


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 8), st.integers(1, 40), st.integers(0, 2**31))
def test_mean_bias_matches_the_mean_output_exactly(outputs: int, inputs: int, rows: int, seed: int) -> None:
    layer = make_layer(outputs, inputs, rows, seed=seed)
    qparams = grid(layer.weight, 2)
    quantized = dequantize(quantize(layer.weight, qparams), qparams)
    bias = mean_bias(layer.weight, quantized, Moments.of(layer.xq, layer.x), layer.bias)
    wanted = (layer.x.double() @ layer.weight.double().T).mean(0) + layer.bias.double()
    got = (layer.xq.double() @ quantized.double().T).mean(0) + bias
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-7)


def test_mean_bias_without_rows_is_the_bias() -> None:
    layer = make_layer()
    assert torch.equal(mean_bias(layer.weight, layer.weight, LayerMoments(32), layer.bias), layer.bias.double())
    assert not bool(mean_bias(layer.weight, layer.weight, LayerMoments(32)).any())


def test_bad_input_is_refused() -> None:
    layer = make_layer()
    moments, qparams = layer.moments(), grid(layer.weight)
    broken = layer.weight.clone()
    broken[0, 0] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        gptq(broken, qparams, moments)
    with pytest.raises(ModelError, match="NaN"):
        retarget(broken, moments)
    with pytest.raises(UsageError, match="32 inputs"):
        gptq(layer.weight[:, :16], qparams, moments)
    with pytest.raises(UsageError, match="do not fit"):
        gptq(layer.weight[:5], qparams, moments)
    with pytest.raises(UsageError, match="matrix"):
        gptq(layer.weight[0], qparams, moments)
    with pytest.raises(UsageError, match="do not fit"):
        mean_bias(layer.weight, layer.weight, moments, layer.bias[:3])
    with pytest.raises(DataError, match="overflowed"):
        gptq(layer.weight, qparams, replace(moments.total, gram=moments.total.gram * float("nan")))
    for options in ({"damping": 0.0}, {"damping": float("nan")}, {"block": 0}, {"order": "random"}):
        with pytest.raises(UsageError, match="options"):
            gptq(layer.weight, qparams, moments, **options)  # type: ignore[arg-type]
    for shrink in ([], [0.0], [-1.0], [float("inf")]):
        with pytest.raises(UsageError, match="positive"):
            retarget(layer.weight, moments, shrink)


def test_constant_and_one_row_layers() -> None:
    layer = make_layer(outputs=1)
    moments = layer.moments(drift=False)
    for weight in (layer.weight, torch.full((1, 32), 0.7), torch.zeros(1, 32)):
        qparams = grid(weight)
        codes = gptq(weight, qparams, moments)
        error = excess_error(weight, dequantize(codes, qparams), moments.total)
        nearest = excess_error(weight, dequantize(quantize(weight, qparams), qparams), moments.total)
        assert error <= nearest + 1e-12
