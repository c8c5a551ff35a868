"""From a float graph to the integers of a microcontroller: transform, calibrate, quantize, lower."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from edgeq.graph.intgraph.graph import IntGraph
from edgeq.graph.intgraph.lower import lower
from edgeq.graph.legalize import Legalized, legalize, observed
from edgeq.graph.solve import Rounding
from edgeq.graph.transforms.transformer import Batches
from edgeq.quant.calibrator import calibrate
from edgeq.recipe import Recipe, place_integer, transform_graph


def integer_network(
    graph: fx.GraphModule, name: str, batches: Batches, recipe: Recipe, seed: int = 0
) -> tuple[IntGraph, Legalized]:
    """Quantize a network so that no float operation is left, and lower it.

    Args:
        graph: Canonical float graph, captured for one sample; not changed.
        name: Of the model.
        batches: Calibration inputs, as often as they are asked for.
        recipe: Transform, rounder, widths and range estimator.
        seed: Of the transform's rotations.

    Returns:
        The integers, and the quantized graph with its plan and its simulation.

    Raises:
        ModelError: EQ-M500 to EQ-M502 name the operation that has no kernel or could overflow.
    """
    transformed, applied = transform_graph(recipe.transform, graph, batches, seed)
    config, placement, rules = place_integer(transformed, replace(recipe.precision, products_only=False))
    statistics = calibrate(transformed, observed(transformed, placement), batches())
    rounding = Rounding(recipe.rounding, lambda: list(batches()))
    legalized = legalize(transformed, placement, config, rules, statistics, "integer", rounding)
    notes = tuple(str(entry) for entry in applied)
    legalized = replace(legalized, plan=replace(legalized.plan, notes=notes))
    return lower(legalized, name), legalized
