"""Scale searches: never worse than min-max on their data, and better where clipping or the output's view pays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor
from torch.nn import functional

from edgeq.errors import DataError, UsageError
from edgeq.quant.search import (
    SEARCHES,
    FpcsBudget,
    Layer,
    Operand,
    fpcs,
    get_search,
    gram_errors,
    sample_rows,
    search_alternating,
    search_clip_ends,
    search_fpcs,
    search_grid,
    search_percentile,
)
from edgeq.quant.search.scales import Search
from edgeq.quant.uniform import fake_quantize, qparams_from_range
from edgeq.spec import PerChannel, PerGroup, QuantSpec

ACTIVATION = QuantSpec(4)
WEIGHT = QuantSpec(4, symmetric=True, granularity=PerChannel(0), narrow=True)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def heavy(*shape: int, seed: int = 0) -> Tensor:
    x = randn(*shape, seed=seed)
    return x * x.abs()


def linear(bits: int = 4, rows: int = 200, features: int = 12, outputs: int = 7) -> Layer:
    x, w = heavy(rows, features), heavy(outputs, features, seed=1)
    weight = QuantSpec(bits, symmetric=True, granularity=PerChannel(0), narrow=True)
    return Layer(functional.linear, Operand(x, QuantSpec(bits)), Operand(w, weight))


@settings(max_examples=25, deadline=None)
@given(
    hnp.arrays(np.float32, (5, 3), elements=st.floats(-1e3, 1e3, width=32)),
    hnp.arrays(np.float32, (4, 3), elements=st.floats(-10, 10, width=32)),
    st.sampled_from(sorted(SEARCHES)),
    st.sampled_from([2, 4, 8]),
    st.booleans(),
)
def test_no_search_is_worse_than_minmax(x: np.ndarray, w: np.ndarray, name: str, bits: int, symmetric: bool) -> None:
    granularity = {} if name == "fpcs" else {"granularity": PerChannel(0)}
    layer = Layer(
        functional.linear,
        Operand(torch.from_numpy(x), QuantSpec(bits, symmetric)),
        Operand(torch.from_numpy(w), QuantSpec(bits, symmetric=True, narrow=True, **granularity)),
    )
    for position, operand in enumerate((layer.left, layer.right)):
        assert operand.spec is not None
        errors = layer.errors(position)
        choice = get_search(name)(operand.value, operand.spec, errors)
        low, high = (end.double().numpy() for end in operand.value.aminmax())
        if operand.spec.granularity == PerChannel(0):
            low, high = operand.value.amin(1).double().numpy(), operand.value.amax(1).double().numpy()
        minmax = errors(fake_quantize(operand.value, qparams_from_range(low, high, operand.spec)))
        found = errors(fake_quantize(operand.value, choice.qparams))
        assert (found <= minmax).all()
        np.testing.assert_array_equal(found, choice.error)
        np.testing.assert_array_equal(minmax, choice.minmax_error)
    both = search_alternating(layer, left=get_search(name), right=get_search(name), rounds=2)
    assert both.error <= both.minmax_error


@pytest.mark.parametrize("name", sorted(SEARCHES))
def test_searches_clip_outliers_of_an_activation(name: str) -> None:
    x, w = randn(4000, 6), randn(8, 6, seed=1)
    x[0, 0] = 60.0
    layer = Layer(functional.linear, Operand(x, ACTIVATION), Operand(w))
    choice = get_search(name)(x, ACTIVATION, layer.errors(0))
    assert choice.error.sum() < 0.6 * choice.minmax_error.sum()
    assert float(choice.high) < 30


@pytest.mark.parametrize("search", [search_grid, search_clip_ends])
def test_channels_are_chosen_each_for_itself(search: Search) -> None:
    layer = linear()
    choice = search(layer.right.value, WEIGHT, layer.errors(1))
    assert choice.qparams.scale.shape == (7,)
    assert (choice.error <= choice.minmax_error).all()
    assert (choice.error < choice.minmax_error).any()
    alone = [
        search(
            row[None], WEIGHT, Layer(functional.linear, layer.left, Operand(row[None], WEIGHT)).errors(1)
        ).qparams.scale[0]
        for row in layer.right.value
    ]
    np.testing.assert_array_equal(choice.qparams.scale, np.array(alone))


def test_the_output_decides_not_the_operand() -> None:
    x = randn(500, 4)
    x[:, 3] *= 50  # wide, and the weights ignore it
    w = randn(3, 4, seed=1)
    w[:, 3] = 0
    layer = Layer(functional.linear, Operand(x, ACTIVATION), Operand(w))
    choice = search_grid(x, ACTIVATION, layer.errors(0))
    assert choice.error.sum() < 0.02 * choice.minmax_error.sum()


def test_importance_moves_the_choice_to_what_matters() -> None:
    x = torch.cat([randn(300, 4), 20 * randn(300, 4, seed=1)])
    w = randn(3, 4, seed=2)
    importance = torch.cat([torch.ones(300, 1), torch.zeros(300, 1)])
    plain = Layer(functional.linear, Operand(x, ACTIVATION), Operand(w))
    guided = Layer(functional.linear, Operand(x, ACTIVATION), Operand(w), importance)
    broad = search_grid(x, ACTIVATION, plain.errors(0))
    narrow = search_grid(x, ACTIVATION, guided.errors(0))
    assert float(narrow.qparams.scale) < 0.3 * float(broad.qparams.scale)


def test_importance_of_one_is_the_plain_error() -> None:
    layer = linear()
    weighted = Layer(layer.function, layer.left, layer.right, torch.ones(1))
    candidate = fake_quantize(layer.left.value, qparams_from_range(-3, 3, ACTIVATION))
    np.testing.assert_allclose(layer.errors(0)(candidate), weighted.errors(0)(candidate), rtol=1e-6)


def test_moments_give_the_error_of_the_data() -> None:
    x, w = randn(100, 5), randn(3, 5, seed=1)
    seen = x + 0.1 * randn(100, 5, seed=2)
    candidate = w + 0.01 * randn(3, 5, seed=3)
    for inputs in (x, seen):
        direct = ((inputs.double() @ candidate.double().T - x.double() @ w.double().T) ** 2).sum(0).numpy()
        np.testing.assert_allclose(gram_errors(x, w, inputs)(candidate), direct, rtol=1e-9)
    assert gram_errors(x, w)(w) == pytest.approx(np.zeros(3))


def test_moments_are_used_only_where_they_give_the_same() -> None:
    layer = linear(rows=200)
    candidate = fake_quantize(layer.right.value, qparams_from_range(-np.ones(7), np.ones(7), WEIGHT))
    weighted = Layer(layer.function, layer.left, layer.right, torch.ones(1))
    np.testing.assert_allclose(layer.errors(1)(candidate), weighted.errors(1)(candidate), rtol=1e-5)


def test_heads_of_an_attention_product_get_their_own_scales() -> None:
    spec = QuantSpec(4, granularity=PerChannel(1))
    q = randn(2, 3, 6, 4) * torch.tensor([1.0, 10.0, 0.1]).reshape(3, 1, 1)
    k = randn(2, 3, 4, 6, seed=1)
    layer = Layer(torch.matmul, Operand(q, spec, output_axis=1), Operand(k, QuantSpec(4)))
    choice = search_alternating(layer)
    assert choice.left is not None and choice.right is not None
    scales = choice.left.qparams.scale
    assert scales.shape == (3,)
    assert scales[1] > 5 * scales[0] > 25 * scales[2]
    assert choice.error < choice.minmax_error


def test_filters_of_a_convolution_get_their_own_scales() -> None:
    x, w = randn(2, 3, 8, 8), heavy(5, 3, 3, 3, seed=1)
    layer = Layer(functional.conv2d, Operand(x, QuantSpec(8)), Operand(w, WEIGHT, output_axis=1))
    choice = search_grid(w, WEIGHT, layer.errors(1))
    assert choice.error.shape == (5,)
    assert choice.error.sum() < choice.minmax_error.sum()


def test_rounds_never_lose_what_was_found() -> None:
    layer = linear(bits=3)
    errors = [search_alternating(layer, rounds=rounds).error for rounds in (1, 2, 3)]
    assert errors[0] >= errors[1] >= errors[2]


def test_an_operand_without_spec_stays_float() -> None:
    layer = linear()
    choice = search_alternating(Layer(layer.function, layer.left, Operand(layer.right.value)))
    assert choice.right is None and choice.left is not None
    assert choice.error == pytest.approx(float(choice.left.error.sum()))


def test_the_percentile_one_is_minmax() -> None:
    layer = linear()
    choice = search_percentile(layer.left.value, ACTIVATION, layer.errors(0), percentiles=[1.0])
    np.testing.assert_array_equal(choice.error, choice.minmax_error)


def test_ends_of_a_choice_are_those_of_its_grid() -> None:
    layer = linear()
    choice = search_clip_ends(layer.left.value, ACTIVATION, layer.errors(0))
    again = qparams_from_range(choice.low, choice.high, ACTIVATION)
    np.testing.assert_allclose(again.scale, choice.qparams.scale, rtol=1e-6)
    np.testing.assert_array_equal(again.zero_point, choice.qparams.zero_point)


def test_progressive_search_finds_an_optimum_between_the_grid_points() -> None:
    calls: list[int] = []

    def errors(scale: np.ndarray, base: np.ndarray) -> np.ndarray:
        calls.append(len(scale))
        return (scale - 0.61803) ** 2 + (base - 3) ** 2

    found = fpcs(errors, np.linspace(0.1, 1, 8), np.arange(6), FpcsBudget(survivors=4, width=32, steps=5))
    assert found.partner == 3
    assert found.scale == pytest.approx(0.61803, abs=1e-5)
    assert found.evaluations == sum(calls) == 48 + 5 * 32


@pytest.mark.parametrize("each", [2, 3, 5])
def test_progressive_search_refines_however_few_scales_a_survivor_gets(each: int) -> None:
    budget = FpcsBudget(survivors=4, width=4 * each, steps=12)
    found = fpcs(lambda s, p: (s - 0.61803) ** 2, np.linspace(0.1, 1, 8), [0.0], budget)
    assert found.scale == pytest.approx(0.61803, abs=1e-4)


def test_progressive_search_never_loses_the_best_of_its_first_grid() -> None:
    scales = np.linspace(1, 2, 5)
    found = fpcs(lambda s, p: np.where(s == 1.25, -1.0, s), scales, [0.0], FpcsBudget(2, 4, 3))
    assert (found.scale, found.error) == (1.25, -1.0)


def test_fpcs_beats_the_even_grid_on_a_skewed_tensor() -> None:
    x, w = functional.gelu(2 * randn(2000, 6)), randn(8, 6, seed=1)
    errors = Layer(functional.linear, Operand(x, ACTIVATION), Operand(w)).errors(0)
    assert search_fpcs(x, ACTIVATION, errors).error.sum() < search_grid(x, ACTIVATION, errors).error.sum()


def test_an_all_zero_operand_keeps_the_minmax_grid() -> None:
    x = torch.zeros(4, 3)
    layer = Layer(functional.linear, Operand(x, ACTIVATION), Operand(randn(2, 3)))
    for name in SEARCHES:
        choice = get_search(name)(x, ACTIVATION, layer.errors(0))
        assert float(choice.qparams.scale) == 1
        assert choice.error.sum() == 0


def test_sampled_rows_are_rows_in_order() -> None:
    x = torch.arange(60.0).reshape(2, 10, 3)
    rows = sample_rows(x, 7, seed=0)
    assert rows.shape == (7, 3)
    assert bool((rows[1:, 0] > rows[:-1, 0]).all())
    assert torch.equal(rows, sample_rows(x, 7, seed=0))
    assert torch.equal(sample_rows(x, 20, seed=0), x.reshape(20, 3))


@pytest.mark.parametrize("bad", [torch.zeros(0, 3), torch.tensor([[1.0, float("nan"), 0.0]])])
def test_bad_data_is_refused(bad: Tensor) -> None:
    with pytest.raises(DataError) as caught:
        Operand(bad, ACTIVATION)
    assert caught.value.code == "EQ-D280"
    with pytest.raises(DataError):
        search_grid(bad, ACTIVATION, lambda candidate: np.zeros(1))


@pytest.mark.parametrize("importance", [torch.ones(5), -torch.ones(1), torch.ones(1, 1, 200, 7)])
def test_bad_importance_is_refused(importance: Tensor) -> None:
    layer = linear()
    with pytest.raises(DataError) as caught:
        Layer(layer.function, layer.left, layer.right, importance)
    assert caught.value.code == "EQ-D281"


def test_scales_that_do_not_separate_in_the_output_are_refused() -> None:
    layer = linear()
    x = layer.left.value
    with pytest.raises(UsageError) as caught:
        Layer(layer.function, Operand(x, QuantSpec(4, granularity=PerChannel(1))), layer.right).errors(0)
    assert caught.value.code == "EQ-U280"
    with pytest.raises(UsageError):
        Operand(x, QuantSpec(4, granularity=PerGroup(4)))
    with pytest.raises(UsageError):
        Operand(x, QuantSpec(4, granularity=PerChannel(2)))
    with pytest.raises(UsageError):
        search_fpcs(layer.right.value, WEIGHT, layer.errors(1))


def test_impossible_settings_are_refused() -> None:
    layer = linear()
    x, errors = layer.left.value, layer.errors(0)
    for call in (
        lambda: search_grid(x, ACTIVATION, errors, alpha=0),
        lambda: search_grid(x, ACTIVATION, errors, alpha=2, beta=1),
        lambda: search_percentile(x, ACTIVATION, errors, percentiles=[]),
        lambda: search_percentile(x, ACTIVATION, errors, percentiles=[0.4]),
        lambda: search_alternating(layer, rounds=0),
        lambda: search_alternating(Layer(layer.function, Operand(x), Operand(layer.right.value))),
        lambda: FpcsBudget(survivors=16, width=16),
        lambda: fpcs(lambda s, p: s, [1.0, 0.5], [0]),
        lambda: fpcs(lambda s, p: s, [0.0, 0.5], [0]),
        lambda: fpcs(lambda s, p: s, [0.5], []),
    ):
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.code == "EQ-U281"
    with pytest.raises(UsageError, match="unknown scale search"):
        get_search("hessain")
