"""Artifacts on degraded data, calibrated with and without degraded samples; source of the README's table.

    python tools/bench/robustness.py --data DATA_FOLDER [--cases GLOB ...] [--again]

`DATA_FOLDER` is described in `export_quality.py`. Every case is exported twice by the command line, with clean
calibration samples and with `--degrade mix`, and validated by `edgeq validate` on labelled data that calibration has
not seen. A case is kept as soon as it is measured.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "robustness.json"
CALIBRATIONS = {"clean": "none", "mixed": "mix"}


@dataclass(frozen=True)
class Case:
    """One model, exported one way.

    Args:
        export: Options of `edgeq export` but for `--degrade`; `{data}` is the data folder.
        validate: Options of `edgeq validate` but for the bundle.
        not_measured: What the figures do not say.
    """

    export: tuple[str, ...]
    validate: tuple[str, ...]
    not_measured: str = ""


_CIFAR = ("--data", "{data}/cifar10/test.npz", "--degrade", "qrid,noise:3,blur:3,dark:2")
_PHOTOS = ("--calib", "{data}/yolo/images", "--samples", "32", "--runs", "15")
_OF_QRID = "noise_low,noise_med,blur_med,jpeg_heavy"
_CLOUDS = ("--calib", "{data}/pointcloud/furniture_2048.npz", "--samples", "44", "--runs", "15")
_SPEECH = ("--calib", "{data}/speech", "--data", "{data}/speech", "--runs", "5")
_WHISPER = ("--weights", "{data}/whisper/whisper_tiny_en_fp16.pt")
_POINTMLP = ("--weights", "{data}/pointcloud/pointmlp_elite_modelnet40.safetensors")
CASES = {
    "vit_nano W8A8": Case(("vit_nano", "--device", "rpi", "--scheme", "integer", "--runs", "15"), _CIFAR),
    "vit_nano W4A8": Case(
        ("vit_nano", "--device", "rpi", "--scheme", "integer", "--bits", "w4a8", "--runs", "15"), _CIFAR
    ),
    "yolox_nano W8A8": Case(
        ("{data}/yolo/yolox_nano.onnx", "--family", "yolo", "--device", "x86", "--scheme", "static", *_PHOTOS),
        ("--model", "{data}/yolo/yolox_nano.onnx", "--data", "{data}/yolo", "--degrade", _OF_QRID),
    ),
    "pointmlp_elite W8A8": Case(
        ("points:pointmlp_elite", "--device", "rpi", "--scheme", "static", *_POINTMLP, *_CLOUDS),
        (
            *(*_POINTMLP, "--data", "{data}/pointcloud/furniture_2048.npz"),
            *("--degrade", "jitter:2,thinning:3,occlusion:2,outliers:2"),
        ),
    ),
    "whisper tiny.en W8A8": Case(
        ("whisper:tiny.en", "--device", "rpi", "--scheme", "dynamic", *_WHISPER, *_SPEECH),
        (*_WHISPER, "--data", "{data}/speech", "--degrade", "white:4,babble:4,reverb:3"),
        not_measured="other voices; static activations",
    ),
}


def run(words: list[str]) -> dict[str, Any]:
    """The JSON of a command; a gate that is missed is no failure here."""
    done = subprocess.run(
        [sys.executable, "-m", "edgeq", *words, "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):
        sys.exit(f"{' '.join(words)}\n{done.stdout}\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure(case: Case, data: Path) -> dict[str, Any]:
    """Validation of the case by calibration."""
    found: dict[str, Any] = {"not_measured": case.not_measured}
    with tempfile.TemporaryDirectory() as scratch:
        for name, degrade in CALIBRATIONS.items():
            out = f"{scratch}/{name}"
            options = [word.format(data=data) for word in (*case.export, "--degrade", degrade, "--force", "--out", out)]
            run(["export", *options])
            result = run(["validate", out, *(word.format(data=data) for word in case.validate)])
            found[name] = {k: v for k, v in result.items() if k not in ("artifact", "gate", "ok")}
    return found


def main() -> None:
    """Measure every case that the result lacks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", nargs="*", default=["*"], metavar="GLOB")
    parser.add_argument("--again", action="store_true", help="measure anew what the result holds")
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    for name, case in CASES.items():
        wanted = any(fnmatch.fnmatch(name, pattern) for pattern in options.cases)
        if wanted and (options.again or name not in results):
            results[name] = measure(case, options.data.resolve())
            RESULT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            sys.stderr.write(f"{name} done\n")


if __name__ == "__main__":
    main()
