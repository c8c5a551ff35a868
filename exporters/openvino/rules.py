"""What OpenVINO's CPU plugin runs as integers, and the schemes made of that.

Measured with openvino 2026.4.1; `tests/parity` repeats the per-operation measurements. A kernel reads codes and writes
float: what follows it (sums, GELU, softmax, normalization) is float, fused into the kernel where the plugin can.
"""

from __future__ import annotations

from dataclasses import replace

from edgeq.errors import unknown_name
from edgeq.graph.placement import TABLE, BackendRules
from edgeq.spec import Mode, OpConfig, PerChannel, PerGroup, PerTensor, Precision, QuantConfig, QuantRule, QuantSpec

DYNAMIC_GROUP = 64
"""Inputs that share a scale in the scheme `dynamic`; an option of the runtime, which the file carries."""

WEIGHT_GROUP = 64
"""Weights of a row that share a scale in linear layers, where 16 levels have to be enough."""

LEAST_TWO_LEVEL = 2**17
"""Values of a weight from which on groups are worth it where kernels know scales of rows: they take seven operations in
the file, 2.3 kB whatever the size. `vit_nano`, all of whose weights are smaller, has better uses for its bytes."""

OPENVINO = BackendRules(
    name="OpenVINO",
    weighted={"linear": 0, "conv2d": 0, "embedding": 0},
    dynamic=frozenset({"linear"}),
    integer=frozenset({"linear", "conv2d", "matmul", "relu", "hardtanh"}),
    movement=frozenset({"reshape", "flatten", "transpose", "permute", "slice", "select", "unsqueeze", "squeeze"})
    | {"max_pool2d"},  # the largest code is the code of the largest value
    same_scale=frozenset(),
    fixed={},
    fused=frozenset({"relu", "hardtanh"}),
    symmetric={"matmul": (0, 1)},  # with another zero point, a product of two activations is one of floats
    outputs=frozenset(),
    # A maximum of what an integer convolution wrote, rounded at once, is wrong by up to half its range; rounding first
    # gives the same codes.
    early=frozenset({"amax", "amin"}),
    dynamic_group=DYNAMIC_GROUP,
    int4=frozenset({"linear", "conv2d"}),
    least_two_level=LEAST_TWO_LEVEL,
)

SCHEMES = ("weights", "dynamic", "static", "integer")
_LAYERS = ("linear", "conv2d", "relu", "hardtanh")
_BETWEEN = "OpenVINO's kernels between products are float"


def openvino_config(scheme: str, precision: Precision) -> QuantConfig:
    """The rules of a scheme.

    `weights`: weights of linear layers and convolutions in integers, arithmetic in float. `dynamic`: the same, and the
    inputs of linear layers are quantized at run time. `static`: linear layers and convolutions read calibrated codes.
    `integer`: the products of two activations inside attention do, too. Weights of 4 bits in linear layers have a scale
    for each group of a row, two-level ones in `static` and `integer`, whose kernels know scales of rows.

    Args:
        scheme: One of `SCHEMES`.
        precision: Widths and range estimator. The kernels are those of 8-bit activations and of weights of 4 and 8
            bits; other widths can be simulated.

    Raises:
        UsageError: Another scheme.
    """
    if scheme not in SCHEMES:
        raise unknown_name("scheme", scheme, ("auto", *SCHEMES), code="EQ-U007")
    weight = QuantSpec(precision.weight_bits, True, PerChannel(0), "mse", narrow=True)
    activation = QuantSpec(precision.activation_bits, False, PerTensor(), precision.observer)
    modes: dict[str, Mode] = dict.fromkeys(_LAYERS, "static")
    if scheme == "integer":
        modes["matmul"] = "static"
    elif scheme != "static":
        modes = {"conv2d": "weights", "linear": "dynamic" if scheme == "dynamic" else "weights"}
    modes[TABLE] = "weights"
    rules = [QuantRule(reason=_BETWEEN), *(QuantRule(op=kind, mode=mode) for kind, mode in modes.items())]
    if precision.weight_bits == 4:
        groups = PerGroup(WEIGHT_GROUP, two_level=scheme in ("static", "integer"))
        rules.append(QuantRule(op="linear", weight=replace(weight, granularity=groups)))
    return QuantConfig(OpConfig("float", weight, activation), tuple(rules))
