"""Does an imported network compute what onnxruntime computes from the file, and if not, where does it part?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from edgeq.errors import MissingError, ModelError, UsageError
from edgeq.graph.onnx_file import read_model, with_input_shapes
from edgeq.graph.onnx_import import ImportedOnnx

if TYPE_CHECKING:
    import onnx

Array = NDArray[Any]


@dataclass(frozen=True)
class ParityReport:
    """Agreement of the imported graph with onnxruntime.

    Args:
        max_rel_error: Largest `max|a - b| / max|a|` over the outputs, a from onnxruntime.
        first_bad: Place of the first node beyond the tolerance, in the order of the file; None when all outputs agree.
    """

    max_rel_error: float
    first_bad: str | None = None


def check_parity(
    imported: ImportedOnnx,
    path: Path,
    seed: int = 0,
    inputs: Mapping[str, Array] | None = None,
    tolerance: float = 1e-3,
) -> ParityReport:
    """Run the file by onnxruntime and the imported graph on the same inputs, and require equal outputs.

    Args:
        imported: Result of `import_onnx(path)`.
        path: The ONNX file.
        seed: Seed of the random inputs: standard normal floats, zeros and ones for integers.
        inputs: Arrays by input name that replace random ones.
        tolerance: Largest relative error of an output.

    Raises:
        ModelError: An output differs by more than `tolerance`; the place is the first node that does.
        UsageError: `inputs` do not fit the model.
        MissingError: The package `onnxruntime` is absent.
    """
    feed = _feed(imported, seed, inputs or {})
    expected = _run_onnx(_source(imported, Path(path)), feed)
    with torch.no_grad():
        computed = imported.graph(*(torch.from_numpy(a) for a in feed.values()))
    errors = [relative_error(expected[n], t.numpy()) for n, t in zip(imported.output_names, computed, strict=True)]
    worst = max(errors, default=0.0)
    if worst <= tolerance:
        return ParityReport(worst)
    place = (
        _first_bad(imported, Path(path), feed, tolerance) or f"output {imported.output_names[int(np.argmax(errors))]}"
    )
    message = f"{Path(path).name}: edgeq and onnxruntime differ by {worst:.3g} relative, allowed is {tolerance:g}"
    hint = "please report the operation named here; as a way around, export the model with other options or opset"
    raise ModelError(message, code="EQ-M120", place=f"first at {place}", hint=hint)


def check_one_by_one(imported: ImportedOnnx, path: Path, batch: int, tolerance: float = 1e-3) -> None:
    """Require that a file of a fixed batch gives each item what the graph, imported for one, gives it alone.

    Args:
        imported: Of the file, with a batch of 1.
        path: The ONNX file.
        batch: That it fixes.
        tolerance: Largest relative error of an output.

    Raises:
        ModelError: EQ-M116, an output has not one entry for each item, or another one.
        MissingError: The package `onnxruntime` is absent.
    """
    ((name, shape),) = zip(imported.input_names, imported.input_shapes, strict=True)
    items = np.random.default_rng(0).standard_normal((batch, *shape[1:])).astype(np.float32)
    expected = _run_onnx(path, {name: items})
    for index in range(batch):
        with torch.no_grad():
            alone = imported.graph(torch.from_numpy(items[index : index + 1]))
        for output, found in zip(imported.output_names, alone, strict=True):
            whole = expected[output]
            if whole.shape[:1] != (batch,) or relative_error(whole[index : index + 1], found.numpy()) > tolerance:
                message = f"{path.name} takes {batch} items at once, and gives one alone another {output!r}"
                raise ModelError(message, code="EQ-M116", place=output, hint="export the model for a batch of 1")


def relative_error(reference: Array, other: Array) -> float:
    """`max|a - b| / max|a|`; infinite when shapes differ or only one is finite, and `max|b|` when all a are 0."""
    if reference.shape != other.shape:
        return float("inf")
    if reference.size == 0:
        return 0.0
    a, b = reference.astype(np.float64), other.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    if not (np.isfinite(a[~same]).all() and np.isfinite(b[~same]).all()):
        return float("inf")
    finite = np.isfinite(a)
    scale = float(np.abs(a[finite]).max())
    return float(np.abs(a[~same] - b[~same]).max()) / (scale or 1.0)


def _feed(imported: ImportedOnnx, seed: int, given: Mapping[str, Array]) -> dict[str, Array]:
    """Inputs by name, in the graph's order."""
    unknown = sorted(set(given) - set(imported.input_names))
    if unknown:
        raise UsageError(
            f"the model has no input {unknown[0]!r}; it has {', '.join(imported.input_names)}", code="EQ-U102"
        )
    random = np.random.default_rng(seed)
    placeholders = [n for n in imported.graph.graph.nodes if n.op == "placeholder"]
    feed: dict[str, Array] = {}
    for name, node, shape in zip(imported.input_names, placeholders, imported.input_shapes, strict=True):
        dtype = node.meta["val"].dtype
        target = torch.empty(0, dtype=dtype).numpy().dtype
        drawn = random.standard_normal(shape) if dtype.is_floating_point else random.integers(0, 2, shape)
        array = np.asarray(given.get(name, drawn))
        if array.shape != shape:
            raise UsageError(f"input {name!r} has shape {array.shape}, the model wants {shape}", code="EQ-U102")
        feed[name] = np.ascontiguousarray(array, dtype=target)
    return feed


def _run_onnx(model: Path | bytes, feed: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs of onnxruntime by name."""
    try:
        import onnxruntime
    except ImportError as error:
        hint = "pip install 'edgeq[onnx]'"
        raise MissingError("checking ONNX files needs onnxruntime", code="EQ-P102", hint=hint) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        source = model if isinstance(model, bytes) else str(model)
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]
        return dict(zip(names, session.run(None, dict(feed)), strict=True))
    except (RuntimeError, ValueError, onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException) as error:
        reason = str(error).strip().splitlines()[0][:200]
        hint = "update onnxruntime, or export the model with an older opset"
        raise ModelError(f"onnxruntime cannot run the model: {reason}", code="EQ-M121", hint=hint) from error


class _Tracker(fx.Interpreter):
    """Runs the graph and compares every named tensor as soon as it is computed."""

    def __init__(self, graph: fx.GraphModule, expected: Mapping[str, Array]) -> None:
        super().__init__(graph)
        self.expected = expected
        self.errors: dict[str, tuple[float, str]] = {}

    def run_node(self, n: fx.Node) -> object:
        """Run one node and note how far it is off."""
        value = super().run_node(n)
        name = str(n.meta.get("onnx_name", ""))
        if isinstance(value, Tensor) and name in self.expected:
            error = relative_error(self.expected[name], value.detach().numpy())
            self.errors[name] = (error, str(n.meta.get("onnx_node", name)))
        return value


def _first_bad(imported: ImportedOnnx, path: Path, feed: Mapping[str, Array], tolerance: float) -> str | None:
    """Place of the first tensor, in the file's order, that is off by more than `tolerance`."""
    model = _exposed(imported, path)
    try:
        expected = _run_onnx(model.SerializeToString(), feed)
    except ModelError:
        # Some tensors cannot be outputs (sequences); the outputs alone must do then.
        return None
    tracker = _Tracker(imported.graph, expected)
    with torch.no_grad():
        tracker.run(*(torch.from_numpy(a) for a in feed.values()))
    for node in model.graph.node:
        for name in node.output:
            error, place = tracker.errors.get(name, (0.0, ""))
            if error > tolerance:
                return f"{place} (relative error {error:.3g})"
    return None


def _source(imported: ImportedOnnx, path: Path) -> Path | bytes:
    """What onnxruntime runs: the file, or its bytes with the sizes that replace those of the file."""
    return _resized(imported, path).SerializeToString() if imported.resized else path


def _resized(imported: ImportedOnnx, path: Path) -> onnx.ModelProto:
    return with_input_shapes(read_model(path), dict(zip(imported.input_names, imported.input_shapes, strict=True)))


def _exposed(imported: ImportedOnnx, path: Path) -> onnx.ModelProto:
    """The model with every intermediate tensor as an output."""
    import onnx

    model = _resized(imported, path) if imported.resized else read_model(path)
    known = {o.name for o in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name and name not in known]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names))
    return model
