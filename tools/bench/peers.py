"""Exports beside other quantizers, from the same float model and calibration data, as JSON for `tables.py`.

    python tools/bench/peers.py --data DATA_FOLDER [--only NAME ...]

`DATA_FOLDER` holds `cifar10/test.npz`, `yolo/images` and `yolo/yolox_nano.onnx`; the ViT-S is that of
`export_quality.py`. One process runs the models of all runtimes and times each in alternation with the float file of
the named format; the peers quantize in processes of their own. Fidelity is that on data that nobody calibrated on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from export_quality import RESULTS, find_vit_s, run_export_into

SAMPLES = 32
ALL = "nncf,ort,aeq"
JOBS: dict[str, tuple[str, str, str, str]] = {
    "vit_nano onnx static": ("vit_nano", "onnx", "static", ALL),
    "vit_nano tflite integer": ("vit_nano", "tflite", "integer", "aeq"),
    "vit_nano tflite dynamic": ("vit_nano", "tflite", "dynamic", "aeq"),
    "vit_s_focus tflite integer": ("vit_s_focus", "tflite", "integer", "aeq"),
    "vit_s_focus tflite dynamic": ("vit_s_focus", "tflite", "dynamic", "aeq"),
    "yolox_nano tflite integer": ("yolox_nano", "tflite", "integer", "aeq"),
    "yolox_nano tflite dynamic": ("yolox_nano", "tflite", "dynamic", "aeq"),
}
"""Model, format, scheme, and beside whom."""


def arguments_of(model: str, data: Path) -> list[str] | None:
    """What `edgeq export` needs for a model; None where it is absent."""
    if model == "vit_nano":
        return ["vit_nano", "--data", str(data / "cifar10" / "test.npz")]
    path = find_vit_s() if model == "vit_s_focus" else data / "yolo" / f"{model}.onnx"
    if path is None or not path.is_file():
        return None
    family = "vit" if model == "vit_s_focus" else "yolo"
    return [str(path), "--family", family, "--calib", str(data / "yolo" / "images")]


def run(model: str, form: str, scheme: str, peers: str, words: list[str]) -> dict[str, Any]:
    """Export once with `--compare`; the comparison with what explains it."""
    words = [*words, "--device", "x86", "--format", form, "--scheme", scheme, "--samples", str(SAMPLES)]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "bundle"
        result = run_export_into(out, [*words, "--compare", peers, "--threads", "1", "--force"])
        evidence = json.loads((out / "evidence.json").read_text(encoding="utf-8"))
    return {
        "command": result["command"],
        "model": model,
        "scheme": scheme,
        "comparison": evidence["comparison"],
        "seconds": evidence["seconds"],
        "environment": {k: evidence["environment"][k] for k in ("edgeq", "python", "cpu", "cores", "packages")},
    }


def main() -> None:
    """Measure the chosen exports, each into a file of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=list(JOBS), default=list(JOBS))
    args = parser.parse_args()
    for name in args.only:
        model, form, scheme, peers = JOBS[name]
        words = arguments_of(model, args.data)
        if words is None:
            print(f"{name} is left out: its model is absent")
            continue
        result = run(model, form, scheme, peers, words)
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"peers_{model}_{form}_{scheme}.json"
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(path.name, len(result["comparison"]["rows"]), "rows", flush=True)


if __name__ == "__main__":
    main()
