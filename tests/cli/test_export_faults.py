"""Everything a user can get wrong, and work that is cut short: a coded error, the right exit code, nothing left."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from edgeq.models.vit_nano import VitNano
from tests.cli.conftest import FAST, edgeq, stopped

STAGES = ("start", "load", "convert float", "build dynamic", "measure dynamic")


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, (f"touch {self.marker}",)


def refused(code: str, exit_code: int, *words: str | Path, cwd: Path) -> dict[str, str]:
    before = sorted(p.name for p in cwd.iterdir())
    done = edgeq("export", *words, "--json", cwd=cwd)
    assert done.returncode == exit_code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    error: dict[str, str] = json.loads(done.stdout)
    assert error["code"] == code, error
    assert sorted(p.name for p in cwd.iterdir()) == before
    return error


def photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        Image.effect_noise((40, 40), 20 + 20 * i).convert("RGB").save(folder / f"{i}.png")
    return folder


def test_unknown_names_get_the_nearest(tmp_path: Path) -> None:
    assert "rpi" in refused("EQ-U046", 2, "vit_nano", "--device", "rpy", cwd=tmp_path)["hint"]
    assert "w8a8" in refused("EQ-U007", 2, "vit_nano", "--device", "rpi", "--bits", "w8a9", cwd=tmp_path)["hint"]
    assert "minmax" in refused("EQ-U007", 2, "vit_nano", "--device", "rpi", "--method", "minmx", cwd=tmp_path)["hint"]
    assert "vit_nano" in refused("EQ-U014", 2, "vit_nanno", "--device", "rpi", cwd=tmp_path)["hint"]


def test_unusable_model_files(tmp_path: Path) -> None:
    refused("EQ-M002", 3, "none.onnx", "--family", "vit", "--device", "rpi", cwd=tmp_path)
    (tmp_path / "text.onnx").write_text("not a model")
    refused("EQ-M110", 3, "text.onnx", "--family", "vit", "--device", "rpi", cwd=tmp_path)
    (tmp_path / "text.pt2").write_text("not a model")
    refused("EQ-M009", 3, "text.pt2", "--family", "vit", "--device", "rpi", cwd=tmp_path)
    (tmp_path / "notes.txt").write_text("not a model")
    refused("EQ-M001", 3, "notes.txt", "--device", "rpi", cwd=tmp_path)
    (tmp_path / "w.safetensors").write_bytes(b"x" * 100)
    refused("EQ-U015", 2, "w.safetensors", "--family", "vit", "--device", "rpi", cwd=tmp_path)


def test_unusable_checkpoints(tmp_path: Path) -> None:
    name = ["vit_nano", "--device", "rpi", "--weights"]
    save_file(VitNano().state_dict(), tmp_path / "ok.safetensors")
    state = load_file(tmp_path / "ok.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "ok.safetensors").read_bytes()[:100_000])
    refused("EQ-M006", 3, *name, "cut.safetensors", cwd=tmp_path)
    state["head.weight"][0, 0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    assert "head.weight" in refused("EQ-M004", 3, *name, "nan.safetensors", cwd=tmp_path)["message"]
    save_file(VitNano(classes=11).state_dict(), tmp_path / "eleven.safetensors")
    assert "head.weight" in refused("EQ-M005", 3, *name, "eleven.safetensors", cwd=tmp_path)["message"]
    marker = tmp_path / "executed"
    torch.save({"weights": Bomb(marker)}, tmp_path / "bomb.pth")
    refused("EQ-M007", 3, *name, "bomb.pth", cwd=tmp_path)
    assert not marker.exists()
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    refused("EQ-M007", 3, *name, "module.pth", cwd=tmp_path)


def test_unusable_calibration_images(tmp_path: Path) -> None:
    name = ["vit_nano", "--device", "rpi", "--calib"]
    refused("EQ-D050", 3, *name, "nowhere", cwd=tmp_path)
    (tmp_path / "empty").mkdir()
    refused("EQ-D051", 3, *name, "empty", cwd=tmp_path)
    photos(tmp_path / "one", 1)
    refused("EQ-D054", 3, *name, "one", cwd=tmp_path)
    folder = photos(tmp_path / "damaged", 4)
    (folder / "5.jpg").write_bytes(b"\xff\xd8\xff not a jpeg")
    assert "5.jpg" in str(refused("EQ-D052", 3, *name, "damaged", cwd=tmp_path))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill-9"])
def test_stopped_in_every_stage(stage: str, number: signal.Signals, tmp_path: Path) -> None:
    done = stopped("export", "vit_nano", *FAST, stage=stage, number=number, cwd=tmp_path)
    out = tmp_path / "out" / "vit_nano-rpi"
    if out.exists():  # it was faster than the signal: then the bundle is whole
        assert (out / "manifest.json").exists()
    elif number == signal.SIGINT:
        assert done.returncode == 130
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()
    else:
        assert done.returncode == -signal.SIGKILL
        again = edgeq("export", "vit_nano", *FAST, cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["vit_nano-rpi"]


def test_data_that_cannot_score_is_refused_before_the_long_work(tmp_path: Path) -> None:
    photos(tmp_path / "unlabelled", 4)
    refused("EQ-D020", 3, "vit_nano", "--device", "rpi", "--data", "unlabelled", cwd=tmp_path)
    done = edgeq("export", "vit_nano", "--device", "rpi", "--data", "unlabelled", cwd=tmp_path)
    assert "convert float" not in done.stderr
