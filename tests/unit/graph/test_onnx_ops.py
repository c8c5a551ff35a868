"""Every operator of the table against onnxruntime."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeq.errors import ModelError
from edgeq.graph.onnx_import import import_onnx
from edgeq.graph.onnx_ops import OPERATORS
from edgeq.graph.parity import check_parity
from tests.unit.graph.onnx_build import build, node

pytest.importorskip("onnxruntime")
RANDOM = np.random.default_rng(7)


def f32(*shape: int) -> np.ndarray[Any, Any]:
    return RANDOM.standard_normal(shape).astype(np.float32)


def i64(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, dtype=np.int64)


@dataclass
class Case:
    """One operator call."""

    op: str
    shapes: tuple[tuple[int, ...], ...]
    constants: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 18
    outputs: str = "y"
    types: dict[str, str] = field(default_factory=dict)
    order: str | None = None
    positive: bool = False
    small: bool = False

    def __str__(self) -> str:
        extra = "-".join(f"{k}={v}" for k, v in self.attributes.items())
        return f"{self.op}-{self.opset}-{extra}".replace(" ", "")[:70]


def unary(*ops: str, positive: bool = False, opset: int = 18) -> list[Case]:
    return [Case(op, ((2, 3, 4),), positive=positive, opset=opset) for op in ops]


IMAGE = ((1, 4, 9, 11),)
CASES: list[Case] = [
    *unary("Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Abs", "Neg", "Floor", "Ceil", "Round", "Reciprocal", "Sign"),
    *unary("Sin", "Cos", "Tan", "Sinh", "Cosh", "Atan", "Softplus", "Softsign", "Mish", "HardSwish", "Identity"),
    *unary("Elu", "Celu", "Selu", "LeakyRelu", "HardSigmoid", "ThresholdedRelu", "Dropout", "IsNaN"),
    *unary("Sqrt", "Log", positive=True),
    *[Case(op, ((2, 3),), small=True) for op in ("Asin", "Acos")],
    Case("Scatter", ((3, 4), (3, 1)), {"i": np.array([[1], [0], [3]])}, {"axis": 1}, 10, order="x0 i x1"),
    *unary("Gelu", opset=20),
    Case("Gelu", ((2, 5),), attributes={"approximate": "tanh"}, opset=20),
    Case("HardSigmoid", ((2, 5),), attributes={"alpha": 1 / 6, "beta": 0.5}),
    Case("Elu", ((2, 5),), attributes={"alpha": 0.3}),
    Case("LeakyRelu", ((2, 5),), attributes={"alpha": 0.2}),
    *[Case(op, ((2, 3, 4), (3, 1))) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")],
    *[Case(op, ((2, 3, 4),), {"c": np.float32(1.5)}) for op in ("Add", "Sub", "Mul", "Div", "Pow", "Max")],
    *[Case(op, ((2, 3, 4),), {"c": np.float32(1.5)}, order="c x0") for op in ("Add", "Sub", "Mul", "Div")],
    *[Case(op, ((2, 3),), {"c": np.float32(0.1)}) for op in ("Less", "Greater", "Equal", "LessOrEqual")],
    *[Case(op, ((2, 3),), {"c": np.float32(0.1)}, order="c x0") for op in ("Less", "Greater", "GreaterOrEqual")],
    Case("Pow", ((2, 3),), {"c": np.float32(2)}),
    Case("Pow", ((2, 3), (2, 3)), positive=True),
    Case("Div", ((6,), (6,)), {"c": i64(3)}, types={"x0": "int64"}, order="x0 c"),
    Case("Mod", ((6,),), {"c": i64(3)}, types={"x0": "int64"}),
    Case("Mod", ((6,),), {"c": np.float32(0.3)}, attributes={"fmod": 1}),
    *[Case(op, ((4,), (4,)), types={"x0": "bool", "x1": "bool"}) for op in ("And", "Or", "Xor")],
    Case("Not", ((4,),), types={"x0": "bool"}),
    Case("Where", ((4,), (4,), (3, 4)), types={"x0": "bool"}),
    Case("Clip", ((5, 5),), {"a": np.float32(-0.5), "b": np.float32(0.5)}),
    Case("Clip", ((5, 5),), {"b": np.float32(0.5)}, order="x0 _ b"),
    Case("Clip", ((5, 5),), attributes={"min": 0.0, "max": 6.0}, opset=9),
    Case("PRelu", ((2, 3, 4, 4),), {"s": f32(3, 1, 1)}),
    Case("PRelu", ((2, 3, 4, 4),), {"s": f32(1)}),
    Case("PRelu", ((2, 3, 4),), {"s": f32(4)}),
    Case("Softmax", ((2, 3, 4),)),
    Case("Softmax", ((2, 3, 4),), attributes={"axis": 1}),
    Case("Softmax", ((2, 3, 4),), attributes={"axis": 1}, opset=11),
    Case("Softmax", ((2, 3, 4),), opset=11),
    Case("LogSoftmax", ((2, 3, 4),), attributes={"axis": -1}),
    *[
        Case(op, ((2, 3, 4),), attributes={"axes": [1], "keepdims": keep}, opset=11)
        for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare")
        for keep in (0, 1)
    ],
    *[
        Case(op, ((2, 3, 4),), {"a": i64(0, -1)})
        for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceProd", "ReduceLogSumExp")
    ],
    Case("ReduceLogSum", ((2, 3, 4),), {"a": i64(1)}, positive=True),
    Case("ReduceMean", ((2, 3, 4),)),
    Case("ReduceSum", ((2, 3, 4),), attributes={"noop_with_empty_axes": 1}),
    Case("ArgMax", ((2, 7),), attributes={"axis": 1, "keepdims": 0}),
    Case("ArgMin", ((2, 7),), attributes={"axis": -1}),
    Case("TopK", ((2, 7),), {"k": i64(3)}, outputs="y z"),
    Case("TopK", ((2, 7),), {"k": i64(2)}, {"largest": 0, "axis": 0}, outputs="y z"),
    *[Case("CumSum", ((3, 5),), {"a": np.int64(1)}, {"exclusive": e, "reverse": r}) for e in (0, 1) for r in (0, 1)],
    Case("Conv", IMAGE, {"w": f32(6, 4, 3, 3), "b": f32(6)}, {"pads": [1, 1, 1, 1], "strides": [2, 1]}),
    Case("Conv", IMAGE, {"w": f32(6, 4, 3, 3)}, {"pads": [0, 1, 2, 3]}),
    Case("Conv", IMAGE, {"w": f32(8, 2, 3, 3), "b": f32(8)}, {"group": 2, "dilations": [2, 2]}),
    Case("Conv", IMAGE, {"w": f32(4, 1, 3, 3)}, {"group": 4, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    Case("Conv", IMAGE, {"w": f32(4, 4, 2, 2)}, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    Case("Conv", IMAGE, {"w": f32(4, 4, 2, 2)}, {"auto_pad": "VALID"}),
    Case("Conv", ((1, 3, 20),), {"w": f32(5, 3, 4), "b": f32(5)}, {"pads": [1, 2], "strides": [2]}),
    Case("Conv", ((1, 2, 5, 6, 7),), {"w": f32(3, 2, 2, 2, 2)}),
    Case("ConvTranspose", IMAGE, {"w": f32(4, 5, 3, 3), "b": f32(5)}, {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("ConvTranspose", IMAGE, {"w": f32(4, 5, 3, 3)}, {"strides": [2, 3], "output_padding": [1, 1]}),
    Case("ConvTranspose", IMAGE, {"w": f32(4, 5, 3, 3)}, {"strides": [2, 2], "pads": [0, 1, 1, 0]}),
    Case("ConvTranspose", IMAGE, {"w": f32(4, 2, 2, 2)}, {"strides": [2, 2], "group": 2}),
    Case("ConvTranspose", IMAGE, {"w": f32(4, 2, 3, 3)}, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    Case("ConvTranspose", IMAGE, {"w": f32(4, 2, 3, 3)}, {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    Case("ConvTranspose", IMAGE, {"w": f32(4, 2, 3, 3)}, {"strides": [2, 2], "output_shape": [18, 22]}),
    Case("ConvTranspose", ((1, 3, 9),), {"w": f32(3, 2, 4)}, {"strides": [2]}),
    Case("MatMul", ((2, 3, 4), (4, 5))),
    Case("MatMul", ((2, 3, 4),), {"w": f32(4, 6)}),
    Case("MatMul", ((2, 3, 4),), {"w": f32(2, 4, 6)}),
    Case("MatMul", ((4, 5),), {"w": f32(3, 4)}, order="w x0"),
    Case("MatMul", ((3, 4),), {"w": f32(4)}),
    Case("Gemm", ((3, 4),), {"w": f32(5, 4), "b": f32(5)}, {"transB": 1}),
    Case("Gemm", ((3, 4),), {"w": f32(4, 5), "b": f32(1, 5)}, {"alpha": 0.5, "beta": 2.0}),
    Case("Gemm", ((4, 3),), {"w": f32(4, 5)}, {"transA": 1}),
    Case("Gemm", ((3, 4),), {"w": f32(4, 5), "b": f32(3, 5)}),
    Case("Einsum", ((2, 3, 4), (2, 5, 4)), attributes={"equation": "bij, bkj -> bik"}),
    Case("Einsum", ((2, 3, 4),), {"w": f32(4, 6)}, {"equation": "bij,jk->bik"}),
    Case("MaxPool", IMAGE, attributes={"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("MaxPool", IMAGE, attributes={"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 1, 1]}),
    Case("MaxPool", IMAGE, attributes={"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    Case("MaxPool", IMAGE, attributes={"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    Case("MaxPool", ((1, 3, 12),), attributes={"kernel_shape": [3], "dilations": [2]}),
    Case("AveragePool", IMAGE, attributes={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    Case("AveragePool", IMAGE, attributes={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    Case("AveragePool", IMAGE, attributes={"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    Case("AveragePool", IMAGE, attributes={"kernel_shape": [2, 2], "pads": [0, 1, 1, 0], "count_include_pad": 1}),
    Case("AveragePool", ((1, 3, 12),), attributes={"kernel_shape": [3]}),
    Case("GlobalAveragePool", IMAGE),
    Case("GlobalMaxPool", IMAGE),
    Case("BatchNormalization", IMAGE, {"s": f32(4), "b": f32(4), "m": f32(4), "v": f32(4) ** 2 + 0.1}),
    Case("InstanceNormalization", IMAGE, {"s": f32(4), "b": f32(4)}),
    Case("GroupNormalization", IMAGE, {"s": f32(4), "b": f32(4)}, {"num_groups": 2}, opset=21),
    Case("LayerNormalization", ((2, 3, 8),), {"s": f32(8), "b": f32(8)}),
    Case("LayerNormalization", ((2, 3, 8),), {"s": f32(3, 8)}, {"axis": 1, "epsilon": 1e-3}),
    Case("LpNormalization", ((3, 5),), attributes={"p": 2, "axis": 1}),
    Case("LpNormalization", ((3, 5),), attributes={"p": 1, "axis": 0}),
    Case("LRN", IMAGE, attributes={"size": 3}),
    Case("GridSample", ((1, 2, 5, 5), (1, 4, 4, 2)), opset=16),
    Case("Reshape", ((2, 3, 4),), {"s": i64(0, -1)}),
    Case("Reshape", ((2, 3, 4),), {"s": i64(4, 3, 2)}),
    Case("Flatten", ((2, 3, 4),), attributes={"axis": 2}),
    Case("Flatten", ((2, 3, 4),), attributes={"axis": 0}),
    Case("Flatten", ((2, 3, 4),), attributes={"axis": -1}),
    Case("Squeeze", ((2, 1, 4, 1),), {"a": i64(1, -1)}),
    Case("Squeeze", ((2, 1, 4, 1),)),
    Case("Squeeze", ((2, 1, 4, 1),), attributes={"axes": [3]}, opset=11),
    Case("Unsqueeze", ((2, 4),), {"a": i64(0, -1)}),
    Case("Unsqueeze", ((2, 4),), attributes={"axes": [1, 2]}, opset=11),
    Case("Transpose", ((2, 3, 4),), attributes={"perm": [2, 0, 1]}),
    Case("Transpose", ((2, 3, 4),)),
    Case("Expand", ((3, 1),), {"s": i64(2, 1, 4)}),
    Case("Tile", ((2, 3),), {"s": i64(2, 3)}),
    Case("Concat", ((2, 3), (2, 4)), attributes={"axis": -1}),
    Case("Concat", ((2, 3),), {"c": f32(2, 2)}, {"axis": 1}),
    Case("Split", ((2, 7),), {"s": i64(3, 4)}, {"axis": 1}, outputs="y z"),
    Case("Split", ((2, 7),), attributes={"axis": 1, "num_outputs": 2}, outputs="y z"),
    Case("Split", ((4, 6),), attributes={"axis": 0}, outputs="y z", opset=11),
    Case("Split", ((4, 6),), attributes={"axis": 0, "split": [1, 3]}, outputs="y z", opset=11),
    Case("Slice", ((6, 9),), {"s": i64(1), "e": i64(-1), "a": i64(1), "t": i64(2)}),
    Case("Slice", ((6, 9),), {"s": i64(-1), "e": i64(-(2**63)), "a": i64(1), "t": i64(-2)}),
    Case("Slice", ((6, 9),), {"s": i64(8, 4), "e": i64(2, 0), "a": i64(1, 0), "t": i64(-3, -1)}),
    Case("Slice", ((6, 9),), {"s": i64(2, 0), "e": i64(2**62, 3)}),
    Case("Slice", ((6, 9),), attributes={"starts": [1], "ends": [4], "axes": [0]}, opset=9),
    Case("Gather", ((5, 4),), {"i": i64(0, 2, -1)}),
    Case("Gather", ((5, 4),), {"i": np.int64(-2)}, {"axis": 1}),
    Case("Gather", ((5, 4),), {"i": np.array([[0, 1], [2, 3]])}, {"axis": 1}),
    Case("Gather", ((3, 2),), {"c": f32(5, 4)}, types={"x0": "int64"}, order="c x0"),
    Case("Gather", ((3,), (4, 5, 2)), {}, {"axis": 1}, types={"x0": "int64"}, order="x1 x0"),
    Case("GatherElements", ((3, 4),), {"i": np.array([[0, -1], [1, 2], [3, 3]])}, {"axis": 1}),
    Case("GatherND", ((3, 4, 2),), {"i": np.array([[0, 1], [2, -1]])}),
    Case("ScatterND", ((5, 3), (2, 3)), {"i": np.array([[1], [4]])}, order="x0 i x1"),
    Case("ScatterElements", ((3, 4), (3, 1)), {"i": np.array([[1], [0], [3]])}, {"axis": 1}, order="x0 i x1"),
    Case("Pad", IMAGE, {"p": i64(0, 0, 1, 2, 0, 0, 3, 4)}),
    Case("Pad", IMAGE, {"p": i64(0, 1, 0, 0, 0, 2, 0, -1), "v": np.float32(1.5)}),
    Case("Pad", IMAGE, {"p": i64(0, 0, 1, 2, 0, 0, 3, 4)}, {"mode": "reflect"}),
    Case("Pad", IMAGE, {"p": i64(0, 0, 1, 2, 0, 0, 3, 4)}, {"mode": "edge"}),
    Case("Pad", IMAGE, {"p": i64(1, 2), "a": i64(3)}, order="x0 p _ a"),
    Case("Pad", IMAGE, attributes={"pads": [0, 0, 1, 1, 0, 0, 1, 1], "value": 2.0}, opset=9),
    Case("DepthToSpace", ((1, 8, 2, 3),), attributes={"blocksize": 2}),
    Case("DepthToSpace", ((1, 8, 2, 3),), attributes={"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", ((1, 2, 4, 6),), attributes={"blocksize": 2}),
    Case("Cast", ((5,),), attributes={"to": 6}),
    Case("Cast", ((5,),), attributes={"to": 9}),
    Case("Trilu", ((4, 5),)),
    Case("Trilu", ((4, 5),), {"k": np.int64(-1)}, {"upper": 0}),
    Case("OneHot", ((2, 3),), {"d": np.int64(4), "v": np.array([0, 5], np.float32)}, types={"x0": "int64"}),
    Case("OneHot", ((2, 3),), {"d": i64(2), "v": f32(2)}, {"axis": 0}, types={"x0": "int64"}),
    Case("Upsample", IMAGE, {"s": np.array([1, 1, 2, 3], np.float32)}, {"mode": "nearest"}, opset=9),
    Case("Resize", IMAGE, {"s": np.array([1, 1, 2, 2], np.float32)}, {"mode": "nearest"}, opset=10),
    *[
        Case(
            "Resize",
            ((1, 2, 5, 7),),
            {"z": i64(1, 2, *goal)},
            {"mode": "nearest", "coordinate_transformation_mode": transform, "nearest_mode": rounding},
            order="x0 _ _ z",
        )
        for transform in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
        for rounding in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
        for goal in ((10, 14), (3, 11))
    ],
    *[
        Case(
            "Resize",
            ((1, 2, 5, 7),),
            {"z": i64(1, 2, *goal)},
            {"mode": mode, "coordinate_transformation_mode": transform},
            order="x0 _ _ z",
        )
        for mode in ("linear", "cubic")
        for transform in ("half_pixel", "align_corners", "pytorch_half_pixel")
        for goal in ((10, 14), (3, 11))
    ],
    Case("Resize", ((1, 2, 8),), {"s": np.array([1, 1, 2], np.float32)}, {"mode": "linear"}, order="x0 _ s"),
    Case("Resize", ((1, 2, 8, 8),), {"z": i64(4, 5)}, {"axes": [2, 3], "mode": "linear"}, order="x0 _ _ z"),
    Case("Swish", ((3, 4),), opset=24),
    Case("RMSNormalization", ((2, 3, 8),), {"s": f32(8)}, opset=23),
]
# onnxruntime has no kernel of these yet; the reference evaluator of the package onnx stands in.
NOT_IN_RUNTIME = ("Swish", "RMSNormalization")


@pytest.mark.parametrize("case", [c for c in CASES if c.op not in NOT_IN_RUNTIME], ids=str)
def test_operator_matches_onnxruntime(case: Case, tmp_path: Path) -> None:
    path, feed = _write(case, tmp_path)
    report = check_parity(import_onnx(path), path, inputs=feed, tolerance=2e-5)
    assert report.first_bad is None


@pytest.mark.parametrize("case", [c for c in CASES if c.op in NOT_IN_RUNTIME], ids=str)
def test_new_operator_matches_reference(case: Case, tmp_path: Path) -> None:
    from onnx.reference import ReferenceEvaluator

    path, feed = _write(case, tmp_path)
    expected = ReferenceEvaluator(str(path)).run(None, feed)[0]
    computed = import_onnx(path).graph(*(torch.from_numpy(v) for v in feed.values()))[0]
    np.testing.assert_allclose(computed.numpy(), expected, rtol=1e-5, atol=1e-6)


def _write(case: Case, folder: Path) -> tuple[Path, dict[str, Any]]:
    inputs = {f"x{i}": shape for i, shape in enumerate(case.shapes)}
    order = case.order or " ".join([*inputs, *case.constants])
    constants = {k: np.asarray(v) for k, v in case.constants.items() if k in order.split()}
    call = node(case.op, order, case.outputs, **case.attributes)
    inputs = {k: v for k, v in inputs.items() if k in order.split()}
    path = build(folder / "m.onnx", [call], inputs, case.outputs.split(), constants, case.opset, case.types)
    feed = {}
    for name, shape in inputs.items():
        kind = case.types.get(name, "float32")
        drawn = RANDOM.standard_normal(shape) * 2 if kind == "float32" else RANDOM.integers(0, 3, shape)
        drawn = np.tanh(drawn) if case.small else drawn
        feed[name] = (np.abs(drawn) + 0.1 if case.positive else drawn).astype(kind if kind != "bool" else np.bool_)
    return path, feed


def test_every_operator_is_exercised() -> None:
    elsewhere = {"Constant", "ConstantOfShape", "Shape", "Size", "Range", "NonZero", "CastLike"}
    missing = set(OPERATORS) - {c.op for c in CASES} - elsewhere
    assert not missing


def test_shape_arithmetic_disappears(tmp_path: Path) -> None:
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape zero", "batch"),
        node("Unsqueeze", "batch axis", "batch1"),
        node("Concat", "batch1 rest", "goal", axis=0),
        node("Reshape", "x goal", "flat"),
        node("Size", "x", "count"),
        node("Cast", "count", "countf", to=1),
        node("Div", "flat countf", "scaled"),
        node("ConstantOfShape", "goal", "zeros"),
        node("NonZero", "mask", "where"),
        node("Range", "zero_s two_s one_s", "range"),
        node("CastLike", "range x", "rangef"),
        node("Gather", "rangef zero", "first"),
        node("Add", "scaled zeros", "sum"),
        node("Add", "sum first", "y"),
    ]
    constants = {
        "zero": np.int64(0),
        "axis": i64(0),
        "rest": i64(-1),
        "mask": i64(0, 1),
        "zero_s": np.int64(0),
        "two_s": np.int64(2),
        "one_s": np.int64(1),
    }
    constants["rest"] = i64(12)
    path = build(tmp_path / "m.onnx", nodes, {"x": (2, 3, 4)}, ["y"], constants)
    imported = import_onnx(path)
    check_parity(imported, path)
    kinds = {str(n.target) for n in imported.graph.graph.nodes if n.op == "call_function"}
    assert kinds == {"aten.reshape.default", "aten.div.Tensor", "aten.add.Tensor"}


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (Case("TopK", ((2, 7), (1,)), types={"x1": "int64"}, outputs="y z"), "constant"),
        (Case("MaxPool", IMAGE, attributes={"kernel_shape": [2, 2]}, outputs="y z"), "indices"),
        (Case("Resize", IMAGE, {"s": np.array([1, 1, 2, 2], np.float32)}, {"mode": "linear"}, opset=10), "asymmetric"),
        (Case("Cast", ((5,),), attributes={"to": 10}), "float32"),
        (Case("GatherND", ((3, 4, 2),), {"i": np.array([[0], [1], [2]])}, {"batch_dims": 1}), "batch_dims"),
        (Case("LRN", IMAGE, attributes={"size": 4}), "even"),
    ],
    ids=str,
)
def test_what_cannot_be_exact_is_refused(case: Case, reason: str, tmp_path: Path) -> None:
    path, _ = _write(case, tmp_path)
    with pytest.raises(ModelError, match=reason) as caught:
        import_onnx(path)
    assert caught.value.code == "EQ-M113"
    assert caught.value.place is not None
    assert f"{case.op}_y" in caught.value.place
