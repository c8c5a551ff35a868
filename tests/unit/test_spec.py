"""Grids as plain data: tables of levels beside uniform grids, and plans that hold both."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeq.errors import InternalError, UsageError
from edgeq.spec import (
    HALF_SCALES,
    PerChannel,
    PerGroup,
    QParams,
    QuantPlan,
    QuantSpec,
    TableParams,
    TensorPlan,
    grid_from_dict,
    half_scales,
    two_levels,
)

UNIFORM = QParams(QuantSpec(8), np.array(0.5, np.float32), np.array(3, np.int32))
TABLE = TableParams("log2", 3, {"limit": 1.0}, np.append(2.0 ** -np.arange(7), 0).astype(np.float32))
LEVELS = hnp.arrays(
    np.float32, st.integers(1, 16), elements=st.floats(-1e6, 1e6, width=32), fill=st.just(np.float32(0))
)


def plan(*tensors: TensorPlan) -> QuantPlan:
    return QuantPlan("static", {t.name: t for t in tensors}, {})


@given(LEVELS, st.floats(-1e9, 1e9), st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=4))
def test_tables_survive_json(levels: np.ndarray, shared: float, per_head: list[float]) -> None:
    for table in (
        TableParams("adalog", 4, {"limit": shared}, levels),
        TableParams("adalog", 4, {"limit": shared, "base": tuple(per_head)}, np.stack([levels] * len(per_head))),
    ):
        again = grid_from_dict(json.loads(json.dumps(table.to_dict())))
        assert again == table
        assert hash(again) == hash(table)


def test_plans_survive_json_with_both_kinds_of_grid() -> None:
    mixed = plan(TensorPlan("x", "activation", UNIFORM, "minmax"), TensorPlan("p", "activation", TABLE, "search"))
    again = QuantPlan.from_dict(json.loads(json.dumps(mixed.to_dict())))
    assert dict(again.tensors) == dict(mixed.tensors)
    assert [t.bits for t in again.tensors.values()] == [8, 3]


def test_plans_written_before_tables_still_open() -> None:
    old = {
        "schema": "edgeq.plan/1",
        "scheme": "static",
        "tensors": [
            {
                "name": "x",
                "role": "activation",
                "qparams": {"spec": UNIFORM.spec.to_dict(), "scale": 0.5, "zero_point": 3},
                "provenance": "minmax",
                "rounding": "",
                "codes_sha256": "",
            }
        ],
        "ops": [],
    }
    assert QuantPlan.from_dict(old).tensors["x"].uniform == UNIFORM
    assert QuantPlan.from_dict(old).to_dict() == {**old, "notes": []}


def test_a_table_is_refused_where_only_a_uniform_grid_can_stand() -> None:
    assert TensorPlan("x", "activation", UNIFORM, "").uniform is UNIFORM
    with pytest.raises(InternalError) as caught:
        _ = TensorPlan("p", "activation", TABLE, "").uniform
    assert caught.value.code == "EQ-Z200"
    assert "log2" in caught.value.message


def test_tables_differ_in_each_field() -> None:
    values = {"kind": TABLE.kind, "bits": TABLE.bits, "parameters": TABLE.parameters, "levels": TABLE.levels}
    assert TableParams(**values) == TABLE
    for name, other in (("kind", "tan"), ("bits", 4), ("parameters", {}), ("levels", TABLE.levels[:-1])):
        assert TableParams(**{**values, name: other}) != TABLE


@pytest.mark.parametrize(
    ("bits", "parameters", "levels"),
    [
        (1, {}, [0.0]),
        (17, {}, [0.0]),
        (3, {}, np.zeros(9)),
        (3, {}, []),
        (3, {}, 1.0),
        (3, {}, np.zeros((2, 2, 2))),
        (3, {}, [math.nan]),
        (3, {}, [math.inf]),
        (3, {"limit": (1.0, 2.0)}, [0.0, 1.0]),
        (3, {"limit": (1.0, 2.0)}, np.zeros((3, 8))),
    ],
)
def test_impossible_tables_are_refused(bits: int, parameters: dict, levels: object) -> None:
    with pytest.raises(UsageError) as caught:
        TableParams("log2", bits, parameters, np.asarray(levels))
    assert caught.value.code == "EQ-U200"


@given(hnp.arrays(np.float32, 8, elements=st.floats(2.0**-20, 2.0**18, width=32)))
def test_half_scales_are_the_same_number_in_both_kinds_of_16_bits(scales: np.ndarray) -> None:
    found = half_scales(scales)
    np.testing.assert_array_equal(found.astype(np.float16).astype(np.float32), found)
    assert not (found.view(np.uint32) & 0xFFFF).any(), "bfloat16 is the upper half of float32"
    np.testing.assert_array_equal(half_scales(found), found)
    inside = np.clip(scales, *HALF_SCALES)
    assert (np.abs(found - inside) <= inside / 256).all()


def test_grids_of_groups_in_half_hold_what_a_file_can_hold() -> None:
    spec = QuantSpec(4, True, granularity=PerGroup(2, half=True))
    grid = QParams(spec, np.array([[1 / 3, 1e-9]], np.float32), np.zeros((1, 2), np.int32))
    np.testing.assert_array_equal(grid.scale, np.array([[171 / 512, 2.0**-14]], np.float32))
    assert QParams.from_dict(json.loads(json.dumps(grid.to_dict()))) == grid
    old = {**spec.to_dict(), "granularity": {"kind": "PerGroup", "size": 2}}
    assert QuantSpec.from_dict(old).granularity == PerGroup(2), "plans of older versions"


SCALES = hnp.arrays(np.float32, (3, 5), elements=st.floats(2.0**-20, 2.0**10, width=32))


@given(SCALES, st.sampled_from([9, 15, 18, 127]))
def test_two_level_scales_stay_what_they_are(scales: np.ndarray, largest: int) -> None:
    steps, multiples = two_levels(scales, largest)
    assert multiples.min() >= 1 and multiples.max() <= largest
    assert (np.gcd.reduce(multiples, axis=1) == 1).all(), "steps are as large as they can be"
    found = steps[:, None] * multiples.astype(np.float32)
    again = two_levels(found, largest)
    np.testing.assert_array_equal(again[0], steps)
    np.testing.assert_array_equal(again[1], multiples)
    top = scales.max(1, keepdims=True)
    finest = np.clip(np.rint(scales / (top / largest)), 1, largest) * (top / largest)
    apart, most = (np.linalg.norm(tried - scales, axis=1) for tried in (found, finest))
    assert (apart <= most + 5 * top[:, 0] * 2.0**-15).all(), "no worse than with the largest scale as largest multiple"


@given(SCALES, st.integers(2, 4))
def test_codes_times_scales_are_8_bit_codes_times_steps(scales: np.ndarray, bits: int) -> None:
    spec = QuantSpec(bits, True, PerGroup(4, two_level=True), narrow=True)
    grid = QParams(spec, scales, np.zeros(scales.shape, np.int32))
    rows, multiples = grid.on_rows(), grid.multiples
    assert multiples is not None
    assert rows.spec == QuantSpec(8, True, PerChannel(0), narrow=True)
    codes = np.arange(spec.qmin, spec.qmax + 1)[:, None, None]
    wide = codes * multiples
    assert np.abs(wide).max() <= rows.spec.qmax
    np.testing.assert_array_equal(
        codes.astype(np.float32) * grid.scale, wide.astype(np.float32) * rows.scale[:, None], "bit for bit"
    )
    stored = json.loads(json.dumps(grid.to_dict()))
    assert set(stored) == {"spec", "step", "multiple", "zero_point"}
    assert QParams.from_dict(stored) == grid


def test_grids_of_rows_are_their_own() -> None:
    assert UNIFORM.on_rows() is UNIFORM
    assert UNIFORM.multiples is None


@pytest.mark.parametrize(
    ("bits", "symmetric", "half", "narrow"), [(8, True, False, True), (4, False, False, False), (4, True, True, True)]
)
def test_impossible_two_level_scales_are_refused(bits: int, symmetric: bool, half: bool, narrow: bool) -> None:
    with pytest.raises(UsageError, match="two-level"):
        QuantSpec(bits, symmetric, PerGroup(4, half, two_level=True), narrow=narrow)
    spec = QuantSpec(4, True, PerGroup(4, two_level=True))
    with pytest.raises(UsageError, match="rows, groups"):
        QParams(spec, np.ones(3, np.float32), np.zeros(3, np.int32))
