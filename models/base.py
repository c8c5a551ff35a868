"""What a model family offers the pipeline, and how a command line names a model."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import fx

from edgeq.data import Role, Source
from edgeq.errors import ModelError, UsageError, unknown_name
from edgeq.metrics import RESAMPLES, mean_score
from edgeq.models import FAMILIES, MODELS
from edgeq.preprocessing import stated
from edgeq.spec import Preprocess

Networks: TypeAlias = Mapping[str, Callable[..., Sequence[Any]]]
"""By the name of a part, what runs it: arrays in, arrays out."""

FILE_SUFFIXES = (".onnx", ".pt", ".pth", ".safetensors", ".pt2")


PREPARED = ("vit", "cnn", "depth")
"""Families of which `--preprocess` says how an image becomes the input."""

FLOOR_DB = 20.0


@dataclass(frozen=True)
class ModelRequest:
    """Which model, as the user named it.

    Args:
        family: Key of `FAMILIES`.
        variant: Architecture name, empty for a file that carries its own.
        path: Model or checkpoint file; None when the weights ship with edgeq.
        shape: Height and width of the image that an ONNX file is to be read for.
        preprocess: How images become the input, in words of `edgeq.preprocessing`; None for what is known or assumed.
    """

    family: str
    variant: str
    path: Path | None
    shape: tuple[int, int] | None = None
    preprocess: str | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A float model, captured.

    Args:
        name: Short name for folders and tables.
        family: Family name.
        graph: Canonical graph, batch 1.
        input_names: Names of the graph's inputs.
        input_shapes: Shapes `(1, C, H, W)` of the inputs.
        output_names: Names of its outputs.
        preprocess: How an image becomes the input; None where the input is no image.
        weights_sha256: Hash of the file or of the shipped weights.
        classes: Class names of a classifier that knows them.
        source: Description of the origin for the manifest (file name, never a path).
        import_error: Largest relative output error against onnxruntime (ONNX files), else None.
        postprocess: What `run.py` makes of the outputs, in the form of `edgeq.detection` or `edgeq.depthmap`; None for
            nothing.
        cloud: How a point cloud becomes the inputs, in the form of `edgeq.points`; None for other samples.
        network: What `--method auto` means.
        schemes: Schemes that `--scheme auto` tries, None for all that the target allows.
        least_weight_bits: Width that its weights keep where fewer are asked of the whole model.
        floor_db: Least median fidelity to float, in dB, of an artifact that may ship.
        assumed: Whether `preprocess` is what most networks want, since the file does not tell.
        float_ops: Operations, by name or glob, that stay float in schemes with calibrated activations,
            unless `--keep-float` is `none` or names others.
    """

    name: str
    family: str
    graph: fx.GraphModule
    input_names: tuple[str, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    output_names: tuple[str, ...]
    preprocess: Preprocess | None
    weights_sha256: str
    classes: tuple[str, ...] | None
    source: str
    import_error: float | None = None
    postprocess: Mapping[str, Any] | None = None
    cloud: Mapping[str, Any] | None = None
    network: Literal["transformer", "convolution"] = "transformer"
    schemes: tuple[str, ...] | None = None
    least_weight_bits: int = 4
    floor_db: float = FLOOR_DB
    float_ops: tuple[str, ...] = ()
    assumed: bool = False

    def as_stated(self, words: str | None) -> LoadedModel:
        """The same with its input prepared as the user says, in words of `edgeq.preprocessing`."""
        if words is None or self.preprocess is None:
            return self
        return replace(self, preprocess=stated(self.preprocess, words), assumed=False)


@dataclass(frozen=True)
class Metric:
    """A task metric: what is noted of every sample (`ModelAdapter.judge`), and the score that many notes make.

    Args:
        name: As the field calls it (`top1`, `mAP50-95`, `WER`).
        unit: Of the score; `--max-drop` is in it.
        total: Score of a data set from the records of its samples.
        higher_is_better: False for errors.
        alike: Agreement of two models' records of one sample, 0 to 1.
        resamples: Draws of the bootstrap interval; few where `total` takes long.
        record: Flat dataclass of the records; None where they are plain data (numbers, texts, lists, mappings).
        also: Other scores of the same records, by name, which are reported and gate nothing.
    """

    name: str
    unit: str
    total: Callable[[Sequence[Any]], float] = mean_score
    higher_is_better: bool = True
    alike: Callable[[Any, Any], float] = operator.eq
    resamples: int = RESAMPLES
    record: type | None = None
    also: Mapping[str, Callable[[Sequence[Any]], float]] = field(default_factory=dict)

    def to_plain(self, record: Any) -> Any:
        """A record as plain data, which a journal can keep."""
        return record if self.record is None else astuple(record)

    def from_plain(self, data: Any) -> Any:
        """Inverse of `to_plain`."""
        return data if self.record is None else self.record(*data)


TOP1 = Metric("top1", "%")


def judge_top1(outputs: Sequence[NDArray[np.float32]], label: int) -> float:
    """Record of `TOP1`: 100 when the largest of the logits `(1, classes)` is the label's, else 0."""
    return 100.0 * float(int(np.argmax(outputs[0])) == int(label))


def say_top1(outputs: Sequence[NDArray[np.float32]], label: int | None, classes: Sequence[str] | None) -> str:
    """The surest class with its probability, and the true one where it is known."""
    logits = np.asarray(outputs[0], dtype=np.float64).reshape(-1)
    shares = np.exp(logits - logits.max())
    best = int(np.argmax(logits))
    best_name, true_name = ("" if i is None else f"class {i}" if classes is None else classes[i] for i in (best, label))
    said = f"{best_name}, {100 * shares[best] / shares.sum():.0f} %"
    return said if label is None else f"{said}; true: {true_name}"


class ModelAdapter(Protocol):
    """A model family for one loaded model."""

    loaded: LoadedModel
    metric: Metric
    sample_file: Path | None  # calibration data that ships with the model

    def open(self, path: Path, role: Role) -> Source[Any]:
        """Samples of the family on disk, with labels where they are found.

        Raises:
            DataError: Nothing usable is there.
        """

    def inputs(self, sample: Any) -> tuple[NDArray[np.float32], ...]:
        """Network inputs, batch 1, of one sample."""

    def judge(self, outputs: Sequence[NDArray[np.float32]], sample: Any, label: Any) -> Any:
        """What the metric needs to know of one sample, given the network's outputs."""


@runtime_checkable
class Guarded(Protocol):
    """A family that knows when outputs are of no use, whatever their fidelity."""

    def collapse(
        self, reference: Sequence[Sequence[NDArray[np.float32]]], outputs: Sequence[Sequence[NDArray[np.float32]]]
    ) -> str:
        """Why a quantized network's outputs on held-out samples are useless beside the float ones; empty if not."""


@runtime_checkable
class Sensitive(Protocol):
    """A network of which the family knows what its outputs do to the results of the whole model."""

    def damage(self, reference: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]) -> float:
        """How much worse results are with `outputs` than with `reference`, those of the float network.

        0 where they agree; of small independent changes, about the sum. The networks of one model speak of the same.
        """


@dataclass(frozen=True)
class Portrait:
    """What networks make of one sample, as people see it: in words, and drawn where that can be."""

    text: str
    picture: Image.Image | None = None


@runtime_checkable
class Portrayed(Protocol):
    """A model whose results can be shown to people."""

    def portray(self, networks: Networks, sample: Any, label: Any) -> Portrait:
        """What the networks make of a sample; `label` is None where there is none."""


@runtime_checkable
class Stepwise(Protocol):
    """A network that runs again and again for one sample."""

    def steps(self, sample: Any) -> Iterator[tuple[NDArray[Any], ...]]:
        """Network inputs of every run."""


@runtime_checkable
class Composite(Protocol):
    """A model of several networks: each is exported by itself, a driver on the device makes them one.

    `parts` are the networks by name, in the order in which they first run. `driver` is a file of Python, numpy and
    nothing of edgeq, with `run_file(path, networks, folder)` and an exception `Unusable(message, hint, package)`; it
    goes into the bundle.
    """

    name: str
    parts: Mapping[str, ModelAdapter]
    metric: Metric
    driver: Path

    def judge(self, networks: Networks, sample: Any, label: Any) -> Any:
        """What the metric needs to know of one sample, given the networks."""

    def write_settings(self, folder: Path) -> None:
        """Write what the driver reads besides, the same bytes for the same model."""


def parts_of(model: ModelAdapter | Composite) -> Mapping[str, ModelAdapter]:
    """The networks of a model by name; the only one has none."""
    return model.parts if isinstance(model, Composite) else {"": model}


def inputs_of(adapter: ModelAdapter, sample: Any) -> Iterator[tuple[NDArray[Any], ...]]:
    """Network inputs of every run that a sample causes."""
    if isinstance(adapter, Stepwise):
        yield from adapter.steps(sample)
    else:
        yield adapter.inputs(sample)


def judge_sample(model: ModelAdapter | Composite, networks: Networks, sample: Any, label: Any) -> Any:
    """What the metric needs to know of one sample, given the networks of `parts_of`."""
    if isinstance(model, Composite):
        return model.judge(networks, sample, label)
    return model.judge(networks[""](*model.inputs(sample)), sample, label)


def parse_model(
    name: str,
    family: str | None,
    weights: Path | None,
    shape: str | None = None,
    preprocess: str | None = None,
) -> ModelRequest:
    """Turn the command line's MODEL into a request.

    Args:
        name: `family:variant`, a bare known name, or a file.
        family: The `--family` option.
        weights: The `--weights` option.
        shape: The `--shape` option, `HEIGHTxWIDTH`.
        preprocess: The `--preprocess` option.

    Raises:
        UsageError: Unknown name or family, a family that cannot be inferred, a shape for what has one, or preprocessing
            for a family that has its own.
        ModelError: The file does not exist.
    """
    request = replace(_named(name, family, weights), preprocess=preprocess)
    if preprocess is not None and request.family not in PREPARED:
        raise UsageError(
            f"the family {request.family} prepares its input in its own way",
            code="EQ-U019",
            place="--preprocess",
            hint=f"leave --preprocess out; it is for the families {', '.join(PREPARED)}",
        )
    if shape is None:
        return request
    if request.path is None or request.path.suffix.lower() != ".onnx":
        raise UsageError(
            f"the size of the input of {name} is known",
            code="EQ-U018",
            place="--shape",
            hint="leave --shape out; it is for ONNX files",
        )
    rows, columns = map(int, shape.split("x"))
    return replace(request, shape=(rows, columns))


def _named(name: str, family: str | None, weights: Path | None) -> ModelRequest:
    prefix, _, variant = name.partition(":")
    if variant and prefix in FAMILIES:
        return ModelRequest(prefix, variant, _existing(weights))
    if name in MODELS:
        return ModelRequest(family or MODELS[name].family, name, _existing(weights))
    if name.lower().endswith(FILE_SUFFIXES):
        path = _existing(Path(name))
        if family is None:
            raise UsageError(
                f"the family of {Path(name).name} cannot be told from the file",
                code="EQ-U013",
                hint=f"add --family: {', '.join(FAMILIES)}",
            )
        return ModelRequest(family, "", path)
    if Path(name).exists():
        raise ModelError(
            f"{name} is not a model file edgeq reads",
            code="EQ-M001",
            place=name,
            hint=f"it reads {', '.join(FILE_SUFFIXES)}",
        )
    if variant:
        raise unknown_name("model family", prefix, FAMILIES, code="EQ-U012", command="edgeq models")
    raise unknown_name("model", name, MODELS, code="EQ-U014", command="edgeq models")


def _existing(path: Path | None) -> Path | None:
    if path is not None and not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelError(f"{path} {what}", code="EQ-M002", place=str(path), hint="check the path")
    return path
