"""Runs `.onnx` files through onnxruntime on the CPU and tells what really executed.

onnxruntime rewrites a file when it loads it: quantize/dequantize patterns become integer kernels, or stay float without
a word. `execution` reads the rewritten graph, so it describes what runs and not the file.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgeq.devices.base import Array, ExecutedOp, Execution
from edgeq.devices.environment import cpu_info
from edgeq.devices.litert_runtime import one_line
from edgeq.errors import DataError, DeviceError, MissingError, ModelError, UsageError
from edgeq.native import native_output

INSTALL = "pip install onnxruntime"
_CPU = ["CPUExecutionProvider"]
_PRECISE = {"session.x64quantprecision": "1"}

_INTEGER = frozenset({"QGemm", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "ConvInteger"})
_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_SUFFIX = re.compile(r"(?:/[A-Za-z]+Fusion/*|_token_\d+|_nchwc)+$")  # what fusions add to the name of an operation
_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(bool)": "bool",
}


@dataclass(frozen=True)
class Port:
    """An input or output.

    Args:
        name: Its name in the file.
        shape: Static shape.
        dtype: Element type.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class OrtModel:
    """An `.onnx` model ready to run in this process.

    Args:
        source: Path of the file.
        threads: Threads of the runtime, at least 1.

    Raises:
        UsageError: EQ-U451 for fewer than one thread.
        MissingError: EQ-P451 when onnxruntime is not installed.
        ModelError: EQ-M453 when the file cannot be read, EQ-M454 when onnxruntime refuses it or a shape is not fixed.
    """

    def __init__(self, source: str | Path, threads: int = 1) -> None:
        if threads < 1:
            raise UsageError(f"threads must be at least 1, not {threads}", code="EQ-U451", hint="use --threads 1")
        self.threads = threads
        self._path = Path(source)
        if not self._path.is_file():
            hint = "give the path of an .onnx file"
            raise ModelError("cannot read the model: no such file", code="EQ-M453", place=str(source), hint=hint)
        self._runtime = _load_runtime()
        self.settings = settings_for(cpu_info().isa)
        self._session = self._open(None)
        self.inputs = tuple(self._port(info) for info in self._session.get_inputs())
        self.outputs = tuple(self._port(info) for info in self._session.get_outputs())
        self._feed: dict[str, Array] = {}
        self._recorder: tuple[tuple[str, ...], Any] | None = None

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        """Run the model once.

        Args:
            *arrays: One array per input, of the input's exact shape.

        Returns:
            One array per output; they survive the next run.

        Raises:
            DataError: EQ-D450 when number, shape or type of the arrays does not fit.
            DeviceError: EQ-X450 when the runtime fails.
        """
        self.prepare(*arrays)
        return tuple(np.asarray(value) for value in self._run(self._session))

    def record(self, names: Collection[str], *arrays: Array) -> dict[str, Array]:
        """Run once and return tensors of the file, by name. Raises as `run`, and as `execution`.

        The model is loaded anew with these tensors as outputs, which takes fusions apart that reach over them.
        """
        self.prepare(*arrays)
        wanted = tuple(sorted(names))
        if self._recorder is None or self._recorder[0] != wanted:
            onnx = _load_onnx("reading what onnxruntime computes on the way")
            model = onnx.load(str(self._path))
            known = {o.name for o in model.graph.output}
            held = {name for node in model.graph.node for name in node.output} & set(wanted)
            model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(held - known))
            self._recorder = wanted, self._open(None, model.SerializeToString())
        session = self._recorder[1]
        found = {port.name for port in session.get_outputs()} & set(wanted)
        return {n: np.asarray(v) for n, v in zip(sorted(found), self._run(session, sorted(found)), strict=True)}

    def prepare(self, *arrays: Array) -> None:
        """Place the inputs, so that `invoke` can be timed alone. Raises as `run`."""
        if len(arrays) != len(self.inputs):
            wanted = ", ".join(f"{port.name} {port.shape}" for port in self.inputs)
            message = f"the model takes {len(self.inputs)} inputs ({wanted}), got {len(arrays)}"
            raise DataError(message, code="EQ-D450", place=str(self._path))
        self._feed = {port.name: self._fit(port, np.asarray(a)) for port, a in zip(self.inputs, arrays, strict=True)}

    def invoke(self) -> None:
        """Run once on the inputs placed by `prepare`. Raises as `run`."""
        self._run(self._session)

    def execution(self) -> Execution:
        """What onnxruntime executes: the graph after its own rewriting.

        Raises:
            MissingError: EQ-P451 when onnx, which reads that graph, is not installed.
        """
        onnx = _load_onnx("telling what onnxruntime executes")
        known = {node.name for node in onnx.load(str(self._path), load_external_data=False).graph.node}
        with tempfile.TemporaryDirectory() as folder:
            rewritten = Path(folder) / "rewritten.onnx"
            self._open(rewritten)
            nodes = onnx.load(str(rewritten)).graph.node
        ops = tuple(
            ExecutedOp(
                name=node.name,
                op=node.op_type,
                kernel="CPU",
                integer=node.op_type in _INTEGER or node.op_type.startswith("QLinear"),
                covers=_covered(node.name, known),
            )
            for node in nodes
        )
        return Execution(ops, 1, sum(op.op in _CONVERSIONS for op in ops), self.settings)

    def _open(self, rewritten: Path | None, source: bytes | None = None) -> Any:
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 4
        # Idle threads of one model must not take the cores from another one that is timed in alternation.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        for key, value in self.settings.items():
            options.add_session_config_entry(key, value)
        if rewritten is not None:
            options.optimized_model_filepath = str(rewritten)
        with native_output(2):
            try:
                return self._runtime.InferenceSession(source or str(self._path), options, providers=_CPU)
            except Exception as error:  # the binding raises a dozen kinds
                raise self._refused(one_line(str(error))) from error

    def _port(self, info: Any) -> Port:
        if any(not isinstance(d, int) for d in info.shape):
            raise self._refused(f"{info.name} has shape {info.shape}, and models must have fixed shapes")
        if info.type not in _TYPES:
            raise self._refused(f"{info.name} is a {info.type}")
        return Port(info.name, tuple(info.shape), np.dtype(_TYPES[info.type]))

    def _refused(self, cause: str) -> ModelError:
        hint = "check the file with `edgeq inspect`, or export the model again"
        return ModelError(f"onnxruntime refuses the model: {cause}", code="EQ-M454", place=str(self._path), hint=hint)

    def _fit(self, port: Port, array: Array) -> Array:
        place = str(self._path)
        if array.shape != port.shape:
            message = f"input {port.name} has shape {port.shape}, got {array.shape}"
            raise DataError(message, code="EQ-D450", place=place, hint="models are exported for one fixed shape")
        if array.dtype.kind != port.dtype.kind:
            message = f"input {port.name} takes {port.dtype}, got {array.dtype}"
            raise DataError(message, code="EQ-D450", place=place, hint=f"convert it with .astype('{port.dtype}')")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"input {port.name} holds NaN or infinity", code="EQ-D450", place=place)
        return np.ascontiguousarray(array, dtype=port.dtype)

    def _run(self, session: Any, names: list[str] | None = None) -> list[Any]:
        try:
            return list(session.run(names, self._feed))
        except Exception as error:  # the binding raises a dozen kinds
            message = f"onnxruntime failed while running: {one_line(str(error))}"
            raise DeviceError(message, code="EQ-X450", place=str(self._path), hint="run `edgeq doctor`") from error


def settings_for(isa: Collection[str]) -> dict[str, str]:
    """Options that keep results right on a CPU with the features `isa`.

    On x86 without VNNI the kernels add pairs of byte products in 16 bits, which overflow; this option widens them, in
    time.
    """
    overflows = "avx2" in isa and not {"avx512_vnni", "avx_vnni"} & set(isa)
    return dict(_PRECISE) if overflows else {}


def _load_onnx(purpose: str) -> Any:
    try:
        import onnx
    except ImportError as error:
        raise MissingError(f"{purpose} needs onnx", code="EQ-P451", hint="pip install onnx") from error
    return onnx


def _load_runtime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        absent = error.name == "onnxruntime"
        message = "onnxruntime is not installed" if absent else f"onnxruntime is installed but fails: {error}"
        raise MissingError(message, code="EQ-P451", hint=INSTALL) from error
    module: ModuleType = onnxruntime
    return module


def _covered(name: str, known: set[str]) -> tuple[str, ...]:
    """The operation of the file that a rewritten one is named after."""
    stem = _SUFFIX.sub("", name)
    return tuple(n for n in dict.fromkeys((name, stem)) if n in known)
