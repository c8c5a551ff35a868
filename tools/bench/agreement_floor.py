"""How far a detector agrees with itself on inputs that nobody could tell apart: `results/agreement_floor.json`.

    python tools/bench/agreement_floor.py --photos FOLDER [--model FILE.onnx]

Without labels a quantized detector is judged by the boxes that it shows as float does (`tools/bench/yolo.py`). A box
near the threshold goes with any change at all: here float is compared with itself on photos with uniform noise of half
a grey level and of one, and with nothing but its weights in 8 bits. The noise is the same for all runs.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx

from edgeq.data import open_images
from edgeq.models import load_model
from edgeq.models.base import parse_model
from edgeq.quant.uniform import fake_quantize
from edgeq.quant.weights import weight_qparams
from edgeq.spec import PerChannel, QuantSpec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from detector_files import nudenet

RESULT = Path(__file__).parent / "results" / "agreement_floor.json"
LEVELS = {"noise of half a grey level": 0.5 / 255, "noise of one grey level": 1 / 255}
WEIGHTS = "weights in 8 bits"


@torch.no_grad()
def with_rounded_weights(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy whose convolutions have 8-bit weights, to the nearest; everything else is float."""
    copied = copy.deepcopy(graph)
    for tensor in (*copied.parameters(), *copied.buffers()):
        if tensor.ndim == 4:
            tensor.copy_(fake_quantize(tensor, weight_qparams(tensor, QuantSpec(8, True, PerChannel(0), "mse", True))))
    return copied


@torch.no_grad()
def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=nudenet())
    args = parser.parse_args()
    adapter: Any = load_model(parse_model(str(args.model), "yolo", None))
    source, random = open_images(args.photos, role="calibration"), np.random.default_rng(0)
    graph, rounded = adapter.loaded.graph, with_rounded_weights(adapter.loaded.graph)
    records: dict[str, list[Any]] = {name: [] for name in ("float", *LEVELS, WEIGHTS)}
    for index in range(len(source)):
        photo = source.read(index)
        exact = adapter.inputs(photo)
        runs = {"float": (graph, exact), WEIGHTS: (rounded, exact)}
        for name, size in LEVELS.items():
            runs[name] = (graph, tuple((x + random.uniform(-size, size, x.shape)).astype(np.float32) for x in exact))
        for name, (network, inputs) in runs.items():
            outputs = [t.numpy() for t in network(*map(torch.from_numpy, inputs))]
            records[name].append(adapter.judge(outputs, photo, ()))
    rows = {}
    for name in (*LEVELS, WEIGHTS):
        pairs = [(a, b) for a, b in zip(records["float"], records[name], strict=True) if a["shown"] or b["shown"]]
        agreement = float(np.mean([adapter.metric.alike(a, b) for a, b in pairs]))
        boxes = [sum(len(r["shown"]) for r in records[side]) for side in ("float", name)]
        rows[name] = {"agreement": round(agreement, 4), "n": len(pairs), "boxes": boxes}
    RESULT.write_text(json.dumps({"model": args.model.name, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
