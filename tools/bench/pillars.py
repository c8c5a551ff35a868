"""Range rules on a map seen from above, and a LiDAR network exported: `results/pillars.json`.

    python tools/bench/pillars.py [--only rules tflite openvino]

Scenes are rendered (`tools/lidar_scenes.py`), and the network that ships was trained on such: the figures compare
rules and runtimes with each other and say nothing about a real sensor. `rules`: the map that the pillars make, nearly
all zeros, on a grid with the range that each rule chooses from 40 scenes, everything else float, scored on 100 others.
The others: the exported file, scored on the same 100.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from export_quality import run_export_into  # beside this file
from yolo import cost

from edgeq.devices import open_model
from edgeq.metrics import sqnr_db
from edgeq.models import load_model
from edgeq.models.base import ModelRequest
from edgeq.models.checkpoint import load_state_dict
from edgeq.models.pillars import build_pillars
from edgeq.points import network_inputs
from edgeq.quant.ranges import choose_range
from edgeq.quant.statistics import TensorStatistics
from edgeq.quant.uniform import fake_quantize, qparams_from_range
from edgeq.samples import score
from edgeq.spec import QuantSpec

sys.path.insert(0, str(Path(__file__).parents[1]))
from lidar_scenes import write

RESULT = Path(__file__).parent / "results" / "pillars.json"
WEIGHTS = Path(__file__).parents[2] / "models" / "weights" / "pillars.safetensors"
CALIBRATION, SCORED = 40, 100
RULES = ("minmax", "sparse_grid", "mse", "percentile:0.9999", "percentile:0.999", "entropy")
BINS, LEVELS = 2048, 128


def entropy(values: torch.Tensor) -> tuple[float, float]:
    """Clip of the least KL divergence over a histogram of magnitudes, the common rule of entropy calibration."""
    high = float(values.abs().max())
    histogram = np.histogram(values.abs().numpy(), BINS, (0, high))[0].astype(np.float64)
    best, chosen = np.inf, BINS
    for end in range(LEVELS, BINS + 1, 8):
        kept = histogram[:end].copy()
        kept[-1] += histogram[end:].sum()
        groups = np.array_split(np.arange(end), LEVELS)
        coarse = np.zeros(end)
        for group in groups:
            used = histogram[group] > 0
            if used.any():
                coarse[group[used]] = histogram[group].sum() / used.sum()
        p, q = kept / kept.sum(), np.maximum(coarse / max(coarse.sum(), 1), 1e-12)
        divergence = float(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])))
        if divergence < best:
            best, chosen = divergence, end
    return 0.0, high * chosen / BINS


@torch.no_grad()
def rules(adapter: Any, calibration: Any, scored: Any) -> dict[str, Any]:
    """Each rule at 8 and 4 bits."""
    network = build_pillars().eval()
    network.load_state_dict(load_state_dict(WEIGHTS))

    def seen_by(cloud: Any) -> torch.Tensor:
        return network.scatter(*map(torch.from_numpy, network_inputs(cloud, adapter.how)))

    seen = torch.cat([seen_by(calibration.read(i)) for i in range(len(calibration))])
    statistics = TensorStatistics()
    statistics.update(seen)
    maps = [seen_by(scored.read(i)) for i in range(len(scored))]
    labels = [item.label for item in scored.items]
    exact = [adapter.judge([network.maps(m).numpy()], None, label) for m, label in zip(maps, labels, strict=True)]
    found: dict[str, Any] = {"zeros": round(float((seen == 0).float().mean()), 4)}
    for bits in (8, 4):
        for rule in RULES:
            spec = QuantSpec(bits, observer="minmax" if rule == "entropy" else rule)
            low, high = entropy(seen) if rule == "entropy" else choose_range(statistics, spec)
            grid = qparams_from_range(np.float64(low), np.float64(high), spec)
            rounded = [fake_quantize(m, grid) for m in maps]
            judged = [
                adapter.judge([network.maps(m).numpy()], None, label) for m, label in zip(rounded, labels, strict=True)
            ]
            decibels = [sqnr_db(m[m != 0].numpy(), r[m != 0].numpy()) for m, r in zip(maps, rounded, strict=True)]
            found[f"{rule} {bits}"] = {
                "range": round(high / statistics.high, 4),
                "sqnr_db": round(float(np.median(decibels)), 2),
                **score(adapter.metric, exact, judged, seed=0).to_dict(),
            }
    return found


def exported(adapter: Any, device: str, options: tuple[str, ...], folders: list[Path]) -> dict[str, Any]:
    """Score, size and time of an exported file."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "bundle"
        arguments = ["points:pillars", "--device", device, "--scheme", "static", *options]
        result = run_export_into(out, [*arguments, "--calib", str(folders[0])])
        model = open_model(next(p for p in out.glob("model.*") if p.suffix in (".xml", ".tflite")))
        source = adapter.open(folders[1], "evaluation")
        exact, other = [], []
        for index, item in enumerate(source.items):
            inputs = adapter.inputs(source.read(index))
            with torch.no_grad():
                reference = [o.numpy() for o in adapter.loaded.graph(*map(torch.from_numpy, inputs))]
            exact.append(adapter.judge(reference, None, item.label))
            other.append(adapter.judge(model.run(*inputs), None, item.label))
    return {"metric": score(adapter.metric, exact, other, seed=0).to_dict(), **cost([result])}


def main() -> None:
    """Measure the chosen rows and keep the others of the last run."""
    jobs: dict[str, tuple[str, tuple[str, ...]]] = {
        "tflite": ("rpi", ("--method", "sparse_grid")),
        "openvino": ("x86", ("--method", "sparse_grid")),
        "tflite auto": ("rpi", ()),
        "openvino auto": ("x86", ()),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=["rules", *jobs], default=["rules", *jobs])
    args = parser.parse_args()
    adapter: Any = load_model(ModelRequest("points", "pillars", None))
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / "calibration", Path(scratch) / "scored"]
        for folder, count, seed in zip(folders, (CALIBRATION, SCORED), (100, 200), strict=True):
            write(folder, count, seed)
        for name in args.only:
            if name == "rules":
                row = rules(adapter, adapter.open(folders[0], "calibration"), adapter.open(folders[1], "evaluation"))
            else:
                row = exported(adapter, *jobs[name], folders)
            kept = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
            kept[name] = row
            RESULT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
            print(name, json.dumps({k: v for k, v in row.items() if k != "environment"}))


if __name__ == "__main__":
    main()
