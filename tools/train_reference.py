"""Train the reference models that ship with edgeq, from scratch, on one machine.

    python tools/train_reference.py --data CIFAR10_FOLDER --epochs 40

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
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from edgeq.models.vit_nano import VitNano

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


def load_split(path: Path) -> tuple[Tensor, Tensor]:
    """Decode a packed split to uint8 images `(N, 3, 32, 32)` and labels `(N,)`."""
    packed = np.load(path)
    blob, offset = packed["jpeg"].tobytes(), packed["offset"]
    images = np.stack([np.asarray(Image.open(io.BytesIO(blob[a:b])).convert("RGB")) for a, b in pairwise(offset)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(packed["label"].astype(np.int64))


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random flip, shift by up to 4 pixels (reflected border), one erased 8x8 square, per image `(N, 3, 32, 32)`."""
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
    corner = torch.randint(-4, 28, (count, 2), generator=generator).to(images.device)
    inside_y = (span >= corner[:, :1]) & (span < corner[:, :1] + 8)
    inside_x = (span >= corner[:, 1:]) & (span < corner[:, 1:] + 8)
    hole = (inside_y.unsqueeze(2) & inside_x.unsqueeze(1)).unsqueeze(1)
    return shifted.masked_fill(hole, 0.0)


def accuracy(model: torch.nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 share of normalized `images`."""
    model.eval()
    with torch.no_grad():
        hits = sum(
            int((model(images[i : i + 250]).argmax(1) == labels[i : i + 250]).sum()) for i in range(0, len(images), 250)
        )
    return hits / len(images)


def main() -> None:
    """Train, average, score and write the weights with a note of how they came to be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("out/train_vit_nano"))
    parser.add_argument("--out", type=Path, default=Path("models/weights/vit_nano.safetensors"))
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1).to(device) for v in (MEAN, STD))
    images, labels = load_split(args.data / "train.npz")
    images, labels = images.to(device), labels.to(device)
    model = VitNano().to(device).to(memory_format=torch.channels_last)
    forward: Callable[[Tensor], Tensor] = torch.compile(model)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], lr=args.lr
    )
    steps_per_epoch = len(images) // args.batch
    total = args.epochs * steps_per_epoch
    warmup = 2 * steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total))),
    )
    args.work.mkdir(parents=True, exist_ok=True)
    checkpoint = args.work / "last.pt"
    first, spent = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        average, first, spent = state["average"], state["epoch"], state["seconds"]

    for epoch in range(first, args.epochs):
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(args.seed * 1000 + epoch)
        order = torch.randperm(len(images), generator=generator).to(device)
        model.train()
        running = 0.0
        for step in range(steps_per_epoch):
            chosen = order[step * args.batch : (step + 1) * args.batch]
            batch = augment((images[chosen].float() / 255 - mean) / std, generator)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                logits = forward(batch.contiguous(memory_format=torch.channels_last))
            loss = functional.cross_entropy(logits.float(), labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            momentum = min(0.998, (1 + epoch * steps_per_epoch + step) / (10 + epoch * steps_per_epoch + step))
            for name, value in model.state_dict().items():
                if value.dtype.is_floating_point:
                    average[name].lerp_(value, 1 - momentum)
                else:
                    average[name].copy_(value)
            running += float(loss.detach())
            if step % 100 == 0:
                print(f"epoch {epoch} step {step}/{steps_per_epoch} {time.perf_counter() - started:.0f} s", flush=True)
        spent += time.perf_counter() - started
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        torch.save({**state, "average": average, "epoch": epoch + 1, "seconds": spent}, checkpoint)
        print(f"epoch {epoch} loss {running / steps_per_epoch:.4f} {spent:.0f} s in all", flush=True)

    shipped = {k: v.half().cpu().contiguous() for k, v in average.items() if v.dtype.is_floating_point}
    model.load_state_dict({k: v.float().to(device) for k, v in shipped.items()}, strict=False)
    test_images, test_labels = load_split(args.data / "test.npz")
    top1 = accuracy(model, (test_images.to(device).float() / 255 - mean) / std, test_labels.to(device))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(shipped, args.out)
    note = {
        "model": "vit_nano",
        "parameters": sum(p.numel() for p in model.parameters()),
        "data": "CIFAR-10 (JPEG), 50,000 training images",
        "epochs": args.epochs,
        "seed": args.seed,
        "float_top1": top1,
        "n": len(test_labels),
        "seconds": round(spent),
        "device": device.type,
        "torch": torch.__version__,
    }
    args.out.with_suffix(".json").write_text(json.dumps(note, indent=1) + "\n")
    print(json.dumps(note))


if __name__ == "__main__":
    main()
