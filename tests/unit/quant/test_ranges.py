"""Range estimators on histograms, judged by the true error of the samples behind them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeq.errors import DataError, UsageError
from edgeq.quant.ranges import ESTIMATORS, cell_error, cells, choose_range, parse_estimator
from edgeq.quant.statistics import TensorStatistics
from edgeq.quant.uniform import fake_quantize, qparams_from_range
from edgeq.spec import PerChannel, QuantSpec


def statistics(x: torch.Tensor) -> TensorStatistics:
    result = TensorStatistics()
    result.update(x)
    return result


def true_error(x: torch.Tensor, ends: tuple[float, float], spec: QuantSpec) -> float:
    return float(((fake_quantize(x, qparams_from_range(*ends, spec)) - x) ** 2).double().mean())


def modelled(stats: TensorStatistics, ends: tuple[float, float], spec: QuantSpec) -> float:
    return cell_error(*cells(stats), qparams_from_range(*ends, spec)) / stats.count


def sample(kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(60_000, generator=generator)
    match kind:
        case "relu":
            return x.relu()
        case "gelu":
            return torch.nn.functional.gelu(2 * x)
        case "heavy":
            return x**3
        case "massive":  # a handful of values a thousand times the rest, as in large transformers
            x[:6] = torch.tensor([500.0, -300.0, 450.0, 480.0, -310.0, 512.0])
            return x
        case "offset":
            return x + 20
        case "constant":
            return torch.full((1000,), 0.3)
    return x


KINDS = ["normal", "relu", "gelu", "heavy", "massive", "offset", "constant"]


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e5, 1e5, width=32)),
    st.sampled_from([2, 3, 4, 8]),
    st.booleans(),
)
def test_mse_is_never_worse_than_minmax(values: np.ndarray, bits: int, symmetric: bool) -> None:
    stats, spec = statistics(torch.from_numpy(values)), QuantSpec(bits, symmetric, observer="mse")
    low, high = choose_range(stats, spec)
    assert low <= 0 <= high
    assert modelled(stats, (low, high), spec) <= modelled(stats, (stats.low, stats.high), spec)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_modelled_error_is_the_true_error(kind: str, bits: int, symmetric: bool) -> None:
    x, spec = sample(kind), QuantSpec(bits, symmetric)
    stats = statistics(x)
    for share in (1.0, 0.5, 0.02):
        ends = (stats.low * share, stats.high * share)
        # a cell as wide as the spread of the bulk (massive) is known by its mean density only
        assert modelled(stats, ends, spec) == pytest.approx(true_error(x, ends, spec), rel=0.08, abs=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [4, 8])
def test_mse_comes_near_the_best_clip_of_an_exhaustive_search(kind: str, bits: int, symmetric: bool) -> None:
    x, spec = sample(kind)[:10_000], QuantSpec(bits, symmetric, observer="mse")
    stats = statistics(x)
    found = true_error(x, choose_range(stats, spec), spec)
    low, high = min(stats.low, 0.0), max(stats.high, 0.0)
    shares = 2.0 ** (-np.arange(0, 30) / 3)
    pairs = [(a, a) for a in shares] if symmetric else [(a, b) for a in shares[::3] for b in shares[::3]]
    best = min(true_error(x, (low * a, high * b), spec) for a, b in pairs)
    assert found <= best * 1.05 + 1e-9


def test_mse_does_not_stop_at_a_small_fraction_of_the_range() -> None:
    x = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0))
    x[0] = 300  # one value in two million: the best 4-bit clip lies below 2 % of the range
    low, high = choose_range(statistics(x), QuantSpec(4, observer="mse"))
    assert high < 0.02 * 300
    assert true_error(x[1:], (low, high), QuantSpec(4)) < 0.02


@given(hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-(2.0**99), 2.0**99, width=32)))
def test_percentile_one_is_minmax(values: np.ndarray) -> None:
    stats = statistics(torch.from_numpy(values))
    expected = (min(float(values.min()), 0.0), max(float(values.max()), 0.0))
    assert choose_range(stats, QuantSpec(observer="percentile:1.0")) == expected
    assert choose_range(stats, QuantSpec(observer="minmax")) == expected


@pytest.mark.parametrize("kind", ["normal", "relu", "gelu", "heavy", "offset"])
@pytest.mark.parametrize("p", [0.6, 0.99, 0.999])
def test_percentiles_are_within_a_bin_of_the_exact_ones(kind: str, p: float) -> None:
    x = sample(kind)
    stats = statistics(x)
    low, high = choose_range(stats, QuantSpec(observer=f"percentile:{p}"))
    width = 2.0**stats.exponent / 4096
    for found, share in ((low, 1 - p), (high, p)):
        # in a sparse tail any value between two neighbours is the percentile
        below, above = np.quantile(x.numpy(), [share - 1e-4, share + 1e-4])
        assert min(below, 0) - width <= found <= max(above, 0) + width


@given(
    hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e5, 1e5, width=32)),
    st.floats(0.5, 1, exclude_min=True),
    st.floats(0.5, 1, exclude_min=True),
)
def test_percentiles_are_nested_and_inside_the_ends(values: np.ndarray, p: float, q: float) -> None:
    stats = statistics(torch.from_numpy(values))
    low, high = choose_range(stats, QuantSpec(observer=f"percentile:{min(p, q)!r}"))
    wide_low, wide_high = choose_range(stats, QuantSpec(observer=f"percentile:{max(p, q)!r}"))
    assert min(stats.low, 0) <= wide_low <= low <= high <= wide_high <= max(stats.high, 0)


@pytest.mark.parametrize("observer", ["minmax", "mse", "percentile:0.999"])
@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [1e-38], [-3e38, 3e38], [5.0], [-5.0, -5.0], [1e-45]])
def test_extreme_tensors_get_a_grid(observer: str, values: list[float]) -> None:
    for symmetric in (False, True):
        spec = QuantSpec(8, symmetric, observer=observer)
        ends = choose_range(statistics(torch.tensor(values)), spec)
        assert np.isfinite(ends).all()
        assert qparams_from_range(*ends, spec).scale > 0


def test_unknown_estimators_name_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        parse_estimator("percentil:0.9")
    assert caught.value.code == "EQ-U020"
    assert "percentile" in str(caught.value.hint)
    assert set(ESTIMATORS) == {"minmax", "percentile", "mse", "sparse_grid"}


@pytest.mark.parametrize(
    "text", ["percentile", "percentile:", "percentile:x", "percentile:0.5", "percentile:1.1", "percentile:nan", "mse:3"]
)
def test_bad_parameters_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_estimator(text)
    assert caught.value.code == "EQ-U021"


def test_channels_and_empty_statistics_are_refused() -> None:
    with pytest.raises(UsageError) as usage:
        choose_range(statistics(torch.ones(3)), QuantSpec(granularity=PerChannel(0)))
    assert usage.value.code == "EQ-U024"
    with pytest.raises(DataError) as data:
        choose_range(TensorStatistics(), QuantSpec())
    assert data.value.code == "EQ-D031"


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(0, 20_000), st.sampled_from([4, 8]), st.booleans())
def test_sparse_grid_cuts_at_most_half_and_does_not_see_zeros(
    seed: int, zeros: int, bits: int, symmetric: bool
) -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(seed)) ** 3
    spec = QuantSpec(bits, symmetric, observer="sparse_grid")
    dense, sparse = statistics(values), statistics(torch.cat([values, torch.zeros(zeros)]))
    low, high = choose_range(dense, spec)
    assert choose_range(sparse, spec) == (low, high)
    assert 0.5 * high <= high <= dense.high
    assert dense.low <= low <= 0.5 * dense.low
    assert high >= 0.5 * dense.high
    assert modelled(dense, (low, high), spec) <= modelled(dense, (dense.low, dense.high), spec)


def test_shares_lose_what_is_rare_and_sparse_grid_does_not() -> None:
    """One map in a thousand cells far from zero: what LiDAR-PTQ is for."""
    x = torch.zeros(100_000)
    x[:100] = torch.linspace(8, 10, 100)
    stats = statistics(x)
    assert choose_range(stats, QuantSpec(observer="percentile:0.999"))[1] < 9
    assert choose_range(stats, QuantSpec(observer="sparse_grid"))[1] > 9.5
