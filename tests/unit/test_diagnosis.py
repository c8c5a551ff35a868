"""What `edgeq inspect --diff` says: causes by their figures, advice by what the export did."""

from __future__ import annotations

import math
from typing import Any

import pytest

from edgeq.diagnosis import diagnose, first_lowered


def row(
    name: str, own: float, network: float, mode: str = "static", bits: int | None = 8, **parts: float
) -> dict[str, Any]:
    figures = {f"{part}_db": parts.get(part) for part in ("weights", "inputs", "output")}
    return {
        "name": name,
        "op": "linear",
        "mode": mode,
        "own_db": own,
        "total_db": network,
        "weight_bits": bits,
        **figures,
    }


def evidence(*rows: dict[str, Any], rounding: str = "gptq", others: tuple[str, ...] = ()) -> dict[str, Any]:
    shipped = {"scheme": "static", "rounding": rounding, "layers": list(rows)}
    return {"shipped": "static", "candidates": [shipped, *({"scheme": s, "layers": []} for s in others)]}


def test_the_worst_comes_first_and_infinity_is_null() -> None:
    found = diagnose(evidence(row("b", 30, 29, weights=30.0), row("a", 10, 9, inputs=10.0)), {})
    assert [d.layer for d in found] == ["a", "b"]
    assert [d.cause for d in found] == ["inputs", "weights"]
    exact = diagnose(evidence({**row("c", 0, 20), "own_db": None}), {})[0]
    assert (exact.own_db, exact.cause, exact.advice) == (math.inf, "", "")
    assert exact.to_dict()["own_db"] is None and exact.to_dict()["cause"] is None
    assert exact.inherited, "all of it comes from the layers before"


@pytest.mark.parametrize(
    ("parts", "bits", "mode", "rounding", "others", "config", "advice"),
    [
        ({"weights": 9.0}, 4, "static", "nearest", (), {}, "--rounding gptq"),
        ({"weights": 9.0}, 4, "static", "gptq", (), {}, "--bits mixed --budget-kb N, or --bits w8a8"),
        ({"weights": 9.0}, 4, "static", "gptq", (), {"bits": "mixed"}, "a larger --budget-kb"),
        ({"weights": 9.0}, 8, "static", "gptq", (), {}, "--keep-float a"),
        ({"inputs": 9.0}, 8, "static", "gptq", (), {"method": "minmax"}, "--method auto"),
        ({"inputs": 9.0}, 8, "static", "gptq", ("dynamic",), {"method": "auto"}, "--scheme dynamic"),
        ({"output": 9.0}, 8, "static", "gptq", (), {}, "--keep-float a"),
        ({"inputs": 9.0}, 8, "dynamic", "gptq", ("dynamic",), {"method": "minmax"}, "--method auto"),
        ({"inputs": 9.0}, 8, "dynamic", "gptq", ("dynamic",), {"method": "rotate"}, "--keep-float a"),
        ({"inputs": 9.0}, 8, "static", "gptq", (), {"method": "transformer"}, "--keep-float a"),
    ],
)
def test_what_would_help(
    parts: dict[str, float],
    bits: int,
    mode: str,
    rounding: str,
    others: tuple[str, ...],
    config: dict[str, str],
    advice: str,
) -> None:
    found = diagnose(evidence(row("a", 9, 9, mode, bits, **parts), rounding=rounding, others=others), config)
    assert found[0].advice == advice


def test_bundles_from_before_the_split_have_no_cause() -> None:
    old = {"name": "a", "op": "linear", "mode": "static", "own_db": 12.0, "total_db": 11.0}
    assert diagnose(evidence(old), {})[0].cause == ""


def test_a_file_far_below_its_simulation_is_no_matter_of_widths() -> None:
    rows = [row("a", 30, 29, weights=30.0), row("b", 31, 28, weights=31.0), row("c", 32, 27, weights=32.0)]
    found = diagnose(evidence({**rows[0], "file_db": 12.0}, {**rows[1], "file_db": 27.5}, rows[2]), {})
    assert [d.lowered for d in found] == [True, False, False]
    assert [d.file_db for d in found] == [12.0, 27.5, None]
    assert "not what was planned" in found[0].advice
    assert found[0].to_dict()["lowered"] is True


def test_the_first_lowered_layer_is_the_one_that_runs_first() -> None:
    assert first_lowered(["c", "b"], ["a", "b", "c"]) == "b"
    assert first_lowered([], ["a"]) is None
