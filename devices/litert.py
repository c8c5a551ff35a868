"""Runs `.tflite` files through LiteRT (or `tflite_runtime` on older boards) and tells what really executed.

`LiteRtModel` takes and returns float arrays: integer inputs and outputs are converted with the scales stored in the
file. `ops` and `delegated` are read from the interpreter after allocation, so they describe the executed graph and
not the file.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from edgeq.devices.base import ExecutedOp, Execution
from edgeq.devices.litert_graph import (
    Array,
    Interpreter,
    OpInfo,
    TensorInfo,
    executed_ops,
    signature,
    tensor_at,
    tensor_info,
)
from edgeq.devices.litert_runtime import load_runtime, one_line
from edgeq.errors import DataError, DeviceError, ModelError, UsageError, unknown_name
from edgeq.native import native_output

__all__ = ["Kernels", "LiteRtModel", "OpInfo", "TensorInfo"]

Kernels = Literal["xnnpack", "builtin", "reference"]

# LiteRT's names for the three sets of kernels.
_RESOLVERS: Mapping[str, str] = {
    "xnnpack": "AUTO",
    "builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
    "reference": "BUILTIN_REF",
}


class LiteRtModel:
    """A `.tflite` model ready to run in this process.

    Args:
        source: Path of the file, or its bytes.
        threads: Threads of the runtime, at least 1.
        kernels: `xnnpack` (what a device runs), `builtin` (LiteRT's optimized kernels) or `reference`.

    Raises:
        UsageError: EQ-U040 for unknown kernels or fewer than one thread.
        MissingError: EQ-P040 when no runtime is installed.
        ModelError: EQ-M040 when the file cannot be read, EQ-M041 when LiteRT refuses it, EQ-M970 when the reference
            kernels are asked for and do not know the grids of its weights.
    """

    def __init__(self, source: str | Path | bytes, threads: int = 1, kernels: Kernels = "xnnpack") -> None:
        if kernels not in _RESOLVERS:
            raise unknown_name("kernels", str(kernels), _RESOLVERS, code="EQ-U040")
        if threads < 1:
            raise UsageError(f"threads must be at least 1, not {threads}", code="EQ-U040", hint="use --threads 1")
        self.threads = threads
        self.kernels = kernels
        self._place = "model bytes" if isinstance(source, bytes) else str(source)
        self._source = _checked(source)
        self._interpreter, self.log = self._load(preserve=False)
        self._recorder: Interpreter = None
        try:
            self.inputs, self.outputs = signature(self._interpreter)
            self.ops = executed_ops(self._interpreter)
        except (ValueError, TypeError) as error:  # a damaged name or grid that loading does not look at
            raise self._refused(error) from error
        if kernels == "reference":
            self._refuse_groups()

    @property
    def delegated(self) -> tuple[int, int]:
        """Partitions that XNNPACK runs, and how many of the file's operations they hold."""
        partitions = sum(1 for op in self._interpreter._get_ops_details() if op["op_name"] == "DELEGATE")
        return partitions, sum(op.delegated for op in self.ops)

    def execution(self) -> Execution:
        """What LiteRT executes: each operation of the file, by XNNPACK or by a kernel of its own."""
        names = {info.index: info.name for info in self.tensors()}
        ops = tuple(
            ExecutedOp(
                name=(name := names.get(op.outputs[0], "")),
                op=op.name,
                kernel="XNNPACK" if op.delegated else self.kernels if self.kernels != "xnnpack" else "builtin",
                integer=any(t.startswith(("int8", "int4", "int16")) for t in op.input_types),
                covers=(name,),
            )
            for op in self.ops
        )
        conversions = sum(op.name in ("QUANTIZE", "DEQUANTIZE") for op in self.ops)
        return Execution(ops, self.delegated[0], conversions)

    def census(self) -> dict[str, int]:
        """How often each operation of the file occurs, most frequent first."""
        return dict(sorted(Counter(op.name for op in self.ops).items(), key=lambda item: (-item[1], item[0])))

    def tensors(self) -> tuple[TensorInfo, ...]:
        """Every named tensor of the file, weights included."""
        return tuple(tensor_info(details) for details in self._interpreter.get_tensor_details())

    def run(self, *arrays: Array, raw: bool = False) -> tuple[Array, ...]:
        """Run the model once.

        Args:
            *arrays: One array per input, of the input's exact shape; floats for integer inputs are quantized.
            raw: Return integer outputs as stored instead of as real values.

        Returns:
            One array per output, of the output's shape; copies that survive the next run.

        Raises:
            DataError: EQ-D040 when number, shape or type of the arrays does not fit.
            DeviceError: EQ-X001 when the runtime fails.
        """
        self._feed(self._interpreter, arrays)
        self._invoke(self._interpreter)
        values = [np.array(self._interpreter.get_tensor(info.index)) for info in self.outputs]
        return tuple(v if raw else _real(info, v) for info, v in zip(self.outputs, values, strict=True))

    def prepare(self, *arrays: Array) -> None:
        """Place the inputs, so that `invoke` can be timed alone. Raises as `run`."""
        self._feed(self._interpreter, arrays)

    def invoke(self) -> None:
        """Run once on the inputs placed by `prepare`; nothing is copied. Raises as `run`."""
        self._invoke(self._interpreter)

    def run_all(self, *arrays: Array, raw: bool = False) -> dict[str, Array]:
        """Run once and return the output of every operation, in execution order, for per-layer comparison.

        The runtime keeps all tensors for this, which makes XNNPACK run every operation as a partition of its own: the
        kernels are the same, fusion across operations is not.

        Args:
            *arrays: As for `run`.
            raw: Return stored codes instead of real values.

        Returns:
            Tensor name to array; `name#index` where a name occurs twice.

        Raises:
            DataError: EQ-D040 when the arrays do not fit.
            DeviceError: EQ-X001 when the runtime fails.
        """
        return self._recorded(None, arrays, raw=raw)

    def record(self, names: Collection[str], *arrays: Array) -> dict[str, Array]:
        """Some of the tensors of `run_all`, as real values. Raises as that does."""
        return self._recorded(names, arrays, raw=False)

    def _recorded(self, names: Collection[str] | None, arrays: tuple[Array, ...], *, raw: bool) -> dict[str, Array]:
        if self._recorder is None:
            self._recorder, _ = self._load(preserve=True)
        self._feed(self._recorder, arrays)
        self._invoke(self._recorder)
        result: dict[str, Array] = {}
        for op in self.ops:
            for index in op.outputs:
                info = tensor_at(self._recorder, index)
                name = f"{info.name}#{index}" if not info.name or info.name in result else info.name
                if names is None or name in names:
                    value = np.array(self._recorder.get_tensor(index))
                    result[name] = value if raw else _real(info, value)
        return result

    def _load(self, *, preserve: bool) -> tuple[Interpreter, str]:
        runtime = load_runtime()
        resolver = getattr(runtime.OpResolverType, _RESOLVERS[self.kernels])
        key = "model_content" if isinstance(self._source, bytes) else "model_path"
        with native_output(2) as said, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecation banners and the memory advice for `preserve`
            try:
                interpreter = runtime.Interpreter(
                    **{key: self._source},
                    num_threads=self.threads,
                    experimental_op_resolver_type=resolver,
                    experimental_preserve_all_tensors=preserve,
                )
                interpreter.allocate_tensors()
            except (ValueError, RuntimeError, TypeError) as error:
                raise self._refused(f"{error} {said()}") from error
            return interpreter, said()

    def _refuse_groups(self) -> None:
        """Refuse weights whose rows have several scales: the reference kernels compute something else, silently."""
        for op in self.ops:
            if op.name != "FULLY_CONNECTED":
                continue
            weight = tensor_at(self._interpreter, op.inputs[1])
            if weight.dtype.kind in "iu" and len(weight.scales) > weight.shape[0]:
                raise ModelError(
                    f"LiteRT's reference kernels compute something else than {weight.name} with a scale for each group",
                    code="EQ-M970",
                    place=self._place,
                    hint="use the kernels that devices run, xnnpack or builtin",
                )

    def _refused(self, cause: object) -> ModelError:
        message = f"LiteRT refuses the model: {one_line(str(cause))}"
        too_old = "Didn't find op" in str(cause)
        again = "check the file with `edgeq inspect`, or export the model again"
        hint = "pip install -U ai-edge-litert" if too_old else again
        return ModelError(message, code="EQ-M041", place=self._place, hint=hint)

    def _feed(self, interpreter: Interpreter, arrays: tuple[Array, ...]) -> None:
        if len(arrays) != len(self.inputs):
            wanted = ", ".join(f"{i.name} {i.shape}" for i in self.inputs)
            message = f"the model takes {len(self.inputs)} inputs ({wanted}), got {len(arrays)}"
            raise DataError(message, code="EQ-D040", place=self._place)
        for info, array in zip(self.inputs, arrays, strict=True):
            interpreter.set_tensor(info.index, _fit(info, np.asarray(array), self._place))

    def _invoke(self, interpreter: Interpreter) -> None:
        try:
            interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            message = f"LiteRT failed while running: {one_line(str(error))}"
            raise DeviceError(message, code="EQ-X001", place=self._place, hint="run `edgeq doctor`") from error


def _checked(source: str | Path | bytes) -> str | bytes:
    if isinstance(source, bytes):
        head, place = source[:8], "model bytes"
    else:
        place = str(source)
        try:
            with Path(source).open("rb") as file:
                head = file.read(8)
        except OSError as error:
            reason = error.strerror or str(error)
            hint = "give the path of a .tflite file"
            raise ModelError(f"cannot read the model: {reason}", code="EQ-M040", place=place, hint=hint) from error
    if head[4:8] != b"TFL3":
        message = "not a TFLite model: the file identifier TFL3 is absent"
        raise ModelError(message, code="EQ-M041", place=place, hint="give a .tflite file, or export the model again")
    return source if isinstance(source, bytes) else str(source)


def _fit(info: TensorInfo, array: Array, place: str) -> Array:
    if array.shape != info.shape:
        message = f"input {info.name} has shape {info.shape}, got {array.shape}"
        raise DataError(message, code="EQ-D040", place=place, hint="models are exported for one fixed shape")
    if array.dtype == info.dtype:
        return np.ascontiguousarray(array)
    if array.dtype.kind == "f" and (info.quantized or info.dtype.kind == "f"):
        if not np.isfinite(array).all():
            raise DataError(f"input {info.name} holds NaN or infinity", code="EQ-D040", place=place)
        return np.ascontiguousarray(info.to_codes(array))
    message = f"input {info.name} takes {info.dtype}, got {array.dtype}"
    raise DataError(message, code="EQ-D040", place=place, hint=f"convert the array with .astype('{info.dtype}')")


def _real(info: TensorInfo, values: Array) -> Array:
    return info.to_reals(values) if info.quantized else values
