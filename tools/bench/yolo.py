"""Export detectors with real weights and write accuracy, size and time as `results/yolo.json`.

    python tools/bench/yolo.py --data DATA_FOLDER [--only NAME ...]

`DATA_FOLDER` holds `yolo/images`, `yolo/labels` and `yolo/yolox_nano.onnx`. There are few labelled photos, so they are
split in two: what is calibrated on the even ones is scored on the odd ones, the other way round, and the records of
both make one score over all. The float score is of the same photos. Networks without labels are judged by agreement
with float on what they show. Float and quantized are timed in alternation by each export; a ratio for each half.
`rooms` is the YOLOv8n of `tools/train_detector.py`: calibrated on scenes that it was trained on, scored on a series
that it has not seen.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from export_quality import run_export_into  # beside this file

from edgeq.data import open_images
from edgeq.devices import open_model
from edgeq.models import load_model
from edgeq.models.base import ModelRequest
from edgeq.models.coco import mean_average_precision
from edgeq.samples import score

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from detector_files import ROOMS, SIDE, nudenet
from make_scenes import write_scene
from scenes import draw_scene

SEEN, UNSEEN = (3, 96), (4, 320)
"""Series and number of scenes for calibration and for the score."""

Pairs = list[tuple[Path, Path]]
"""Folders to calibrate on, each with that to score on."""

RESULT = Path(__file__).parent / "results" / "yolo.json"


@dataclass(frozen=True)
class Job:
    """One row: a model, how it is exported, and whether its classes are those of the labels."""

    model: str
    format: str
    options: tuple[str, ...]
    labelled: bool = True


JOBS = {
    "yolox_nano openvino": Job("yolox_nano", "openvino", ("--device", "x86", "--scheme", "static")),
    "yolox_nano tflite": Job("yolox_nano", "tflite", ("--device", "rpi", "--scheme", "integer")),
    "yolox_nano tflite plain": Job(
        "yolox_nano", "tflite", ("--device", "rpi", "--scheme", "integer", "--keep-float", "none", "--force")
    ),
    "yolox_nano openvino plain": Job(
        "yolox_nano", "openvino", ("--device", "x86", "--scheme", "static", "--keep-float", "none", "--force")
    ),
    "yolox_nano openvino w4a8": Job(
        "yolox_nano", "openvino", ("--device", "x86", "--scheme", "static", "--bits", "w4a8")
    ),
    "yolox_nano openvino mixed": Job(
        "yolox_nano",
        "openvino",
        ("--device", "x86", "--scheme", "static", "--bits", "mixed", "--budget-kb", "1500"),
    ),
    "yolox_nano openvino mixed, 1450 kB": Job(
        "yolox_nano",
        "openvino",
        ("--device", "x86", "--scheme", "static", "--bits", "mixed", "--budget-kb", "1450"),
    ),
    "yolox_nano onnx": Job(  # slower than float in onnxruntime, and therefore refused without --force
        "yolox_nano", "onnx", ("--device", "x86", "--format", "onnx", "--scheme", "static", "--force")
    ),
    "320n tflite dynamic": Job("320n", "tflite", ("--device", "rpi", "--scheme", "dynamic"), labelled=False),
    "320n openvino": Job("320n", "openvino", ("--device", "x86", "--scheme", "static"), labelled=False),
    "rooms openvino": Job("rooms", "openvino", ("--device", "x86", "--scheme", "static")),
    "rooms tflite": Job("rooms", "tflite", ("--device", "rpi", "--scheme", "integer")),
    "rooms tflite plain": Job(
        "rooms", "tflite", ("--device", "rpi", "--scheme", "integer", "--keep-float", "none", "--force")
    ),
    "320n tflite": Job("320n", "tflite", ("--device", "rpi", "--scheme", "integer"), labelled=False),
}


def rooms(scratch: Path) -> Pairs:
    """Scenes that the network was trained on, and others."""
    folders = scratch / "seen", scratch / "unseen"
    for (series, count), folder in zip((SEEN, UNSEEN), folders, strict=True):
        for index in range(count):
            write_scene(draw_scene(series, index, SIDE, SIDE), folder, f"{index:06d}")
    return [folders]


def halves(data: Path, scratch: Path) -> Pairs:
    """The photos and labels in two folders, by turns, each to calibrate for the other."""
    folders = [scratch / "even", scratch / "odd"]
    for index, photo in enumerate(sorted((data / "images").iterdir())):
        label = data / "labels" / f"{photo.stem}.txt"
        for file in (photo, label):
            if file.is_file():
                target = folders[index % 2] / file.parent.name / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
    return [(folders[0], folders[1]), (folders[1], folders[0])]


def measure(job: Job, file: Path, pairs: Pairs, scratch: Path) -> dict[str, Any]:
    """Export on one folder of each pair, judge on the other."""
    variant = "" if file.suffix == ".onnx" else "yolov8n"
    named = [f"yolo:{variant}", "--weights", str(file)] if variant else [str(file), "--family", "yolo"]
    adapter: Any = load_model(ModelRequest("yolo", variant, file))
    records: tuple[list[Any], list[Any]] = [], []
    halves = []
    for calibration, held_out in pairs:
        out = scratch / "bundle"
        result = run_export_into(out, [*named, *job.options, "--calib", str(calibration)])
        model = open_model(next(p for p in out.glob("model.*") if p.suffix in (".xml", ".tflite", ".onnx")))
        source = adapter.open(held_out, "evaluation") if job.labelled else open_images(held_out, role="calibration")
        for index, item in enumerate(source.items):
            photo = source.read(index)
            inputs = adapter.inputs(photo)
            with torch.no_grad():
                exact = [o.numpy() for o in adapter.loaded.graph(*map(torch.from_numpy, inputs))]
            for outputs, noted in zip((exact, model.run(*inputs)), records, strict=True):
                noted.append(adapter.judge(outputs, photo, item.label or ()))
        halves.append(result)
        shutil.rmtree(out)
    return {**figures(adapter, records, job.labelled), **cost(halves)}


def figures(adapter: Any, records: tuple[list[Any], list[Any]], labelled: bool) -> dict[str, Any]:
    """Scores over the records of both halves."""
    exact, quantized = records
    both = [sum(len(r["shown"]) for r in side) for side in records]
    shown = [adapter.metric.alike(a, b) for a, b in zip(exact, quantized, strict=True) if a["shown"] or b["shown"]]
    found = {
        "photos": len(exact),
        "boxes": both,
        "agreement": round(float(np.mean(shown)), 4),
        "agreement_n": len(shown),
    }
    if not labelled:
        return found
    result = score(adapter.metric, exact, quantized, seed=0).to_dict()
    at_half = [round(mean_average_precision(side, slice(1)), 4) for side in records]
    return {**found, "metric": {k: v for k, v in result.items() if k != "agreement"}, "mAP50": at_half}


def cost(halves: list[dict[str, Any]]) -> dict[str, Any]:
    """Size, time and what stays float, of each half."""
    shipped = [next(c for c in h["candidates"] if c["scheme"] == h["summary"]["scheme"]) for h in halves]
    islands = [c["islands"] for c in shipped]
    return {
        "bytes": [h["summary"]["bytes"] for h in halves],
        "float_bytes": halves[0]["summary"]["float_bytes"],
        "latency": [h["summary"]["latency"] for h in halves],
        "integer_mac_share": [h["summary"]["integer_mac_share"] for h in halves],
        "sqnr_db": [h["summary"]["fidelity"]["sqnr_db"]["median"] for h in halves],
        "kept_float": [i and {"ops": i["ops"], "float_mac_share": i["float_mac_share"]} for i in islands],
        "command": halves[0]["command"],
        "environment": halves[0]["environment"],
    }


def main() -> None:
    """Measure the chosen rows and keep the others of the last run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=list(JOBS), default=list(JOBS))
    args = parser.parse_args()
    files = {"yolox_nano": args.data / "yolo" / "yolox_nano.onnx", "320n": nudenet(), "rooms": ROOMS}
    for name in args.only:
        file = files[JOBS[name].model]
        if file is None or not file.is_file():
            print(f"{name} is left out: its model is absent")
            continue
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            pairs = rooms(scratch) if JOBS[name].model == "rooms" else halves(args.data / "yolo", scratch)
            row = measure(JOBS[name], file, pairs, scratch)
        rows = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
        rows[name] = row
        RESULT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        print(name, json.dumps({k: v for k, v in rows[name].items() if k not in ("environment", "kept_float")}))


if __name__ == "__main__":
    main()
