"""INT4 weights in an OpenVINO model: two codes a byte, widened to INT8 when the model is compiled."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeq.exporters.openvino.graph import Weight, products, tables
from edgeq.spec import QuantPlan, codes_hash

_Multiplied: TypeAlias = tuple[str, NDArray[np.int32]]
"""Of a weight on two-level scales: the hash of its codes, and the multiples of its groups."""


def pack_weights(model: Any, plan: QuantPlan) -> list[Any]:
    """Store the planned 4-bit weights of `model` in 4 bits.

    With a scale per channel an i4 constant and its conversion to i8 stand where the i8 constant stood: compiling folds
    the two, so the kernels and every result are those of INT8. Converted to float at once, the same constant would end
    in a float kernel. Two-level scales come in as 8-bit codes on the step of their row: the i4 constant is multiplied
    by the multiples of its groups, and compiling folds that as well. On groups with scales of their own a float kernel
    is what is wanted: it reads the 4 bits, and scales them there.

    Args:
        model: The `openvino.Model`; changed in place.
        plan: Its plan.

    Returns:
        The new constants, which share their memory: keep them until the model is saved.
    """
    four = {t.codes_sha256 for t in plan.weights() if t.bits == 4}
    multiplied = [(t.codes_sha256, m) for t in plan.weights() if (m := t.uniform.multiples) is not None]
    kept: list[Any] = []
    for op, weight in [(op, weight) for op, weight in products(model) if weight is not None]:
        matrix = op.get_type_name() == "MatMul"
        if matrix and weight.constant.get_output_partial_shape(0).rank.get_length() > weight.codes.ndim:
            if codes_hash(weight.codes) in four:
                _scale_groups(op, weight, kept)
        else:
            _widen_later(weight, four, multiplied, kept)
    for _, table in tables(model):
        _widen_later(table, four, multiplied, kept)
    model.validate_nodes_and_infer_types()
    return kept


def _widen_later(weight: Weight, four: Set[str], multiplied: Sequence[_Multiplied], kept: list[Any]) -> None:
    """Let the readers of an i8 constant read 4 bits that are widened when the model is compiled, if they can be."""
    from openvino import opset13

    old = weight.constant
    if old.get_element_type().get_type_name() != "i8":
        return
    if (found := _in_groups(weight.codes, multiplied)) is not None:
        # A product of i8 is not folded, nor is one with bytes that are converted at once: then it is taken for scales.
        codes, multiples = found
        factors = opset13.constant(multiples.reshape(-1, 1).astype(np.uint8))
        factors = opset13.convert(opset13.convert(factors, "i16"), "i32")
        wide = opset13.multiply(opset13.convert(_constant(codes.reshape(multiples.size, -1), kept), "i32"), factors)
        shape = np.array(list(old.get_output_shape(0)), np.int64)
        widened = opset13.reshape(opset13.convert(wide, "i8"), opset13.constant(shape), False)
    elif codes_hash(weight.codes) in four:
        widened = opset13.convert(_constant(np.asarray(old.data, dtype=np.int8), kept), "i8")
    else:
        return
    for target in old.output(0).get_target_inputs():
        target.replace_source_output(widened.output(0))


def _in_groups(
    codes: NDArray[np.int32], multiplied: Sequence[_Multiplied]
) -> tuple[NDArray[np.int8], NDArray[np.int32]] | None:
    """Narrow codes `(rows, groups, size)` and the multiples `(rows, groups)` whose product 8-bit codes are, if any."""
    for digest, multiples in multiplied:
        if len(codes) != len(multiples) or codes[0].size % multiples.shape[1]:
            continue
        narrow, rest = np.divmod(codes.reshape(*multiples.shape, -1), multiples[..., None])
        if not rest.any() and codes_hash(narrow.reshape(codes.shape)) == digest:
            return narrow.astype(np.int8), multiples
    return None


def _scale_groups(op: Any, weight: Weight, kept: list[Any]) -> None:
    """Let a matrix product read 4 bits, times the scales of their groups, in the form that its kernel takes.

    The converter writes more around it: shapes that it computes, transpositions.
    """
    from openvino import opset13

    rows, columns = weight.codes.shape
    scales = opset13.constant(weight.scales.reshape(rows, -1, 1))
    codes = weight.codes.astype(np.int8).reshape(rows, scales.get_output_shape(0)[1], -1)
    reals = opset13.multiply(opset13.convert(_constant(codes, kept), "f32"), scales)
    matrix = opset13.reshape(reals, opset13.constant(np.array([rows, columns], np.int64)), False)
    op.input(1).replace_source_output(matrix.output(0))


def _constant(codes: NDArray[np.int8], kept: list[Any]) -> Any:
    """An i4 constant."""
    import openvino

    halves = codes.reshape(-1).view(np.uint8) & np.uint8(0xF)
    pairs = np.append(halves, np.zeros(halves.size % 2, np.uint8)).reshape(-1, 2)
    tensor = openvino.Tensor(openvino.Type.i4, openvino.Shape(list(codes.shape)))
    tensor.data.view(np.uint8).reshape(-1)[:] = pairs[:, 0] | (pairs[:, 1] << np.uint8(4))
    constant = openvino.op.Constant(tensor)
    kept += [tensor, constant]
    return constant
