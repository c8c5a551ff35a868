"""`edgeq export`, `inspect` and `reproduce` on the shipped `vit_nano`: the whole path with its real weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeq.artifact import Artifact
from edgeq.devices.litert import LiteRtModel
from tests.cli.conftest import FAST, edgeq


def test_json_is_the_contract(exported: tuple[Path, dict[str, Any]]) -> None:
    cwd, summary = exported
    assert summary["schema"] == "edgeq.export/1"
    assert summary["ok"] is True
    assert summary["bits"] == "w8a8"
    assert summary["fidelity"]["sqnr_db"]["median"] > 30
    assert summary["fidelity"]["sqnr_db"]["worst"] <= summary["fidelity"]["sqnr_db"]["median"]
    assert summary["metric"] is None
    assert summary["latency"]["unit"] == "ms"
    assert summary["latency"]["ratio"] > 0
    assert summary["quantized_weights"] == 24  # 3 convolutions, 5 blocks of 4 linear layers, the head
    assert 0.9 < summary["integer_mac_share"] < 1
    assert summary["bytes"] < 0.35 * summary["float_bytes"]
    assert summary["peak_mb"] > 0
    assert {"load", "build dynamic", "write"} <= set(summary["seconds"])
    for entry in summary["files"]:
        assert (cwd / summary["artifact"] / entry["path"]).stat().st_size == entry["bytes"]


def test_bundle_holds_what_it_lists_and_nothing_of_this_machine(exported: tuple[Path, dict[str, Any]]) -> None:
    cwd, summary = exported
    artifact = Artifact.open(cwd / summary["artifact"])
    artifact.verify_files()
    assert artifact.manifest.scheme == "dynamic"
    assert len(artifact.manifest.calibration) == 75
    assert artifact.manifest.labels is not None
    for path in (cwd / summary["artifact"]).rglob("*.json"):
        assert str(cwd) not in path.read_text(encoding="utf-8")
    assert sorted(p.name for p in cwd.iterdir()) == ["out"]
    assert [p.name for p in (cwd / "out").iterdir()] == ["vit_nano-rpi"]


def test_golden_vectors_are_what_the_file_computes(exported: tuple[Path, dict[str, Any]]) -> None:
    cwd, summary = exported
    artifact = Artifact.open(cwd / summary["artifact"])
    golden = artifact.golden()
    model = LiteRtModel(artifact.model_file, threads=1)
    for image, expected in zip(golden.inputs[0], golden.expected[0], strict=True):
        np.testing.assert_array_equal(model.run(image)[0], expected)


def test_runner_checks_itself_with_nothing_of_edgeq(exported: tuple[Path, dict[str, Any]]) -> None:
    cwd, summary = exported
    runner = cwd / summary["artifact"] / "run.py"
    imports = [
        line.split() for line in runner.read_text().splitlines() if line.lstrip().startswith(("import ", "from "))
    ]
    assert "edgeq" not in {words[1].split(".")[0] for words in imports}
    done = subprocess.run([sys.executable, "-I", str(runner)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_evidence_names_every_candidate_and_every_float_operation(exported: tuple[Path, dict[str, Any]]) -> None:
    cwd, summary = exported
    evidence = Artifact.open(cwd / summary["artifact"]).evidence()
    (candidate,) = evidence["candidates"]
    assert candidate["file"]["missing"] == []
    assert candidate["file"]["extra"] == []
    assert {"op": "matmul", "reason": "kept float by the scheme", "count": 10} in candidate["float_ops"]
    assert len(candidate["layers"]) == 24
    assert abs(candidate["simulated_sqnr_db"] - summary["fidelity"]["sqnr_db"]["median"]) < 8
    assert evidence["not_measured"]


def test_reproduce_gives_the_same_bytes(exported: tuple[Path, dict[str, Any]]) -> None:
    cwd, summary = exported
    done = edgeq("reproduce", summary["artifact"], "--json", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(json.loads(done.stdout)["equal"]) == {f["path"] for f in summary["files"]} - {
        "evidence.json",
        "manifest.json",
    }


@pytest.mark.timeout(900)  # two exports, each of three files
def test_budgets_are_kept_and_repeat_to_the_byte(tmp_path: Path) -> None:
    """Widths within a size, then learning: of `vit_nano` between 0.91 MB (W4A8) and 1.40 MB (W8A8)."""
    budget = ["--scheme", "integer", "--bits", "mixed", "--budget-kb", "1000", "--learn-steps", "2", "--runs", "15"]
    done = edgeq("export", "vit_nano", "--device", "rpi", *budget, "--force", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert 970_000 < summary["bytes"] <= 1_000_000
    (candidate,) = json.loads((tmp_path / summary["artifact"] / "evidence.json").read_bytes())["candidates"]
    assert set(candidate["widths"]["bits"].values()) == {4, 8}
    assert abs(candidate["widths"]["expected_bytes"] - summary["bytes"]) < 0.005 * summary["bytes"]
    assert candidate["learned"]["steps"] == 2
    assert len(candidate["learned"]["blocks"]) >= 5
    assert Artifact.open(tmp_path / summary["artifact"]).manifest.config["learn_steps"] == 2
    again = edgeq("reproduce", summary["artifact"], cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr


def test_a_budget_below_everything_names_the_smallest_file(tmp_path: Path) -> None:
    words = ["--device", "rpi", "--scheme", "dynamic", "--bits", "mixed"]
    done = edgeq("export", "vit_nano", *words, "--budget-kb", "300", cwd=tmp_path)
    assert done.returncode == 2
    assert "EQ-U332" in done.stderr
    assert "--budget-kb" in done.stderr
    assert not list(tmp_path.iterdir())
    without = edgeq("export", "vit_nano", *words, cwd=tmp_path)
    assert (without.returncode, "EQ-U331" in without.stderr) == (2, True)


def test_inspect_shows_kernels_and_reasons(exported: tuple[Path, dict[str, Any]]) -> None:
    cwd, summary = exported
    done = edgeq("inspect", summary["artifact"], "--layers", "--tensors", cwd=cwd)
    assert done.returncode == 0, done.stderr
    for text in (
        "FULLY_CONNECTED dynamic",
        "24 of 24",
        "kept float by the scheme",
        "blocks_0_attn_qkv",
        "stem.0.weight",
    ):
        assert text in done.stdout
    against = edgeq("inspect", summary["artifact"], "--diff", "--json", cwd=cwd)
    diff = json.loads(against.stdout)["diff"]
    assert [d["own_db"] for d in diff] == sorted(d["own_db"] for d in diff)
    assert {d["cause"] for d in diff} <= {"weights", "inputs"}, "dynamic layers write float"
    assert all(d["file_db"] is not None and not d["lowered"] for d in diff)
    assert "would help" in edgeq("inspect", summary["artifact"], "--diff", cwd=cwd).stdout


def test_existing_folder_is_kept_unless_told_otherwise(exported: tuple[Path, dict[str, Any]]) -> None:
    cwd, _ = exported
    done = edgeq("export", "vit_nano", *FAST, cwd=cwd)
    assert done.returncode == 2
    assert "--exist replace" in done.stderr


def test_gate_refuses_and_leaves_nothing(tmp_path: Path) -> None:
    done = edgeq("export", "vit_nano", *FAST, "--min-sqnr-db", "99", "--json", cwd=tmp_path)
    assert done.returncode == 1
    error = json.loads(done.stdout)
    assert error["code"] == "EQ-G001"
    assert "below the floor of 99 dB" in error["message"]
    assert "largest own errors: " in error["message"]
    assert "--force" in error["hint"]
    assert not (tmp_path / "out").exists()


def test_force_ships_and_records_what_was_missed(tmp_path: Path) -> None:
    done = edgeq("export", "vit_nano", *FAST, "--min-sqnr-db", "99", "--force", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["gates"]["passed"] is False


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    done = edgeq("export", "vit_nano", "--device", "rpi4", "--dry-run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert [s["scheme"] for s in plan["schemes"]] == ["dynamic", "static", "integer"]
    reasons = [set(s["float_because"]) for s in plan["schemes"]]
    assert any(reason.startswith("rms_norm: ") for reason in reasons[0])  # the norms of rotated streams
    assert any(reason.startswith("rms_norm: ") for reason in reasons[2])
    assert list(tmp_path.iterdir()) == []
