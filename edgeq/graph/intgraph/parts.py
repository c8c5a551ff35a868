"""Parts of operations made from integers, grids and sizes alone: what lowering a network and reading a file share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import ModelError
from edgeq.graph.intgraph.arithmetic import Dyadic, Ints, common, dyadic, require_fits
from edgeq.graph.intgraph.builder import Grid
from edgeq.graph.intgraph.graph import IntTensor, Softmax, Weights


def layer_weights(
    codes: Ints, bias: Ints, steps: NDArray[np.float64], source: IntTensor, grid: Grid, bits: int, place: str
) -> Weights:
    """Weights of a layer for the kernels, every sum proved to fit.

    Args:
        codes: `(outputs, inner)`.
        bias: `(outputs,)`, in units of `steps`.
        steps: Real value of an accumulator's step, `(outputs,)`.
        source: What the layer reads, codes of one byte.
        grid: Of its result.
        bits: Of a weight.
        place: Layer, for messages.

    Raises:
        ModelError: EQ-M501 where a sum could overflow.
    """
    folded = bias - source.zero_point * codes.sum(axis=1)
    magnitude = np.abs(codes).sum(axis=1)
    raw = max(abs(source.low), abs(source.high))
    packed = 4 if bits <= 4 else 8
    # Packed codes are summed with an offset of 8, which is taken off beforehand.
    summed = magnitude if packed == 8 else magnitude + 16 * codes.shape[1]
    require_fits(int((np.abs(folded) + summed * raw).max()), 31, place, "a sum of products")
    bound = int((np.abs(bias) + magnitude * source.reach).max())
    return Weights(codes, folded, dyadic(steps / grid.scale, bound, place), packed)


def sum_scaling(operands: Sequence[IntTensor], signs: Sequence[float], grid: Grid, place: str) -> Dyadic:
    """Factors of a weighted sum of two tensors, every intermediate proved to fit.

    Raises:
        ModelError: EQ-M501 where one could overflow.
    """
    factors = np.array([s * t.scale / grid.scale for s, t in zip(signs, operands, strict=True)])
    scaling = common(factors, max(t.reach for t in operands), place)
    reach = [(t.reach << scaling.left) * abs(int(m)) for t, m in zip(operands, scaling.multiplier, strict=True)]
    require_fits(sum(reach), 63, place, "a weighted sum")
    require_fits((sum(reach) >> 32) + (1 << (int(scaling.shift[0]) - 33)), 31, place, "its high word")
    return scaling


def softmax_of(name: str, source: IntTensor, output: IntTensor, length: int) -> Softmax:
    """A softmax of rows of `length` codes.

    Raises:
        ModelError: EQ-M500 for steps that its kernel does not cover, EQ-M501 where a sum could overflow.
    """
    require_fits(length * 65535, 32, name, "a sum of powers")
    octave = source.scale * math.log2(math.e) * 256
    slope_shift = min(31, 15 - math.frexp(octave)[1])
    fraction, exponent = math.frexp(1.0 / output.scale)
    gain, decimal = min(round(math.ldexp(fraction, 31)), (1 << 31) - 1), 31 - exponent
    left = min(14, 31 - decimal)
    if slope_shift < 1 or decimal + left < 18 or left < 0:
        steps = f"steps of {source.scale:g} and {output.scale:g} are outside of what its kernel covers"
        message, hint = f"softmax {name} cannot run in integers: {steps}", "export for a target with a float unit"
        raise ModelError(message, code="EQ-M500", place=name, hint=hint)
    slope, shift = min(round(math.ldexp(octave, slope_shift)), (1 << 15) - 1), 31 + decimal + left
    rows = source.size // length
    return Softmax(name, (source.name,), output.name, rows, length, slope, slope_shift, gain, left, shift)
