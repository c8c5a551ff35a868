"""Vision transformers: the shipped ones, timm and torchvision architectures with a local checkpoint, ONNX files.

A classifier scores top-1; any other output (features, saliency maps) is judged by its fidelity to float.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, fx, nn

from edgeq.data import Role, Source, open_images, preprocess
from edgeq.errors import MissingError, ModelError, UsageError, unknown_name
from edgeq.graph.capture import capture
from edgeq.graph.recognize import network_kind
from edgeq.hashing import file_sha256
from edgeq.models import MODELS
from edgeq.models.base import TOP1, LoadedModel, ModelRequest, Networks, Portrait, judge_top1, say_top1
from edgeq.models.checkpoint import load_into, load_state_dict
from edgeq.models.image_onnx import import_image_network
from edgeq.models.reference import CLASSES, PREPROCESS, REFERENCE
from edgeq.spec import Preprocess

_HEADS = ("heads.head.weight", "head.weight", "fc.weight", "classifier.1.weight", "classifier.3.weight")
"""Last layers of torchvision's classifiers."""


class VitAdapter:
    """The ViT family for one loaded model."""

    metric = TOP1

    def __init__(self, loaded: LoadedModel, sample_file: Path | None = None) -> None:
        self.loaded = loaded
        self.sample_file = sample_file

    def open(self, path: Path, role: Role) -> Source[Image.Image]:
        """Images: a folder, one folder a class, a packed file or a single one."""
        return open_images(path, role=role)

    def inputs(self, sample: Image.Image) -> tuple[NDArray[np.float32], ...]:
        """The image as `(1, 3, H, W)`, normalized."""
        assert self.loaded.preprocess is not None
        return (preprocess(sample, self.loaded.preprocess)[np.newaxis],)

    def judge(self, outputs: Sequence[NDArray[np.float32]], sample: Image.Image, label: int) -> float:
        """100 when the largest of the logits `(1, classes)` is the label's, else 0."""
        del sample
        return judge_top1(outputs, label)

    def portray(self, networks: Networks, sample: Image.Image, label: int | None) -> Portrait:
        """The image, with the surest class; nothing is said of outputs that may be no logits."""
        if label is None and self.loaded.classes is None:
            return Portrait("", sample)
        return Portrait(say_top1(networks[""](*self.inputs(sample)), label, self.loaded.classes), sample)


def load_vit(request: ModelRequest) -> VitAdapter:
    """Load a ViT; of the family `cnn`, a convolutional classifier, by the same rules.

    Raises:
        UsageError: Unknown architecture, or weights that do not ship and were not named.
        ModelError: The file cannot be used.
        MissingError: The architecture needs timm.
    """
    adapter = _load(request)
    return VitAdapter(adapter.loaded.as_stated(request.preprocess), adapter.sample_file)


def _load(request: ModelRequest) -> VitAdapter:
    if request.variant in REFERENCE:
        return _load_reference(request)
    if request.variant:
        return _load_architecture(request)
    if request.path is None:
        raise UsageError("no model named", code="EQ-U014", hint="edgeq models")
    if request.path.suffix == ".onnx":
        return _load_onnx(request.path, request.family, request.shape)
    if request.path.suffix == ".pt2":
        raise ModelError(
            f"{request.path.name} is refused: loading a torch.export file can run code that it carries",
            code="EQ-M009",
            place=request.path.name,
            hint="where you trust it, write ONNX: torch.onnx.export(torch.export.load(FILE), dynamo=True).save(...)",
        )
    raise UsageError(
        f"{request.path.name} holds weights without an architecture",
        code="EQ-U015",
        place=request.path.name,
        hint=f"edgeq export vit:NAME --weights {request.path.name} --device ... (NAME as in timm or torchvision)",
    )


def _load_reference(request: ModelRequest) -> VitAdapter:
    name, folder = request.variant, resources.files("edgeq.models") / "weights"
    with resources.as_file(folder / f"{name}.safetensors") as shipped:
        path = request.path or shipped
        model = REFERENCE[name]()
        load_into(model, load_state_dict(path), path)
        digest = file_sha256(path)
    graph = capture(model.eval(), (torch.zeros(1, 3, 32, 32),))
    loaded = _loaded(request, name, graph, PREPROCESS, digest, CLASSES)
    with resources.as_file(folder / "vit_nano_samples.npz") as samples:
        return VitAdapter(loaded, Path(samples))


def _load_architecture(request: ModelRequest) -> VitAdapter:
    name = request.variant
    if request.path is None:
        raise UsageError(
            f"edgeq does not download weights, and those of {name} do not ship with it",
            code="EQ-U016",
            hint=f"edgeq export vit:{name} --weights CHECKPOINT.safetensors --device ...",
        )
    state = load_state_dict(request.path)
    model, prepared = _torchvision(name, state, request.family) or _timm(name, state)
    load_into(model, state, request.path)
    graph = capture(model.eval(), (torch.zeros(1, 3, prepared.height, prepared.width),))
    return VitAdapter(_loaded(request, name, graph, prepared, file_sha256(request.path), None))


def _torchvision(name: str, state: dict[str, Tensor], family: str) -> tuple[nn.Module, Preprocess] | None:
    from torchvision import models

    if name not in models.list_models(models) or (family == "vit") != name.startswith(("vit_", "swin_")):
        return None
    head = next((state[k] for k in _HEADS if k in state), None)
    model = models.get_model(name, weights=None, num_classes=1000 if head is None else head.shape[0])
    transform = models.get_model_weights(name).DEFAULT.transforms()
    crop = int(transform.crop_size[0])
    return model, Preprocess(
        crop,
        crop,
        tuple(transform.mean),
        tuple(transform.std),
        "crop",
        crop / int(transform.resize_size[0]),
        "bicubic" if "bicubic" in str(transform.interpolation) else "bilinear",
    )


def _timm(name: str, state: dict[str, Tensor]) -> tuple[nn.Module, Preprocess]:
    try:
        import timm
        from timm.data.config import resolve_data_config
    except ImportError as error:
        raise MissingError(
            f"{name} is a timm architecture and timm is not installed",
            code="EQ-P002",
            hint="pip install 'edgeq[vit]'",
        ) from error
    if not timm.is_model(name):
        raise unknown_name(
            "ViT", name, [*MODELS, *timm.list_models("*vit*"), *timm.list_models("deit*")], code="EQ-U014"
        )
    registered = timm.get_pretrained_cfg(name)
    last: Any = (registered and registered.classifier) or "head"
    head = state.get(f"{last[0] if isinstance(last, tuple) else last}.weight")  # distilled networks have two
    model = timm.create_model(name, pretrained=False, num_classes=0 if head is None else head.shape[0])
    config: dict[str, Any] = resolve_data_config({}, model=model)  # type: ignore[no-untyped-call]
    return model, Preprocess(
        config["input_size"][1],
        config["input_size"][2],
        tuple(config["mean"]),
        tuple(config["std"]),
        "squash" if config.get("crop_mode") == "squash" else "crop",
        config["crop_pct"],
        "bilinear" if config["interpolation"] == "bilinear" else "bicubic",
    )


def _load_onnx(path: Path, family: str, shape: tuple[int, int] | None) -> VitAdapter:
    imported, error = import_image_network(path, family, shape)
    _, _, rows, columns = imported.input_shapes[0]
    loaded = LoadedModel(
        name=path.stem,
        family=family,
        graph=imported.graph,
        input_names=imported.input_names,
        input_shapes=imported.input_shapes,
        output_names=imported.output_names,
        preprocess=Preprocess(rows, columns),
        weights_sha256=imported.sha256,
        classes=None,
        source=path.name,
        import_error=error,
        network=network_kind(imported.graph),
        assumed=True,
    )
    return VitAdapter(loaded)


def _loaded(
    request: ModelRequest,
    name: str,
    graph: fx.GraphModule,
    prepared: Preprocess,
    digest: str,
    classes: tuple[str, ...] | None,
) -> LoadedModel:
    outputs = next(n for n in graph.graph.nodes if n.op == "output").args[0]
    names = tuple(f"output_{i}" for i in range(len(outputs))) if len(outputs) > 1 else ("output",)
    return LoadedModel(
        name=name,
        family=request.family,
        graph=graph,
        input_names=("image",),
        input_shapes=((1, 3, prepared.height, prepared.width),),
        output_names=names,
        preprocess=prepared,
        weights_sha256=digest,
        classes=classes,
        source=request.path.name if request.path else "edgeq",
        network=network_kind(graph),
    )
