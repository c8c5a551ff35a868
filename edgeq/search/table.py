"""The cost table: what each layer costs at each width on the device, from files that were measured whole.

A device that counts every layer exactly gives the table from one file a width. Elsewhere a runtime fuses, converts
between integers and float where their borders are, and tells no times of single layers that add up to the whole;
there the table is a least-squares fit to whole files: all layers quantized, none, and in between one group of equal
layers freed at a time. HAWQ-V3 (arXiv 2011.10680) and OHQ (arXiv 2309.01945) time single layers instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeq.search.problem import FLOAT, Layer, Measured, Variant

NOISE = 0.005
"""Least share of a cost by which two measurements of a file differ."""

UNSURE = 0.5
"""Share by which a layer's cost may differ from what its multiplications, or another model's table, let expect."""

NEAR = 3.0
"""How much more a file near the budget counts than those far from it."""

Cell = tuple[str, int]
"""A layer and a width."""


@dataclass(frozen=True)
class CostTable:
    """Costs that add up.

    Args:
        reference: Width by layer of the file that everything is counted from.
        base: Cost of that file.
        extra: What a layer costs more at another width; 0 where nothing is said.
        exact: Whether every layer was counted by itself.
    """

    reference: Mapping[str, int]
    base: float
    extra: Mapping[Cell, float]
    exact: bool = False

    def layer(self, name: str, bits: int) -> float:
        """What a layer costs at a width beyond its reference."""
        return self.extra.get((name, bits), 0.0)

    def cost(self, bits: Mapping[str, int]) -> float:
        """Expected cost of a file with these widths."""
        return self.base + math.fsum(self.layer(*cell) for cell in bits.items())


def counted_table(reference: Variant, files: Sequence[tuple[Variant, Measured]]) -> CostTable:
    """The table of a device that counts every layer exactly.

    Args:
        reference: The variant that everything is counted from, one of `files`.
        files: Variants with `Measured.layers`, by which every width of every layer is seen.
    """
    base = next(found for variant, found in files if variant.key == reference.key)
    extra = {}
    for variant, found in files:
        for name, bits in variant.bits.items():
            if bits != reference.bits[name] and name in found.layers:
                extra[name, bits] = found.layers[name] - base.layers[name]
    return CostTable(reference.bits, base.cost, extra, exact=True)


def fitted_table(
    layers: Sequence[Layer],
    reference: Variant,
    files: Sequence[tuple[Variant, Measured]],
    known: Mapping[tuple[str, int], float],
) -> CostTable:
    """The table that explains whole files best.

    One unknown for the reference and one for each shape and width; layers of a shape cost the same. What is known
    beforehand, or else the share of the multiplications in the difference of two uniform files, holds where no file
    says otherwise.

    Args:
        layers: All that can be chosen.
        reference: The variant that everything is counted from, one of `files`.
        files: Measured variants of the same scheme, and the float file.
        known: Extra cost of a layer by shape and width, from an earlier search on this device.
    """
    shapes = sorted({(layer.shape, b) for layer in layers for b in layer.bits if b != reference.bits[layer.name]})
    column = {cell: 1 + i for i, cell in enumerate(shapes)}
    base = next(found.cost for variant, found in files if variant.key == reference.key)
    rows, wanted = [], []
    for variant, found in files:
        row = np.zeros(1 + len(shapes))
        row[0] = 1
        for layer in layers:
            bits = variant.bits.get(layer.name, FLOAT)
            if bits != reference.bits[layer.name]:
                row[column[layer.shape, bits]] += 1
        spread = max(NOISE * found.cost, (found.high - found.low) / 4)
        spread /= NEAR if variant.kind == "mixed" else 1
        rows.append(row / spread)
        wanted.append(found.cost / spread)
    for (shape, bits), expected in _expected(layers, reference, files, known).items():
        row = np.zeros(1 + len(shapes))
        spread = UNSURE * max(abs(expected), NOISE * base)
        row[column[shape, bits]] = 1 / spread
        rows.append(row)
        wanted.append(expected / spread)
    solved = np.linalg.lstsq(np.array(rows), np.array(wanted), rcond=None)[0]
    extra = {(n.name, b): float(solved[column[n.shape, b]]) for n in layers for b in n.bits if (n.shape, b) in column}
    return CostTable(reference.bits, float(solved[0]), extra)


def _expected(
    layers: Sequence[Layer],
    reference: Variant,
    files: Sequence[tuple[Variant, Measured]],
    known: Mapping[tuple[str, int], float],
) -> dict[tuple[str, int], float]:
    """Extra cost of a layer of each shape and width before single groups are looked at."""
    base = next(found.cost for variant, found in files if variant.key == reference.key)
    whole = {}
    for variant, found in files:
        widths = {variant.bits.get(n.name, FLOAT) for n in layers} - set(reference.bits.values())
        if len(widths) == 1 and variant.kind == "uniform":
            whole[widths.pop()] = found.cost - base
    expected = {}
    for layer in layers:
        for bits in layer.bits:
            if bits == reference.bits[layer.name]:
                continue
            offered = sum(n.macs for n in layers if bits in n.bits and bits != reference.bits[n.name])
            share = whole.get(bits, 0.0) * layer.macs / max(offered, 1)
            expected[layer.shape, bits] = known.get((layer.shape, bits), share)
    return expected
