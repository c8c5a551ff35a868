"""Codes for attention: chosen by the output, corrected for lost mass, and exact in integers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.errors import DataError, UsageError
from edgeq.metrics import sqnr_db
from edgeq.quant.grids import AdaLog, AttentionCode, Log2, choose_attention, fit_attention, grids_of, integer_product
from edgeq.quant.grids.attention import KINDS, RENORMS, UNNORMALIZED, corrected


def maps(samples: int = 2, heads: int = 2, tokens: int = 48, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of mixed sharpness, and values."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, heads, tokens, tokens, generator=generator)
    sharpness = torch.linspace(0.5, 3, heads)[:, None, None]
    return (logits * sharpness).softmax(-1), torch.randn(samples, heads, tokens, 16, generator=generator)


def long_maps() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows with one strong key and a long tail of values that agree: the tail is most of the output."""
    generator = torch.Generator().manual_seed(5)
    logits = 0.8 * torch.randn(1, 2, 64, 256, generator=generator)
    logits[..., 0] += 6
    v = 0.3 * torch.randn(1, 2, 256, 16, generator=generator) + torch.randn(1, 2, 1, 16, generator=generator)
    v[:, :, 0] *= 0.05
    return logits.softmax(-1), v


def output_db(code: AttentionCode, p: torch.Tensor, v: torch.Tensor) -> float:
    return sqnr_db((p.double() @ v.double()).numpy(), code.output(p, v).numpy())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_head", [False, True])
def test_every_kind_fits_and_survives_the_plan(kind: str, per_head: bool) -> None:
    p, v = maps()
    code = fit_attention(kind, p, v, 4, renorm="row_sum", per_head=per_head)
    assert len(code.grids) == (2 if per_head and kind != UNNORMALIZED else 1)
    assert code.output(p, v).shape == v.shape
    assert output_db(code, p, v) > 8
    assert grids_of(code.table_params()) == code.grids


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([3, 4, 6]))
def test_parameters_for_each_head_never_cost_on_the_data_of_the_search(seed: int, bits: int) -> None:
    p, v = maps(1, 2, 24, seed)
    errors = []
    for per_head in (True, False):
        output = fit_attention("adalog", p, v, bits, renorm="row_sum", per_head=per_head).output(p, v)
        errors.append(float((output - p @ v).double().square().sum()))
    assert errors[0] <= errors[1] * (1 + 1e-6)


def test_parameters_are_chosen_by_the_output_not_by_the_map() -> None:
    p, v = long_maps()
    by_map = AttentionCode("adalog", (AdaLog.fit(p, 3),), "none")
    by_output = fit_attention("adalog", p, v, 3)
    assert output_db(by_output, p, v) >= output_db(by_map, p, v) + 5
    assert sqnr_db(p, by_map.weights(p)) >= sqnr_db(p, by_output.weights(p))


@pytest.mark.parametrize("kind", ["log2", "adalog", "uniform", "sulq_table"])
def test_the_correction_is_chosen_and_pays(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    p = (2 * torch.randn(1, 2, 64, 128, generator=generator)).softmax(-1)
    v = torch.randn(1, 2, 128, 16, generator=generator) + torch.randn(1, 2, 1, 16, generator=generator)
    choice = choose_attention(p, v, 4, [kind])
    scores = choice.scores[kind]
    assert set(scores) == set(RENORMS)
    assert choice.code.renorm == max(scores, key=scores.__getitem__)
    assert choice.sqnr_db == scores[choice.code.renorm] > scores["none"] + 3


def test_the_best_of_all_kinds_is_returned() -> None:
    p, v = maps()
    choice = choose_attention(p, v, 6)
    table = {(kind, renorm): db for kind, row in choice.scores.items() for renorm, db in row.items()}
    assert max(table, key=table.__getitem__) == (choice.code.kind, choice.code.renorm)
    assert choice.sqnr_db == output_db(choice.code, p, v)
    assert set(choice.scores[UNNORMALIZED]) == {"row_sum"}


def test_corrections_are_what_they_say() -> None:
    p, v = maps(1, 1, 12)
    outputs = corrected(p * 0.9, v)
    exact = p @ v
    assert torch.allclose(outputs["none"], 0.9 * exact, atol=1e-5)
    assert torch.allclose(outputs["row_sum"], exact, atol=1e-5)
    assert torch.allclose(outputs["mean_value"], 0.9 * exact + 0.1 * v.mean(-2, keepdim=True), atol=1e-5)
    assert torch.isfinite(corrected(torch.zeros_like(p), v)["row_sum"]).all()


def test_a_column_of_ones_gives_the_row_sum() -> None:
    p, v = maps()
    code = fit_attention("log2", p, v, 4, renorm="row_sum")
    weights, extended = code.weights(p), torch.cat([v, torch.ones(*v.shape[:3], 1)], dim=-1)
    product = weights @ extended
    assert torch.allclose(product[..., :-1] / product[..., -1:], code.output(p, v), atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([Log2(3), Log2(4), AdaLog(3, 45), AdaLog(4, 25)]))
def test_integers_give_the_floating_point_product_exactly(seed: int, grid: Log2 | AdaLog) -> None:
    p, v = maps(1, 2, 32, seed)
    v_scale = float(v.abs().max()) / 127
    v_codes = torch.round(v / v_scale).int()
    codes, table = grid.quantize(p), grid.integer_table()
    assert table.exact
    products, sums = integer_product(codes, v_codes, table)
    weights = grid.dequantize(codes).double()
    exact = 0 if isinstance(grid, Log2) else 1e-5  # 1/14 is no float
    assert torch.allclose(products.double() * table.scale, weights @ v_codes.double(), rtol=0, atol=127 * exact)
    assert torch.allclose(sums.double() * table.scale, weights.sum(-1), rtol=0, atol=exact)
    ones = torch.ones(*v_codes.shape[:3], 1, dtype=torch.int32)
    assert torch.equal(integer_product(codes, torch.cat([v_codes, ones], -1), table)[0][..., -1], sums)
    divided = products.double() / sums[..., None].clamp_min(1)
    wanted = corrected(weights, v_codes.double())["row_sum"]
    assert torch.allclose(divided, wanted, atol=1e-3)
    # the division as a multiplication by a 24-bit reciprocal
    reciprocal = (1 << 24) // sums.clamp_min(1)
    approximate = ((products * reciprocal[..., None]) >> 16).double() / 2.0**8
    assert (approximate - divided).abs().max() <= 128 * float(sums.max()) * 2.0**-24 + 2.0**-8


def test_unnormalized_codes_keep_the_exponentials_of_flat_rows() -> None:
    generator = torch.Generator().manual_seed(2)
    p = (0.3 * torch.randn(1, 2, 64, 256, generator=generator)).softmax(-1)
    v = torch.randn(1, 2, 256, 16, generator=generator)
    code = fit_attention(UNNORMALIZED, p, v, 8, renorm="row_sum")
    weights = code.weights(p)
    assert torch.equal(weights.amax(-1), torch.ones(1, 2, 64))
    assert (weights - p / p.amax(-1, keepdim=True)).abs().max() <= 0.5 / 255 + 1e-6
    fixed = torch.round(p * 256).clamp_(0, 255) / 256  # the softmax output of integer runtimes
    assert output_db(code, p, v) > sqnr_db((p.double() @ v.double()).numpy(), (fixed @ v).numpy()) + 10


def test_results_do_not_depend_on_rows_that_the_search_skips() -> None:
    p, v = maps(1, 2, 48)
    sparse, dense = (fit_attention("adalog", p, v, 4, queries=q) for q in (12, 1000))
    assert fit_attention("adalog", p[:, :, ::4], v, 4, queries=12) == sparse
    assert abs(output_db(sparse, p, v) - output_db(dense, p, v)) < 2


def test_bad_maps_are_refused() -> None:
    p, v = maps(1, 2, 8)
    nan = torch.where(torch.arange(8) == 0, math.nan, p)
    negative = torch.cat([p[..., :1] - 1, p[..., 1:-1], p[..., -1:] + 1], -1)
    bad = [(p[0], v[0]), (p, v[:, :, :-1]), (p[:, :1], v), (p[:, :, :0], v), (nan, v), (p, v * math.inf), (2 * p, v)]
    for maps_, values in [*bad, (negative, v)]:
        with pytest.raises(DataError) as caught:
            choose_attention(maps_, values, 4)
        assert caught.value.code == "EQ-D201"


def test_bad_choices_are_refused() -> None:
    p, v = maps(1, 2, 8)
    for keywords, code in (
        ({"kinds": ["adalogg"]}, "EQ-U202"),
        ({"renorms": ["rowsum"]}, "EQ-U202"),
        ({"kinds": []}, "EQ-U207"),
        ({"renorms": []}, "EQ-U207"),
        ({"kinds": [UNNORMALIZED], "renorms": ["none"]}, "EQ-U207"),
        ({"queries": 0}, "EQ-U209"),
    ):
        with pytest.raises(UsageError) as caught:
            choose_attention(p, v, 4, **keywords)
        assert caught.value.code == code
    for bits in (1, 9):
        with pytest.raises(UsageError) as caught:
            fit_attention(UNNORMALIZED, p, v, bits, renorm="row_sum")
        assert caught.value.code == "EQ-U201"
    with pytest.raises(UsageError) as caught:
        fit_attention(UNNORMALIZED, p, v, 4, renorm="none")
    assert caught.value.code == "EQ-U207"
    with pytest.raises(UsageError) as caught:
        AttentionCode("log2", (Log2(4),) * 3, "none").weights(p)
    assert caught.value.code == "EQ-U206"


def test_integer_products_that_cannot_run_are_refused() -> None:
    table = Log2(4).integer_table()
    with pytest.raises(UsageError) as outside:
        integer_product(torch.tensor([[16]]), torch.tensor([[1]]), table)
    assert outside.value.code == "EQ-U204"
    with pytest.raises(UsageError) as overflow:
        integer_product(torch.zeros(1, 2000, dtype=torch.int32), torch.full((2000, 1), 127), table)
    assert overflow.value.code == "EQ-U208"
    assert np.abs(table.values).max() == 1 << 14
