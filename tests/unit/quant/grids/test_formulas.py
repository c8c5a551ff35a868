"""Each quantizer against its published formula, and its integer form against floating point."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeq.errors import UsageError
from edgeq.metrics import sqnr_db
from edgeq.quant.grids import (
    FORMATS,
    AdaLog,
    Log2,
    LogSqrt2,
    Minifloat,
    ShiftedAdaLog,
    ShiftLog2,
    ShiftLog2Table,
    TanEnds,
    TanLevels,
    TanQ,
    TwinGelu,
    UniformGrid,
)
from edgeq.quant.grids.twin import GELU_FLOOR

P = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(0, 1, width=32))
BITS = st.integers(2, 8)
# products of exact powers of two with codes: float64 sums of them are exact, so that equality can be asked for
CODES = hnp.arrays(np.int64, st.integers(1, 60), elements=st.integers(-128, 127))


def gelu_outputs() -> torch.Tensor:
    """Outputs of GELU with the tails that transformers have."""
    generator = torch.Generator().manual_seed(0)
    narrow, wide = torch.randn(20_000, generator=generator) - 0.7, torch.randn(2000, generator=generator) * 2.2 - 0.2
    return torch.nn.functional.gelu(torch.cat([narrow, wide]))


@given(P, BITS)
def test_log2_is_its_formula(p: np.ndarray, bits: int) -> None:
    with np.errstate(divide="ignore"):
        exponents = np.minimum(-np.log2(p.astype(np.float64)), 1000)
    exponents = exponents[np.abs(exponents % 1 - 0.5) > 1e-5]  # float32 may round the others either way
    p, codes, last = (2.0**-exponents).astype(np.float32), np.rint(exponents), (1 << bits) - 1
    expected = np.where(codes > last - 1, last, np.maximum(codes, 0))
    assert np.array_equal(Log2(bits).quantize(torch.from_numpy(p)).numpy(), expected)
    powers = 2.0 ** -np.arange(last, dtype=np.float64)
    assert np.allclose(Log2(bits).levels(), [*powers, 0], rtol=0, atol=2.0**-149)


@given(P, BITS)
def test_log_sqrt2_levels_are_the_parity_formula(p: np.ndarray, bits: int) -> None:
    grid = LogSqrt2(bits)
    codes = grid.quantize(torch.from_numpy(p)).numpy()
    parity = 2.0 ** -np.ceil(codes / 2) * (1 + (math.sqrt(2) - 1) * (codes % 2))
    expected = np.where(codes == (1 << bits) - 1, 0, parity)
    assert np.allclose(grid.dequantize(torch.from_numpy(codes)).numpy(), expected, rtol=1e-6, atol=0)


@given(P, BITS)
def test_adalog_of_numerator_37_is_log2(p: np.ndarray, bits: int) -> None:
    x = torch.from_numpy(p)
    assert torch.equal(AdaLog(bits, 37).quantize(x), Log2(bits).quantize(x))
    assert np.array_equal(AdaLog(bits, 37).levels(), Log2(bits).levels())


@given(BITS, st.integers(2, 110))
def test_adalog_tables_are_integers_near_the_power(bits: int, numerator: int) -> None:
    grid = AdaLog(bits, numerator)
    shifts, multipliers = grid.tables()
    codes = np.arange(grid.powers)
    assert (shifts == codes * numerator // 37).all()
    n = 1 << bits
    assert n - 1 <= multipliers.min() <= multipliers.max() == 2 * n - 2 < 1 << (bits + 1)
    fraction = 2.0 ** (shifts - codes * numerator / 37)
    assert np.abs(multipliers / (2 * n - 2) - fraction).max() <= 1 / (4 * n - 4) + 1e-12


@pytest.mark.parametrize(("bits", "numerators"), [(3, range(20, 68)), (4, range(18, 29))])
def test_adalog_weights_are_exact_16_bit_integers(bits: int, numerators: range) -> None:
    for numerator in numerators:
        grid = AdaLog(bits, numerator)
        shifts, multipliers = grid.tables()
        table = grid.integer_table()
        assert table.exact
        assert table.values.tolist() == [*(multipliers << (int(shifts[-1]) - shifts)).tolist(), 0]


def test_adalog_beyond_the_width_is_rounded_and_says_so() -> None:
    table = AdaLog(8, 40).integer_table()
    assert not table.exact
    assert table.values.max() <= 32767


@given(st.data(), st.integers(2, 4))
def test_the_log2_kernel_of_shifts_is_exact(data: st.DataObject, bits: int) -> None:
    v = data.draw(CODES)
    p = data.draw(hnp.arrays(np.float32, len(v), elements=st.floats(0, 1, width=32)))
    grid = Log2(bits)
    codes = grid.quantize(torch.from_numpy(p)).numpy()
    zero = (1 << bits) - 1
    accumulator = sum(int(value) << (zero - 1 - int(code)) for value, code in zip(v, codes, strict=True) if code < zero)
    total = sum(1 << (zero - 1 - int(code)) for code in codes if code < zero)
    weights = grid.dequantize(torch.from_numpy(codes)).double().numpy()
    assert accumulator * 2.0 ** -(zero - 1) == float(weights @ v)
    assert total * 2.0 ** -(zero - 1) == float(weights.sum())
    table = grid.integer_table()
    assert table.exact
    assert int(table.values[codes].astype(np.int64) @ v) == accumulator


@given(st.data(), st.integers(2, 4))
def test_log_sqrt2_runs_on_two_accumulators(data: st.DataObject, bits: int) -> None:
    v = data.draw(CODES)
    p = data.draw(hnp.arrays(np.float32, len(v), elements=st.floats(0, 1, width=32)))
    grid = LogSqrt2(bits)
    codes = grid.quantize(torch.from_numpy(p)).numpy()
    zero = (1 << bits) - 1
    even, odd = 0, 0
    for value, code in zip(v.tolist(), codes.tolist(), strict=True):
        if code < zero:
            shifted = value << (zero - (code + 1) // 2)
            even, odd = (even, odd + shifted) if code % 2 else (even + shifted, odd)
    exact = float(grid.dequantize(torch.from_numpy(codes)).double().numpy() @ v)
    assert (even + odd * math.sqrt(2)) * 2.0**-zero == pytest.approx(exact, rel=1e-6, abs=1e-5)
    # 362 / 256 for sqrt 2: one multiplication for each output, wrong by 0.011 % of the odd part
    assert abs((even + (odd * 362) / 256) * 2.0**-zero - exact) <= abs(odd) * 2.0**-zero * 1.3e-4 * 1.5 + 1e-4


@given(P, st.sampled_from([3, 4, 6, 8]))
def test_sulq_is_its_formula(p: np.ndarray, bits: int) -> None:
    x = torch.from_numpy(p)
    for grid, table in zip(ShiftLog2.candidates(x, bits), ShiftLog2Table.candidates(x, bits), strict=True):
        codes = grid.quantize(x)
        assert torch.equal(codes, table.quantize(x))
        exponents = -grid.step * (codes.numpy() - grid.zero_point)
        rounded, exact = (g.dequantize(codes).numpy() for g in (grid, table))
        assert np.allclose(rounded, 2.0 ** np.rint(exponents) - grid.shift, atol=1e-6)
        assert np.allclose(exact, 2.0**exponents - grid.shift, atol=1e-6)


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_the_published_sulq_wastes_most_codes(bits: int) -> None:
    generator = np.random.default_rng(0)
    decay = generator.uniform(0.6, 2, (200, 1))
    rows = np.arange(1, 198.0) ** -decay * np.exp(0.3 * generator.standard_normal((200, 197)))
    p = torch.from_numpy(rows / rows.sum(1, keepdims=True)).float()
    for grid in ShiftLog2.candidates(p, bits):
        assert len(np.unique(grid.levels())) <= 12
    fitted = ShiftLog2.fit(p, bits), ShiftLog2Table.fit(p, bits)
    published, table = (sqnr_db(p, g.dequantize(g.quantize(p))) for g in fitted)
    assert table > published + (0 if bits == 3 else 5)


def test_tangent_readings_are_dense_where_they_say() -> None:
    assert TanQ is TanEnds
    ends, levels = np.diff(TanEnds(4, 1.3, 1.0).levels()), np.diff(TanLevels(4, 1.3, 1.0).levels())
    assert ends.argmax() == len(ends) // 2
    assert ends[0] == pytest.approx(ends[-1], rel=1e-4)
    assert (np.diff(levels) > 0).all()
    for grid in (TanEnds(4, 0.01, 1.0), TanLevels(4, 0.01, 1.0)):
        assert np.allclose(np.diff(grid.levels()), 1 / 15, atol=1e-5)


@pytest.mark.parametrize("angle", [0.0, -1.0, math.pi / 2, math.nan])
def test_impossible_angles_are_refused(angle: float) -> None:
    with pytest.raises(UsageError) as caught:
        TanEnds(4, angle, 1.0)
    assert caught.value.code == "EQ-U201"


@pytest.mark.parametrize(("bits", "gain"), [(3, 2), (4, 4), (6, 4)])
def test_after_gelu_the_shifted_log_grid_beats_uniform(bits: int, gain: float) -> None:
    x = gelu_outputs()
    fitted = ShiftedAdaLog.fit(x, bits), UniformGrid.fit(x, bits)
    db = {g.kind: sqnr_db(x, g.dequantize(g.quantize(x))) for g in fitted}
    assert db["adalog_shifted"] > db["uniform"] + gain


@settings(deadline=None)
@given(hnp.arrays(np.float32, (4, 6), elements=st.floats(-2, 2, width=32)), st.sampled_from([3, 4]))
def test_the_shift_of_adalog_folds_into_the_bias(weight: np.ndarray, bits: int) -> None:
    grid, w = ShiftedAdaLog(bits, 30, 4.0), torch.from_numpy(weight)
    codes = grid.quantize(gelu_outputs()[:60].reshape(10, 6))
    inner = grid.inner.dequantize(codes).double()
    whole = grid.dequantize(codes).double() @ w.double().T
    assert torch.allclose(inner @ w.double().T + grid.bias_correction(w), whole, atol=1e-5)
    assert grid.integer_table().offset == -GELU_FLOOR


def test_twin_gelu_spends_half_its_codes_below_zero() -> None:
    levels = TwinGelu(4, 0.25).levels()
    assert (levels < 0).sum() == 8
    assert levels.min() == pytest.approx(-GELU_FLOOR)
    assert levels.max() == 7 * 0.25


@pytest.mark.parametrize(("name", "dtype"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)])
def test_eight_bit_floats_equal_those_of_torch(name: str, dtype: torch.dtype) -> None:
    grid = Minifloat.of(name, 1.0)
    top = float(grid.format.magnitudes().max())
    assert top == torch.finfo(dtype).max
    positive = torch.cat([2.0 ** torch.linspace(-20, math.log2(top), 20_000), torch.from_numpy(grid.levels()).abs()])
    ascending = positive.unique()
    x = torch.cat([positive, (ascending[:-1] + ascending[1:]) / 2, torch.zeros(1)]).clamp_max(top)
    for values in (x, -x):
        assert torch.equal(grid.dequantize(grid.quantize(values)), values.to(dtype).float())
        assert torch.equal(grid.quantize(values), values.to(dtype).view(torch.uint8).int())


@pytest.mark.parametrize(
    ("name", "top", "least", "count"), [("e2m1", 6, 0.5, 15), ("e3m2", 28, 0.0625, 63), ("e2m3", 7.5, 0.125, 63)]
)
def test_small_floats_have_the_values_of_the_standard(name: str, top: float, least: float, count: int) -> None:
    levels = np.unique(Minifloat.of(name, 1.0).levels())
    assert (levels.max(), levels[levels > 0].min(), len(levels)) == (top, least, count)
    if name == "e2m1":
        assert levels[levels >= 0].tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def test_ties_of_small_floats_go_to_the_even_pattern() -> None:
    grid = Minifloat.of("e2m1", 1.0)
    x = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -5.0])
    assert grid.dequantize(grid.quantize(x)).tolist() == [0, 1, 1, 2, 2, 4, 4, 0, -4]


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(UsageError) as caught:
        Minifloat.of("e4m4", 1.0)
    assert caught.value.code == "EQ-U202"
    with pytest.raises(UsageError) as other:
        Minifloat(8, 5, 1.0)
    assert other.value.code == "EQ-U201"
    assert len({(f.bits, f.mantissa) for f in FORMATS.values()}) == len(FORMATS)
