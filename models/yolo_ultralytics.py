"""Architectures of ultralytics with a checkpoint; the only file that imports ultralytics, which is AGPL-3.0."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from edgeq.errors import MissingError, ModelError, UsageError
from edgeq.graph.capture import capture
from edgeq.hashing import file_sha256
from edgeq.models.base import ModelRequest
from edgeq.models.checkpoint import load_into, load_state_dict, read_metadata
from edgeq.models.yolo_notes import noted_names, noted_size

SIZE = 640
"""Pixels a side that the published weights were trained at; others note theirs as `imgsz` in a `.safetensors`."""

_HEAD = re.compile(r"^model\.(\d+)\.(?:one2one_)?cv3\.0\.2\.weight$")
_PREFIX = "model."


def load_checkpoint(request: ModelRequest) -> tuple[fx.GraphModule, tuple[str, ...] | None, str, str]:
    """The whole network of `yolo:NAME --weights FILE`, names of its classes, hash and name of the file.

    Args:
        request: `variant` is a name that ultralytics has a `.yaml` for (`yolov8n`, `yolo11n`), `path` a state dict. The
            metadata of a `.safetensors` may hold `names` and `imgsz`, as ultralytics notes them in other files.

    Raises:
        UsageError: EQ-U651 for an unknown architecture, EQ-U652 without weights.
        ModelError: The checkpoint needs code to be read (EQ-M007), notes an impossible size (EQ-M961), or does not fit.
        MissingError: EQ-P651, ultralytics is not installed.
    """
    if request.path is None:
        raise UsageError(
            f"edgeq does not download weights, and those of {request.variant} do not ship with it",
            code="EQ-U652",
            hint=f"edgeq export yolo:{request.variant} --weights CHECKPOINT.safetensors --device ...",
        )
    try:
        state = load_state_dict(request.path)
    except ModelError as error:
        if error.code == "EQ-M007":  # ultralytics pickles the whole model
            error.hint = (
                "where you trust it: yolo export model=FILE.pt format=onnx, and give edgeq the .onnx with --family yolo"
            )
        raise
    model = _build(request.variant, state)
    load_into(model, _renamed(state), request.path)
    notes = read_metadata(request.path)
    rows, columns = noted_size(notes, request.path.name) or (SIZE, SIZE)
    graph = capture(model.eval(), (torch.zeros(1, 3, rows, columns),))
    return graph, noted_names(notes), file_sha256(request.path), request.path.name


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of the network, also from that of the object around it, whose names have one `model.` more."""
    if any(name.startswith(_PREFIX * 2) for name in state):
        return {name.removeprefix(_PREFIX): value for name, value in state.items()}
    return dict(state)


def _build(variant: str, state: Mapping[str, Tensor]) -> nn.Module:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            from ultralytics.nn.tasks import DetectionModel
    except ImportError as error:
        raise MissingError(
            f"{variant} is an architecture of ultralytics, which is not installed",
            code="EQ-P651",
            hint="pip install 'edgeq[yolo]'  (ultralytics is AGPL-3.0; ONNX files need none of it)",
        ) from error
    heads = [value.shape[0] for name, value in _renamed(state).items() if _HEAD.match(name)]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            model: nn.Module = DetectionModel(f"{variant}.yaml", nc=heads[0] if heads else None, verbose=False)  # type: ignore[no-untyped-call]
    except (FileNotFoundError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"ultralytics has no detector {variant!r}",
            code="EQ-U651",
            hint="known are for example yolov8n, yolo11n, yolo11s; or give an ONNX file with --family yolo",
        ) from error
    head: nn.Module = list(model.children())[-1][-1]  # type: ignore[index]
    head.export = True  # type: ignore[assignment]  # outputs only, and no cache of anchors
    if getattr(head, "one2one_cv2", None) is not None:
        head.end2end = True  # type: ignore[assignment]  # one box a thing: nothing to suppress on the device
    return model
