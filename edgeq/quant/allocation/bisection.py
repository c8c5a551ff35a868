"""Allocation without a budget: lower as much as the network itself tolerates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from edgeq.errors import UsageError, unknown_name
from edgeq.progress import Advance
from edgeq.quant.allocation.problem import Allocation, Choice, Group, Unit, make_allocation, make_units

Accept = Callable[[Mapping[str, int]], bool]
"""Called with bits by name; says whether a network of these widths is good enough."""


def bisect(
    choices: Iterable[Choice],
    accept: Accept,
    *,
    ties: Iterable[Group] = (),
    pairwise: Mapping[tuple[str, str], float] | None = None,
    tie_break: Mapping[str, float] | None = None,
    progress: Advance | None = None,
) -> Allocation:
    """Lower as many tensors as the network itself tolerates, least sensitive first, by binary search.

    Every tensor starts at its best score and moves towards its cheapest choice, one step at a time; steps are ordered
    by the score they add, and the number of steps taken is bisected (Schaefer et al. 2023, "Augmenting Hessians with
    Inter-Layer Dependencies", arXiv 2306.04879). Where `accept` is not monotone the result is still one that it
    accepted. With L steps it is called at most `ceil(log2 L) + 1` times (twice for a single step).

    Args:
        choices: At least one per name.
        accept: Runs the network at the given bits and judges it.
        ties: Names that must share bits.
        pairwise: Score added when both of two tensors leave their best choice; either order, absent is 0.
        tie_break: Relevance by name; of equal steps the least relevant tensor goes first.
        progress: Called with 1 after each evaluation.

    Raises:
        UsageError: Duplicate choices, ties that cannot hold, a pair of unknown names, or a network that is not
            accepted at its highest precision.
    """
    units = make_units(choices, ties)
    pairs = _pair_terms(units, pairwise or {})
    order = _drop_order(units, pairs, tie_break or {})
    evaluations = 0

    def picks(steps: int) -> list[int]:
        result = [len(unit.options) - 1 for unit in units]
        for index in order[:steps]:
            result[index] -= 1
        return result

    def accepted(steps: int) -> bool:
        nonlocal evaluations
        evaluations += 1
        answer = accept(make_allocation(units, picks(steps), None, solver="bisect").bits)
        if progress is not None:
            progress(1)
        return answer

    taken = _last_accepted(len(order), accepted)
    if taken == 0 and not accepted(0):
        raise UsageError(
            "the network is not accepted even at the highest precision offered",
            code="EQ-U243",
            hint="offer more bits, improve the calibration, or lower the requirement",
        )
    result = make_allocation(units, picks(taken), None, solver="bisect")
    dropped = sorted({*order[:taken]})
    extra = math.fsum(pairs.get((a, b), 0.0) for a in dropped for b in dropped if a <= b)
    return replace(result, score=result.score + extra, evaluations=evaluations)


def _last_accepted(steps: int, accepted: Callable[[int], bool]) -> int:
    """Most steps that are accepted, where 0 is taken for granted and the answers are monotone."""
    taken, refused = 0, steps + 1
    while refused - taken > 1:
        middle = (taken + refused) // 2
        taken, refused = (middle, refused) if accepted(middle) else (taken, middle)
    return taken


def _pair_terms(units: Sequence[Unit], pairwise: Mapping[tuple[str, str], float]) -> dict[tuple[int, int], float]:
    """Pairwise scores by unit indices `(a, b)`, a <= b; a pair inside a unit has a == b."""
    owner = {name: index for index, unit in enumerate(units) for name in unit.names}
    terms: dict[tuple[int, int], float] = {}
    for pair, value in pairwise.items():
        for name in pair:
            if name not in owner:
                raise unknown_name("tensor in a pair", name, owner, code="EQ-U241")
        if not math.isfinite(value):
            raise UsageError(f"the pairwise score of {' and '.join(pair)} is {value}", code="EQ-U240")
        a, b = sorted(owner[name] for name in pair)
        terms[a, b] = terms.get((a, b), 0.0) + value
    return terms


def _drop_order(
    units: Sequence[Unit], pairs: Mapping[tuple[int, int], float], relevance: Mapping[str, float]
) -> list[int]:
    """Unit index of each step down; the next step is always the one that adds the least score."""
    level = [len(unit.options) - 1 for unit in units]
    interaction = [pairs.get((index, index), 0.0) for index in range(len(units))]
    weight = [math.fsum(relevance.get(name, 0.0) for name in unit.names) for unit in units]
    order: list[int] = []

    def added(index: int) -> tuple[float, float, int]:
        options, here = units[index].options, level[index]
        first = here == len(options) - 1
        step = options[here - 1].score - options[here].score
        return step + (interaction[index] if first else 0.0), weight[index], index

    while open_units := [index for index, here in enumerate(level) if here > 0]:
        chosen = min(open_units, key=added)
        if level[chosen] == len(units[chosen].options) - 1:
            for other in range(len(units)):
                if other != chosen:
                    interaction[other] += pairs.get((min(chosen, other), max(chosen, other)), 0.0)
        level[chosen] -= 1
        order.append(chosen)
    return order
