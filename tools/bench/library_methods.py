"""What the methods of the library that no artifact uses are worth on shipped networks; writes JSON, resumes.

    python tools/bench/library_methods.py --data CIFAR10_FOLDER [--studies NAME ...] [--again]

`CIFAR10_FOLDER` holds `train.npz` (calibration) and `test.npz`. The networks are `vit_nano` and `cifar_cnn` with the
weights that ship. Layers are fitted on calibration images and measured on test images. Every entry has the figure of
the method and that of what it is compared with, from the same run: `docs/methods.md` prints both.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from library_networks import CnnBench, VitBench  # beside this file
from library_studies import (
    allocations,
    batch_norm,
    block_importance,
    distilled,
    gelu_grids,
    input_grids,
    relu_mlps,
    repairs,
    searches,
    sensitivities,
    sorted_groups,
    token_weights,
)

RESULT = Path(__file__).parent / "results" / "library_methods.json"
SCHEMA = "edgeq.bench.library_methods/1"

VIT: Mapping[str, Callable[[VitBench], dict[str, Any]]] = {
    "searches": searches,
    "gelu_grids": gelu_grids,
    "input_grids": input_grids,
    "repairs": repairs,
    "sorted_groups": sorted_groups,
    "sensitivities": sensitivities,
    "allocations": allocations,
    "block_importance": block_importance,
    "relu_mlps": relu_mlps,
    "token_weights": token_weights,
}
"""Studies on `vit_nano`: each gives entries by method."""

CNN: Mapping[str, Callable[[CnnBench], dict[str, Any]]] = {"batch_norm": batch_norm, "distilled": distilled}
"""Studies on `cifar_cnn`."""


def main() -> None:
    """Run the studies that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--studies", nargs="+", choices=[*VIT, *CNN], default=[*VIT, *CNN])
    parser.add_argument("--again", action="store_true", help="run studies anew")
    args = parser.parse_args()
    torch.set_num_threads(1)
    document = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {"studies": {}}
    wanted = [name for name in args.studies if args.again or name not in document["studies"]]
    vit = VitBench(args.data) if any(name in VIT for name in wanted) else None
    cnn = CnnBench(args.data) if any(name in CNN for name in wanted) else None
    for name in wanted:
        start = time.perf_counter()
        found = VIT[name](vit) if name in VIT and vit else CNN[name](cnn) if cnn else {}
        document["studies"][name] = {"seconds": round(time.perf_counter() - start), "methods": found}
        save(document["studies"])
        print(name, json.dumps(found, indent=1), flush=True)


def save(studies: Mapping[str, Any]) -> None:
    """Write all studies in the order of the tables, aside first."""
    aside = RESULT.with_suffix(".partial")
    ordered = {name: studies[name] for name in (*VIT, *CNN) if name in studies}
    aside.write_text(json.dumps({"schema": SCHEMA, "studies": ordered}, indent=1) + "\n", encoding="utf-8")
    aside.replace(RESULT)


if __name__ == "__main__":
    main()
