"""INT4 weights in an ONNX model: half the bytes, and still integer kernels.

onnxruntime 1.31.1 has no CPU kernels for INT4 operands of static products: a layer whose weight is dequantized from
INT4 runs in float. A conversion from INT4 to INT8 between constant and layer is folded when the file is loaded, and
the layer then runs on the kernels for 8 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeq.spec import QuantPlan

OPSET = 21  # the first with INT4


def pack_weights(model: Any, plan: QuantPlan) -> int:
    """Store the planned 4-bit weights of `model` in 4 bits each.

    Args:
        model: `onnx.ModelProto` made from the plan's emission; changed.
        plan: Its plan.

    Returns:
        Number of weights packed.
    """
    import onnx
    from onnx import helper, numpy_helper

    names = {f"{t.name.replace('.', '_')}_codes" for t in plan.weights() if t.bits == 4}
    graph = model.graph
    chosen = [entry for entry in graph.initializer if entry.name in names]
    for position, entry in enumerate(chosen):
        codes = numpy_helper.to_array(entry)
        if np.abs(codes.astype(np.int32)).max(initial=0) > 7:
            continue
        wide, narrow = entry.name, f"{entry.name}_int4"
        entry.CopyFrom(helper.make_tensor(narrow, onnx.TensorProto.INT4, codes.shape, codes.reshape(-1).tolist()))
        cast = helper.make_node("Cast", [narrow], [wide], name=f"{wide}_widen", to=onnx.TensorProto.INT8)
        graph.node.insert(position, cast)
    if chosen:
        model.opset_import[0].version = OPSET
    return len(chosen)
