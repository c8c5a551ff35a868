"""What every grid owes: as many levels as codes can be stored, order, its nearest integers, and clear refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeq.errors import DataError, UsageError
from edgeq.quant import fake_quantize
from edgeq.quant.grids import GRIDS, AdaLog, Log2, LogSqrt2, TableGrid, TwinUniform, UniformGrid, grids_of, table_params

SWEEP = torch.cat([torch.linspace(-2, 3, 3001), 2.0 ** torch.linspace(-40, 2, 3001), torch.zeros(1)]).sort().values
VALUES = hnp.arrays(np.float32, st.integers(1, 30), elements=st.floats(0, 1, width=32))
WIDTHS = {kind: (4, 6, 8) if kind == "minifloat" else (2, 3, 4, 6, 8) for kind in GRIDS}
# levels of these lie where they encode; a rounded power (sulq) or multiplier (adalog) may lie next to it
EXACT = sorted(set(GRIDS) - {"sulq", "adalog", "adalog_shifted"})


def draw(data: st.DataObject, kind: str) -> TableGrid:
    """Any grid that a search may meet."""
    x = torch.from_numpy(data.draw(VALUES))
    return data.draw(st.sampled_from(GRIDS[kind].candidates(x, data.draw(st.sampled_from(WIDTHS[kind])))))


@settings(max_examples=25, deadline=None)
@given(st.data())
@pytest.mark.parametrize("kind", GRIDS)
def test_codes_and_levels_are_at_most_two_to_the_bits(kind: str, data: st.DataObject) -> None:
    grid = draw(data, kind)
    codes = grid.quantize(SWEEP)
    assert codes.dtype == torch.int32
    assert codes.shape == SWEEP.shape
    assert 0 <= int(codes.min()) <= int(codes.max()) < len(grid.levels()) <= 1 << grid.bits
    assert len(torch.unique(codes)) <= 1 << grid.bits
    assert np.isfinite(grid.levels()).all()


@settings(max_examples=25, deadline=None)
@given(st.data())
@pytest.mark.parametrize("kind", GRIDS)
def test_larger_values_get_no_smaller_levels(kind: str, data: st.DataObject) -> None:
    grid = draw(data, kind)
    assert (grid.dequantize(grid.quantize(SWEEP)).diff() >= 0).all()


@settings(max_examples=25, deadline=None)
@given(st.data())
@pytest.mark.parametrize("kind", EXACT)
def test_levels_are_fixed_points(kind: str, data: st.DataObject) -> None:
    grid = draw(data, kind)
    levels = torch.from_numpy(grid.levels())
    spread = max(float(levels.abs().max()) * 1e-5, 1e-9)
    assert torch.allclose(grid.dequantize(grid.quantize(levels)), levels, atol=spread)


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(8, 24))
@pytest.mark.parametrize("kind", GRIDS)
def test_integer_tables_are_within_half_a_step(kind: str, data: st.DataObject, width: int) -> None:
    grid = draw(data, kind)
    table, levels = grid.integer_table(width), grid.levels().astype(np.float64)
    assert table.width == width
    assert table.values.dtype == np.int32
    assert np.abs(table.values.astype(np.int64)).max() < 1 << (width - 1)
    error = np.abs(table.reals() - levels).max()
    rounding = np.abs(levels).max() * 2.0**-23 + abs(table.offset) * 2.0**-23  # levels are float32
    assert error <= (rounding if table.exact else table.scale / 2 + rounding)


@settings(max_examples=15, deadline=None)
@given(st.data())
@pytest.mark.parametrize("kind", GRIDS)
def test_grids_survive_the_plan(kind: str, data: st.DataObject) -> None:
    grid = draw(data, kind)
    params = table_params([grid])
    assert grids_of(params) == (grid,)
    assert grids_of(type(params).from_dict(params.to_dict())) == (grid,)
    per_head = table_params([grid, grid, grid])
    assert per_head.levels.shape == (3, len(grid.levels()))
    assert grids_of(per_head) == (grid, grid, grid)


@settings(max_examples=10, deadline=None)
@given(VALUES)
@pytest.mark.parametrize("kind", GRIDS)
def test_fits_are_no_worse_than_any_candidate(kind: str, values: np.ndarray) -> None:
    x, bits = torch.from_numpy(values), WIDTHS[kind][2]

    def error(grid: TableGrid) -> float:
        return float((grid.dequantize(grid.quantize(x)) - x).double().square().sum())

    fitted = error(GRIDS[kind].fit(x, bits))
    # the uniform grid is fitted to a histogram, which knows a few values only roughly
    slack = 4e-5 * len(values) if kind == "uniform" else 1e-9
    assert fitted <= min(error(g) for g in GRIDS[kind].candidates(x, bits)[:40]) + slack


@pytest.mark.parametrize("kind", GRIDS)
def test_infinities_saturate(kind: str) -> None:
    grid = GRIDS[kind].candidates(torch.linspace(0, 1, 50), 4)[0]
    ends = grid.dequantize(grid.quantize(torch.tensor([-math.inf, math.inf])))
    assert ends.tolist() == [grid.levels().min(), grid.levels().max()]


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("values", [[], [math.nan], [math.inf, 0.0]])
def test_values_without_a_grid_are_refused(kind: str, values: list[float]) -> None:
    with pytest.raises(DataError) as caught:
        GRIDS[kind].fit(torch.tensor(values), 4)
    assert caught.value.code == "EQ-D200"


@pytest.mark.parametrize("kind", GRIDS)
def test_nan_has_no_code(kind: str) -> None:
    grid = GRIDS[kind].candidates(torch.linspace(0, 1, 50), 4)[0]
    with pytest.raises(DataError) as caught:
        grid.quantize(torch.tensor([0.5, math.nan]))
    assert caught.value.code == "EQ-D200"


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("bits", [1, 9, -3])
def test_impossible_widths_are_refused(kind: str, bits: int) -> None:
    with pytest.raises(UsageError) as caught:
        GRIDS[kind].fit(torch.linspace(0, 1, 50), bits)
    assert caught.value.code == "EQ-U201"


@pytest.mark.parametrize("kind", GRIDS)
def test_a_tensor_of_zeros_gets_a_grid(kind: str) -> None:
    grid = GRIDS[kind].fit(torch.zeros(5), 4)
    assert grid.dequantize(grid.quantize(torch.zeros(5))).abs().max() <= 0.011  # sulq: no level lies on 0 exactly


@pytest.mark.parametrize("kind", GRIDS)
def test_values_nearly_all_zero_get_a_grid(kind: str) -> None:
    x = torch.zeros(1 << 17)
    x[5] = 3.0
    grid = GRIDS[kind].fit(x, 4)
    assert float(grid.dequantize(grid.quantize(x))[5]) >= 1  # adalog's largest level stays 1


@pytest.mark.parametrize("codes", [[-1], [16]])
def test_codes_of_another_grid_are_refused(codes: list[int]) -> None:
    with pytest.raises(UsageError) as caught:
        Log2(4).dequantize(torch.tensor(codes))
    assert caught.value.code == "EQ-U204"


@pytest.mark.parametrize(
    "parameters", [{}, {"limit": 1.0}, {"limit": 1.0, "published": 0.0, "x": 1.0}, {"limit": -1.0, "published": 0.0}]
)
def test_wrong_parameters_are_refused(parameters: dict[str, float]) -> None:
    with pytest.raises(UsageError) as caught:
        Log2.from_parameters(4, parameters)
    assert caught.value.code == "EQ-U201"


def test_grids_that_do_not_go_together_are_refused() -> None:
    for grids in ([], [Log2(4), Log2(3)], [Log2(4), LogSqrt2(4)]):
        with pytest.raises(UsageError) as caught:
            table_params(grids)
        assert caught.value.code == "EQ-U203"


@pytest.mark.parametrize("kind", [Log2, LogSqrt2])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_published_forms_have_a_level_too_many_and_cannot_be_stored(kind: type, bits: int) -> None:
    for grid in (kind(bits, published=True), AdaLog(bits, 30, published=True)):
        assert len(np.unique(grid.levels())) == (1 << bits) + 1
        with pytest.raises(UsageError) as caught:
            table_params([grid])
        assert caught.value.code == "EQ-U200"


@settings(max_examples=25, deadline=None)
@given(st.floats(-10, 10, width=32), st.floats(0.0078125, 10, width=32), st.sampled_from([2, 4, 8]), VALUES)
def test_the_uniform_grid_is_the_one_of_the_plan(low: float, width: float, bits: int, values: np.ndarray) -> None:
    grid, x = UniformGrid.from_range(low, low + width, bits), torch.from_numpy(values)
    assert torch.equal(grid.dequantize(grid.quantize(x)), fake_quantize(x, grid.qparams))


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("shift", [0, 1, 3, 7])
def test_twin_halves_add_after_a_shift(bits: int, shift: int) -> None:
    grid = TwinUniform(bits, 2.0**-10, shift)
    half, generator = 1 << (bits - 1), torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2 * half, (50,), generator=generator)
    v = torch.randint(-128, 128, (50,), generator=generator)
    low = int((torch.where(codes < half, codes, 0) * v).sum())
    high = int((torch.where(codes >= half, codes - half, 0) * v).sum())
    exact = float((grid.dequantize(codes).double() * v).sum())
    assert (low + (high << shift)) * 2.0**-10 == exact


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_each_value_takes_the_nearer_twin_level(bits: int) -> None:
    for grid in TwinUniform.candidates(torch.tensor([0.7]), bits):
        x = torch.rand(500, generator=torch.Generator().manual_seed(1)) * 1.5
        distance = (x[:, None] - torch.from_numpy(grid.levels())).abs()
        assert torch.allclose((grid.dequantize(grid.quantize(x)) - x).abs(), distance.amin(1), atol=1e-6)
