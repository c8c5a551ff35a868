"""The everything-integer form of a network: no float operation at all, as a target without an FPU runs it.

Products read 8 bits (or fewer) and everything between them is held in 16: residual sums, logits, what norms, softmax
and GELU read and write. Inside one operation, accumulators are wide: an RMS norm sums squares in 32 bits and more, a
softmax its exponentials.
"""

from __future__ import annotations

from collections.abc import Set

from edgeq.graph.placement import BackendRules
from edgeq.spec import OpConfig, PerChannel, PerTensor, Precision, QuantConfig, QuantRule, QuantSpec

WIDE_BITS = 16
"""Width of everything that no product reads."""

_PRODUCTS = ("linear", "conv2d", "matmul")
_MOVES = frozenset({"reshape", "flatten", "transpose", "permute", "slice", "select", "unsqueeze", "squeeze", "cat"})
_SAME_SCALE = frozenset({"max_pool2d", "upsample_nearest2d"})


def integer_rules(kinds: Set[str]) -> BackendRules:
    """A backend that has an integer kernel for operations of `kinds`, with its own grid for every result."""
    return BackendRules(
        name="integer arithmetic",
        weighted={"linear": 0, "conv2d": 0},
        dynamic=frozenset(),
        integer=frozenset(kinds),
        movement=_MOVES,
        same_scale=_SAME_SCALE,
        fixed={},
        fused=frozenset({"relu", "hardtanh"}),
        int4=frozenset({"linear", "conv2d"}),
    )


def integer_config(precision: Precision) -> QuantConfig:
    """Products at the widths of `precision`, everything between at `WIDE_BITS`."""
    weight = QuantSpec(precision.weight_bits, True, PerChannel(0), "mse", narrow=True)
    narrow = QuantSpec(precision.activation_bits, False, PerTensor(), precision.observer)
    wide = QuantSpec(WIDE_BITS, False, PerTensor(), "minmax")
    rules = tuple(QuantRule(op=kind, activation=narrow, output=wide) for kind in _PRODUCTS)
    return QuantConfig(OpConfig("static", weight, wide), rules)
