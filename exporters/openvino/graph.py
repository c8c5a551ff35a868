"""What is in an OpenVINO graph: its products, and their weights as integers and scales."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

PRODUCTS = ("MatMul", "Convolution", "GroupConvolution")
_WEIGHT = 1
_INTEGERS = ("i8", "i4")


@dataclass(frozen=True)
class Weight:
    """An integer weight: a constant, its conversion, and the multiplication by its scales.

    Args:
        constant: The constant's node.
        codes: Integers in the layout of the plan: `(out, in)` of linear layers, `(out, in / groups, ...)` of
            convolutions.
        scales: One per output channel, or per output channel and group, flat; steps of two-level scales.
        multiples: Of two-level scales: one per output channel and group, flat.
    """

    constant: Any
    codes: NDArray[np.int32]
    scales: NDArray[np.float32]
    multiples: NDArray[np.int32] | None = None


def products(model: Any) -> Iterator[tuple[Any, Weight | None]]:
    """Matrix products and convolutions of an `openvino.Model` in execution order, with their integer weights."""
    for op in model.get_ordered_ops():
        if op.get_type_name() in PRODUCTS:
            yield op, weight_of(op)


def tables(model: Any) -> list[tuple[str, Weight]]:
    """Integer tables that rows are picked from, with the scales that the picked rows are multiplied by, by name."""
    found = []
    for op in model.get_ordered_ops():
        if op.get_type_name() != "Multiply":
            continue
        picks = [_picked(op.input_value(i).get_node()) for i in range(2)]
        for codes, scales in (picks, picks[::-1]):
            if codes is None or scales is None or scales.get_type_name() != "Constant":
                continue
            table = _weight(codes, np.array(scales.data, dtype=np.float32))
            if table is not None:
                found.append((op.get_friendly_name(), table))
    return found


def _picked(node: Any) -> Any:
    """What `node` was picked from, past conversions and reshapes; None for anything else."""
    while node.get_type_name() in ("Convert", "Reshape"):
        node = node.input_value(0).get_node()
    return node.input_value(0).get_node() if node.get_type_name() == "Gather" else None


def weight_of(op: Any) -> Weight | None:
    """The integer weight of a product; None when it is float, or computed."""
    scales: NDArray[np.float32] | None = None
    node = op.input_value(_WEIGHT).get_node()
    while _type(node) not in _INTEGERS:
        kind = node.get_type_name()
        if kind not in ("Multiply", "Convert", "Reshape"):
            return None
        if kind == "Multiply":
            factor = node.input_value(1).get_node()
            if factor.get_type_name() != "Constant":
                return None
            scales = np.array(factor.data, dtype=np.float32)
        node = node.input_value(0).get_node()
    weight = None if scales is None else _weight(node, scales)
    if weight is None:
        return None
    codes = weight.codes
    # (groups, out / groups, in / groups, ...), or still before the reshape that makes it so
    if op.get_type_name() == "GroupConvolution" and codes.ndim == len(op.get_input_partial_shape(_WEIGHT)):
        codes = codes.reshape(codes.shape[0] * codes.shape[1], *codes.shape[2:])
    elif op.get_type_name() == "MatMul" and codes.ndim == 3:  # (out, groups, in / groups), reshaped behind the scales
        codes = codes.reshape(codes.shape[0], -1)
    elif op.get_type_name() == "MatMul" and not op.get_attributes()["transpose_b"]:
        codes = codes.T
    return replace(weight, codes=codes)


def _weight(integer: Any, scales: NDArray[np.float32]) -> Weight | None:
    """A constant that an integer node stands for, widened and multiplied in groups or not; None for anything else."""
    multiples: NDArray[np.int32] | None = None
    node = integer
    while node.get_type_name() != "Constant":
        if node.get_type_name() == "Multiply":
            factor = node.input_value(1).get_node()
            while factor.get_type_name() == "Convert":
                factor = factor.input_value(0).get_node()
            if multiples is not None or factor.get_type_name() != "Constant":
                return None
            multiples = np.array(factor.data, dtype=np.int32).reshape(-1)
        elif node.get_type_name() not in ("Convert", "Reshape"):
            return None
        node = node.input_value(0).get_node()
    if _type(node) not in _INTEGERS:
        return None
    codes = integers(node).reshape([int(n) for n in integer.get_output_shape(0)])
    return Weight(node, codes, scales.reshape(-1), multiples)


def _type(node: Any) -> str:
    """Of the elements that a node puts out first."""
    return str(node.get_output_element_type(0).get_type_name())


def integers(constant: Any) -> NDArray[np.int32]:
    """The values of an i8 or i4 constant; two 4-bit codes share a byte, the first in its low half."""
    shape = tuple(int(n) for n in constant.get_output_shape(0))
    if constant.get_element_type().get_type_name() == "i8":
        return np.array(constant.data, dtype=np.int32).reshape(shape)
    packed = np.asarray(constant.data).view(np.uint8).reshape(-1)
    halves = np.stack([packed & 0xF, packed >> 4], axis=1).reshape(-1)[: int(np.prod(shape))].astype(np.int32)
    result: NDArray[np.int32] = ((halves ^ 8) - 8).reshape(shape)
    return result
