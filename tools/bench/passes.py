"""What one more operation costs a value of a tensor in LiteRT's integer kernels; writes `results/passes.json`.

    python tools/bench/passes.py [--rounds 200]

Why a static detector with evened-out channels (docs/decisions/0013) is slower than one without: each SiLU has one more
multiplication by a constant of its channel, and no other operation could put the factors back for less. Networks of a
convolution, six times the operation and a convolution, random weights, one thread; nanoseconds a value are the
difference to the network that lacks the six, of the fastest runs, which alternate.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeq.devices.environment import environment
from edgeq.devices.litert import LiteRtModel
from edgeq.exporters import get_exporter
from edgeq.graph.capture import capture
from edgeq.graph.legalize import legalize, observed
from edgeq.quant.calibrator import calibrate
from edgeq.recipe import place_scheme

RESULT = Path(__file__).parent / "results" / "passes.json"
SCHEMA = "edgeq.bench.passes/1"
SIZES = ((16, 208), (32, 104), (64, 52), (128, 26))
"""Channels and side of the images: those of YOLOX-nano."""
TIMES = 6


class Chain(nn.Module):
    """A convolution, some operations, a convolution."""

    def __init__(self, channels: int, step: Callable[[int, Tensor, Tensor], Tensor] | None, layers: nn.Module) -> None:
        super().__init__()
        self.stem, self.tail = nn.Conv2d(3, channels, 1), nn.Conv2d(channels, 1, 1)
        self.step, self.layers = step, layers

    def forward(self, x: Tensor) -> Tensor:
        """`(1, 3, H, W)` to `(1, 1, H, W)`."""
        first = x = self.stem(x)
        for i in range(TIMES if self.step else 0):
            x = self.step(i, x, first)  # type: ignore[misc]
        found: Tensor = self.tail(x)
        return found


def chains(channels: int) -> dict[str, Chain]:
    """The networks by what they repeat; a product with constants would be folded into a convolution but for a sum."""
    torch.manual_seed(0)
    constants = nn.ParameterList([nn.Parameter(torch.rand(1, channels, 1, 1) / 2 + 0.5, False) for _ in range(TIMES)])
    depthwise = nn.ModuleList([nn.Conv2d(channels, channels, 1, groups=channels) for _ in range(TIMES)])
    pointwise = nn.ModuleList([nn.Conv2d(channels, channels, 1) for _ in range(TIMES)])
    none = nn.Module()
    return {
        "nothing": Chain(channels, None, none),
        "sum": Chain(channels, lambda i, x, first: x + first, none),
        "sum, product with constants": Chain(channels, lambda i, x, first: x * constants[i] + first, constants),
        "product": Chain(channels, lambda i, x, first: x * first, none),
        "sigmoid": Chain(channels, lambda i, x, first: torch.sigmoid(x), none),
        "depthwise 1x1": Chain(channels, lambda i, x, first: depthwise[i](x), depthwise),
        "pointwise": Chain(channels, lambda i, x, first: pointwise[i](x), pointwise),
    }


def built(chain: Chain, side: int, path: Path) -> Callable[[], object]:
    """The network in integers, ready to run."""
    exporter, samples = get_exporter("tflite"), [(torch.randn(1, 3, side, side),) for _ in range(2)]
    graph = exporter.prepare(capture(chain.eval(), samples[0]))
    config, placement = place_scheme(graph, exporter, "integer")
    statistics = calibrate(graph, observed(graph, placement), samples)
    legalized = legalize(graph, placement, config, exporter.rules, statistics, "integer")
    exporter.emit(legalized.emission, samples[0], legalized.plan, path)
    model, values = LiteRtModel(path), samples[0][0].numpy()
    floats = [op.name for op in model.ops if not op.delegated]
    assert model.delegated[0] == 1 and not floats, floats
    return lambda: model.run(values)


def costs(channels: int, side: int, rounds: int, folder: Path) -> dict[str, float]:
    """Nanoseconds a value by operation."""
    runs = {
        name: built(chain, side, folder / f"{i}-{channels}.tflite")
        for i, (name, chain) in enumerate(chains(channels).items())
    }
    least = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            least[name] = min(least[name], time.perf_counter() - start)
    values = TIMES * channels * side * side / 1e9
    found = {name: (seconds - least["nothing"]) / values for name, seconds in least.items() if name != "nothing"}
    found["product with constants"] = found.pop("sum, product with constants") - found["sum"]
    return {name: round(found[name], 3) for name in sorted(found)}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    result: dict[str, Any] = {"schema": SCHEMA, "rounds": args.rounds, "environment": environment(), "ns": {}}
    with tempfile.TemporaryDirectory() as folder:
        for channels, side in SIZES:
            name = f"{channels} channels, {side} x {side}"
            result["ns"][name] = costs(channels, side, args.rounds, Path(folder))
            print(name, json.dumps(result["ns"][name]), flush=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
