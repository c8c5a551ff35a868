"""Train the LiDAR network that ships, on rendered scenes: some minutes on one thread, repeatable by its seed.

python tools/train_pillars.py [--scenes 500] [--steps 900] [--out models/weights/pillars.safetensors]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lidar_scenes import Scene, make_scene  # beside this file
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from edgeq.models.pillars import HOW, NAMES, average_precision, build_pillars
from edgeq.models.point_networks import Pillars
from edgeq.points import pillars

OUT = Path(__file__).resolve().parents[1] / "models" / "weights" / "pillars.safetensors"
BATCH, RATE = 8, 3e-3
SPREAD = {0: 1.6, 1: 0.8}
"""Standard deviation of a target's bell in cells of the maps, by class."""


def turned(scene: Scene, random: np.random.Generator) -> Scene:
    """The scene seen after a turn by any angle, and in a mirror every second time."""
    angle, mirror = random.uniform(-np.pi, np.pi), random.choice([-1.0, 1.0])
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s], [s, c]]) * np.array([1.0, mirror])
    cloud, boxes = scene.cloud.copy(), scene.boxes.copy()
    cloud[:, :2], boxes[:, 1:3] = cloud[:, :2] @ turn.T, boxes[:, 1:3] @ turn.T
    boxes[:, 5] = mirror * boxes[:, 5] + angle
    return Scene(cloud, boxes)


def targets(boxes: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Heatmap `(classes, rows, columns)`, box values `(6, rows, columns)`, and where they are given."""
    side = HOW["cell"] * Pillars.stride
    rows, columns = (n // Pillars.stride for n in HOW["grid"])
    heat, values = np.zeros((len(NAMES), rows, columns)), np.zeros((6, rows, columns))
    given = np.zeros((1, rows, columns))
    r, c = np.mgrid[:rows, :columns]
    for kind, x, y, length, width, heading in boxes:
        u, v = (x - HOW["corner"][0]) / side, (y - HOW["corner"][1]) / side
        column, row = int(u), int(v)
        if not (0 <= column < columns and 0 <= row < rows):
            continue
        bell = np.exp(-((r - row) ** 2 + (c - column) ** 2) / (2 * SPREAD[int(kind)] ** 2))
        heat[int(kind)] = np.maximum(heat[int(kind)], bell)
        turn = 2 * heading  # a box looks the same from behind
        offset = (u - column - 0.5, v - row - 0.5, np.log(length), np.log(width), np.sin(turn), np.cos(turn))
        values[:, row, column], given[0, row, column] = offset, 1
    return tuple(torch.from_numpy(a).float() for a in (heat, values, given))  # type: ignore[return-value]


def loss_of(maps: Tensor, heat: Tensor, values: Tensor, given: Tensor) -> Tensor:
    """Focal loss of CenterNet (arXiv 1904.07850) on the heatmap, absolute difference of the boxes at the centres."""
    logits, count = maps[:, : len(NAMES)], given.sum().clamp(min=1)
    p, peak = logits.sigmoid(), heat == 1
    right = -functional.logsigmoid(logits) * (1 - p).square() * peak
    wrong = -functional.logsigmoid(-logits) * p.square() * (1 - heat).pow(4) * ~peak
    boxes = ((maps[:, len(NAMES) :] - values).abs() * given).sum()
    return ((right + wrong).sum() + boxes) / count


def train(scenes: list[Scene], steps: int, seed: int) -> Pillars:
    """The trained network."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    network = build_pillars()
    with torch.no_grad():
        network.head.get_parameter("bias")[: len(NAMES)] = -3.0
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    started = time.perf_counter()
    for step in range(steps):
        batch = [turned(scenes[i], random) for i in random.integers(len(scenes), size=BATCH)]
        seen = [network.scatter(*map(torch.from_numpy, pillars(s.cloud, HOW))) for s in batch]
        wanted = [torch.stack(parts) for parts in zip(*(targets(s.boxes) for s in batch), strict=True)]
        loss = loss_of(network.maps(torch.cat(seen)), *wanted)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"{step:5d}  loss {loss.item():.3f}  {time.perf_counter() - started:.0f} s", flush=True)
    return network.eval()


@torch.no_grad()
def judge(network: Pillars, scenes: list[Scene]) -> float:
    """MAP on scenes."""
    from edgeq.models.base import ModelRequest
    from edgeq.models.pillars import PillarsAdapter, load_pillars

    adapter: PillarsAdapter = load_pillars(ModelRequest("points", "pillars", None))
    records = []
    for scene in scenes:
        maps = network(*map(torch.from_numpy, pillars(scene.cloud, HOW)))
        label = [(int(b[0]), *(float(v) for v in b[1:])) for b in scene.boxes]
        records.append(adapter.judge([maps.numpy()], scene.cloud, label))  # type: ignore[arg-type]
    return average_precision(records)


def main() -> None:
    """Train, save, and score on scenes that training did not see."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    scenes = [make_scene(np.random.default_rng([args.seed, i])) for i in range(args.scenes)]
    network = train(scenes, args.steps, args.seed)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, args.out)
    unseen = [make_scene(np.random.default_rng([args.seed + 1, i])) for i in range(50)]
    print(f"mAP on 50 unseen scenes: {judge(network, unseen):.1f} %, {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
