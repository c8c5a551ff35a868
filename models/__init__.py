"""Model families: one line per model that has a name of its own; siblings of exporters and devices."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeq.errors import unknown_name

if __name__ != "edgeq.models":
    raise ImportError("import edgeq.models, not models: the folder is part of the edgeq package")

if TYPE_CHECKING:
    from edgeq.models.base import ModelAdapter, ModelRequest

FAMILIES: dict[str, str] = {
    "vit": "edgeq.models.vit:load_vit",
    "yolo": "edgeq.models.yolo:load_yolo",
}


@dataclass(frozen=True)
class ModelEntry:
    """One row of `edgeq models`.

    Args:
        name: What the user types after `family:`.
        family: Key of `FAMILIES`.
        source: Where architecture and weights come from.
        summary: One line.
        license: Licence of the weights.
        ships_weights: Works offline without a checkpoint.
    """

    name: str
    family: str
    source: str
    summary: str
    license: str
    ships_weights: bool = False


MODELS: dict[str, ModelEntry] = {
    entry.name: entry
    for entry in (
        ModelEntry(
            "vit_nano",
            "vit",
            "edgeq, trained from scratch by tools/train_reference.py",
            "ViT with a convolutional stem, 1.1 M parameters, 32x32, CIFAR-10",
            "Apache-2.0",
            ships_weights=True,
        ),
        ModelEntry(
            "vit_b_16", "vit", "torchvision, with --weights FILE", "ViT-B/16, 86 M parameters", "of the weights"
        ),
        ModelEntry(
            "deit_tiny_patch16_224",
            "vit",
            "timm, with --weights FILE",
            "DeiT-Ti/16, 5.7 M parameters",
            "of the weights",
        ),
        ModelEntry(
            "deit_small_patch16_224", "vit", "timm, with --weights FILE", "DeiT-S/16, 22 M parameters", "of the weights"
        ),
        ModelEntry(
            "vit_small_patch14_dinov2",
            "vit",
            "timm, with --weights FILE",
            "DINOv2-S/14, 22 M parameters",
            "of the weights",
        ),
        *(
            ModelEntry(name, "yolo", "ultralytics (AGPL-3.0), with --weights FILE", summary, "of the weights")
            for name, summary in (
                ("yolov8n", "YOLOv8 nano, 3.2 M parameters; a detector exported to ONNX needs --family yolo only"),
                ("yolo11n", "YOLO11 nano, 2.6 M parameters"),
                ("yolo26n", "YOLO26 nano, 2.4 M parameters, boxes without suppression"),
            )
        ),
    )
}


def load_model(request: ModelRequest) -> ModelAdapter:
    """Load the model of a request through its family.

    Raises:
        UsageError: Unknown family.
        ModelError: The file or the weights cannot be used.
    """
    if request.family not in FAMILIES:
        raise unknown_name("model family", request.family, FAMILIES, code="EQ-U012", command="edgeq models")
    module, attribute = FAMILIES[request.family].split(":")
    adapter: ModelAdapter = getattr(importlib.import_module(module), attribute)(request)
    return adapter
