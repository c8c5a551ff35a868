"""Choices, ties and results of bit allocation, and the form that every solver works on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgeq.errors import UsageError, unknown_name


@dataclass(frozen=True)
class Choice:
    """One way to store one tensor.

    Args:
        name: Tensor or layer.
        bits: Width, 2 to 32 (32 stands for float).
        cost: In any unit that adds up; not negative.
        score: Expected increase of the loss, lower is better; may be negative where a measurement is.
        further: Costs of other kinds, one for each further budget (`ilp`); not negative.

    Raises:
        UsageError: A figure is not finite or out of bounds.
    """

    name: str
    bits: int
    cost: float
    score: float
    further: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.name or not 2 <= self.bits <= 32:
            raise UsageError(f"not a choice: {self.bits} bits for {self.name!r}", code="EQ-U240")
        costs = (self.cost, *self.further)
        if not (math.isfinite(self.score) and all(math.isfinite(c) and c >= 0 for c in costs)):
            raise UsageError(
                f"{self.name} at {self.bits} bits: cost {' and '.join(map(str, costs))} and score {self.score} must "
                "be finite, the cost not negative",
                code="EQ-U240",
                hint="measure the sensitivity of this tensor again",
            )


@dataclass(frozen=True)
class Group:
    """Names that must share their bits: the operands of a residual sum or a concatenation.

    Args:
        names: Two or more; groups that share a name act as one.
    """

    names: tuple[str, ...]


@dataclass(frozen=True)
class Allocation:
    """Widths and what they add up to.

    Args:
        bits: Width by name, tied names together.
        score: Sum of the scores (plus pairwise terms in `bisect`).
        cost: Sum of the costs.
        solver: `ilp`, `greedy` or `bisect`.
        bound: No allocation within the budget scores below this; None where unknown.
        evaluations: Networks that were tried (`bisect`).
    """

    bits: Mapping[str, int]
    score: float
    cost: float
    solver: str
    bound: float | None = None
    evaluations: int = 0

    @property
    def gap(self) -> float | None:
        """How far the score may be above the optimum; 0 when it is proven optimal, None where unknown."""
        return None if self.bound is None else max(0.0, self.score - self.bound)


def weight_bytes(values: int, bits: int, scales: int = 1, scale_bytes: int = 4) -> int:
    """Bytes of a weight: its codes, packed, and `scales` scales of `scale_bytes` each."""
    return -(-values * bits // 8) + scale_bytes * scales


def bit_operations(macs: int, weight_bits: int, activation_bits: int) -> int:
    """Bit operations (BOPS) of a layer: multiply-accumulates times both widths (HAWQ-V3, arXiv 2011.10680)."""
    return macs * weight_bits * activation_bits


@dataclass(frozen=True)
class Option:
    """One width of a unit and what it adds up to over the members."""

    bits: int
    cost: float
    score: float
    further: tuple[float, ...] = ()


@dataclass(frozen=True)
class Unit:
    """Names that move together and their useful options by cost; with one kind of cost, score falls as it rises."""

    names: tuple[str, ...]
    members: tuple[Mapping[int, Choice], ...]
    options: tuple[Option, ...]


def make_units(choices: Iterable[Choice], ties: Iterable[Group]) -> list[Unit]:
    """Choices gathered by name, names merged by ties, dominated options dropped."""
    table: dict[str, dict[int, Choice]] = {}
    for choice in choices:
        offered = table.setdefault(choice.name, {})
        if choice.bits in offered:
            raise UsageError(f"{choice.name} is offered {choice.bits} bits twice", code="EQ-U240")
        offered[choice.bits] = choice
    if not table:
        raise UsageError("there is nothing to allocate bits to", code="EQ-U240")
    if len({len(choice.further) for offered in table.values() for choice in offered.values()}) > 1:
        raise UsageError("some choices have costs of more kinds than others", code="EQ-U240")
    units = []
    for names in _merged(list(table), ties):
        members = tuple(table[name] for name in names)
        shared = set.intersection(*(set(member) for member in members))
        if not shared:
            offers = "; ".join(f"{name}: {sorted(table[name])}" for name in names)
            raise UsageError(
                f"tensors that must share their bits are offered no common width: {offers}",
                code="EQ-U241",
                hint="offer every tensor of the group the same widths",
            )
        options = [
            Option(
                bits,
                math.fsum(m[bits].cost for m in members),
                math.fsum(m[bits].score for m in members),
                tuple(math.fsum(costs) for costs in zip(*(m[bits].further for m in members), strict=True)),
            )
            for bits in sorted(shared, reverse=True)
        ]
        units.append(Unit(names, members, _undominated(options)))
    return units


def _merged(names: Sequence[str], ties: Iterable[Group]) -> list[tuple[str, ...]]:
    """Names by connected component of the ties, in their first order."""
    component = {name: [name] for name in names}
    for group in ties:
        if unknown := [name for name in group.names if name not in component]:
            raise unknown_name("tensor in a tie", unknown[0], names, code="EQ-U241")
        for name in group.names[1:]:
            first, other = component[group.names[0]], component[name]
            if first is not other:
                first.extend(other)
                component.update(dict.fromkeys(other, first))
    position = {name: index for index, name in enumerate(names)}
    distinct = {id(members): members for members in component.values()}.values()
    return sorted((tuple(sorted(m, key=position.__getitem__)) for m in distinct), key=lambda m: position[m[0]])


def _undominated(options: Sequence[Option]) -> tuple[Option, ...]:
    """Options for which no other is both cheaper, in every kind of cost, and better; of equal ones the first."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda o: (o.cost, o.score)):
        if not any(_covers(other, option) for other in kept):
            kept.append(option)
    return tuple(kept)


def _covers(first: Option, second: Option) -> bool:
    """Whether the first, which costs no more, is as good and costs no more of any other kind either."""
    return first.score <= second.score and all(a <= b for a, b in zip(first.further, second.further, strict=True))


def require_budget(units: Sequence[Unit], budget: float, further: Sequence[float] = ()) -> None:
    """Raise a `UsageError` that names the cheapest possible cost when nothing fits one of the budgets."""
    kinds = len(units[0].options[0].further)
    if kinds != len(further):
        raise UsageError(f"{len(further)} further budgets for {kinds} further kinds of cost", code="EQ-U240")
    for kind, limit in enumerate(further):
        least = math.fsum(min(o.further[kind] for o in unit.options) for unit in units)
        if not least <= limit:
            raise UsageError(
                f"no allocation fits a further budget of {limit:.10g}: the least possible is {least:.10g}",
                code="EQ-U242",
                hint=f"raise that budget to {least:.10g} or more",
            )
    cheapest = total_cost(units, [0] * len(units))
    if not cheapest <= budget:  # a NaN budget fails as well
        largest = max(units, key=lambda unit: unit.options[0].cost)
        raise UsageError(
            f"no allocation fits a budget of {budget:.10g}: the cheapest costs {cheapest:.10g}",
            code="EQ-U242",
            hint=f"raise the budget to {cheapest:.10g} or more, or offer fewer bits, first for {largest.names[0]}",
        )


def make_allocation(units: Sequence[Unit], picks: Sequence[int], bound: float | None, *, solver: str) -> Allocation:
    """The result that takes option `picks[i]` of unit i."""
    bits = {name: unit.options[pick].bits for unit, pick in zip(units, picks, strict=True) for name in unit.names}
    return Allocation(bits, total_score(units, picks), total_cost(units, picks), solver, bound)


def total_cost(units: Sequence[Unit], picks: Sequence[int]) -> float:
    """Cost of option `picks[i]` of every unit i; the correctly rounded sum over the tensors."""
    return math.fsum(choice.cost for choice in _chosen(units, picks))


def total_further(units: Sequence[Unit], picks: Sequence[int]) -> tuple[float, ...]:
    """Costs of the other kinds of option `picks[i]` of every unit i."""
    return tuple(math.fsum(costs) for costs in zip(*(c.further for c in _chosen(units, picks)), strict=True))


def total_score(units: Sequence[Unit], picks: Sequence[int]) -> float:
    """Score of option `picks[i]` of every unit i; the correctly rounded sum over the tensors."""
    return math.fsum(choice.score for choice in _chosen(units, picks))


def _chosen(units: Sequence[Unit], picks: Sequence[int]) -> Iterator[Choice]:
    for unit, pick in zip(units, picks, strict=True):
        bits = unit.options[pick].bits
        yield from (member[bits] for member in unit.members)
