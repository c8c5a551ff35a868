"""Activation grids on `depth_nano`: does LogNP, the polishing of QuartDepth, help? Writes `results/depth_grids.json`.

    python tools/bench/depth_grids.py [--count 256]

Simulation: the inputs of all convolutions but the first and the last are put on a grid, the weights on 8 or 4 bits per
output channel, rounded to the nearest. A grid for each channel is what the paper has; no integer kernel takes it, since
the channels of one product have one scale. AbsRel is on held-out synthetic rooms, paired, with 95 % bootstrap
intervals of the difference to the uniform grid for the tensor.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))
from scenes import draw_scene
from train_depth import HELD_OUT, TRAINED, normalized

from edgeq.metrics import bootstrap_difference
from edgeq.models.checkpoint import load_into, load_state_dict
from edgeq.models.depth_nano import DepthNano
from edgeq.quant import dequantize
from edgeq.quant.grids import Grid, SignLog, UniformGrid
from edgeq.quant.weights import round_weights, weight_qparams
from edgeq.spec import PerChannel, QuantSpec

RESULT = Path(__file__).parent / "results" / "depth_grids.json"
WEIGHTS = Path(__file__).parents[2] / "models" / "weights" / "depth_nano.safetensors"
CALIBRATION = 32
FITTED = 1 << 14
"""Values of a tensor, or of a channel, that a grid is fitted to."""

Fit = Callable[[Tensor, int], Grid]


def covering(x: Tensor, bits: int) -> UniformGrid:
    """The uniform grid from the least to the largest value."""
    return UniformGrid.from_range(float(x.min()), float(x.max()), bits)


ROWS: dict[str, tuple[bool, Fit]] = {
    "uniform, tensor": (False, UniformGrid.fit),
    "LogNP, tensor": (False, SignLog.polished),
    "LogNP fitted, tensor": (False, SignLog.fit),
    "uniform min-max, channel": (True, covering),
    "LogNP, channel": (True, SignLog.polished),
}
WIDTHS = ((8, 8), (4, 4))


def pictures(series: int, count: int) -> tuple[Tensor, Tensor]:
    """Network inputs and depth of the scenes of a series."""
    scenes = [draw_scene(series, i) for i in range(count)]
    rgb = torch.from_numpy(np.stack([s.rgb for s in scenes])).permute(0, 3, 1, 2)
    return normalized(rgb), torch.from_numpy(np.stack([s.depth for s in scenes]))[:, None]


def inner_convolutions(model: nn.Module) -> list[nn.Conv2d]:
    """All but the first and the last, which keep 8 bits as papers do."""
    return [m for m in model.modules() if isinstance(m, nn.Conv2d)][1:-1]


@torch.no_grad()
def seen_by(model: nn.Module, layers: Sequence[nn.Conv2d], images: Tensor) -> list[Tensor]:
    """Inputs `(N, C, H, W)` of each layer."""
    taken: dict[nn.Module, Tensor] = {}
    hooks = [layer.register_forward_pre_hook(lambda m, x: taken.update({m: x[0]})) for layer in layers]
    model(images)
    for hook in hooks:
        hook.remove()
    return [taken[layer] for layer in layers]


def grids_for(x: Tensor, per_channel: bool, bits: int, fit: Fit) -> list[Grid]:
    """A grid for the tensor, or one for each channel."""
    rows = x.transpose(0, 1).reshape(x.shape[1], -1) if per_channel else x.reshape(1, -1)
    stride = max(1, rows.shape[1] // FITTED)
    return [fit(row[::stride], bits) for row in rows]


def on_grids(x: Tensor, grids: Sequence[Grid]) -> Tensor:
    """The tensor as its codes give it back."""
    if len(grids) == 1:
        return grids[0].dequantize(grids[0].quantize(x))
    return torch.stack([g.dequantize(g.quantize(x[:, c])) for c, g in enumerate(grids)], dim=1)


@torch.no_grad()
def relative_errors(model: nn.Module, images: Tensor, depth: Tensor) -> list[float]:
    """AbsRel in percent of each picture."""
    found: list[float] = []
    for i in range(0, len(images), 32):
        map_ = functional.interpolate(model(images[i : i + 32]), scale_factor=2.0, mode="bilinear").exp()
        truth = depth[i : i + 32]
        found += (100 * (map_ - truth).abs() / truth).mean(dim=(1, 2, 3)).tolist()
    return found


def with_weights(bits: int) -> DepthNano:
    """The shipped network with weights on a grid for each output channel."""
    model = DepthNano().eval()
    load_into(model, load_state_dict(WEIGHTS), WEIGHTS)
    inner = inner_convolutions(model)
    for layer in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
        spec = QuantSpec(bits if layer in inner else 8, True, PerChannel(0), "mse", narrow=True)
        grid = weight_qparams(layer.weight, spec)
        layer.weight.data = dequantize(round_weights(layer.weight, grid), grid)
    return model


def measure(model: DepthNano, bits: int, per_channel: bool, fit: Fit, data: tuple[Tensor, ...]) -> list[float]:
    """AbsRel of each picture with activations on grids."""
    calibration, images, depth = data
    layers = inner_convolutions(model)
    hooks = []
    for layer, x in zip(layers, seen_by(model, layers, calibration), strict=True):
        grids = grids_for(x, per_channel, bits, fit)
        hooks.append(layer.register_forward_pre_hook(lambda _, x, grids=grids: on_grids(x[0], grids)))
    errors = relative_errors(model, images, depth)
    for hook in hooks:
        hook.remove()
    return errors


def main() -> None:
    """Measure all rows at all widths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=256)
    args = parser.parse_args()
    calibration = pictures(TRAINED, CALIBRATION)[0]
    images, depth = pictures(HELD_OUT, args.count)
    model = DepthNano().eval()
    load_into(model, load_state_dict(WEIGHTS), WEIGHTS)
    exact = relative_errors(model, images, depth)
    rows: list[dict[str, Any]] = []
    for weight_bits, bits in WIDTHS:
        model = with_weights(weight_bits)
        first: list[float] = []
        for name, (per_channel, fit) in ROWS.items():
            errors = measure(model, bits, per_channel, fit, (calibration, images, depth))
            first = first or errors
            low, high = bootstrap_difference(errors, first, seed=0)
            row = {"row": name, "bits": f"w{weight_bits}a{bits}", "abs_rel": round(float(np.mean(errors)), 3)}
            rows.append({**row, "interval": [round(low, 3), round(high, 3)]})
            print(rows[-1], flush=True)
            result = {"float": round(float(np.mean(exact)), 3), "n": args.count, "rows": rows}
            RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
