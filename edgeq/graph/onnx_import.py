"""ONNX file -> canonical graph.

The file is evaluated symbolically once: whatever depends on constants and shapes only is computed right away, so that
shape arithmetic disappears; every other node becomes a small module that calls PyTorch with Python values for axes and
shapes. That program goes through the same `trace` and clean-ups as a PyTorch model. Folding here, and not with a
simplifier beforehand, keeps the tensor names of the file, by which `edgeq.graph.parity` finds the first bad node.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from edgeq.errors import EdgeqError, ModelError
from edgeq.graph import onnx_ops_nn, onnx_ops_shape
from edgeq.graph.capture import canonicalize, trace
from edgeq.graph.onnx_file import attributes_of, fixed_sizes, input_specs, notes_of, read_model, tensor_of
from edgeq.graph.onnx_ops import OPERATORS, Function, OnnxNode, describe
from edgeq.hashing import file_sha256

if TYPE_CHECKING:
    import onnx

# Importing these modules fills OPERATORS.
_TABLES = (onnx_ops_nn, onnx_ops_shape)
# Earlier ones broadcast by explicit attributes.
_OLDEST_OPSET = 7
# Their result depends on the shape of the input only.
_SHAPE_ONLY = frozenset({"Shape", "Size"})
_MASK_OPERATORS = frozenset(
    {"Add", "Sub", "Where", "Max", "Min", "Clip", "Equal", "Less", "Greater", "ConstantOfShape"}
)
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "QLinear", "ConvInteger", "MatMulInteger", "DynamicQuantize")
_OWNERS = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "InstanceNormalization", "GroupNormalization", "LayerNormalization"}
)


@dataclass(frozen=True)
class ImportedOnnx:
    """A network that came from an ONNX file.

    Args:
        graph: Canonical graph; `meta["onnx_name"]` is the tensor of the file that a node computes.
        input_names: Names in the file, in the order of the graph's inputs.
        input_shapes: Fixed shapes of the inputs.
        output_names: Names in the file, in the order of the graph's outputs.
        sha256: Hash of the file.
        notes: What the exporting program left as metadata.
        resized: Whether an input has another size than the file fixes.
    """

    graph: fx.GraphModule
    input_names: tuple[str, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    output_names: tuple[str, ...]
    sha256: str
    notes: Mapping[str, str]
    resized: bool = False


def import_onnx(path: Path, input_shapes: Mapping[str, tuple[int, ...]] | None = None) -> ImportedOnnx:
    """Read an ONNX file into a canonical graph.

    Args:
        path: The file; weights in other files must lie in the same folder.
        input_shapes: Shapes for inputs whose sizes the file leaves open; of images, also other batches, heights and
            widths than it fixes. An open batch size defaults to 1.

    Raises:
        ModelError: The file is unusable, or a node cannot be imported.
        UsageError: `input_shapes` does not fit the model.
        MissingError: The package `onnx` is absent.
    """
    path = Path(path)
    model = read_model(path)
    _check_operators(model.graph)
    specs = input_specs(model, input_shapes)
    with torch.no_grad():
        builder = _Builder(model, specs)
        builder.evaluate(model.graph)
    program = OnnxProgram(builder, tuple(specs), tuple(o.name for o in model.graph.output))
    example = tuple(torch.zeros(shape, dtype=dtype) for shape, dtype in specs.values())
    graph = _label(trace(program, example), program)
    return ImportedOnnx(
        graph=canonicalize(graph),
        input_names=tuple(specs),
        input_shapes=tuple(shape for shape, _ in specs.values()),
        output_names=program.output_names,
        sha256=file_sha256(path),
        notes=notes_of(model),
        resized=any(n != specs[name][0][i] for name, i, n in fixed_sizes(model)),
    )


@dataclass(frozen=True)
class _Value:
    """A tensor of the file: a constant, or a stand-in of known shape and type that `name` will compute.

    `origin` is the stored weight that a constant was computed from, if any.
    """

    name: str
    tensor: Tensor
    constant: bool
    origin: str = ""


@dataclass(frozen=True)
class _Step:
    """A node to run."""

    node: OnnxNode
    function: Function
    inputs: tuple[_Value | None, ...]
    outputs: tuple[str, ...]


class _Builder:
    """Evaluates a graph symbolically: constants at once, everything else into `steps`."""

    def __init__(self, model: onnx.ModelProto, specs: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
        if self.opset < _OLDEST_OPSET:
            hint = f"convert it with onnx.version_converter to opset {_OLDEST_OPSET} or later"
            raise ModelError(f"the model uses opset {self.opset}", code="EQ-M115", hint=hint)
        self.values: dict[str, _Value] = {}
        self.steps: list[_Step] = []
        with self.mode:
            for name, (shape, dtype) in specs.items():
                self.values[name] = _Value(name, torch.empty(shape, dtype=dtype), constant=False)

    def evaluate(self, graph: onnx.GraphProto) -> None:
        """Evaluate all nodes of `graph`, in the scope of what was evaluated before."""
        readers = _readers(graph)
        for proto in graph.initializer:
            value = tensor_of(proto)
            _check_finite(proto.name, value, readers.get(proto.name, set()))
            self.values[proto.name] = _Value(proto.name, value, constant=True, origin=proto.name)
        for node in graph.node:
            if node.op_type == "If":
                self._branch(node)
            else:
                self._node(node)

    def value(self, name: str) -> _Value:
        """The tensor called `name`.

        Raises:
            ModelError: No node computes it.
        """
        if name not in self.values:
            hint = "export the model again; this file is damaged"
            raise ModelError(f"no node computes the tensor {name!r}", code="EQ-M110", place=name, hint=hint)
        return self.values[name]

    def _branch(self, node: onnx.NodeProto) -> None:
        """Take the branch of an `If` whose condition is constant."""
        condition = self.value(node.input[0])
        if not condition.constant:
            place = describe("If", node.name, node.input, node.output)
            hint = "export the model without data-dependent control flow"
            raise ModelError(
                "If cannot be imported: its condition depends on the data", code="EQ-M113", place=place, hint=hint
            )
        branch = attributes_of(node)["then_branch" if bool(condition.tensor.item()) else "else_branch"]
        self.evaluate(branch)
        for name, inner in zip(node.output, branch.output, strict=True):
            self.values[name] = self.value(inner.name)

    def _node(self, proto: onnx.NodeProto) -> None:
        """Evaluate one ordinary node."""
        inputs = tuple(self.value(name) if name else None for name in proto.input)
        fixed = all(v is None or v.constant for v in inputs)
        if not fixed:
            inputs = tuple(_single_precision(v) for v in inputs)
        node = OnnxNode(
            op_type=proto.op_type,
            name=proto.name,
            inputs=tuple(proto.input),
            outputs=tuple(proto.output),
            attributes=attributes_of(proto),
            constants=tuple(v.tensor if v and v.constant else None for v in inputs),
            shapes=tuple(tuple(v.tensor.shape) if v else None for v in inputs),
            dtypes=tuple(v.tensor.dtype if v else None for v in inputs),
            opset=self.opset,
        )
        fixed = fixed or proto.op_type in _SHAPE_ONLY
        try:
            function = OPERATORS[proto.op_type](node)
            with nullcontext() if fixed else self.mode:
                result = function(*(v.tensor if v else None for v in inputs))
        except EdgeqError:
            raise
        except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, NotImplementedError) as error:
            raise node.refuse((str(error).strip().splitlines() or [type(error).__name__])[0][:200]) from error
        results = result if isinstance(result, tuple) else (result,)
        names = tuple(proto.output)[: len(results)]
        origin = next((v.origin for v in inputs if v and v.origin and v.tensor.is_floating_point()), "")
        for name, tensor in zip(names, results, strict=True):
            self.values[name] = _Value(name, tensor, fixed, origin if fixed else "")
        if not fixed:
            self.steps.append(_Step(node, function, inputs, names))


class _Call(nn.Module):
    """One node as a module, so that tracing records where each operation comes from."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor | None) -> Tensor | tuple[Tensor, ...]:
        """Run the node."""
        result: Tensor | tuple[Tensor, ...] = self.function(*tensors)
        return result


class OnnxProgram(nn.Module):
    """The dynamic part of the graph; returns the outputs and then every intermediate tensor, in order."""

    def __init__(self, builder: _Builder, input_names: tuple[str, ...], output_names: tuple[str, ...]) -> None:
        super().__init__()
        self.input_names = input_names
        self.output_names = output_names
        self.final = [builder.value(name) for name in output_names]
        self.steps = builder.steps
        self.labels = [(name, step.node.place) for step in self.steps for name in step.outputs]
        self.paths: dict[str, str] = {}
        self.wishes: dict[str, str] = {}
        self._constants: dict[str, str] = {}
        for index, step in enumerate(self.steps):
            self.add_module(f"step{index}", _Call(step.function))
            self.paths[f"step{index}"] = _path(step.node)
            for position, value in enumerate(step.inputs):
                self._hold(value, _wish(step.node, position, value.origin if value else ""))
        for value in self.final:
            self._hold(value, value.name)

    def _hold(self, value: _Value | None, wish: str) -> None:
        """Register a constant once, under the first name anyone wishes for it."""
        if value is not None and value.constant and value.name not in self._constants:
            key = f"constant{len(self._constants)}"
            self.register_buffer(key, value.tensor)
            self._constants[value.name] = key
            self.wishes[key] = wish

    def _read(self, value: _Value | None, env: Mapping[str, Tensor]) -> Tensor | None:
        if value is None:
            return None
        return getattr(self, self._constants[value.name]) if value.constant else env[value.name]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run all steps."""
        env = dict(zip(self.input_names, inputs, strict=True))
        computed: list[Tensor] = []
        for index, step in enumerate(self.steps):
            result = getattr(self, f"step{index}")(*(self._read(v, env) for v in step.inputs))
            results = result if isinstance(result, tuple) else (result,)
            env.update(zip(step.outputs, results, strict=True))
            computed.extend(results)
        outputs = [self._read(value, env) for value in self.final]
        return (*(o for o in outputs if o is not None), *computed)


def _label(graph: fx.GraphModule, program: OnnxProgram) -> fx.GraphModule:
    """Write the file's names into the traced graph and drop the intermediate outputs."""
    output = graph.graph.output_node()
    results = output.args[0]
    assert isinstance(results, tuple)
    final = len(program.output_names)
    for (name, place), node in zip(program.labels, results[final:], strict=True):
        if isinstance(node, fx.Node) and node.op == "call_function":
            # A node that passes its input on (Identity) shares the traced node; the first name stays.
            node.meta.setdefault("onnx_name", name)
            node.meta.setdefault("onnx_node", place)
    output.args = (tuple(results[:final]),)
    inputs = 0
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            node.meta["wish"] = program.wishes.get(str(node.target), str(node.target))
        elif node.op == "placeholder":
            node.meta["path"] = program.input_names[inputs]
            inputs += 1
        elif "path" in node.meta:
            node.meta["path"] = program.paths.get(node.meta["path"], "")
    return graph


def _path(node: OnnxNode) -> str:
    """Module path that the exporter left in a node's name: `/blocks.0/attn/qkv/MatMul` -> `blocks.0.attn.qkv`."""
    parts = [p for p in re.split(r"[/:]+", node.name) if p]
    if len(parts) > 1 and re.fullmatch(rf"{re.escape(node.op_type)}(_\d+)?", parts[-1]):
        parts = parts[:-1]
    elif len(parts) == 1 and node.name.startswith("/"):
        parts = []
    return ".".join(parts)


def _wish(node: OnnxNode, position: int, origin: str) -> str:
    """What to call constant input `position`: its own name if that tells something, else after the node."""
    name, path = origin or node.inputs[position], _path(node)
    if path and "." not in name and node.op_type in _OWNERS and position in (1, 2):
        return f"{path}.{'weight' if position == 1 else 'bias'}"
    return re.sub(r"^/+", "", name).replace("/", ".")


def _single_precision(value: _Value | None) -> _Value | None:
    """Double-precision constants as the network's arithmetic sees them."""
    if value is not None and value.constant and value.tensor.dtype == torch.float64:
        return _Value(value.name, value.tensor.to(torch.float32), constant=True)
    return value


def _check_operators(graph: onnx.GraphProto) -> None:
    """Name everything that cannot be imported at once."""
    unknown: dict[str, list[str]] = {}
    _collect_unknown(graph, unknown)
    if not unknown:
        return
    kinds = ", ".join(f"{kind} ({len(places)}x)" for kind, places in sorted(unknown.items()))
    places = [place for found in unknown.values() for place in found]
    quantized = any(kind.startswith(_QUANTIZED) for kind in unknown)
    hint = (
        "this model is already quantized; give edgeq the float model"
        if quantized
        else "replace these operations in the model and export it again"
    )
    listed = "; ".join(places[:20]) + (f"; and {len(places) - 20} more" if len(places) > 20 else "")
    raise ModelError(f"unsupported ONNX operations: {kinds}", code="EQ-M114", place=listed, hint=hint)


def _collect_unknown(graph: onnx.GraphProto, unknown: dict[str, list[str]]) -> None:
    """Operators without a builder, by name with their places, subgraphs included."""
    for node in graph.node:
        kind = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        if kind == "If":
            for attribute in node.attribute:
                _collect_unknown(attribute.g, unknown)
        elif kind not in OPERATORS:
            unknown.setdefault(kind, []).append(describe(node.op_type, node.name, node.input, node.output))


def _readers(graph: onnx.GraphProto) -> dict[str, set[str]]:
    """Operators that read each tensor."""
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    return readers


def _check_finite(name: str, value: Tensor, readers: set[str]) -> None:
    """Refuse NaN everywhere, and infinity outside of masks and bounds."""
    if not value.is_floating_point() or bool(torch.isfinite(value).all()):
        return
    if bool(torch.isnan(value).any()) or not readers <= _MASK_OPERATORS:
        bad = int((~torch.isfinite(value)).sum())
        message = f"{name!r} holds {bad} values of {value.numel()} that are NaN or infinite"
        raise ModelError(
            message, code="EQ-M105", place=name, hint="load an intact model; this one is damaged or diverged"
        )
