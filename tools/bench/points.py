"""Export PointMLP with its real weights and write accuracy, size and time as `results/points.json`.

    python tools/bench/points.py --data DATA_FOLDER [--only NAME ...]

`DATA_FOLDER` holds `pointcloud/pointmlp_elite_modelnet40.safetensors` and `pointcloud/furniture_2048.npz`. The clouds
are split in two by turns: what is calibrated on the even ones is scored on the odd ones, the other way round, and the
records of both make one score over all. The float score is of the same clouds. Float and quantized are timed in
alternation by each export; a ratio for each half.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from export_quality import run_export_into  # beside this file
from yolo import cost

from edgeq import points
from edgeq.devices import open_model
from edgeq.models import load_model
from edgeq.models.base import ModelRequest
from edgeq.samples import score

RESULT = Path(__file__).parent / "results" / "points.json"
MODEL = "pointmlp_elite"
STATIC = ("--scheme", "static")


@dataclass(frozen=True)
class Job:
    """One row: where it runs, and how it is exported."""

    device: str
    options: tuple[str, ...]


JOBS = {
    "tflite W8A8": Job("rpi", STATIC),
    "tflite W4A8": Job("rpi", (*STATIC, "--bits", "w4a8")),
    "openvino W8A8": Job("x86", STATIC),
    "openvino W4A8": Job("x86", (*STATIC, "--bits", "w4a8")),
    "tflite W8A8, nothing float": Job("rpi", (*STATIC, "--keep-float", "none", "--force")),
    "openvino W8A8, nothing float": Job("x86", (*STATIC, "--keep-float", "none", "--force")),
    "tflite dynamic": Job("rpi", ("--scheme", "dynamic")),
}


def halves(file: Path, scratch: Path) -> list[Path]:
    """The clouds in two files, by turns."""
    with np.load(file) as stored:
        clouds, labels = stored["points"], stored["label"]
    files = [scratch / "even.npz", scratch / "odd.npz"]
    for first, half in enumerate(files):
        np.savez(half, points=clouds[first::2], label=labels[first::2])
    return files


def measure(job: Job, weights: Path, files: list[Path], scratch: Path) -> dict[str, Any]:
    """Export on one half, judge on the other, both ways."""
    adapter: Any = load_model(ModelRequest("points", MODEL, weights))
    exact: list[float] = []
    quantized: list[float] = []
    chosen: list[bool] = []
    exports = []
    for calibration, held_out in (files, files[::-1]):
        out = scratch / "bundle"
        arguments = [f"points:{MODEL}", "--weights", str(weights), "--device", job.device, *job.options]
        exports.append(run_export_into(out, [*arguments, "--calib", str(calibration)]))
        model = open_model(next(p for p in out.glob("model.*") if p.suffix in (".xml", ".tflite")))
        source = adapter.open(held_out, "evaluation")
        for index, item in enumerate(source.items):
            inputs = adapter.inputs(source.read(index))
            with torch.no_grad():
                reference = [o.numpy() for o in adapter.loaded.graph(*map(torch.from_numpy, inputs))]
            found = model.run(*inputs)
            exact.append(adapter.judge(reference, None, item.label))
            quantized.append(adapter.judge(found, None, item.label))
            chosen.append(int(reference[0].argmax()) == int(found[0].argmax()))
        shutil.rmtree(out)
    result = score(adapter.metric, exact, quantized, seed=0).to_dict()
    return {
        "clouds": len(exact),
        "metric": {k: v for k, v in result.items() if k != "agreement"},
        "same_class": sum(chosen),
        **cost(exports),
    }


def host_part(weights: Path, file: Path) -> dict[str, Any]:
    """Float top-1 with other rules of sampling: how much the choice of points matters by itself."""
    adapter: Any = load_model(ModelRequest("points", MODEL, weights))
    source = adapter.open(file, "evaluation")
    rules = {"farthest, from the farthest point": {}, "first 1,024": {"sample": "first"}}
    classes: dict[str, list[int]] = {}
    for name, change in rules.items():
        for index in range(len(source)):
            inputs = points.network_inputs(source.read(index), {**adapter.how, **change})
            with torch.no_grad():
                logits = adapter.loaded.graph(*map(torch.from_numpy, inputs))[0]
            classes.setdefault(name, []).append(int(logits.argmax()))
    first = next(iter(classes.values()))
    labels = [item.label for item in source.items]
    return {
        name: {
            "top1": round(100 * float(np.mean([a == b for a, b in zip(found, labels, strict=True)])), 2),
            "same_class": round(100 * float(np.mean([a == b for a, b in zip(found, first, strict=True)])), 2),
        }
        for name, found in classes.items()
    }


def main() -> None:
    """Measure the chosen rows and keep the others of the last run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=[*JOBS, "host"], default=[*JOBS, "host"])
    args = parser.parse_args()
    folder = args.data / "pointcloud"
    weights, clouds = folder / f"{MODEL}_modelnet40.safetensors", folder / "furniture_2048.npz"
    for name in args.only:
        with tempfile.TemporaryDirectory() as temporary:
            scratch = Path(temporary)
            if name == "host":
                row = host_part(weights, clouds)
            else:
                row = measure(JOBS[name], weights, halves(clouds, scratch), scratch)
        rows = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
        rows[name] = row
        RESULT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        print(name, json.dumps({k: v for k, v in rows[name].items() if k not in ("environment", "kept_float")}))


if __name__ == "__main__":
    main()
