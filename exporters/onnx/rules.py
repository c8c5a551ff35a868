"""What onnxruntime's CPU kernels run as integers, and the schemes made of that.

Measured with onnxruntime 1.31.1; `tests/parity` repeats the per-operation measurements. A quantize/dequantize file is
turned into integer kernels when it is loaded, by patterns: `rewrite.py` writes the ones that are recognized.
"""

from __future__ import annotations

from edgeq.errors import UsageError, unknown_name
from edgeq.graph.placement import BackendRules
from edgeq.spec import Mode, OpConfig, PerChannel, PerTensor, Precision, QuantConfig, QuantRule, QuantSpec

_INTEGER = frozenset(
    {"linear", "conv2d", "matmul", "add", "mul", "relu", "softmax", "sigmoid", "leaky_relu", "max_pool2d", "avg_pool2d"}
)

ONNX = BackendRules(
    name="onnxruntime",
    # ConvTranspose has no integer kernel (see `prepare_onnx`).
    weighted={"linear": 0, "conv2d": 0},
    # ConvInteger is slower than the float convolution.
    dynamic=frozenset({"linear"}),
    integer=_INTEGER,
    movement=frozenset({"reshape", "flatten", "transpose", "permute", "slice", "select", "unsqueeze", "squeeze"}),
    same_scale=frozenset({"max_pool2d"}),
    fixed={"softmax": (1 / 256, -128), "sigmoid": (1 / 256, -128)},
    fused=frozenset({"relu", "hardtanh"}),
    absorbing=frozenset({"add"}),
    dynamic_rows=False,
    # A convolution whose result is not quantized stays float. The kernels of linear layers write floats as fast.
    outputs=_INTEGER - {"linear", "matmul"},
    int4=frozenset({"linear", "conv2d"}),
)

_LAYERS = ("linear", "conv2d")
_PRODUCTS = (*_LAYERS, "matmul", "relu", "max_pool2d")
_BETWEEN = "8 bits cost more accuracy here than float costs time"

SCHEMES = ("dynamic", "static", "integer")


def onnx_config(scheme: str, precision: Precision) -> QuantConfig:
    """The rules of a scheme.

    `dynamic`: weights of linear layers per output channel, their inputs quantized at run time, one grid a tensor;
    convolutions stay float. `static`: linear layers and convolutions with calibrated inputs; a linear layer's result is
    float, a convolution's is quantized. `integer`: every operation that has an integer kernel, or with `products_only`
    every product, and float between them.

    Args:
        scheme: One of the three.
        precision: Widths and range estimator. Activations of other widths than 8 bits can be simulated, not written.

    Raises:
        UsageError: Another scheme.
    """
    if scheme == "weights":
        raise UsageError(
            "onnxruntime has no weight-only kernels for 8 bits: it widens such weights to float",
            code="EQ-U450",
            hint="use --scheme dynamic: the same size, and integer kernels",
        )
    if scheme not in SCHEMES:
        raise unknown_name("scheme", scheme, ("auto", *SCHEMES), code="EQ-U007")
    weight = QuantSpec(precision.weight_bits, True, PerChannel(0), "mse", narrow=True)
    activation = QuantSpec(precision.activation_bits, False, PerTensor(), precision.observer)
    if scheme == "integer" and not precision.products_only:
        return QuantConfig(OpConfig("static", weight, activation))
    mode: Mode = "dynamic" if scheme == "dynamic" else "static"
    kinds = {"dynamic": ("linear",), "static": _LAYERS, "integer": _PRODUCTS}[scheme]
    rules = [QuantRule(op=kind, mode=mode) for kind in kinds]
    if scheme == "integer":
        rules = [QuantRule(reason=_BETWEEN), *rules]
    return QuantConfig(OpConfig("float", weight, activation), tuple(rules))
