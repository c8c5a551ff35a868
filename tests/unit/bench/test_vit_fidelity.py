"""The benchmark of methods, tried on the small shipped ViT with random inputs: plumbing only, no claims."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx

from edgeq.errors import ModelError
from edgeq.graph.bounds import bounds_of
from edgeq.graph.kinds import op_kind
from edgeq.graph.naming import rebuild
from edgeq.graph.rewrite import fetch, refresh
from edgeq.models import load_model
from edgeq.models.base import parse_model
from edgeq.quant.rounding import ROUNDERS
from edgeq.recipe import transform_graph
from tests.unit.bench.conftest import Load


def inputs(seed: int, count: int) -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(1, 3, 32, 32, generator=generator),) for _ in range(count)]


@pytest.fixture(scope="module")
def subject(script: Load) -> Any:
    adapter = load_model(parse_model("vit_nano", None, None))
    shape = adapter.loaded.input_shapes[0]
    assert shape == (1, 3, 32, 32)
    nodes = list(adapter.loaded.graph.graph.nodes)
    last = next(n for n in reversed(nodes) if op_kind(n) == "linear")
    places = {"features": (last.name, False), "logits": (last.name, False), "map": (last.name, False)}
    return script("vit_fidelity").subject_of(adapter, inputs(0, 4), inputs(1, 2), places)


def constants(gm: fx.GraphModule) -> dict[str, torch.Tensor]:
    return {str(n.target): fetch(gm, str(n.target)) for n in gm.graph.nodes if n.op == "get_attr"}


def test_all_steps_together_are_the_recipe(script: Load, subject: Any) -> None:
    rows = script("vit_rows")
    whole, _ = transform_graph("transformer", subject.graph, lambda: iter(subject.calibration), 0)
    built = copy.deepcopy(subject.graph)
    rows.build_up(built, lambda: iter(subject.calibration), len(rows.STEPS))
    refresh(built)
    built = rebuild(built)
    assert [n.name for n in built.graph.nodes] == [n.name for n in whole.graph.nodes]
    first, second = constants(built), constants(whole)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("transform", ["none", "repq", "smooth", "streams", "heads", "keys", "balance"])
def test_every_transform_keeps_the_function(script: Load, subject: Any, transform: str) -> None:
    tool, rows = script("vit_fidelity"), script("vit_rows")
    before = constants(subject.graph)
    copies = {name: value.clone() for name, value in before.items()}
    row = next(r for r in rows.ROWS.values() if r.transform == transform)
    base = subject.exporter.config("integer", tool.precision_of(row, "w4a8")).base
    graph = rows.fit(transform, subject.graph, lambda: iter(subject.calibration), (base.weight, base.activation))
    tool.require_same_function(subject, graph)
    assert all(torch.equal(copies[name], value) for name, value in constants(subject.graph).items())


def test_another_function_is_refused(script: Load, subject: Any) -> None:
    wrong = copy.deepcopy(subject.graph)
    fetch(wrong, next(iter(constants(wrong)))).add_(1.0)
    with pytest.raises(SystemExit, match="another function"):
        script("vit_fidelity").require_same_function(subject, wrong)


def test_repq_notes_its_grids(script: Load, subject: Any) -> None:
    tool = script("vit_fidelity")
    row = script("vit_rows").ROWS["repq"]
    fitted = tool.fit_row(subject, row, "w4a4", None)
    bounds = [b for n in fitted.graph.graph.nodes if (b := bounds_of(n))]
    assert bounds
    assert all(b.origin == "RepQ-ViT" for b in bounds)
    assert tool.fit_row(subject, row, "w4a4", fitted) is fitted
    assert tool.fit_row(subject, row, "w8a8", fitted) is not fitted  # fitted to the width


@pytest.mark.parametrize("name", ["everything-integer", "transformer-nearest"])
def test_a_row_is_measured(script: Load, subject: Any, name: str) -> None:
    tool = script("vit_fidelity")
    entry, fitted = tool.run_row(subject, name, "w8a8", None)
    assert fitted is not None
    assert set(entry) == {"row", "bits", "calibration", "n", "sqnr_db", "seconds", "peak_mb"}
    assert (entry["calibration"], entry["n"]) == (4, 2)
    assert set(entry["sqnr_db"]) == {"features", "logits", "map"}
    assert all(figure["worst"] <= figure["median"] and figure["n"] == 2 for figure in entry["sqnr_db"].values())
    assert set(entry["seconds"]) == {"transform", "calibrate", "legalize", "simulate"}
    assert entry["peak_mb"] > 100
    json.dumps(entry, allow_nan=False)


def test_a_probe_reads_what_the_graph_computes(script: Load, subject: Any) -> None:
    values = script("vit_fidelity").probe(subject.graph, subject.places)(subject.held_out[0])
    np.testing.assert_array_equal(values["map"], subject.graph(*subject.held_out[0])[0].detach().numpy())


def test_a_failure_is_a_result(script: Load, subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = script("vit_fidelity")

    def fails(*args: object) -> None:
        raise ModelError("it becomes NaN", code="EQ-M301")

    monkeypatch.setattr(tool, "quantize", fails)
    entry, _ = tool.run_row(subject, "minmax", "w3a3", None)
    assert entry["failed"] == "EQ-M301: it becomes NaN"
    assert "sqnr_db" not in entry


def test_results_grow_and_are_skipped(
    script: Load, subject: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = script("vit_fidelity")
    runs: list[str] = []

    def run_row(subject: Any, name: str, bits: str, known: Any) -> tuple[dict[str, Any], None]:
        runs.append(f"{name} {bits}")
        return {"row": name, "bits": bits, "calibration": 4, "n": 2, "failed": f"run {len(runs)}"}, None

    monkeypatch.setattr(tool, "run_row", run_row)
    path = tmp_path / "out.json"
    tool.run_rows(subject, ["mse"], ["w4a4"], path, again=False)
    tool.run_rows(subject, ["minmax", "mse"], ["w8a8", "w4a4"], path, again=False)
    assert runs == ["mse w4a4", "minmax w8a8", "minmax w4a4", "mse w8a8"]
    document = json.loads(path.read_text())
    assert [f"{e['row']} {e['bits']}" for e in document["rows"]] == [*runs[1:], "mse w4a4"]
    assert document["schema"] == tool.SCHEMA
    assert document["weights_sha256"] == subject.weights_sha256
    tool.run_rows(subject, ["mse"], ["w4a4"], path, again=True)
    assert json.loads(path.read_text())["rows"][-1]["failed"] == "run 5"
    assert list(tmp_path.iterdir()) == [path]


def test_another_number_of_photos_is_measured_anew(script: Load, subject: Any, tmp_path: Path) -> None:
    tool = script("vit_fidelity")
    path = tmp_path / "out.json"
    path.write_text(json.dumps({"rows": [{"row": "mse", "bits": "w8a8", "calibration": 4, "n": 48}]}))
    assert not tool.is_done(path, subject, "rows", "mse", "w8a8")


def test_rows_name_what_exists(script: Load) -> None:
    rows = script("vit_rows")
    assert {row.rounding for row in rows.ROWS.values()} <= set(ROUNDERS)
    assert {row.transform for row in rows.ROWS.values()} == {"none", "repq", "smooth", *rows.STEPS}
