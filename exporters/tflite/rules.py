"""What TFLite's kernels (builtin and XNNPACK) run as integers, and the schemes made of that.

Measured with ai-edge-litert 2.3.0 and litert-torch 0.10.0; `tests/parity` repeats the per-operation measurements.
"""

from __future__ import annotations

from edgeq.errors import UsageError, unknown_name
from edgeq.graph.placement import BackendRules
from edgeq.spec import Mode, OpConfig, PerChannel, PerTensor, QuantConfig, QuantRule, QuantSpec

TFLITE = BackendRules(
    name="TFLite",
    # Transposed convolutions are absent: the converter leaves them float whatever Q/DQ says (see rewrite.py).
    weighted={"linear": 0, "conv2d": 0},
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
)

SCHEMES = ("dynamic", "static", "integer")


def tflite_config(scheme: str, observer: str) -> QuantConfig:
    """The rules of a scheme.

    `dynamic`: weights of linear layers and convolutions int8 per output channel, their inputs quantized at run time.
    `static`: the same layers with calibrated int8 inputs and outputs, and GELU, a table lookup between two of them;
    attention, softmax, normalization and the residual stream in float. `integer`: every operation that has an integer
    kernel.

    Args:
        scheme: One of the three.
        observer: Range estimator of activations.

    Raises:
        UsageError: Another scheme.
    """
    weight = QuantSpec(8, symmetric=True, granularity=PerChannel(0), observer="mse", narrow=True)
    activation = QuantSpec(8, symmetric=False, granularity=PerTensor(), observer=observer)
    if scheme == "weights":
        raise UsageError(
            "TFLite has no weight-only kernels: the converter turns such weights back into float",
            code="EQ-U011",
            hint="use --scheme dynamic: the same size, and integer kernels",
        )
    if scheme not in SCHEMES:
        raise unknown_name("scheme", scheme, ("auto", *SCHEMES), code="EQ-U007")
    if scheme == "integer":
        return QuantConfig(OpConfig("static", weight, activation))
    mode: Mode = "dynamic" if scheme == "dynamic" else "static"
    base = OpConfig("float", weight, activation)
    layers = ("linear", "conv2d") if scheme == "dynamic" else ("linear", "conv2d", "gelu")
    return QuantConfig(base, tuple(QuantRule(op=kind, mode=mode) for kind in layers))
