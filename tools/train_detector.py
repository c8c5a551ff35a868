"""Train a YOLOv8n on synthetic rooms with labels, in about half an hour on one busy core; nothing of it ships.

    python tools/train_detector.py [--start 320n.onnx] [--out FILE.safetensors]

The architecture and the loss are ultralytics' (AGPL-3.0), so that the weights stay outside of the repository. Draws the
scenes of series 3 (kept in `--work`, where training also resumes from when it is interrupted) and writes the averaged
weights with the size and the names that `yolo:yolov8n --weights FILE.safetensors` reads. `--start` takes weights from
an ONNX file of the same architecture, the YOLOv8n of the package nudenet where it is installed. `tools/bench/yolo.py`
scores the result on scenes of series 4, which nothing was selected on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from detector_files import ROOMS, SIDE, nudenet  # beside this file
from safetensors.torch import save_file
from scenes import CLASSES, draw_scene
from torch import Tensor, nn
from train_reference import Training, begin
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.loss import v8DetectionLoss

SERIES = 3
LOSS = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
"""Weights of the parts of the loss, as ultralytics sets them."""

Boxes = list[Tensor]


def load_scenes(count: int, cache: Path) -> tuple[Tensor, Boxes]:
    """Pictures `(N, 3, H, W)` uint8 and the boxes of each `(things, 5)`, from `cache` if they are there."""
    file = cache / f"scenes_{SERIES}_{count}_{SIDE}.npz"
    if not file.exists():
        scenes = [draw_scene(SERIES, i, SIDE, SIDE) for i in range(count)]
        cache.mkdir(parents=True, exist_ok=True)
        boxes = np.concatenate([s.boxes for s in scenes])
        np.savez(file, rgb=np.stack([s.rgb for s in scenes]), boxes=boxes, things=[len(s.boxes) for s in scenes])
    stored = np.load(file)
    rows = torch.split(torch.from_numpy(stored["boxes"]), stored["things"].tolist())
    return torch.from_numpy(stored["rgb"]).permute(0, 3, 1, 2), list(rows)


def build(start: Path | None, pictures: Tensor) -> nn.Module:
    """A YOLOv8n for `CLASSES`, with the weights of `start` wherever their shapes fit."""
    model: Any = DetectionModel("yolov8n.yaml", nc=len(CLASSES), verbose=False)  # type: ignore[no-untyped-call]
    model.args = LOSS
    if start is None:
        return cast(nn.Module, model)
    import onnx

    own = model.state_dict()
    found: dict[str, Tensor] = {}
    for tensor in onnx.load(start).graph.initializer:
        stem, folded, kind = tensor.name.rpartition(".conv.")
        name = f"{stem}.bn.bias" if folded and kind == "bias" and "dfl" not in stem else tensor.name
        value = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        if name in own and own[name].shape == value.shape:
            found[name] = value
    model.load_state_dict(found, strict=False)
    unfold_norms(model, pictures)
    return cast(nn.Module, model)


@torch.no_grad()
def unfold_norms(model: nn.Module, pictures: Tensor) -> None:
    """Set all batch norms to what they normalize on `pictures` and undo that: the network stays what it was."""

    def unfold(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        mean, variance = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3))
        norm.running_mean, norm.running_var = mean, variance
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.add_(mean)

    hooks = [m.register_forward_pre_hook(unfold) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    model.eval()(pictures.float() / 255)
    for hook in hooks:
        hook.remove()


def augment(pictures: Tensor, boxes: Boxes, generator: torch.Generator) -> dict[str, Tensor]:
    """A batch for the loss: half of the pictures mirrored, other exposure, contrast and colours for each."""
    count = len(pictures)
    flip = torch.rand(count, generator=generator) < 0.5
    shown = torch.where(flip.view(-1, 1, 1, 1), pictures.flip(3), pictures).float() / 255
    gain = torch.exp(0.2 * torch.randn(count, 3, 1, 1, generator=generator))
    gamma = torch.exp(0.2 * torch.randn(count, 1, 1, 1, generator=generator))
    rows = torch.cat(boxes).clone()
    owner = torch.repeat_interleave(torch.arange(count), torch.tensor([len(b) for b in boxes]))
    rows[:, 1] = torch.where(flip[owner], 1 - rows[:, 1], rows[:, 1])
    image = (shown**gamma * gain).clamp(0, 1).contiguous(memory_format=torch.channels_last)
    return {"img": image, "batch_idx": owner.float(), "cls": rows[:, 0], "bboxes": rows[:, 1:]}


def train_epoch(training: Training, loss: Any, pictures: Tensor, boxes: Boxes, batch: int, seed: int) -> None:
    """One pass over the scenes in the order and with the augmentation that `seed` gives."""
    started, steps, epoch = time.perf_counter(), len(pictures) // batch, training.epoch
    generator = torch.Generator().manual_seed(seed * 1000 + epoch)
    order = torch.randperm(len(pictures), generator=generator)
    training.model.train()
    running = 0.0
    for step in range(steps):
        chosen = order[step * batch : (step + 1) * batch]
        shown = augment(pictures[chosen], [boxes[i] for i in chosen.tolist()], generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found: Any = training.forward(shown["img"])
        maps = {k: v if isinstance(v, list) else v.float() for k, v in found.items()}
        running += training.learn(loss(maps, shown)[0].sum() / batch, epoch * steps + step)
        if step % 20 == 0:
            print(f"epoch {epoch} step {step}/{steps} {time.perf_counter() - started:.0f} s", flush=True)
    training.epoch += 1
    training.seconds += time.perf_counter() - started
    print(f"epoch {epoch} loss {running / steps:.4f} {training.seconds:.0f} s in all", flush=True)


def main() -> None:
    """Draw, train, average, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, default=nudenet())
    parser.add_argument("--work", type=Path, default=Path("out/train_detector"), help="folder of the checkpoint")
    parser.add_argument("--out", type=Path, default=ROOMS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    pictures, boxes = load_scenes(args.scenes, args.work)
    model = build(args.start, pictures[:64])
    training = begin(model, torch.device("cpu"), args.lr, args.epochs, len(pictures) // args.batch, compiled=False)
    checkpoint, loss = args.work / "last.pt", v8DetectionLoss(model)
    training.resume(checkpoint, torch.device("cpu"))
    while training.epoch < args.epochs:
        train_epoch(training, loss, pictures, boxes, args.batch, args.seed)
        training.save(checkpoint)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    names = dict(enumerate(CLASSES))
    note = {"names": str(names), "imgsz": str([SIDE, SIDE]), "data": f"synthetic rooms, series {SERIES}"}
    note |= {"training": json.dumps({"scenes": args.scenes, "epochs": args.epochs, "seed": args.seed})}
    save_file({k: v.contiguous() for k, v in training.average.items()}, args.out, metadata=note)
    print(f"{args.out}: {training.seconds:.0f} s")


if __name__ == "__main__":
    main()
