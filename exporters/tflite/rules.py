"""What TFLite's kernels (builtin and XNNPACK) run as integers, and the schemes made of that.

Measured with ai-edge-litert 2.3.0 and litert-torch 0.10.0; `tests/parity` repeats the per-operation measurements.
"""

from __future__ import annotations

from dataclasses import replace

from edgeq.errors import UsageError, unknown_name
from edgeq.graph.placement import TABLE, BackendRules
from edgeq.spec import Mode, OpConfig, PerChannel, PerGroup, PerTensor, Precision, QuantConfig, QuantRule, QuantSpec

TFLITE = BackendRules(
    name="TFLite",
    # Transposed convolutions are absent: the converter leaves them float whatever Q/DQ says (see rewrite.py).
    weighted={"linear": 0, "conv2d": 0, "embedding": 0},
    dynamic=frozenset({"linear", "conv2d"}),
    integer=frozenset(
        {"linear", "conv2d", "matmul", "add", "mul", "relu", "hardtanh", "gelu", "softmax", "sigmoid", "tanh", "mean"}
        | {"max_pool2d", "avg_pool2d", "upsample_bilinear2d", "upsample_nearest2d"}
    ),
    movement=frozenset(
        {"reshape", "flatten", "transpose", "permute", "slice", "select", "unsqueeze", "squeeze", "cat"}
    ),
    # A narrower output range than the input's would clip: the converter requantizes the INPUT to the output's grid.
    same_scale=frozenset({"max_pool2d", "avg_pool2d", "upsample_bilinear2d", "upsample_nearest2d"}),
    fixed={"softmax": (1 / 256, -128), "sigmoid": (1 / 256, -128), "tanh": (1 / 128, 0)},
    fused=frozenset({"relu", "hardtanh"}),
    absorbing=frozenset({"add"}),
    # XNNPACK declines a batch matmul whose right operand has another zero point: 20 times slower, and a partition more.
    symmetric={"matmul": (1,)},
    # XNNPACK has no INT4 convolution, and the builtin kernel is three times slower than its INT8 one.
    int4=frozenset({"linear"}),
    # The converter quantizes such a tensor once, before the moves; of two grids it would keep one.
    moves_together=True,
)

_PRODUCTS = (
    *("linear", "conv2d", "matmul", "relu", "hardtanh"),
    *("max_pool2d", "avg_pool2d", "upsample_bilinear2d", "upsample_nearest2d"),
)
_BETWEEN = "8 bits cost more accuracy here than float costs time"

SCHEMES = ("dynamic", "static", "integer")

WEIGHT_GROUP = 64
"""Weights of a row that share a scale where 16 levels have to be enough. Kernels that read groups want floats beside
them, which they quantize at run time: there are none in the other schemes. XNNPACK takes multiples of 32."""


def tflite_config(scheme: str, precision: Precision) -> QuantConfig:
    """The rules of a scheme.

    `dynamic`: weights of linear layers and convolutions per output channel, those of 4 bits in linear layers for each
    group of a row; their inputs quantized at run time.
    `static`: the same layers with calibrated inputs and outputs, and GELU, a table lookup between two of them (not with
    `products_only`: balanced channels need it in float); attention, softmax, normalization and the residual stream in
    float. `integer`: every operation that has an integer kernel, or with `products_only` every product, and float
    between them.

    Args:
        scheme: One of the three.
        precision: Widths and range estimator. The kernels are those of 8-bit activations and of weights of 4 and 8
            bits; other widths can be simulated. With fewer activation bits, what no product reads keeps 8.

    Raises:
        UsageError: Another scheme.
    """
    if scheme == "weights":
        raise UsageError(
            "TFLite has no weight-only kernels: the converter turns such weights back into float",
            code="EQ-U011",
            hint="use --scheme dynamic: the same size, and integer kernels",
        )
    if scheme not in SCHEMES:
        raise unknown_name("scheme", scheme, ("auto", *SCHEMES), code="EQ-U007")
    weight = QuantSpec(precision.weight_bits, True, PerChannel(0), "mse", narrow=True)
    activation = QuantSpec(precision.activation_bits, False, PerTensor(), precision.observer)
    table_rule = QuantRule(op=TABLE, mode="weights")
    if scheme == "integer" and not precision.products_only:
        return QuantConfig(OpConfig("static", weight, activation), (table_rule,))
    mode: Mode = "dynamic" if scheme == "dynamic" else "static"
    layers = ("linear", "conv2d")
    table = layers if precision.products_only else (*layers, "gelu")
    kinds = {"dynamic": layers, "static": table, "integer": _PRODUCTS}[scheme]
    # Papers that say W4A4 quantize what products read; their results have a grid as well in an integer kernel.
    result = replace(activation, bits=max(8, precision.activation_bits))
    rules = [QuantRule(op=kind, mode=mode, output=result) for kind in kinds]
    if scheme == "integer":
        rules = [QuantRule(reason=_BETWEEN), *rules]
    if scheme == "dynamic" and precision.weight_bits == 4:
        grouped = replace(weight, granularity=PerGroup(WEIGHT_GROUP, half=True))
        rules.append(QuantRule(op="linear", weight=grouped))
    return QuantConfig(OpConfig("float", weight, activation), (*rules, table_rule))
