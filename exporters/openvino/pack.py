"""INT4 weights in an OpenVINO model: two codes a byte, widened to INT8 when the model is compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.exporters.openvino.graph import Weight, products, tables
from edgeq.spec import QuantPlan, codes_hash


def pack_weights(model: Any, plan: QuantPlan) -> list[Any]:
    """Store the planned 4-bit weights of `model` in 4 bits.

    With a scale per channel an i4 constant and its conversion to i8 stand where the i8 constant stood: compiling folds
    the two, so the kernels and every result are those of INT8. Converted to float at once, the same constant would end
    in a float kernel. On groups that is what is wanted: the runtime's kernel reads the 4 bits, and scales them there.

    Args:
        model: The `openvino.Model`; changed in place.
        plan: Its plan.

    Returns:
        The new constants, which share their memory: keep them until the model is saved.
    """
    four = {t.codes_sha256 for t in plan.weights() if t.bits == 4}
    kept: list[Any] = []
    for op, weight in list(products(model)):
        if weight is None or codes_hash(weight.codes) not in four:
            continue
        matrix = op.get_type_name() == "MatMul"
        if matrix and weight.constant.get_output_partial_shape(0).rank.get_length() > weight.codes.ndim:
            _scale_groups(op, weight, kept)
        elif weight.constant.get_element_type().get_type_name() == "i8":
            _widen_later(weight.constant, kept)
    for _, table in tables(model):
        if codes_hash(table.codes) in four and table.constant.get_element_type().get_type_name() == "i8":
            _widen_later(table.constant, kept)
    model.validate_nodes_and_infer_types()
    return kept


def _widen_later(old: Any, kept: list[Any]) -> None:
    """Let the readers of an i8 constant read 4 bits that are widened when the model is compiled."""
    from openvino import opset13

    widened = opset13.convert(_constant(np.asarray(old.data, dtype=np.int8), kept), "i8")
    for target in old.output(0).get_target_inputs():
        target.replace_source_output(widened.output(0))


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
