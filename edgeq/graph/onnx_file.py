"""Reading an ONNX file with every check that can be made before its graph is understood."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from edgeq.errors import MissingError, ModelError, UsageError, nearest

if TYPE_CHECKING:
    import onnx

_INPUT_TYPES = {1: torch.float32, 2: torch.uint8, 3: torch.int8, 6: torch.int32, 7: torch.int64, 9: torch.bool}
_HALF_TYPES = (10, 16)
_IMAGE_AXES = 4

Sizes: TypeAlias = "tuple[int | str | None, ...]"
"""Of the axes of an input: a number, or the name, if any, of what is left open."""


def read_model(path: Path) -> onnx.ModelProto:
    """Load, check and complete an ONNX model; weights in other files are read from the model's own folder only.

    Raises:
        ModelError: The file is absent, is no ONNX model, is truncated, or its weights are missing or outside.
        MissingError: The package `onnx` is absent.
    """
    try:
        import onnx
        import onnx.inliner
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise MissingError(
            "reading ONNX files needs the package onnx", code="EQ-P101", hint="pip install 'edgeq[onnx]'"
        ) from error
    if not path.is_file():
        raise ModelError(f"no such file: {path}", code="EQ-M002", place=str(path), hint="check the path of the model")
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise _not_a_model(path, "it does not parse") from error
    if not model.HasField("graph") or not model.graph.node:
        raise _not_a_model(path, "it holds no graph")
    for tensor in _tensors(model.graph):
        _load_external(tensor, path)
    try:
        if model.ByteSize() < 2**31 - 1:
            onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise _not_a_model(path, str(error).strip().splitlines()[0]) from error
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def _not_a_model(path: Path, reason: str) -> ModelError:
    message = f"{path.name} is not a usable ONNX model: {reason}"
    return ModelError(
        message, code="EQ-M110", place=str(path), hint="copy or export the file again; it may be truncated"
    )


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """All constants of the graph and its subgraphs."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)


def _load_external(tensor: onnx.TensorProto, path: Path) -> None:
    """Read the bytes of a tensor that lies in another file, refusing anything outside the model's folder."""
    if tensor.data_location != 1:
        return
    import onnx.external_data_helper as external

    info = {entry.key: entry.value for entry in tensor.external_data}
    location = info.get("location", "")
    folder = path.resolve().parent
    target = (folder / location).resolve()
    if not location or not target.is_relative_to(folder) or target == folder:
        message = f"the weights of {tensor.name!r} point outside the model's folder: {location!r}"
        raise ModelError(message, code="EQ-M111", place=str(path), hint="get the model from a source you trust")
    if not target.is_file():
        message = f"{path.name} keeps its weights in {location!r}, which is absent"
        raise ModelError(message, code="EQ-M111", place=str(target), hint="copy that file next to the model")
    needed = int(info.get("offset", 0)) + int(info.get("length", 0))
    if target.stat().st_size < needed:
        message = f"{location!r} is truncated: {target.stat().st_size} bytes, {needed} needed"
        raise ModelError(message, code="EQ-M111", place=str(target), hint="copy the file again")
    external.load_external_data_for_tensor(tensor, str(folder))
    tensor.data_location = 0  # type: ignore[assignment]
    del tensor.external_data[:]


def tensor_of(proto: onnx.TensorProto) -> Tensor:
    """A constant as a tensor; double precision becomes single precision later, where a node reads it.

    Raises:
        ModelError: Half precision, strings, or values that do not fit their shape.
    """
    import onnx.numpy_helper

    if proto.data_type in _HALF_TYPES:
        message = f"{proto.name!r} is half precision; edgeq quantizes from float32"
        raise ModelError(message, code="EQ-M104", place=proto.name, hint="export the model in float32")
    try:
        array = np.array(onnx.numpy_helper.to_array(proto))
        return torch.from_numpy(array)
    except (ValueError, TypeError) as error:
        message = f"constant {proto.name!r} cannot be read: {error}"
        raise ModelError(message, code="EQ-M110", place=proto.name, hint="export the model again") from error


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes as Python values: numbers, strings, lists, NumPy arrays, subgraphs."""
    import onnx.helper

    result: dict[str, Any] = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if attribute.type == onnx.AttributeProto.TENSOR:
            value = tensor_of(value).numpy()
        elif attribute.type == onnx.AttributeProto.STRING:
            value = value.decode("utf-8", "replace")
        elif attribute.type == onnx.AttributeProto.STRINGS:
            value = [v.decode("utf-8", "replace") for v in value]
        result[attribute.name] = value
    return result


def describe_file(path: Path) -> tuple[dict[str, str], dict[str, Sizes]]:
    """The notes that the exporting program left in an ONNX file, and the sizes of its inputs by name.

    Raises:
        ModelError: The file is unusable.
        MissingError: The package `onnx` is absent.
    """
    model = read_model(path)
    return notes_of(model), {item.name: _sizes(item) for item in _inputs(model)}


def notes_of(model: onnx.ModelProto) -> dict[str, str]:
    """The notes that the exporting program left."""
    return {note.key: note.value for note in model.metadata_props}


def input_specs(
    model: onnx.ModelProto, wanted: Mapping[str, tuple[int, ...]] | None
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of every real input; a free batch size becomes 1.

    Args:
        model: The model.
        wanted: Shapes that replace those of the file, by input name.

    Raises:
        ModelError: A size other than the batch is free and not given, or the type is not supported.
        UsageError: `wanted` names an unknown input, or contradicts a fixed size other than batch, height and width of
            images.
    """
    wanted = dict(wanted or {})
    inputs = _inputs(model)
    names = [i.name for i in inputs]
    for name in wanted:
        if name not in names:
            close = nearest(name, names)
            hint = f"did you mean {close!r}?" if close else f"inputs: {', '.join(names)}"
            raise UsageError(f"the model has no input {name!r}", code="EQ-U102", hint=hint)
    result = {}
    for item in inputs:
        kind = item.type.tensor_type
        if not item.type.HasField("tensor_type") or kind.elem_type not in _INPUT_TYPES:
            half = kind.elem_type in (*_HALF_TYPES, 11)
            hint = "export the model in float32" if half else "edgeq takes tensors of float32, integers and booleans"
            raise ModelError(
                f"input {item.name!r} has a type that is not supported", code="EQ-M104", place=item.name, hint=hint
            )
        result[item.name] = (_fixed_shape(item.name, _sizes(item), wanted.get(item.name)), _INPUT_TYPES[kind.elem_type])
    return result


def fixed_sizes(model: onnx.ModelProto) -> list[tuple[str, int, int]]:
    """The sizes that the file fixes: input, axis, size."""
    return [(item.name, i, n) for item in _inputs(model) for i, n in enumerate(_sizes(item)) if isinstance(n, int)]


def with_input_shapes(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """A copy for inputs of these sizes, without what the file says of the sizes of other tensors."""
    import onnx

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    for item in _inputs(copied):
        for dim, size in zip(item.type.tensor_type.shape.dim, shapes[item.name], strict=True):
            dim.dim_value = size
    del copied.graph.value_info[:]
    for item in copied.graph.output:
        item.type.tensor_type.ClearField("shape")
    return copied


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that are no stored weights."""
    constants = {t.name for t in model.graph.initializer}
    return [i for i in model.graph.input if i.name not in constants]


def _sizes(item: onnx.ValueInfoProto) -> Sizes:
    dims = item.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.dim_value > 0 else d.dim_param or None for d in dims)


def _fixed_shape(name: str, dims: Sizes, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape of input `name`, from the file and from what the user wants."""
    if wanted is not None:
        if len(wanted) != len(dims) or any(w < 1 for w in wanted):
            shown = list(dims)
            raise UsageError(f"{wanted} is no shape for input {name!r} with axes {shown}", code="EQ-U102", place=name)
        other = {i for i, (d, w) in enumerate(zip(dims, wanted, strict=True)) if isinstance(d, int) and w != d}
        if other and (len(dims) != _IMAGE_AXES or 1 in other):
            message = f"the model fixes input {name!r} to {list(dims)}, not {wanted}"
            raise UsageError(message, code="EQ-U102", place=name, hint="leave --shape out, or export the model anew")
        return tuple(int(w) for w in wanted)
    if not all(isinstance(d, int) for d in dims[1:]):
        guesses = ["1" if i == 0 else "224" for i in range(len(dims))]
        example = ", ".join(str(d) if isinstance(d, int) else g for d, g in zip(dims, guesses, strict=True))
        message = f"input {name!r} has free sizes: {[d or '?' for d in dims]}"
        raise ModelError(
            message, code="EQ-M112", place=name, hint=f"state it: --shape HEIGHTxWIDTH, in Python {name}=({example})"
        )
    return tuple(d if isinstance(d, int) else 1 for d in dims)
