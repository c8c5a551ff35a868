"""Which width each layer gets within the budgets, and the whole front of cost against expected loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgeq.errors import UsageError
from edgeq.quant.allocation import Choice, Group, ilp
from edgeq.search.problem import FLOAT, Layer
from edgeq.search.table import Cell, CostTable

POINTS = 24
"""Budgets that the front is swept over."""

INFEASIBLE = "EQ-U242"


@dataclass(frozen=True)
class Point:
    """Widths, and what they are expected to cost.

    Args:
        bits: Width by layer.
        cost: On the device, in the search's unit.
        bytes: Of the file.
        loss: Summed loss of the layers alone.
    """

    bits: Mapping[str, int]
    cost: float
    bytes: float
    loss: float


def _between(low: float, high: float) -> list[float]:
    """Budgets from one end to the other; the first a little above what it must allow, for rounding."""
    return [low + (high - low) * max(step, 1e-9) / POINTS for step in range(POINTS + 1)]


@dataclass(frozen=True)
class Tradeoff:
    """Everything that an allocation depends on.

    Args:
        layers: What is decided about.
        table: What layers cost on the device.
        overhead: Bytes of the file beside the weights of the layers.
        losses: Of the outputs with one layer alone at a width; float has none.
    """

    layers: Sequence[Layer]
    table: CostTable
    overhead: float
    losses: Mapping[Cell, float]

    def loss(self, name: str, bits: int) -> float:
        """Loss of the outputs with one layer alone at a width."""
        return 0.0 if bits == FLOAT else self.losses[name, bits]

    def point(self, bits: Mapping[str, int]) -> Point:
        """What widths are expected to cost."""
        size = self.overhead + math.fsum(layer.bytes[bits[layer.name]] for layer in self.layers)
        loss = math.fsum(self.loss(layer.name, bits[layer.name]) for layer in self.layers)
        return Point(bits, self.table.cost(bits), size, loss)

    def best(self, cost: float | None, size: float | None) -> Point | None:
        """The least expected loss within budgets; None where nothing fits.

        Args:
            cost: Largest cost; None without limit.
            size: Largest bytes; None without limit.
        """
        return self._solve(self._loss_of, cost, size)

    def cheapest(self, size: float | None) -> Point | None:
        """The least cost within a budget of bytes; of equal ones any. None where nothing fits."""
        return self._solve(self._cost_of, None, size)

    def smallest(self) -> Point:
        """The fewest bytes."""
        return self.point({layer.name: min(layer.bits, key=lambda b: layer.bytes[b]) for layer in self.layers})

    def front(self, cost: float | None, size: float | None) -> list[Point]:
        """Points of least expected loss over a range of costs within a size, or of sizes where no cost is limited.

        From the cheapest on, each expected to lose less than those before.

        Args:
            cost: The budget; only whether there is one counts.
            size: Largest bytes; None without limit.
        """
        if cost is None:
            low, high = self.smallest(), self.best(None, None)
            budgets = [] if high is None else _between(low.bytes, high.bytes)
            points = [self.best(None, budget) for budget in budgets]
        else:
            first, last = self.cheapest(size), self.best(None, size)
            budgets = [] if first is None or last is None else _between(first.cost, last.cost)
            points = [self.best(budget, size) for budget in budgets]
        found: list[Point] = []
        for point in points:
            if point is not None and (not found or point.loss < found[-1].loss):
                found.append(point)
        return found

    def _loss_of(self, layer: Layer, bits: int) -> float:
        return self.loss(layer.name, bits)

    def _cost_of(self, layer: Layer, bits: int) -> float:
        return self.table.layer(layer.name, bits)

    def _solve(self, score: Callable[[Layer, int], float], cost: float | None, size: float | None) -> Point | None:
        """The integer program; costs are counted from the least of each layer, so that none is negative."""
        choices, least_cost, least_size = [], self.table.base, self.overhead
        for layer in self.layers:
            costs = {b: self._cost_of(layer, b) for b in layer.bits}
            low, small = min(costs.values()), min(layer.bytes[b] for b in layer.bits)
            least_cost += low
            least_size += small
            choices += [
                Choice(layer.name, b, costs[b] - low, score(layer, b), (float(layer.bytes[b] - small),))
                for b in layer.bits
            ]
        most_cost = math.fsum(c.cost for c in choices) if cost is None else cost - least_cost
        most_size = math.fsum(c.further[0] for c in choices) if size is None else size - least_size
        try:
            found = ilp(choices, most_cost, further=(most_size,), ties=self._ties())
        except UsageError as error:
            if error.code != INFEASIBLE:
                raise
            return None
        return self.point(found.bits)

    def _ties(self) -> list[Group]:
        tied: dict[str, list[str]] = {}
        for layer in self.layers:
            if layer.tie:
                tied.setdefault(layer.tie, []).append(layer.name)
        return [Group(tuple(names)) for names in tied.values() if len(names) > 1]
