"""The written tables: up to date, and true to the results they are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeq.cli.catalogue import methods
from tests.unit.bench.conftest import Load


def test_documents_are_up_to_date(script: Load) -> None:
    """Figures cannot go stale: `python tools/bench/tables.py` writes what is missing here."""
    for path, text in script("tables").fresh_files().items():
        assert path.read_text(encoding="utf-8") == text, path.name


def test_every_method_is_in_the_document(root: Path) -> None:
    text = (root / "docs" / "methods.md").read_text(encoding="utf-8")
    for method in methods():
        spelled = f"{method.option} {method.spelled}".strip()
        line = next(line for line in text.splitlines() if line.startswith(f"| `{spelled}` |"))
        assert (method.measured or "not measured") in line
        assert method.source in line


def test_every_link_leads_to_a_file(root: Path) -> None:
    text = (root / "docs" / "methods.md").read_text(encoding="utf-8")
    links = [part.split(")")[0] for part in text.split("](")[1:]]
    assert links
    assert all((root / "docs" / link).is_file() for link in links)


def test_a_table_needs_a_place(script: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tables = script("tables")
    empty = tmp_path / "empty.md"
    empty.write_text("nothing")
    monkeypatch.setattr(tables, "DOCUMENTS", (empty,))
    with pytest.raises(SystemExit, match="no document has a place for export"):
        tables.fresh_files()


def test_a_table_is_replaced_and_the_rest_kept(script: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tables = script("tables")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- one -->\nold\n<!-- end -->\nafter\n<!-- two -->\n<!-- end -->\n")
    monkeypatch.setattr(tables, "DOCUMENTS", (page,))
    monkeypatch.setattr(tables, "TABLES", {"one": lambda: "new", "two": lambda: "newer"})
    wanted = "before\n<!-- one -->\nnew\n<!-- end -->\nafter\n<!-- two -->\nnewer\n<!-- end -->\n"
    assert tables.fresh_files()[page] == wanted


def entry(row: str, bits: str, median: float | None, n: int = 48) -> dict[str, Any]:
    figure = {"median": median, "worst": None if median is None else median - 3, "worst_index": 0, "n": n}
    return {
        "row": row,
        "bits": bits,
        "calibration": 32,
        "n": n,
        "sqnr_db": {"features": figure, "logits": figure, "map": figure},
        "seconds": {"transform": 1.0, "calibrate": 2.0, "legalize": 30.0, "simulate": 500.0},
        "peak_mb": 2500,
    }


@pytest.fixture
def results(script: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [
        entry("minmax", "w8a8", 20.04),
        {"row": "minmax", "bits": "w3a3", "calibration": 32, "n": 48, "failed": "EQ-M301: NaN"},
        entry("transformer-gptq-plain", "w4a8", 18.0),
        entry("transformer-gptq", "w4a8", 21.25),
        entry("transformer-gptq", "w8a8", None),
        entry("mse", "w8a8", 99.0, n=2),
    ]
    file = {
        "row": "transformer-gptq",
        "bits": "w4a8",
        "calibration": 32,
        "n": 48,
        "map_sqnr_db": {"median": 21.0, "worst": 11.0, "worst_index": 3, "n": 48},
        "simulated_map_sqnr_db": {"median": 21.1, "worst": 11.2, "worst_index": 3, "n": 48},
        "bytes": 25_700_000,
        "float_bytes": 95_500_000,
        "integer_mac_share": 1.0,
        "missing": 0,
        "extra": 0,
        "partitions": 1,
        "latency": {"ratio": 0.284, "low": 0.28, "high": 0.29},
    }
    document = {
        "schema": "edgeq.bench.vit_fidelity/1",
        "places": {"features": "output of conv", "logits": "input of sigmoid", "map": "output of sigmoid"},
        "labels": {"minmax": "min-max", "transformer-gptq": "whole", "transformer-gptq-plain": "plain"},
        "rows": rows,
        "files": [file],
    }
    (tmp_path / "vit_fidelity.json").write_text(json.dumps(document))
    monkeypatch.setattr(script("method_tables"), "RESULTS", tmp_path)
    return tmp_path


def test_figures_say_what_was_measured(script: Load, results: Path) -> None:
    keys = {"vit minmax", "vit mse", "vit transformer-gptq", "gain transformer-gptq-plain transformer-gptq"}
    keys |= {"file w4a8", "file w8a8", "attention twin", "export static", "ships"}
    found = script("figures").figures(keys, results)
    assert found == {
        "vit minmax": "map of a ViT-S, dB: 20.0 at W8A8, fails at W3A3 (median of 48)",
        "vit transformer-gptq": "map of a ViT-S, dB: 21.2 at W4A8, - at W8A8 (median of 48)",
        "gain transformer-gptq-plain transformer-gptq": "map of a ViT-S, dB: +3.2 at W4A8",
        "file w4a8": "ViT-S file: map 21.0 dB (n=48), 0.28 of the float file's time",
    }


def test_figures_of_library_methods_stand_beside_what_they_are_compared_with(script: Load, tmp_path: Path) -> None:
    study = {"what": "outputs", "value": 24.2, "unit": "dB", "beside": {"nearest": 24.0}, "n": 20}
    alone = {"what": "share", "value": 0.7, "unit": "", "beside": {}, "n": 7}
    studies = {"repairs": {"seconds": 1, "methods": {"eora": study}}, "groups": {"methods": {"sorted": alone}}}
    (tmp_path / "library_methods.json").write_text(json.dumps({"studies": studies}))
    rows = {f"m W{b}A{b}": {"method": "a+b", "bits": b, "difference": d, "n": 1000} for b, d in ((4, -0.52), (8, 0.1))}
    (tmp_path / "vit_accuracy.json").write_text(json.dumps({"rows": rows}))
    keys = {"library eora", "library sorted", "library none", "accuracy a+b", "accuracy c"}
    assert script("figures").figures(keys, tmp_path) == {
        "library eora": "outputs (n=20): 24.2 dB (nearest 24)",
        "library sorted": "share (n=7): 0.7",
        "accuracy a+b": "vit_nano, points of top-1 to float: +0.1 at W8A8, -0.5 at W4A4 (n=1000)",
    }


def test_a_key_that_names_no_benchmark_is_a_mistake(script: Load, results: Path) -> None:
    with pytest.raises(KeyError):
        script("figures").figures({"guess minmax"}, results)


def test_the_fidelity_table_leaves_trials_out(script: Load, results: Path) -> None:
    text = script("method_tables").vit_fidelity_table()
    assert "| min-max | 20.0 / 17.0 | - | - | - | fails | 33 | 2,500 |" in text
    assert "99.0" not in text
    assert "Median / worst SQNR in dB of 48 photos, 32 others calibrate" in text
    assert text.count("| method | W8A8 | W6A6 | W4A8 | W4A4 | W3A3 | s | MB |") == 3


def test_the_file_table(script: Load, results: Path) -> None:
    last = script("method_tables").vit_files_table().splitlines()[-1]
    cells = "W4A8 | 25.7 of 95.5 | 21.0 / 11.0 (n=48) | 21.1 / 11.2 | 0.28 (0.28 to 0.29) | 100 % | 1"
    assert last == f"| {cells} |"


def test_nothing_measured_reads_so(script: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = script("method_tables")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.vit_fidelity_table().startswith("Not measured yet")
    assert tables.vit_files_table().startswith("Not measured yet")
    assert json.loads(tables.measured_json()) == {}
    assert "not measured" in tables.methods_table()
