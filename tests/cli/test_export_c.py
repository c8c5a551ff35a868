"""`edgeq export --device cortex-m4` and boards on the shipped networks: C that gives the interpreter's integers."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeq.artifact import Artifact
from edgeq.devices import open_model
from edgeq.devices.cortex_m import missing_tools
from edgeq.devices.host import missing_compiler, run_on_host
from tests.cli.conftest import edgeq, stopped

Exported = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    cwd = tmp_path_factory.mktemp("export")
    done = edgeq("export", "cifar_cnn", "--device", "nucleo-f446re", "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd, json.loads(done.stdout)


def test_json_is_the_contract_with_the_program_beside(exported: Exported) -> None:
    _, summary = exported
    assert summary["schema"] == "edgeq.export/1" and summary["ok"] is True
    assert summary["scheme"] == "integer" and summary["integer_mac_share"] == 1
    assert summary["latency"] is None
    assert summary["quantized_weights"] == 10
    assert summary["fidelity"]["sqnr_db"]["median"] > 35
    program = summary["microcontroller"]
    assert program["flash_bytes"] == summary["bytes"] < 90_000
    assert program["arena_bytes"] < program["ram_bytes"] < 128 * 1024
    if not missing_compiler():
        assert program["exact"] is True
    if missing_tools():
        assert program["instructions"] is None and "apt-get install" in " ".join(program["not_measured"])
    else:
        assert program["machine"] == "mps2-an386" and program["instructions"] > 12_000_000
        assert 0.5 < program["share"]["Conv"] <= 1
        assert program["code_bytes"] < 24 * 1024 and program["stack_bytes"] < 4 * 1024


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--device", "rpi", "--patches", "4"), "EQ-U923"),
        (("--device", "cortex-m4", "--patches", "1"), "EQ-U004"),
        (("--device", "cortex-m4", "--patches", "many"), "EQ-U004"),
    ],
)
def test_patches_that_cannot_be(words: tuple[str, ...], code: str, tmp_path: Path) -> None:
    done = edgeq("export", "cifar_cnn", *words, "--json", cwd=tmp_path)
    assert done.returncode == 2 and json.loads(done.stdout)["code"] == code


def test_the_bundle_is_whole_and_its_c_runs(exported: Exported) -> None:
    cwd, summary = exported
    artifact = Artifact.open(cwd / summary["artifact"])
    artifact.verify_files()
    assert artifact.manifest.entry == "model.intgraph"
    assert artifact.manifest.config["method"] == "minmax"  # the target's default
    assert artifact.manifest.config["rounding"] == "gptq"
    listed = {f["path"] for f in artifact.manifest.files}
    assert {"c/cifar_cnn.c", "c/Makefile", "c/memory.txt", "plan.json", "golden/inputs.npz"} <= listed
    assert not (artifact.folder / "run.py").exists()
    evidence = artifact.evidence()
    assert evidence["candidates"][0]["file"]["memory"]["flash"] == summary["bytes"]
    assert any("time on nucleo-f446re" in reason for reason in evidence["not_measured"])
    golden, model = artifact.golden(), open_model(artifact.model_file)
    for image, expected in zip(golden.inputs[0], golden.expected[0], strict=True):
        assert (model.run(image)[0] == expected).all()
    if not missing_compiler():
        assert run_on_host(artifact.folder / "c").outcome.different == 0
    assert str(cwd) not in "".join(p.read_text() for p in (artifact.folder / "c").iterdir())


def test_reproduce_gives_the_same_bytes(exported: Exported) -> None:
    cwd, summary = exported
    done = edgeq("reproduce", summary["artifact"], "--json", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "c/cifar_cnn_weights.c" in json.loads(done.stdout)["equal"]


def test_what_does_not_fit_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    words = ["export", "vit_nano", "--device", "nucleo-f446re", "--samples", "8", "--rounding", "nearest", "--json"]
    done = edgeq(*words, cwd=tmp_path)
    error = json.loads(done.stdout)
    assert (done.returncode, error["code"]) == (1, "EQ-G001")
    assert "KiB of flash" in error["message"] and "too much; most are in" in error["message"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_force_writes_it_all_the_same(tmp_path: Path) -> None:
    words = ["export", "vit_nano", "--device", "nucleo-f446re", "--samples", "8", "--rounding", "nearest", "--json"]
    done = edgeq(*words, "--force", cwd=tmp_path)
    summary = json.loads(done.stdout)
    assert done.returncode == 0 and not summary["gates"]["passed"]
    assert "KiB of flash" in summary["gates"]["missed"][0]


def test_a_dry_run_names_the_operations(tmp_path: Path) -> None:
    done = edgeq("export", "cifar_cnn", "--device", "m7", "--dry-run", "--json", cwd=tmp_path)
    (plan,) = json.loads(done.stdout)["schemes"]
    assert plan["scheme"] == "integer" and plan["float_because"] == []
    assert plan["ops"]["conv2d static"] == 9
    assert list(tmp_path.iterdir()) == []


def test_formats_and_targets_must_fit_together(tmp_path: Path) -> None:
    for words in (["--device", "rpi", "--format", "c"], ["--device", "cortex-m4", "--format", "tflite"]):
        done = edgeq("export", "cifar_cnn", *words, "--json", cwd=tmp_path)
        assert (done.returncode, json.loads(done.stdout)["code"]) == (2, "EQ-U600")
    done = edgeq("export", "cifar_cnn", "--device", "cortex-m4", "--scheme", "static", "--json", cwd=tmp_path)
    assert (done.returncode, json.loads(done.stdout)["code"]) == (2, "EQ-U011")
    done = edgeq("export", "cifar_cnn", "--device", "cortex-m4", "--keep-float", "conv2d_3", "--json", cwd=tmp_path)
    assert (done.returncode, json.loads(done.stdout)["code"]) == (2, "EQ-U604")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("stage", ["start", "load", "transform", "calibrate", "build integer"])
def test_a_stopped_export_leaves_nothing(stage: str, tmp_path: Path) -> None:
    words = ["export", "cifar_cnn", "--device", "cortex-m4", "--json"]
    done = stopped(*words, stage=stage, number=signal.SIGTERM, cwd=tmp_path)
    out = tmp_path / "out"
    if out.exists():  # it was faster than the signal: then the bundle is whole
        assert done.returncode in (0, 130) and [p.name for p in out.iterdir()] == ["cifar_cnn-cortex-m4"]
        Artifact.open(next(out.iterdir())).verify_files()
    else:
        assert (done.returncode, json.loads(done.stdout)["code"]) == (130, "EQ-C001")


def test_verify_and_profile_speak_json_and_tables(exported: Exported) -> None:
    cwd, summary = exported
    board = "local" if missing_tools() else "qemu://mps2-an386"
    done = edgeq("verify", summary["artifact"], "--on", board, "--json", cwd=cwd)
    assert done.returncode == 0 and json.loads(done.stdout)["exact"] is True
    done = edgeq("profile", summary["artifact"], "--on", board, "--json", cwd=cwd)
    found = json.loads(done.stdout)
    assert found["schema"] == "edgeq.profile/1" and len(found["layers"]) > 10
    done = edgeq("profile", summary["artifact"], "--on", board, "--per-op", cwd=cwd)
    assert done.returncode == 0 and "stages_0_second_0" in done.stdout
    done = edgeq("profile", summary["artifact"], "--on", "can://0", "--json", cwd=cwd)
    assert (done.returncode, json.loads(done.stdout)["code"]) == (2, "EQ-U602")
    weights = cwd / summary["artifact"] / "c" / "cifar_cnn_weights.c"
    kept = weights.read_text()
    weights.write_text(kept.replace("1, ", "2, ", 1))
    done = edgeq("verify", summary["artifact"], "--json", cwd=cwd)
    weights.write_text(kept)
    assert (done.returncode, json.loads(done.stdout)["code"]) == (3, "EQ-I042")
