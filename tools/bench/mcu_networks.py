"""The shipped networks as C on microcontrollers: memory, accuracy, instructions; writes JSON.

    python tools/bench/mcu_networks.py --data DATA_FOLDER [--again]

`DATA_FOLDER` holds `cifar10/test.npz` (labelled, 1000 images that nothing was trained or selected on). Each row is an
export, calibrated on the images that ship with the models; what was measured before is kept. QEMU counts instructions,
which are no cycles. Needs arm-none-eabi-gcc and qemu-system-arm.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from export_quality import RESULTS  # beside this file

RESULT = RESULTS / "mcu_networks.json"
BOARDS = {"M4": "mps2-an386", "M7": "mps2-an500", "M33": "mps2-an505", "M55": "mps3-an547"}
ROWS: dict[str, list[str]] = {
    "cifar_cnn W8A8": ["cifar_cnn", "--device", "nucleo-f446re"],
    "cifar_cnn W4A8": ["cifar_cnn", "--device", "nucleo-f446re", "--bits", "w4a8"],
    "vit_micro W8A8": ["vit_micro", "--device", "nucleo-f446re"],
    "vit_micro W4A8": ["vit_micro", "--device", "nucleo-f446re", "--bits", "w4a8"],
    "vit_nano W8A8": ["vit_nano", "--device", "nucleo-h743zi"],
    "vit_nano 4 and 8 bits": ["vit_nano", "--device", "nrf52840-dk", "--bits", "mixed", "--budget-kb", "900"],
}
"""Options of each row by its label."""


def edgeq(*words: str) -> dict[str, Any]:
    """The JSON of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "edgeq", *words, "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measured(options: list[str], data: Path) -> dict[str, Any]:
    """One row."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "out")
        labelled = ["--data", str(data / "cifar10" / "test.npz"), "--max-drop", "100", "--min-sqnr-db", "0"]
        summary = edgeq("export", *options, *labelled, "--out", out)
        profiles = {core: edgeq("profile", out, "--on", f"qemu://{board}") for core, board in BOARDS.items()}
    return {
        "command": ["edgeq", "export", *options],
        "microcontroller": summary["microcontroller"],
        "sqnr_db": summary["fidelity"]["sqnr_db"] | {"n": summary["fidelity"]["samples"]},
        "metric": summary["metric"],
        "instructions": {core: profile["p50"] for core, profile in profiles.items()},
        "code": {core: profile["memory"]["code"] for core, profile in profiles.items()},
    }


def main() -> None:
    """Measure the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--again", action="store_true", help="measure rows anew")
    args = parser.parse_args()
    done: dict[str, Any] = {}
    if RESULT.is_file() and not args.again:
        done = json.loads(RESULT.read_text(encoding="utf-8"))["rows"]
    for label, options in ROWS.items():
        if label not in done:
            done[label] = measured(options, args.data)
            rows = {name: done[name] for name in ROWS if name in done}
            RESULT.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
            print(label, json.dumps(done[label]), flush=True)


if __name__ == "__main__":
    main()
