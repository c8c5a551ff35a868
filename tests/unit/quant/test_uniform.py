"""Uniform grids against the reference operators of torch, and the algebra that every grid owes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.ao.quantization.fx import _decomposed

from edgeq.errors import UsageError
from edgeq.quant.uniform import SCALE_RATIO_FLOOR, dequantize, fake_quantize, qparams_from_range, quantize
from edgeq.spec import PerChannel, PerGroup, QParams, QuantSpec

OPS = getattr(torch.ops, _decomposed.quantized_decomposed_lib.ns)  # importing the module registers them
REALS = st.floats(-1e6, 1e6, width=32)
SPECS = st.builds(QuantSpec, bits=st.sampled_from([2, 4, 8, 16]), symmetric=st.booleans(), narrow=st.booleans())


def grids() -> st.SearchStrategy[QParams]:
    """Per-tensor grids over arbitrary ranges."""
    return st.builds(lambda a, b, spec: qparams_from_range(min(a, b), max(a, b), spec), REALS, REALS, SPECS)


def values(scale: float = 1e6) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-scale, scale, width=32))


@given(grids(), values())
def test_per_tensor_equals_torch(grid: QParams, reals: np.ndarray) -> None:
    x, spec = torch.from_numpy(reals), grid.spec
    dtype = torch.int16 if spec.bits > 8 else torch.int8
    arguments = (float(grid.scale), int(grid.zero_point), spec.qmin, spec.qmax, dtype)
    codes = OPS.quantize_per_tensor(x, *arguments)
    assert torch.equal(quantize(x, grid), codes.to(torch.int32))
    assert torch.equal(dequantize(codes, grid), OPS.dequantize_per_tensor(codes, *arguments))


@given(st.integers(0, 2), SPECS, st.integers(0, 2**32 - 1))
def test_per_channel_equals_torch(axis: int, spec: QuantSpec, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 4, 5, generator=generator) * torch.rand((), generator=generator) * 100
    spec = QuantSpec(spec.bits, spec.symmetric, PerChannel(axis), narrow=spec.narrow)
    rows = x.movedim(axis, 0).reshape(x.shape[axis], -1)
    grid = qparams_from_range(0.7 * rows.amin(1).clamp(max=0).numpy(), rows.amax(1).clamp(min=0).numpy(), spec)
    dtype = torch.int16 if spec.bits > 8 else torch.int8
    arguments = (torch.from_numpy(grid.scale), torch.from_numpy(grid.zero_point), axis, spec.qmin, spec.qmax, dtype)
    codes = OPS.quantize_per_channel(x, *arguments)
    assert torch.equal(quantize(x, grid), codes.to(torch.int32))
    assert torch.equal(dequantize(codes, grid), OPS.dequantize_per_channel(codes, *arguments))


@given(st.sampled_from([2, 4, 8]), st.booleans(), st.integers(0, 2**32 - 1))
def test_per_group_equals_torch(bits: int, symmetric: bool, seed: int) -> None:
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(seed))
    spec = QuantSpec(bits, symmetric, PerGroup(8))
    runs = x.reshape(3, 4, 8)
    grid = qparams_from_range(runs.amin(-1).clamp(max=0).numpy(), runs.amax(-1).clamp(min=0).numpy(), spec)
    scale, zero_point = torch.from_numpy(grid.scale), torch.from_numpy(grid.zero_point)
    codes = OPS.quantize_per_channel_group(x, scale, zero_point, spec.qmin, spec.qmax, torch.int8, 8)
    assert torch.equal(quantize(x, grid), codes.to(torch.int32))
    group = (spec.qmin, spec.qmax, torch.int8, 8, torch.float32)
    back = OPS.dequantize_per_channel_group(codes, scale, zero_point, *group)
    assert torch.equal(dequantize(codes, grid), back)


@given(st.data(), SPECS, REALS, REALS)
def test_error_inside_the_range_is_at_most_half_a_step(
    data: st.DataObject, spec: QuantSpec, a: float, b: float
) -> None:
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    grid = qparams_from_range(low, high, spec)
    x = torch.tensor(data.draw(st.lists(st.floats(low, high), min_size=1, max_size=20)), dtype=torch.float32)
    x = x.clamp(low, high)
    # float32 rounds scale, reciprocal and product: a few units in the last place of a code
    slack = 1e-6 * 2**spec.bits
    assert float((fake_quantize(x, grid) - x).abs().max()) <= float(grid.scale) * (0.5 + slack)


@given(grids(), values())
def test_monotone_idempotent_and_exact_at_zero(grid: QParams, reals: np.ndarray) -> None:
    x = torch.from_numpy(np.sort(reals))
    once = fake_quantize(x, grid)
    assert bool((once.diff() >= 0).all())
    assert torch.equal(fake_quantize(once, grid), once)
    assert fake_quantize(torch.zeros(1), grid).item() == 0
    codes = quantize(x, grid)
    assert codes.dtype == torch.int32
    assert int(codes.min()) >= grid.spec.qmin
    assert int(codes.max()) <= grid.spec.qmax


@given(grids())
def test_every_code_survives_the_round_trip(grid: QParams) -> None:
    codes = torch.arange(grid.spec.qmin, grid.spec.qmax + 1, dtype=torch.int32)
    assert torch.equal(quantize(dequantize(codes, grid), grid), codes)


def test_half_steps_round_to_even() -> None:
    grid = qparams_from_range(-127.0, 127.0, QuantSpec(8, symmetric=True))
    assert float(grid.scale) == 1
    assert quantize(torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5]), grid).tolist() == [-2, 0, 0, 2, 2]


def test_infinity_saturates() -> None:
    grid = qparams_from_range(-1.0, 1.0, QuantSpec(8))
    assert quantize(torch.tensor([-torch.inf, torch.inf]), grid).tolist() == [-128, 127]


@pytest.mark.parametrize(("low", "high", "zero_point"), [(0.0, 1.0, -128), (-1.0, 0.0, 127), (0.5, 1.0, -128)])
def test_one_sided_ranges_reach_zero(low: float, high: float, zero_point: int) -> None:
    grid = qparams_from_range(low, high, QuantSpec(8))
    assert int(grid.zero_point) == zero_point
    assert float(grid.scale) == pytest.approx(1 / 255)


def test_a_zero_range_takes_the_scale_of_its_tensor() -> None:
    spec = QuantSpec(8, True, PerChannel(0))
    assert qparams_from_range([0.0, -12.7], [0.0, 1.0], spec).scale.tolist() == pytest.approx([0.1, 0.1])
    assert qparams_from_range([0.0, 0.0], [0.0, 0.0], spec).scale.tolist() == [1, 1]
    assert float(qparams_from_range(0.0, 0.0, QuantSpec(8)).scale) == 1


def test_scales_are_floored_and_print_as_decimals_converters_can_parse() -> None:
    grid = qparams_from_range([0, 0], [1e-30, 127.0], QuantSpec(8, True, PerChannel(0)))
    assert grid.scale[0] == np.float32(SCALE_RATIO_FLOOR)
    tiny = qparams_from_range(0.0, 1e-300, QuantSpec(8))
    assert np.isfinite(np.float32(1) / tiny.scale)
    for exponent in range(-12, 0):  # `1e-08` has no dot, which breaks an MLIR parser
        scale = float(qparams_from_range(0.0, 255 * 10.0**exponent, QuantSpec(8)).scale)
        assert "." in str(scale)


@pytest.mark.parametrize(("low", "high"), [(1.0, -1.0), (np.nan, 1.0), (-np.inf, 1.0), ([0.0], [1.0, 2.0])])
def test_bad_ranges_are_refused(low: object, high: object) -> None:
    with pytest.raises(UsageError) as caught:
        qparams_from_range(low, high, QuantSpec(8))  # type: ignore[arg-type]
    assert caught.value.code == "EQ-U022"


def test_groups_are_never_padded() -> None:
    grid = qparams_from_range(np.zeros((2, 3)), np.ones((2, 3)), QuantSpec(4, True, PerGroup(32)))
    with pytest.raises(UsageError, match="do not divide") as caught:
        quantize(torch.zeros(2, 80), grid)
    assert caught.value.code == "EQ-U023"
    assert "16" in str(caught.value.hint)
    with pytest.raises(UsageError):
        quantize(torch.zeros(96), grid)
    with pytest.raises(UsageError):
        quantize(torch.zeros(4, 96), grid)


@pytest.mark.parametrize("axis", [0, 2, 5, -4])
def test_channels_must_fit(axis: int) -> None:
    grid = qparams_from_range(np.zeros(4), np.ones(4), QuantSpec(8, True, PerChannel(axis)))
    with pytest.raises(UsageError) as caught:
        fake_quantize(torch.zeros(3, 4, 5), grid)
    assert caught.value.code == "EQ-U023"


@settings(max_examples=20)
@given(hnp.array_shapes(min_dims=1, max_dims=4))
def test_shapes_and_layouts_are_kept(shape: tuple[int, ...]) -> None:
    x = torch.randn(*shape).transpose(0, -1)
    grid = qparams_from_range(-1.0, 2.0, QuantSpec(8))
    assert fake_quantize(x, grid).shape == x.shape
    assert torch.equal(quantize(x, grid), quantize(x.contiguous(), grid))
