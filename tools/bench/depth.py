"""Export `depth_nano` and write accuracy, size and time as `results/depth.json`.

    python tools/bench/depth.py [--count 256] [--only NAME ...]

The pictures are synthetic rooms of series 2 of `tools/scenes`, which the network was not trained on; what calibrates is
of series 1. Float and quantized are judged on the same pictures, by the files in their runtimes, and timed in
alternation by each export.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from export_quality import run_export_into  # beside this file
from robustness import run

sys.path.insert(0, str(Path(__file__).parents[1]))
from make_scenes import write_scene
from scenes import draw_scene

RESULT = Path(__file__).parent / "results" / "depth.json"
HELD_OUT = 2
"""Series of scenes."""

_TFLITE, _OPENVINO = ("--device", "rpi", "--scheme", "integer"), ("--device", "x86", "--scheme", "static")
_PLAIN = ("--method", "minmax", "--keep-float", "none")
JOBS: dict[str, tuple[str, ...]] = {
    "tflite w8a8": _TFLITE,
    "tflite w8a8 plain": (*_TFLITE, *_PLAIN),
    "openvino w8a8": _OPENVINO,
    "openvino w8a8 plain": (*_OPENVINO, *_PLAIN),
    "openvino w4a8": (*_OPENVINO, "--bits", "w4a8"),
    "openvino w4a8 plain": (*_OPENVINO, "--bits", "w4a8", *_PLAIN),
    "c w8a8": ("--device", "nucleo-h743zi"),
}

VALIDATED = ("tflite w8a8",)
DEGRADED = "qrid,noise:3,blur:3,dark:2"
FEW = 96
"""Scenes under degradations, of which there are ten."""


def main() -> None:
    """Measure the chosen rows and keep the others of the last run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--only", nargs="+", choices=list(JOBS), default=list(JOBS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "scenes"
        for index in range(args.count):
            write_scene(draw_scene(HELD_OUT, index), data, f"{index:06d}")
        for name in args.only:
            out = Path(folder) / "bundle"
            command = ["depth_nano", *JOBS[name], "--data", str(data), "--force", "--exist", "replace"]
            row = figures(run_export_into(out, command))
            if name in VALIDATED:
                row["validation"] = degraded(out, data)
            rows = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
            rows[name] = row
            RESULT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            shown = {k: row[k] for k in ("bytes", "metric", "sqnr_db", "latency", "integer_mac_share", "missed")}
            print(name, json.dumps(shown), flush=True)


def degraded(bundle: Path, data: Path) -> dict[str, Any]:
    """What `edgeq validate` says of the first scenes under some degradations."""
    words = ["validate", str(bundle), "--data", str(data), "--limit", str(FEW), "--degrade", DEGRADED]
    found = run(words)
    return {key: found[key] for key in ("metric", "n", "clean", "degraded")}


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """What the table needs of an export."""
    summary = result["summary"]
    (candidate,) = result["candidates"]
    islands = candidate["islands"]
    return {
        "bytes": summary["bytes"],
        "float_bytes": summary["float_bytes"],
        "metric": summary["metric"],
        "sqnr_db": summary["fidelity"]["sqnr_db"],
        "latency": summary["latency"],
        "integer_mac_share": summary["integer_mac_share"],
        "microcontroller": summary["microcontroller"],
        "kept_float": islands and {"ops": islands["ops"], "float_mac_share": islands["float_mac_share"]},
        "missed": summary["gates"]["missed"],
        "command": result["command"],
        "environment": result["environment"],
    }


if __name__ == "__main__":
    main()
