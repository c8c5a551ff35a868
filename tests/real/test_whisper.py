"""Whisper tiny.en from a checkpoint to a transcript without torch: two networks in one bundle."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgeq.artifact import Artifact
from tests.cli.test_export import edgeq

CLIPS = 10
ISOLATED = """
import runpy, sys
sys.argv = ["run.py", sys.argv[1], "--json"]
try:
    runpy.run_path("run.py", run_name="__main__")
finally:
    assert not {"torch", "whisper", "tiktoken", "edgeq"} & set(sys.modules), "the bundle needs more than it says"
"""


@pytest.fixture(scope="module")
def speech(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the real recordings with their texts."""
    source = real_data / "speech"
    if not (source / "index.json").is_file() or not (real_data / "whisper").is_dir():
        pytest.skip(f"no speech and no Whisper checkpoint in {real_data}")
    pytest.importorskip("whisper")
    folder = tmp_path_factory.mktemp("speech")
    entries = json.loads((source / "index.json").read_bytes())[:CLIPS]
    for entry in entries:
        shutil.copyfile(source / entry["file"], folder / entry["file"])
    (folder / "index.json").write_text(json.dumps(entries))
    return folder


@pytest.mark.real
@pytest.mark.timeout(1800)
def test_from_checkpoint_to_transcript(speech: Path, real_data: Path, tmp_path: Path) -> None:
    weights = real_data / "whisper" / "whisper_tiny_en_fp16.pt"
    words = [
        "whisper:tiny.en",
        "--weights",
        weights,
        "--device",
        "rpi",
        "--scheme",
        "dynamic",
        "--runs",
        "3",
        "--force",
    ]
    both = ["--calib", speech, "--data", speech, "--max-drop", "3", "--out", "bundle", "--json"]
    done = edgeq("export", *words, *both, cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout)
    assert summary["networks"] == {"encoder": "dynamic", "decoder": "dynamic"}
    assert summary["metric"]["name"] == "WER"
    assert summary["metric"]["n"] == CLIPS - CLIPS // 4  # what calibration took is not judged on
    assert summary["metric"]["quantized"] <= summary["metric"]["float"] + 3
    assert summary["quantized_weights"] == 35 + 34  # 32 layers, 2 convolutions, positions; 33 layers, positions
    assert summary["bytes"] <= 42e6
    bundle = tmp_path / "bundle"
    used = {item["sha256"] for item in Artifact.open(bundle).manifest.calibration}
    assert len(used) == CLIPS // 4

    shown = edgeq("inspect", bundle, "--json", cwd=tmp_path)
    assert set(json.loads(shown.stdout)["networks"]) == {"encoder", "decoder"}
    golden = subprocess.run([sys.executable, "run.py"], cwd=bundle, capture_output=True, text=True, check=False)
    assert golden.returncode == 0, golden.stdout + golden.stderr
    assert golden.stdout.count("passed") == 2
    clip = speech / "agent-newlocation.flac"
    said = subprocess.run(
        [sys.executable, "-c", ISOLATED, str(clip)], cwd=bundle, capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    (heard,) = json.loads(said.stdout.splitlines()[-1])["results"]
    assert heard["text"] == "Please enter a new extension, followed by pound."

    again = edgeq("reproduce", bundle, "--weights", weights, "--calib", speech, cwd=tmp_path, timeout=900)
    assert again.returncode == 0, again.stdout + again.stderr
    alone = edgeq("reproduce", bundle / "encoder", "--weights", weights, cwd=tmp_path)
    assert alone.returncode == 2
    assert "EQ-U701" in alone.stderr


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("device", "runtime"), [("x86", "openvino"), ("rpi", "ai_edge_litert")])
def test_four_bits_on_groups(device: str, runtime: str, speech: Path, real_data: Path, tmp_path: Path) -> None:
    pytest.importorskip(runtime)
    weights = real_data / "whisper" / "whisper_tiny_en_fp16.pt"
    words = ["whisper:tiny.en", "--weights", weights, "--device", device, "--bits", "w4a8", "--method", "minmax"]
    more = ["--calib", speech, "--runs", "3", "--force", "--out", "bundle", "--json"]
    done = edgeq("export", *words, *more, cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["bytes"] <= 32e6
    plan = json.loads((tmp_path / "bundle" / "decoder" / "plan.json").read_bytes())
    bits = {t["name"]: t["qparams"]["spec"]["bits"] for t in plan["tensors"] if t["role"] == "weight"}
    assert bits.pop("positional_embedding") == 8
    assert set(bits.values()) == {4}, "the vocabulary, too: half of the weights are no end to keep"
    said = subprocess.run(
        [sys.executable, "-c", ISOLATED, str(speech / "agent-newlocation.flac")],
        cwd=tmp_path / "bundle",
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    (heard,) = json.loads(said.stdout.splitlines()[-1])["results"]
    assert heard["text"].lower().startswith("please enter a new extension")
