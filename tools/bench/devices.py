"""How far two profiles of one artifact lie apart, what the profiler itself costs, and what devices compute.

    python tools/bench/devices.py out/vit_nano-rpi4 out/yolox_nano-rpi4 [--on ssh://pi] [--verify qemu://rpi4]

Repeatability: pairs of profiles, one right after the other, each in a process of its own; the difference of their
medians. Overhead: CPU time that the profiler (clock, statistics, sending, watching) spends on a run beside the run. The
results go to `results/devices.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.artifact import Artifact
from edgeq.devices import agent
from edgeq.devices.attached import open_device
from edgeq.devices.environment import environment
from edgeq.devices.timing import measure, median_interval

RESULT = Path(__file__).parent / "results" / "devices.json"
SCHEMA = "edgeq.bench.devices/1"
RUNS = 2000


def repeatability(artifact: Artifact, address: str, pairs: int, python: str) -> dict[str, Any]:
    """Pairs of profiles: differences of their medians in percent."""
    medians = []
    for _ in range(2 * pairs):
        profile = open_device(address, python=python, wait=600).profile(artifact, "auto").to_dict()
        medians.append({key: profile[key] for key in ("p50", "min", "p90", "runs", "settled", "notes")})
    values = np.array([m["p50"] for m in medians]).reshape(pairs, 2)
    apart = 100 * np.abs(values[:, 1] / values[:, 0] - 1)
    return {
        "device": address,
        "pairs": pairs,
        "median_percent": float(np.median(apart)),
        "worst_percent": float(apart.max()),
        "within_3_percent": int((apart <= 3).sum()),
        "profiles": medians,
    }


def overhead(blocks: int) -> dict[str, Any]:
    """CPU time that the profiler spends on a run, apart from the run, in microseconds: on runs that do nothing."""
    source, sink = os.pipe()[0], os.open(os.devnull, os.O_WRONLY)
    port = agent.Port("word", os.fdopen(source, "rb", buffering=0), sink)
    costs = []
    for _ in range(blocks):
        times = agent._Times(port)
        with port.watched():
            before = time.process_time()
            measure(_nothing, runs=RUNS, warmup=0, observe=times.add)
            costs.append(1e6 * (time.process_time() - before) / RUNS)
    low, high = median_interval(np.array(costs))
    return {"blocks": blocks, "runs": RUNS, "microseconds": float(np.median(costs)), "interval": [low, high]}


def _nothing() -> None:
    """A run that costs nothing."""


def computed(artifact: Artifact, address: str, python: str) -> dict[str, Any]:
    """The golden vectors on a device."""
    start = time.perf_counter()
    found = open_device(address, python=python, wait=600).verify(artifact).to_dict()
    finite = {k: v if np.isfinite(v) else None for k, v in found["sqnr_db"].items()}
    kept = {key: found[key] for key in ("device", "vectors", "exact", "agreement", "max_difference", "passed")}
    return {**kept, "sqnr_db": finite, "seconds": round(time.perf_counter() - start, 1)}


def main() -> int:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="*", type=Path, default=[])
    parser.add_argument("--only-verify", action="append", type=Path, default=[], metavar="ARTIFACT")
    parser.add_argument("--on", action="append", default=[], metavar="DEVICE", help="besides local")
    parser.add_argument("--verify", action="append", default=[], metavar="DEVICE")
    parser.add_argument("--python", default="python3")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--blocks", type=int, default=61)
    options = parser.parse_args()
    rows = []
    for path in (*options.artifacts, *options.only_verify):
        artifact = Artifact.open(path)
        row: dict[str, Any] = {"model": artifact.manifest.model["name"], "file": artifact.model_file.name}
        row["scheme"], row["target"] = artifact.manifest.scheme, artifact.manifest.target
        row["verify"] = [computed(artifact, address, options.python) for address in options.verify]
        if path not in options.only_verify:
            row["repeatability"] = [
                repeatability(artifact, address, options.pairs, options.python) for address in ("local", *options.on)
            ]
        rows.append(row)
        print(json.dumps({k: v for k, v in row.items() if k != "repeatability"}), file=sys.stderr)
    load = os.getloadavg()[0]
    cost = overhead(options.blocks)
    result = {"schema": SCHEMA, "results": rows, "overhead": cost, "environment": environment(), "load": load}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
