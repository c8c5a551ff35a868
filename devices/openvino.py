"""Runs OpenVINO models (`.xml` with its `.bin`) on the CPU, and tells what really executed.

Two options decide results, and OpenVINO chooses them by the machine it finds itself on: the precision of float
operations (bfloat16 where the CPU has it) and whether inputs of layers are quantized at run time. They are therefore
always given: as the file asks (`runtime_options` of its meta data), else full float and no quantization at run time.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.artifact.run import file_options
from edgeq.devices.base import Array, ExecutedOp, Execution
from edgeq.errors import DataError, DeviceError, MissingError, ModelError, UsageError

DEFAULTS: Mapping[str, str] = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""Options that change results, and their values where a file does not say."""

INSTALL = "pip install openvino"
_CONVERTERS = ("FakeQuantize", "Convert")
_PRODUCTS = ("Convolution", "FullyConnected", "MatMul")
# Executed nodes that compute nothing on values.
_IDLE = ("Input", "Const", "Output", "Result", "Parameter")


class OpenVinoModel:
    """An OpenVINO model ready to run in this process.

    Args:
        path: The `.xml`; its `.bin` lies beside it.
        threads: Threads of the runtime, at least 1.

    Raises:
        UsageError: EQ-U400 for fewer than one thread.
        MissingError: EQ-P400 when OpenVINO is not installed.
        ModelError: EQ-M401 when the file cannot be read or OpenVINO refuses it.
    """

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        if threads < 1:
            raise UsageError(f"threads must be at least 1, not {threads}", code="EQ-U400", hint="use --threads 1")
        self.threads = threads
        self._place = str(path)
        self._recorder: tuple[tuple[str, ...], list[str], Any] | None = None
        openvino = load_openvino()
        for file in (Path(path), Path(path).with_suffix(".bin")):
            if not file.is_file():
                message = f"cannot read the model: there is no file {file.name}"
                raise ModelError(message, code="EQ-M401", place=self._place, hint="give an .xml with its .bin")
        self._core = openvino.Core()
        try:
            model = self._core.read_model(str(path))
            self.settings = {**DEFAULTS, **file_options(model)}
            self._compiled = self._compile(model)
            self._request = self._compiled.create_infer_request()
            self.shapes = tuple(tuple(int(n) for n in port.shape) for port in self._compiled.inputs)
        except (RuntimeError, ValueError, TypeError) as error:
            message = f"OpenVINO refuses the model: {' '.join(str(error).split())[:400]}"
            hint = "check the files with `edgeq inspect`, or export the model again"
            raise ModelError(message, code="EQ-M401", place=self._place, hint=hint) from error

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        """Run the model once.

        Args:
            *arrays: One array per input, of the input's exact shape.

        Returns:
            One array per output; copies that survive the next run.

        Raises:
            DataError: EQ-D400 when number, shape or values of the arrays do not fit.
            DeviceError: EQ-X400 when the runtime fails.
        """
        self.prepare(*arrays)
        self.invoke()
        count = len(self._compiled.outputs)
        return tuple(np.array(self._request.get_output_tensor(i).data) for i in range(count))

    def record(self, names: Collection[str], *arrays: Array) -> dict[str, Array]:
        """Run once and return results of operations of the file, by the names of the operations. Raises as `run`.

        The model is compiled anew with these results as outputs, which takes fusions apart that reach over them.
        """
        self.prepare(*arrays)
        wanted = tuple(sorted(names))
        if self._recorder is None or self._recorder[0] != wanted:
            model = self._core.read_model(self._place)
            model.add_outputs([op.output(0) for op in model.get_ordered_ops() if op.get_friendly_name() in set(wanted)])
            sources = [result.input_value(0).get_node().get_friendly_name() for result in model.get_results()]
            self._recorder = wanted, sources, self._compile(model).create_infer_request()
        _, sources, request = self._recorder
        for index in range(len(self.shapes)):
            request.get_input_tensor(index).data[:] = self._request.get_input_tensor(index).data
        self._infer(request)
        return {n: np.array(request.get_output_tensor(i).data) for i, n in enumerate(sources) if n in wanted}

    def prepare(self, *arrays: Array) -> None:
        """Place the inputs, so that `invoke` can be timed alone. Raises as `run`."""
        if len(arrays) != len(self.shapes):
            message = f"the model takes {len(self.shapes)} inputs, got {len(arrays)}"
            raise DataError(message, code="EQ-D400", place=self._place)
        for index, (shape, value) in enumerate(zip(self.shapes, arrays, strict=True)):
            array = np.asarray(value)
            if array.shape != shape:
                message, hint = f"input {index} has shape {shape}, got {array.shape}", "exports have one fixed shape"
                raise DataError(message, code="EQ-D400", place=self._place, hint=hint)
            if array.dtype.kind not in "fiub" or not np.isfinite(array).all():
                raise DataError(f"input {index} holds something else than numbers", code="EQ-D400", place=self._place)
            self._request.get_input_tensor(index).data[:] = array

    def invoke(self) -> None:
        """Run once on the inputs placed by `prepare`; nothing is copied. Raises as `run`."""
        self._infer(self._request)

    def _compile(self, model: Any) -> Any:
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": self.threads, **self.settings}
        return self._core.compile_model(model, "CPU", options)

    def _infer(self, request: Any) -> None:
        try:
            request.infer()
        except RuntimeError as error:
            message = f"OpenVINO failed while running: {' '.join(str(error).split())[:400]}"
            raise DeviceError(message, code="EQ-X400", place=self._place, hint="run `edgeq doctor`") from error

    def execution(self) -> Execution:
        """What OpenVINO executes: the nodes of its compiled graph, each with the operations it was fused from."""
        ops = []
        precisions: dict[str, str] = {}
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            facts = {key: str(value.astype(str)) for key, value in node.get_rt_info().items()}
            kind = facts.get("layerType", "")
            precisions[node.get_friendly_name()] = facts.get("outputPrecisions", "").split(",")[0]
            if kind in _IDLE:
                continue
            # The converter names operations `NODE/OPERATION/...`, and fusions append to that: the node stays.
            layers = facts.get("originalLayersNames", "").split(",")
            covers = tuple(dict.fromkeys(name.partition("/")[0] for name in layers if name))
            kernel = facts.get("primitiveType", "")
            integer = kind in _PRODUCTS and kernel.lower().endswith("_i8")
            if kind == "Subgraph":  # a whole attention in one kernel that is compiled for it
                read = [port.get_node() for port in node.input_values()]
                integer = all(precisions.get(n.get_friendly_name()) in ("i8", "u8") for n in read if not _idle(n))
            ops.append(ExecutedOp(node.get_friendly_name(), kind, kernel, integer, covers))
        conversions = sum(op.op in _CONVERTERS for op in ops)
        return Execution(tuple(ops), 1, conversions, dict(self.settings))


def _idle(node: Any) -> bool:
    return str(node.get_rt_info()["layerType"].astype(str)) == "Const"


def load_openvino() -> Any:
    """The package `openvino`.

    Raises:
        MissingError: EQ-P400 when it cannot be imported.
    """
    try:
        return importlib.import_module("openvino")
    except (ImportError, OSError) as error:
        message = f"OpenVINO cannot be imported: {' '.join(str(error).split())[:200]}"
        raise MissingError(message, code="EQ-P400", hint=INSTALL) from error
