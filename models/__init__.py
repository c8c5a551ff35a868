"""Model families: one line per model that has a name of its own; siblings of exporters and devices."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeq.errors import UsageError, unknown_name

if __name__ != "edgeq.models":
    raise ImportError("import edgeq.models, not models: the folder is part of the edgeq package")

if TYPE_CHECKING:
    from edgeq.models.base import Composite, ModelAdapter, ModelRequest

FAMILIES: dict[str, str] = {
    "vit": "edgeq.models.vit:load_vit",
    "whisper": "edgeq.models.whisper:load_whisper",
    "cnn": "edgeq.models.vit:load_vit",
    "yolo": "edgeq.models.yolo:load_yolo",
    "points": "edgeq.models.points:load_points",
    "depth": "edgeq.models.depth:load_depth",
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
            "vit_micro",
            "vit",
            "edgeq, trained from scratch by tools/train_reference.py",
            "The same for microcontrollers: 0.23 M parameters, 32x32, CIFAR-10",
            "Apache-2.0",
            ships_weights=True,
        ),
        ModelEntry(
            "cifar_cnn",
            "cnn",
            "edgeq, trained from scratch by tools/train_reference.py",
            "ResNet of 8 layers for microcontrollers, 0.08 M parameters, 32x32, CIFAR-10",
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
        ModelEntry(
            "tiny.en",
            "whisper",
            "openai-whisper, with --weights FILE",
            "Whisper tiny, English, 38 M parameters; encoder and decoder",
            "MIT",
        ),
        ModelEntry(
            "base.en",
            "whisper",
            "openai-whisper, with --weights FILE",
            "Whisper base, English, 74 M parameters; encoder and decoder",
            "MIT",
        ),
        ModelEntry(
            "depth_nano",
            "depth",
            "edgeq, trained from scratch by tools/train_depth.py",
            "Depth in metres of synthetic rooms, 0.25 M parameters, 96x128; to try things out, not for photos",
            "Apache-2.0",
            ships_weights=True,
        ),
        *(
            ModelEntry(name, "depth", "timm encoder, with --weights FILE", summary, "of the weights")
            for name, summary in (
                ("depth_anything_vits", "Depth Anything v1 small, 25 M parameters, 518x518; v1 vitb, vitl as well"),
                ("depth_anything_v2_vits", "Depth Anything v2 small, 25 M parameters, 518x518; v2 vitb, vitl as well"),
                (
                    "depth_anything_v2_metric_hypersim_vits",
                    "The same in metres, indoors; outdoors depth_anything_v2_metric_vkitti_vits",
                ),
                (
                    "dpt_large_384",
                    "MiDaS DPT-Large, 344 M parameters; an ONNX file needs --family depth only",
                ),
            )
        ),
        *(
            ModelEntry(name, "yolo", "ultralytics (AGPL-3.0), with --weights FILE", summary, "of the weights")
            for name, summary in (
                ("yolov8n", "YOLOv8 nano, 3.2 M parameters; a detector exported to ONNX needs --family yolo only"),
                ("yolo11n", "YOLO11 nano, 2.6 M parameters"),
                ("yolo26n", "YOLO26 nano, 2.4 M parameters, boxes without suppression"),
            )
        ),
        ModelEntry(
            "pointmlp_elite",
            "points",
            "the published checkpoints, with --weights FILE",
            "PointMLP-elite, 0.7 M parameters, point clouds of 1,024 points with normals",
            "of the weights",
        ),
        ModelEntry(
            "pointnet",
            "points",
            "the published checkpoints, with --weights FILE",
            "PointNet, 3.5 M parameters, point clouds of 1,024 points with or without normals",
            "of the weights",
        ),
        ModelEntry(
            "pillars",
            "points",
            "edgeq, trained from scratch on rendered scenes by tools/train_pillars.py",
            "A small PointPillars for plumbing and tests, 0.1 M parameters; not for real sensors",
            "Apache-2.0",
            ships_weights=True,
        ),
    )
}


def load_any(request: ModelRequest) -> ModelAdapter | Composite:
    """Load the model of a request through its family.

    Raises:
        UsageError: Unknown family.
        ModelError: The file or the weights cannot be used.
    """
    if request.family not in FAMILIES:
        raise unknown_name("model family", request.family, FAMILIES, code="EQ-U012", command="edgeq models")
    module, attribute = FAMILIES[request.family].split(":")
    model: ModelAdapter | Composite = getattr(importlib.import_module(module), attribute)(request)
    return model


def load_model(request: ModelRequest) -> ModelAdapter:
    """Load a model of one network. Raises as `load_any`, and EQ-U702 for a model of several."""
    model = load_any(request)
    from edgeq.models.base import Composite

    if isinstance(model, Composite):
        raise UsageError(
            f"{model.name} has several networks: {', '.join(model.parts)}",
            code="EQ-U702",
            hint="edgeq export takes such models; this takes models of one network",
        )
    return model
