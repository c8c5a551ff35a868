"""Choosing among measured candidates: order, gates, and what `--force` does. No model is involved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeq import pipeline
from edgeq.candidate import Candidate, judge
from edgeq.config import ExportConfig
from edgeq.devices.timing import PairedLatency
from edgeq.errors import GateError
from edgeq.exporters.base import ReadBack
from edgeq.metrics import summarize
from edgeq.progress import Silent
from edgeq.recipe import Recipe
from edgeq.session import Stages
from edgeq.spec import OpPlan, Precision, QuantPlan


def candidate(scheme: str, ratio: float, sqnr: float, spread: float = 0.01) -> Candidate:
    return Candidate(
        scheme=scheme,
        path=Path(scheme),
        bytes=1,
        plan=QuantPlan(scheme, {}, {}),
        read_back=ReadBack((), {}, (), ()),
        recipe=Recipe("none", "nearest", Precision()),
        fidelity={"output": summarize([sqnr])},
        latency=PairedLatency(1.0, ratio, ratio, ratio - spread, ratio + spread, 20, True, ratio),
    )


def job(**changes: Any) -> Any:
    config = replace(ExportConfig(model="vit_nano", device="rpi"), **changes)
    return SimpleNamespace(config=config, name="vit_nano")


def names(candidates: list[Candidate]) -> list[str]:
    return [c.scheme for c in candidates]


def test_the_clearly_fastest_comes_first() -> None:
    order = pipeline.ranked([candidate("dynamic", 0.5, 40), candidate("static", 0.3, 25)])
    assert names(order) == ["static", "dynamic"]


def test_of_equally_fast_ones_the_most_faithful_comes_first() -> None:
    order = pipeline.ranked(
        [candidate("static", 0.500, 35), candidate("dynamic", 0.505, 42), candidate("slow", 0.9, 60)]
    )
    assert names(order) == ["dynamic", "static", "slow"]


def test_a_chain_of_overlaps_does_not_promote_the_slowest() -> None:
    chain = [candidate("a", 0.50, 20), candidate("b", 0.515, 21), candidate("c", 0.54, 22)]
    assert names(pipeline.ranked(chain))[0] == "b"


def test_five_percent_of_time_are_not_worth_decibels() -> None:
    """Apart beyond doubt: 0.280 and 0.290 with intervals of a thousandth."""
    pair = [candidate("integer", 0.280, 28.3, spread=0.001), candidate("dynamic", 0.290, 33.0, spread=0.001)]
    assert names(pipeline.ranked(pair)) == ["dynamic", "integer"]
    pair[1] = candidate("dynamic", 0.300, 33.0, spread=0.001)
    assert names(pipeline.ranked(pair)) == ["integer", "dynamic"]


def test_judge_refuses_only_what_is_surely_slower() -> None:
    assert judge(candidate("dynamic", 1.005, 40, spread=0.01), 20).rejected == ()
    floats = {f"norm{i}": OpPlan(f"norm{i}", "layer_norm", "float", "no kernel") for i in range(11)}
    slow = replace(candidate("dynamic", 1.2, 40), plan=QuantPlan("dynamic", {}, floats))
    (reason,) = judge(slow, 20).rejected
    assert "slower than float: 1.20 x its time" in reason
    assert "11 layer_norm" in reason


def test_judge_refuses_low_and_undefined_fidelity() -> None:
    assert "below the floor" in judge(candidate("dynamic", 0.5, 19.9), 20).rejected[0]
    assert "below the floor" in judge(candidate("dynamic", 0.5, float("-inf")), 20).rejected[0]
    assert judge(candidate("dynamic", 0.5, float("inf")), 20).rejected == ()


def test_a_candidate_that_loses_the_metric_makes_way_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    drops = {"static": 0.6, "dynamic": 0.2}
    monkeypatch.setattr(
        pipeline, "_evaluate", lambda j, c, known, stages: SimpleNamespace(metric="top1", drop=drops[c[""].scheme])
    )
    measured = [candidate("static", 0.3, 25), candidate("dynamic", 0.5, 40)]
    choice = pipeline.choose(job(data=Path("x")), {"": measured}, Stages(Silent()))
    assert choice.shipped[""].scheme == "dynamic"
    assert choice.scored is not None
    assert choice.scored.drop == 0.2
    assert "0.60 points" in {c.scheme: c for c in choice.judged[""]}["static"].rejected[0]


def test_of_several_networks_the_best_combination_that_holds_the_metric_ships(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def evaluate(j: Any, shipped: Any, known: Any, stages: Any) -> Any:
        tried.append("+".join(c.scheme for c in shipped.values()))
        return SimpleNamespace(metric="WER", drop=2.0 if shipped["encoder"].scheme == "static" else 0.1)

    monkeypatch.setattr(pipeline, "_evaluate", evaluate)
    pair = [candidate("static", 0.3, 25), candidate("dynamic", 0.5, 40)]
    choice = pipeline.choose(job(data=Path("x")), {"encoder": pair, "decoder": pair}, Stages(Silent()))
    assert tried == ["static+static", "static+dynamic", "dynamic+static"]
    assert {n: c.scheme for n, c in choice.shipped.items()} == {"encoder": "dynamic", "decoder": "static"}
    assert not any(c.rejected for found in choice.judged.values() for c in found)  # none of them is bad by itself


def test_networks_without_a_good_combination_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_evaluate", lambda *_: SimpleNamespace(metric="WER", drop=2.0))
    pair = [candidate("dynamic", 0.5, 40)]
    with pytest.raises(GateError, match="encoder dynamic, decoder dynamic: WER is 2"):
        pipeline.choose(job(data=Path("x")), {"encoder": pair, "decoder": pair}, Stages(Silent()))


def test_no_candidate_left_is_a_gate_error_with_every_reason() -> None:
    measured = [judge(candidate("static", 1.5, 40), 20), judge(candidate("dynamic", 0.5, 10), 20)]
    with pytest.raises(GateError) as caught:
        pipeline.choose(job(), {"": measured}, Stages(Silent()))
    assert "static: slower than float" in caught.value.message
    assert "dynamic: median SQNR" in caught.value.message


def test_force_ships_the_first_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_evaluate", lambda *_: None)
    measured = [judge(candidate("static", 1.5, 40), 20), judge(candidate("dynamic", 0.5, 10), 20)]
    assert pipeline.choose(job(force=True), {"": measured}, Stages(Silent())).shipped[""].scheme == "dynamic"


def test_default_folder_is_named_after_model_and_device() -> None:
    assert pipeline.default_out(ExportConfig(model="some/my.onnx", device="rpi4")) == Path("out/my-rpi4")
    assert pipeline.default_out(ExportConfig(model="whisper:tiny.en", device="rpi")) == Path("out/tiny.en-rpi")
    assert pipeline.default_out(ExportConfig(model="vit:deit_tiny_patch16_224", device="x86")) == Path(
        "out/deit_tiny_patch16_224-x86"
    )
