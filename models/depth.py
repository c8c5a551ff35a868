"""Monocular depth: the shipped `depth_nano`, Depth Anything and DPT with a local checkpoint, ONNX files.

What a network puts out (metres, their logarithm, or depth or disparity in no unit) is said by its name; maps are made
of it by `edgeq.depthmap`, here and on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from edgeq.data import DepthFile, Role, Source, open_depth, open_images, preprocess
from edgeq.depthmap import KINDS, METRIC, painted, read_map, resize_map, summarize
from edgeq.errors import ModelError, UsageError, unknown_name
from edgeq.graph.capture import capture
from edgeq.graph.recognize import network_kind
from edgeq.graph.rewrite import shape_of
from edgeq.hashing import file_sha256
from edgeq.models.base import LoadedModel, Metric, ModelRequest, Networks, Portrait
from edgeq.models.checkpoint import load_into, load_state_dict
from edgeq.models.depth_nano import HEIGHT, WIDTH, DepthNano
from edgeq.models.depth_score import ALSO, RESAMPLES, Judged, judge_depth, mean_of, same_depth
from edgeq.models.dpt import ARCHITECTURES, UNUSED, build
from edgeq.models.image_onnx import import_image_network
from edgeq.spec import Preprocess

Arrays: TypeAlias = Sequence[NDArray[np.float32]]

NANO = "depth_nano"
OPEN_SIDE = 518
"""Pixels of an ONNX input whose size is left open: what Depth Anything was trained on."""

FLOOR_DB = 12.0
"""Of the map: errors below the network's own, which is some 10 % of depth, count little."""

_FLAT = 0.01
"""Share of the float map's spread below which a map says nothing."""


class DepthAdapter:
    """The depth family for one loaded model."""

    metric = Metric(
        "AbsRel",
        "%",
        total=mean_of("abs_rel"),
        higher_is_better=False,
        alike=same_depth,
        resamples=RESAMPLES,
        also=ALSO,
    )

    def __init__(self, loaded: LoadedModel, sample_file: Path | None = None) -> None:
        self.loaded = loaded
        self.sample_file = sample_file
        self.head = dict(loaded.postprocess or {})
        assert loaded.preprocess is not None
        self._preprocess = loaded.preprocess

    def open(self, path: Path, role: Role) -> Source[Image.Image]:
        """Photos; for evaluation with `depth/` beside `images/`."""
        return open_images(path, role=role) if role == "calibration" else open_depth(path)

    def inputs(self, sample: Image.Image) -> tuple[NDArray[np.float32], ...]:
        """The photo as `(1, 3, H, W)`, normalized."""
        return (preprocess(sample, self._preprocess)[np.newaxis],)

    def judge(self, outputs: Arrays, sample: Image.Image, label: DepthFile) -> Judged:
        """Scores of the map, over the photo's pixels."""
        found = resize_map(read_map(outputs[0], self.head), sample.size)
        return judge_depth(found, label.read(), self.head["kind"])

    def portray(self, networks: Networks, sample: Image.Image, label: DepthFile | None) -> Portrait:
        """The map in colours, near things bright, and its error where the depth is known."""
        outputs = networks[""](*self.inputs(sample))
        found = read_map(outputs[0], self.head)
        text = "{min:.3g} to {max:.3g} {unit}".format(**summarize(found, self.head))
        if label is not None:
            text += f"; {self.metric.name} {self.metric.total([self.judge(outputs, sample, label)]):.1f} %"
        return Portrait(text, Image.fromarray(painted(resize_map(found, sample.size), self.head)))

    def collapse(self, reference: Sequence[Arrays], outputs: Sequence[Arrays]) -> str:
        """Why the outputs are of no use: the same everywhere where the float model sees near and far."""
        wanted, found = (float(np.median([np.std(o[0]) for o in side])) for side in (reference, outputs))
        return f"its maps are flat: they vary by {found:.2g} where float's vary by {wanted:.2g}" * (
            found < _FLAT * wanted
        )


def load_depth(request: ModelRequest) -> DepthAdapter:
    """Load a depth network.

    `depth_nano`; a name of `ARCHITECTURES` with its checkpoint; an ONNX file, whose output is disparity unless the
    variant names another kind of `edgeq.depthmap.KINDS`.

    Raises:
        UsageError: Unknown name, no weights, or a crop of what should be seen as a whole.
        ModelError: The file cannot be used, or puts out no map.
        MissingError: The architecture needs timm, an ONNX file onnx and onnxruntime.
    """
    adapter = _load(request)
    loaded = adapter.loaded.as_stated(request.preprocess)
    before, after = adapter.loaded.preprocess, loaded.preprocess
    if before and after and before.resize != after.resize:
        raise UsageError(
            "a depth network takes the whole picture, which its map is resized to",
            code="EQ-U802",
            place="--preprocess",
            hint="leave crop out of --preprocess",
        )
    return DepthAdapter(loaded, adapter.sample_file)


def _load(request: ModelRequest) -> DepthAdapter:
    if request.variant == NANO:
        return _load_nano(request)
    if request.variant in ARCHITECTURES:
        return _load_architecture(request)
    if request.variant and request.variant not in KINDS:
        known = (NANO, *ARCHITECTURES, *KINDS)
        raise unknown_name("depth network", request.variant, known, code="EQ-U800", command="edgeq models")
    if request.path is None or request.path.suffix != ".onnx":
        raise UsageError(
            "a depth network without the name of its architecture must be an ONNX file",
            code="EQ-U801",
            place=request.path.name if request.path else None,
            hint="edgeq export FILE.onnx --family depth --device ..., or "
            "depth:depth_anything_v2_vits --weights FILE.pth",
        )
    return _load_onnx(request.path, request.variant or "disparity", request.shape)


def _load_nano(request: ModelRequest) -> DepthAdapter:
    folder = resources.files("edgeq.models") / "weights"
    with resources.as_file(folder / f"{NANO}.safetensors") as shipped:
        path = request.path or shipped
        model = DepthNano()
        load_into(model, load_state_dict(path), path)
        digest = file_sha256(path)
    graph = capture(model.eval(), (torch.zeros(1, 3, HEIGHT, WIDTH),))
    prepared = Preprocess(HEIGHT, WIDTH, resize="squash", crop_fraction=1.0, interpolation="bilinear")
    loaded = LoadedModel(
        name=NANO,
        graph=graph,
        input_shapes=((1, 3, HEIGHT, WIDTH),),
        preprocess=prepared,
        weights_sha256=digest,
        source=request.path.name if request.path else "edgeq",
        network="convolution",
        **_common("log"),
    )
    with resources.as_file(folder / f"{NANO}_samples.npz") as samples:
        return DepthAdapter(loaded, Path(samples))


def _load_architecture(request: ModelRequest) -> DepthAdapter:
    name, architecture = request.variant, ARCHITECTURES[request.variant]
    if request.path is None:
        raise UsageError(
            f"edgeq does not download weights, and those of {name} do not ship with it",
            code="EQ-U016",
            hint=f"edgeq export depth:{name} --weights CHECKPOINT.pth --device ...",
        )
    state = load_state_dict(request.path)
    for unused in UNUSED[architecture.layout]:
        state.pop(unused, None)
    model = build(architecture)
    load_into(model, state, request.path)
    prepared = architecture.preprocess
    shape = (1, 3, prepared.height, prepared.width)
    loaded = LoadedModel(
        name=name,
        graph=capture(model.eval(), (torch.zeros(shape),)),
        input_shapes=(shape,),
        preprocess=prepared,
        weights_sha256=file_sha256(request.path),
        source=request.path.name,
        **_common(architecture.kind),
    )
    return DepthAdapter(loaded)


def _load_onnx(path: Path, kind: str, shape: tuple[int, int] | None) -> DepthAdapter:
    imported, error = import_image_network(path, "depth", shape, lambda _: (OPEN_SIDE, OPEN_SIDE))
    output = next(iter(imported.graph.graph.output_node().all_input_nodes))
    made = shape_of(output)
    rows, columns = imported.input_shapes[0][2:]
    if len(imported.output_names) != 1 or not _is_map(made, rows, columns):
        shapes = f"{len(imported.output_names)} outputs, the first {made}"
        raise ModelError(
            f"a depth network puts out one map (1, 1, h, w); {path.name} has {shapes}",
            code="EQ-M800",
            place=path.name,
            hint="edgeq models lists the families; a detector needs --family yolo",
        )
    loaded = LoadedModel(
        name=path.stem,
        graph=imported.graph,
        input_shapes=imported.input_shapes,
        preprocess=Preprocess(rows, columns, resize="squash", crop_fraction=1.0),
        weights_sha256=imported.sha256,
        source=path.name,
        import_error=error,
        network=network_kind(imported.graph),
        assumed=True,
        **_common(kind),
    )
    return DepthAdapter(loaded)


def _is_map(shape: tuple[int, ...], rows: int, columns: int) -> bool:
    """Whether an output has one number a place, in the proportions of the input."""
    if not 2 <= len(shape) <= 4 or any(n != 1 for n in shape[:-2]):
        return False
    high, wide = shape[-2:]
    return min(high, wide) > 1 and abs(high * columns - wide * rows) <= max(rows, columns)


def _common(kind: str) -> Any:
    """What all depth networks have in common."""
    return {
        "family": "depth",
        "input_names": ("image",),
        "output_names": ("depth" if kind in METRIC else kind,),
        "classes": None,
        "postprocess": {"decode": "depth", "kind": kind},
        "floor_db": FLOOR_DB,
    }
