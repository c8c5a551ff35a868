"""INT4 weights in an OpenVINO model: two codes a byte, widened to INT8 when the model is compiled."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeq.exporters.openvino.graph import products
from edgeq.spec import QuantPlan, codes_hash


def pack_weights(model: Any, plan: QuantPlan) -> list[Any]:
    """Store the planned 4-bit weights of `model` in 4 bits.

    An i4 constant and its conversion to i8 stand where the i8 constant stood: compiling folds the two, so the kernels
    and every result are those of INT8. Converted to float at once, the same constant would end in a float kernel.

    Args:
        model: The `openvino.Model`; changed in place.
        plan: Its plan.

    Returns:
        The new constants, which share their memory: keep them until the model is saved.
    """
    import openvino
    from openvino import opset13

    four = {t.codes_sha256 for t in plan.weights() if t.bits == 4}
    kept = []
    for _, weight in list(products(model)):
        if weight is None or codes_hash(weight.codes) not in four:
            continue
        old = weight.constant
        if old.get_element_type() != openvino.Type.i8:
            continue
        codes = np.asarray(old.data, dtype=np.int8).reshape(-1).view(np.uint8) & np.uint8(0xF)
        pairs = np.append(codes, np.zeros(codes.size % 2, np.uint8)).reshape(-1, 2)
        tensor = openvino.Tensor(openvino.Type.i4, openvino.Shape(list(old.get_output_shape(0))))
        tensor.data.view(np.uint8).reshape(-1)[:] = pairs[:, 0] | (pairs[:, 1] << np.uint8(4))
        constant = openvino.op.Constant(tensor)
        widened = opset13.convert(constant, "i8")
        for target in old.output(0).get_target_inputs():
            target.replace_source_output(widened.output(0))
        kept += [tensor, constant]
    return kept
