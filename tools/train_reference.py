"""Train the reference models that ship with edgeq, from scratch, on one machine.

    python tools/train_reference.py vit_nano --data CIFAR10_FOLDER --epochs 40

`CIFAR10_FOLDER` holds `train.npz` and `test.npz` (arrays `jpeg`, `offset`, `label`, `classes`). Training resumes from
`--work` when it is interrupted. The test part is scored once, at the end, with the weights rounded to float16 as they
ship; nothing is selected on it. Runs on a GPU when torch sees one.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from edgeq.models.reference import PREPROCESS, REFERENCE


def load_split(path: Path) -> tuple[Tensor, Tensor]:
    """Decode a packed split to uint8 images `(N, 3, 32, 32)` and labels `(N,)`."""
    packed = np.load(path)
    blob, offset = packed["jpeg"].tobytes(), packed["offset"]
    images = np.stack([np.asarray(Image.open(io.BytesIO(blob[a:b])).convert("RGB")) for a, b in pairwise(offset)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(packed["label"].astype(np.int64))


def augment(images: Tensor, generator: torch.Generator, erase: bool) -> Tensor:
    """Random flip, shift by up to 4 pixels (reflected border), perhaps an erased 8x8 square, on `(N, 3, 32, 32)`."""
    count = images.shape[0]
    flip = torch.rand(count, generator=generator) < 0.5
    images = torch.where(flip.view(-1, 1, 1, 1).to(images.device), images.flip(3), images)
    padded = functional.pad(images, (4, 4, 4, 4), mode="reflect")
    shift = torch.randint(0, 9, (count, 2), generator=generator).to(images.device)
    span = torch.arange(32, device=images.device)
    rows = (shift[:, :1] + span).view(count, 1, 32, 1)
    cols = (shift[:, 1:] + span).view(count, 1, 1, 32)
    batch = torch.arange(count, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(3, device=images.device).view(1, -1, 1, 1)
    shifted = padded[batch, channel, rows, cols]
    if not erase:
        return shifted
    corner = torch.randint(-4, 28, (count, 2), generator=generator).to(images.device)
    inside_y = (span >= corner[:, :1]) & (span < corner[:, :1] + 8)
    inside_x = (span >= corner[:, 1:]) & (span < corner[:, 1:] + 8)
    hole = (inside_y.unsqueeze(2) & inside_x.unsqueeze(1)).unsqueeze(1)
    return shifted.masked_fill(hole, 0.0)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 share of normalized `images`."""
    model.eval()
    with torch.no_grad():
        hits = sum(
            int((model(images[i : i + 250]).argmax(1) == labels[i : i + 250]).sum()) for i in range(0, len(images), 250)
        )
    return hits / len(images)


@dataclass
class Training:
    """Everything that changes while training, and can be saved and resumed.

    Args:
        model: The network.
        forward: The same network, compiled where that pays.
        optimizer: AdamW; biases and norms are not decayed.
        schedule: Two epochs of warm-up, then a cosine to zero.
        average: Moving average of the weights, which is what ships.
        epoch: Epochs finished.
        seconds: Time spent on them.
    """

    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    average: dict[str, Tensor]
    epoch: int = 0
    seconds: float = 0.0

    def learn(self, loss: Tensor, step: int) -> float:
        """One step down the gradient of `loss`, the `step`-th over all epochs; returns its value."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.update_average(step)
        return float(loss.detach())

    def update_average(self, step: int) -> None:
        """Pull the average towards the weights after training step `step` (counted over all epochs)."""
        momentum = min(0.998, (1 + step) / (10 + step))
        for name, value in self.model.state_dict().items():
            if value.dtype.is_floating_point:
                self.average[name].lerp_(value, 1 - momentum)
            else:
                self.average[name].copy_(value)

    def save(self, path: Path) -> None:
        """Write the state to `path`."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        torch.save({**state, "average": self.average, "epoch": self.epoch, "seconds": self.seconds}, path)

    def resume(self, path: Path, device: torch.device) -> None:
        """Continue from `path` if it is there."""
        if not path.exists():
            return
        state = torch.load(path, map_location=device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.average, self.epoch, self.seconds = state["average"], state["epoch"], state["seconds"]


def begin(
    network: nn.Module, device: torch.device, lr: float, epochs: int, steps_per_epoch: int, *, compiled: bool = True
) -> Training:
    """A fresh network with its optimizer and schedule."""
    model = network.to(device).to(memory_format=torch.channels_last)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], lr=lr
    )
    total, warmup = epochs * steps_per_epoch, 2 * steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total))),
    )
    return Training(model, torch.compile(model) if compiled else model, optimizer, schedule, average)


def train_epoch(training: Training, images: Tensor, labels: Tensor, batch: int, seed: int, erase: bool) -> None:
    """One pass over uint8 `images` `(N, 3, 32, 32)` in the order and with the augmentation that `seed` gives."""
    started, device, steps, epoch = time.perf_counter(), images.device, len(images) // batch, training.epoch
    mean, std = normalization(device)
    generator = torch.Generator().manual_seed(seed * 1000 + epoch)
    order = torch.randperm(len(images), generator=generator).to(device)
    training.model.train()
    running = 0.0
    for step in range(steps):
        chosen = order[step * batch : (step + 1) * batch]
        shown = augment((images[chosen].float() / 255 - mean) / std, generator, erase)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = training.forward(shown.contiguous(memory_format=torch.channels_last))
        loss = functional.cross_entropy(logits.float(), labels[chosen], label_smoothing=0.1)
        running += training.learn(loss, epoch * steps + step)
        if step % 100 == 0:
            print(f"epoch {epoch} step {step}/{steps} {time.perf_counter() - started:.0f} s", flush=True)
    training.epoch += 1
    training.seconds += time.perf_counter() - started
    print(f"epoch {epoch} loss {running / steps:.4f} {training.seconds:.0f} s in all", flush=True)


def normalization(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the channels, `(1, 3, 1, 1)` each."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1).to(device) for v in (PREPROCESS.mean, PREPROCESS.std))
    return mean, std


def ship(training: Training, name: str, data: Path, out: Path, device: torch.device) -> dict[str, object]:
    """Write the averaged weights as float16, score exactly those on the test part, and describe the model."""
    shipped = {k: v.half().cpu().contiguous() for k, v in training.average.items() if v.dtype.is_floating_point}
    training.model.load_state_dict({k: v.float().to(device) for k, v in shipped.items()}, strict=False)
    images, labels = load_split(data / "test.npz")
    mean, std = normalization(device)
    top1 = accuracy(training.model, (images.to(device).float() / 255 - mean) / std, labels.to(device))
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(shipped, out)
    return {
        "model": name,
        "parameters": sum(p.numel() for p in training.model.parameters()),
        "float_top1": top1,
        "n": len(labels),
        "seconds": round(training.seconds),
        "device": device.type,
        "torch": torch.__version__,
    }


def main() -> None:
    """Train, average, score and write the weights with a note of how they came to be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=list(REFERENCE))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--erase", action=argparse.BooleanOptionalAction, default=True, help="small networks do without"
    )
    parser.add_argument("--work", type=Path, help="folder of the checkpoint (default out/train_MODEL)")
    parser.add_argument("--out", type=Path, help="default models/weights/MODEL.safetensors")
    args = parser.parse_args()
    work = args.work or Path(f"out/train_{args.model}")
    out = args.out or Path(f"models/weights/{args.model}.safetensors")

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    images, labels = (part.to(device) for part in load_split(args.data / "train.npz"))
    training = begin(REFERENCE[args.model](), device, args.lr, args.epochs, len(images) // args.batch)
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "last.pt"
    training.resume(checkpoint, device)
    while training.epoch < args.epochs:
        train_epoch(training, images, labels, args.batch, args.seed, args.erase)
        training.save(checkpoint)
    note = ship(training, args.model, args.data, out, device)
    note |= {"data": "CIFAR-10 (JPEG), 50,000 training images", "epochs": args.epochs, "seed": args.seed}
    out.with_suffix(".json").write_text(json.dumps(note, indent=1) + "\n")
    print(json.dumps(note))


if __name__ == "__main__":
    main()
