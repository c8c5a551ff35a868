"""Where the detectors of trainers and benchmarks are; none of them is part of the repository."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from edgeq.places import cache_dir

ROOMS = cache_dir() / "trained" / "yolov8n_rooms.safetensors"
"""What `train_detector.py` writes."""

SIDE = 160
"""Pixels a side of its scenes."""


def nudenet() -> Path | None:
    """The YOLOv8n of the installed package nudenet, found without importing it."""
    spec = find_spec("nudenet")
    path = Path(spec.origin).parent / "320n.onnx" if spec and spec.origin else None
    return path if path and path.is_file() else None
