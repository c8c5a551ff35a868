"""YOLO detectors: ONNX files of YOLOX and of ultralytics' models, and ultralytics' architectures with a checkpoint.

The network ends at its prediction layers; boxes are made of their results by `edgeq.detection`, here and on the device.
Which head it is, is found by trying: a decoding counts as known when it reproduces what the whole model puts out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import permutations
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import fx

from edgeq.data import Role, Source, open_boxes, open_images, preprocess
from edgeq.data.boxes import Box
from edgeq.detection import decode, detect, sigmoid
from edgeq.errors import ModelError, UsageError
from edgeq.graph.heads import by_size, cut_at, prediction_layers
from edgeq.graph.rewrite import shape_of
from edgeq.models.base import LoadedModel, Metric, ModelRequest, Networks, Portrait
from edgeq.models.coco import RESAMPLES, judge_boxes, mean_average_precision, same_boxes
from edgeq.models.coco_names import COCO
from edgeq.models.image_onnx import import_image_network
from edgeq.models.yolo_notes import noted_names, noted_size
from edgeq.spec import Preprocess

Arrays: TypeAlias = Sequence[NDArray[np.float32]]

SCORED, SHOWN = 0.001, 0.25
"""Least scores of boxes that mAP counts, and of those that people see."""

OVERLAP, LIMIT = 0.65, 100
FLOOR_DB = 6.0
"""Of the worst prediction layer: logits of empty cells, which nobody reads, make most of its noise."""

_SAME = 1e-3
_GREY = 114
_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


class YoloAdapter:
    """The YOLO family for one loaded model."""

    metric = Metric("mAP50-95", "%", total=mean_average_precision, alike=same_boxes, resamples=RESAMPLES)
    sample_file = None

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.head = dict(loaded.postprocess or {})
        assert loaded.preprocess is not None
        self._size = (loaded.preprocess.width, loaded.preprocess.height)
        self._preprocess = loaded.preprocess
        self._how = asdict(loaded.preprocess)

    def open(self, path: Path, role: Role) -> Source[Image.Image]:
        """Photos; for evaluation with `labels/` beside `images/`."""
        return open_images(path, role=role) if role == "calibration" else open_boxes(path, len(self.head["names"]))

    def inputs(self, sample: Image.Image) -> tuple[NDArray[np.float32], ...]:
        """The photo as `(1, 3, H, W)`, letterboxed."""
        return (preprocess(sample, self._preprocess)[np.newaxis],)

    def judge(self, outputs: Arrays, sample: Image.Image, label: Sequence[Box]) -> Any:
        """The boxes found in the photo, matched with those labelled."""
        wide, high = sample.size
        found = detect(outputs, self.head, self._how, sample.size, SCORED)
        truth = [(k, (x - w / 2) * wide, (y - h / 2) * high, w * wide, h * high) for k, x, y, w, h in label]
        return judge_boxes(found, truth, SHOWN)

    def portray(self, networks: Networks, sample: Image.Image, label: Any) -> Portrait:
        """The boxes that a user would see, drawn into the photo."""
        del label
        found = detect(networks[""](*self.inputs(sample)), self.head, self._how, sample.size, SHOWN)
        picture = sample.convert("RGB")
        draw, width = ImageDraw.Draw(picture), max(2, max(sample.size) // 200)
        for left, top, right, bottom, _, kind in found.tolist():
            colour = _COLOURS[int(kind) % len(_COLOURS)]
            draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=width)
        boxes = ", ".join(f"{self.head['names'][int(k)]} {s:.2f}" for *_, s, k in found.tolist())
        return Portrait(boxes or "nothing", picture)

    def collapse(self, reference: Sequence[Arrays], outputs: Sequence[Arrays]) -> str:
        """Why the outputs are of no use: no box at all where the float model finds some."""
        wanted, found = (self._count(each) for each in (reference, outputs))
        return f"it finds nothing where the float model finds {wanted} boxes" if wanted and not found else ""

    def _count(self, results: Sequence[Arrays]) -> int:
        return sum(len(detect(outputs, self.head, self._how, self._size)) for outputs in results)


def load_yolo(request: ModelRequest) -> YoloAdapter:
    """Load a detector.

    Raises:
        UsageError: Unknown architecture, or no weights.
        ModelError: The file cannot be used, or its head is of an unknown kind.
        MissingError: A checkpoint needs ultralytics, an ONNX file onnxruntime.
    """
    if request.variant:
        from edgeq.models.yolo_ultralytics import load_checkpoint

        graph, names, digest, source = load_checkpoint(request)
        return _adapter(request.variant, graph, names, digest, source)
    if request.path is None or request.path.suffix != ".onnx":
        raise UsageError(
            "a detector without the name of its architecture must be an ONNX file",
            code="EQ-U650",
            place=request.path.name if request.path else None,
            hint="edgeq export FILE.onnx --family yolo --device ..., or yolo:yolov8n --weights FILE.safetensors",
        )
    return _load_onnx(request.path, request.shape)


def _load_onnx(path: Path, shape: tuple[int, int] | None) -> YoloAdapter:
    imported, error = import_image_network(path, "a detector", shape, lambda notes: noted_size(notes, path.name))
    return _adapter(path.stem, imported.graph, noted_names(imported.notes), imported.sha256, path.name, error)


def _adapter(
    name: str,
    whole: fx.GraphModule,
    names: tuple[str, ...] | None,
    digest: str,
    source: str,
    import_error: float | None = None,
) -> YoloAdapter:
    graph, head = cut_head(whole, name)
    known = head.pop("classes")
    head["names"] = names if names is not None and len(names) == known else _default_names(known)
    rows, columns = shape_of(next(n for n in graph.graph.nodes if n.op == "placeholder"))[2:]
    layers = graph.graph.output_node().all_input_nodes
    loaded = LoadedModel(
        name=name,
        family="yolo",
        graph=graph,
        input_names=("image",),
        input_shapes=((1, 3, rows, columns),),
        output_names=tuple(layer.name for layer in layers),
        preprocess=_preprocess(head["decode"], rows, columns),
        weights_sha256=digest,
        classes=None,
        source=source,
        import_error=import_error,
        postprocess=head,
        network="convolution",
        floor_db=FLOOR_DB,
    )
    return YoloAdapter(loaded)


def _default_names(count: int) -> tuple[str, ...]:
    return COCO if count == len(COCO) else tuple(f"class {i}" for i in range(count))


def _preprocess(kind: str, rows: int, columns: int) -> Preprocess:
    """What the authors' code does: YOLOX reads bytes, blue first, from the corner; ultralytics 0 to 1, centred."""
    none = (0.0, 0.0, 0.0)
    if kind == "yolox":
        byte = (1 / 255,) * 3
        return Preprocess(rows, columns, none, byte, "letterbox", 1.0, "bilinear", _GREY, "corner", "bgr")
    return Preprocess(rows, columns, none, (1.0, 1.0, 1.0), "letterbox", 1.0, "bilinear", _GREY, "center", "rgb")


def cut_head(whole: fx.GraphModule, name: str) -> tuple[fx.GraphModule, dict[str, Any]]:
    """The network up to its prediction layers, and how `edgeq.detection` reads them (without names).

    Args:
        whole: Canonical graph of the whole detector.
        name: For messages.

    Raises:
        ModelError: EQ-M651, no known decoding reproduces its outputs.
    """
    layers = prediction_layers(whole)
    graph = cut_at(whole, layers)
    entry = next(n for n in whole.graph.nodes if n.op == "placeholder")
    image = torch.rand(shape_of(entry), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = [value.numpy() for value in whole(image)]
        maps = [value.numpy() for value in graph(image)]
    for head in _possible_heads(layers, shape_of(entry)[2]):
        if _reproduces(wanted, maps, head):
            return graph, head
    shapes = ", ".join(str(list(value.shape)) for value in wanted)
    raise ModelError(
        f"the head of {name} is of no known kind: outputs {shapes} from {len(layers)} prediction layers",
        code="EQ-M651",
        place=name,
        hint="known are YOLOX, and ultralytics' anchor-free heads (YOLOv8 and later) exported without NMS",
    )


def _possible_heads(layers: Sequence[fx.Node], rows: int) -> Iterator[dict[str, Any]]:
    """Every reading of the prediction layers that their shapes allow."""
    groups = by_size(list(layers))
    position = {node: i for i, node in enumerate(layers)}
    channels = [tuple(shape_of(n)[1] for n in group) for group in groups.values()]
    if not groups or len(set(channels)) != 1 or len(channels[0]) not in (2, 3):
        return
    for order in permutations(range(len(channels[0]))):
        sizes = [channels[0][i] for i in order]
        kind = "yolox" if len(order) == 3 else "distances" if sizes[0] == 4 else "bins"
        if sizes[0] % 4 or (kind == "yolox" and sizes[:2] != [4, 1]):
            continue
        yield {
            "decode": kind,
            "levels": [[position[group[i]] for i in order] for group in groups.values()],
            "strides": [rows // size[0] for size in groups],
            "classes": sizes[-1],
            "suppress": True,
            "overlap": OVERLAP,
            "score": SHOWN,
            "limit": LIMIT,
        }


def _reproduces(wanted: Arrays, maps: Arrays, head: dict[str, Any]) -> bool:
    """Whether the decoding gives what the model puts out; a one-to-one head, once found, needs no suppression."""
    whole = wanted[0][0]
    corners, scores = decode(maps, head)
    if whole.ndim != 2:
        return False
    fields = 4 + head["classes"] + (head["decode"] == "yolox")
    rows = next((r for r in (whole, whole.T) if r.shape == (len(corners), fields)), None)
    if rows is None:
        head["suppress"] = False
        return whole.shape[1] == 6 and _selected(whole, corners, scores)
    centres = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)
    boxes = [centres, corners]
    if head["decode"] == "yolox":
        flat = [[maps[i][0].reshape(maps[i].shape[1], -1).T for i in level] for level in head["levels"]]
        boxes.append(np.concatenate([level[0] for level in flat]))
        sure = np.concatenate([sigmoid(level[1]) for level in flat])
        if not _close(rows[:, 4:5], sure):
            return False
        rows = np.concatenate([rows[:, :4], rows[:, 4:5] * rows[:, 5:]], axis=1)
    return any(_close(rows[:, :4], b) for b in boxes) and _close(rows[:, 4:], scores)


def _selected(whole: NDArray[np.float32], corners: NDArray[np.float32], scores: NDArray[np.float32]) -> bool:
    """Whether rows of corners, score and class are the surest of the candidates."""
    surest = np.sort(scores.reshape(-1))[::-1][: len(whole)]
    if len(surest) < len(whole) or not _close(whole[:, 4], surest):
        return False
    gaps = [np.abs(corners - box).max(axis=1).min() for box in whole[:10, :4]]
    return bool(max(gaps) <= _SAME * max(float(np.abs(corners).max()), 1e-6))


def _close(wanted: NDArray[np.float32], got: NDArray[np.float32]) -> bool:
    return bool(np.abs(wanted - got).max() <= _SAME * max(float(np.abs(wanted).max()), 1e-6))
