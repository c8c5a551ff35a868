"""Train `depth_nano` from scratch on synthetic rooms, in about half an hour on one busy core.

    python tools/train_depth.py

Draws the scenes of series 1 (kept in `--work`, where training also resumes from when it is interrupted) and scores,
once at the end, the weights rounded to float16 as they ship on scenes of series 2, which nothing was selected on.
Writes the weights, a note of how they came to be, and the pictures that ship for calibration (of series 1).
"""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from scenes import draw_scene
from torch import Tensor
from torch.nn import functional
from train_reference import Training, begin  # beside this file

from edgeq.models.depth_nano import DepthNano
from edgeq.spec import Preprocess

TRAINED, HELD_OUT = 1, 2
"""Series of scenes."""

SHIPPED = 96
"""Pictures for calibration."""


def load_scenes(series: int, count: int, cache: Path) -> tuple[Tensor, Tensor]:
    """Pictures `(N, 3, H, W)` uint8 and depth `(N, 1, H, W)` float16 in metres, from `cache` if they are there."""
    file = cache / f"scenes_{series}_{count}.npz"
    if not file.exists():
        scenes = [draw_scene(series, i) for i in range(count)]
        cache.mkdir(parents=True, exist_ok=True)
        rgb, depth = np.stack([s.rgb for s in scenes]), np.stack([s.depth for s in scenes])
        np.savez(file, rgb=rgb, depth=depth.astype(np.float16))
    stored = np.load(file)
    return torch.from_numpy(stored["rgb"]).permute(0, 3, 1, 2), torch.from_numpy(stored["depth"])[:, None]


def normalized(rgb: Tensor) -> Tensor:
    """Network inputs of uint8 pictures."""
    how = Preprocess(1, 1)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (how.mean, how.std))
    return (rgb.float() / 255 - mean) / std


def augment(rgb: Tensor, depth: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirror half of the batch; other exposure, contrast and balance of colours for each picture."""
    count = len(rgb)
    flip = (torch.rand(count, generator=generator) < 0.5).view(-1, 1, 1, 1)
    rgb, depth = torch.where(flip, rgb.flip(3), rgb).float(), torch.where(flip, depth.flip(3), depth).float()
    gain = torch.exp(0.15 * torch.randn(count, 1, 1, 1, generator=generator))
    balance = torch.exp(0.05 * torch.randn(count, 3, 1, 1, generator=generator))
    gamma = torch.exp(0.15 * torch.randn(count, 1, 1, 1, generator=generator))
    return 255 * ((rgb / 255) ** gamma * gain * balance).clamp(0, 1), depth


def depth_loss(predicted: Tensor, depth: Tensor) -> Tensor:
    """Loss of logarithms of depth `(N, 1, H / 2, W / 2)` against depth `(N, 1, H, W)`.

    The mean absolute error, which AbsRel is to first order; the scale-invariant error (Eigen et al., arXiv:1406.2283,
    eq. 4 with lambda 0.85 under a root, as is usual); and the gradients of the error on four scales (Li and Snavely,
    arXiv:1804.00607, eq. 5), which keep edges where they are.
    """
    whole = functional.interpolate(predicted, scale_factor=2.0, mode="bilinear", align_corners=False)
    error = whole - depth.log()
    spread = ((error**2).mean(dim=(1, 2, 3)) - 0.85 * error.mean(dim=(1, 2, 3)) ** 2).clamp(min=1e-6).sqrt().mean()
    loss = error.abs().mean() + 0.5 * spread
    for scale in (1, 2, 4, 8):
        part = error[:, :, ::scale, ::scale]
        across, down = part[..., 1:] - part[..., :-1], part[..., 1:, :] - part[..., :-1, :]
        loss = loss + 0.125 * (across.abs().mean() + down.abs().mean())
    return loss


def train_epoch(training: Training, rgb: Tensor, depth: Tensor, batch: int, seed: int) -> None:
    """One pass over the scenes in the order and with the augmentation that `seed` gives."""
    started, steps, epoch = time.perf_counter(), len(rgb) // batch, training.epoch
    generator = torch.Generator().manual_seed(seed * 1000 + epoch)
    order = torch.randperm(len(rgb), generator=generator)
    training.model.train()
    running = 0.0
    for step in range(steps):
        chosen = order[step * batch : (step + 1) * batch]
        shown, truth = augment(rgb[chosen], depth[chosen], generator)
        found = training.forward(normalized(shown).contiguous(memory_format=torch.channels_last))
        running += training.learn(depth_loss(found, truth), epoch * steps + step)
    training.epoch += 1
    training.seconds += time.perf_counter() - started
    print(f"epoch {epoch} loss {running / steps:.4f} {training.seconds:.0f} s in all", flush=True)


@torch.no_grad()
def scores(model: torch.nn.Module, rgb: Tensor, depth: Tensor) -> dict[str, float]:
    """AbsRel in percent, delta1 in percent and RMSE in metres, means over the pictures; metric depth, not aligned."""
    model.eval()
    found = []
    for picture, truth in zip(torch.split(rgb, 64), torch.split(depth.float(), 64), strict=True):
        map_ = functional.interpolate(model(normalized(picture)).exp(), scale_factor=2.0, mode="bilinear")
        ratio = torch.maximum(map_ / truth, truth / map_)
        figures = ((map_ - truth).abs() / truth, (ratio < 1.25).float(), (map_ - truth) ** 2)
        found.append(torch.stack([f.mean(dim=(1, 2, 3)) for f in figures]))
    absolute, close, squared = torch.cat(found, dim=1)
    figures_of = {"abs_rel": 100 * absolute, "delta1": 100 * close, "rmse_m": squared.sqrt()}
    return {name: round(float(value.mean()), 4) for name, value in figures_of.items()}


def ship(training: Training, out: Path, cache: Path, count: int) -> dict[str, object]:
    """Write the averaged weights as float16 and score exactly those."""
    shipped = {k: v.half().contiguous() for k, v in training.average.items() if v.dtype.is_floating_point}
    training.model.load_state_dict({k: v.float() for k, v in shipped.items()}, strict=False)
    found = scores(training.model, *load_scenes(HELD_OUT, count, cache))
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(shipped, out)
    parameters = sum(p.numel() for p in training.model.parameters())
    return {"model": out.stem, "parameters": parameters, **found, "n": count, "seconds": round(training.seconds)}


def ship_pictures(rgb: Tensor, out: Path) -> None:
    """Write the first pictures as a packed file."""
    pieces = []
    for picture in rgb[:SHIPPED].permute(0, 2, 3, 1).numpy():
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=90)
        pieces.append(np.frombuffer(buffer.getvalue(), np.uint8))
    np.savez(out, jpeg=np.concatenate(pieces), offset=np.cumsum([0, *map(len, pieces)]).astype(np.int64))


def main() -> None:
    """Draw, train, average, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=8000)
    parser.add_argument("--held-out", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("out/train_depth_nano"), help="folder of the checkpoint")
    parser.add_argument("--out", type=Path, default=Path("models/weights/depth_nano.safetensors"))
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rgb, depth = load_scenes(TRAINED, args.scenes, args.work)
    steps = len(rgb) // args.batch
    training = begin(DepthNano(), torch.device("cpu"), args.lr, args.epochs, steps, compiled=False)
    checkpoint = args.work / "last.pt"
    training.resume(checkpoint, torch.device("cpu"))
    while training.epoch < args.epochs:
        train_epoch(training, rgb, depth, args.batch, args.seed)
        training.save(checkpoint)
    note = ship(training, args.out, args.work, args.held_out)
    note |= {"data": f"{args.scenes} synthetic rooms, series {TRAINED} of tools/scenes; scored on series {HELD_OUT}"}
    note |= {"epochs": args.epochs, "seed": args.seed, "device": "cpu", "torch": torch.__version__}
    ship_pictures(rgb, args.out.with_name(f"{args.out.stem}_samples.npz"))
    args.out.with_suffix(".json").write_text(json.dumps(note, indent=1) + "\n")
    print(json.dumps(note))


if __name__ == "__main__":
    main()
