"""Solvers for a budget: greedy on the convex hull, and integer linear programming."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp  # type: ignore[import-untyped]

from edgeq.errors import UsageError
from edgeq.native import native_output
from edgeq.quant.allocation.problem import (
    Allocation,
    Choice,
    Group,
    Option,
    Unit,
    make_allocation,
    make_units,
    require_budget,
    total_cost,
    total_further,
    total_score,
)

_SPAN = 1e4  # score span given to the solver: its absolute gap of 1e-6 is then 1e-10 of the span
_CUTS = 20  # solutions over the budget by rounding that are excluded one by one


def greedy(choices: Iterable[Choice], budget: float, *, ties: Iterable[Group] = ()) -> Allocation:
    """Spend the budget where a unit of cost lowers the score most, starting from the cheapest choices.

    Steps go along the lower convex hull of each tensor's (cost, score) points, so that they also solve the linear
    relaxation (Sinha and Zoltners 1979, "The multiple-choice knapsack problem"); its optimum is the `bound`. What is
    left of the budget after the first step that does not fit goes to the single changes that gain most. Descending
    from the highest widths by the same ratio, as mixed-precision papers usually describe it, visits the same hull.

    Args:
        choices: At least one per name.
        budget: Largest allowed sum of costs, in their unit.
        ties: Names that must share bits.

    Raises:
        UsageError: Duplicate choices, ties that cannot hold, or a budget below the cheapest allocation.
    """
    units = make_units(choices, ties)
    require_budget(units, budget)
    return make_allocation(units, *_greedy(units, budget), solver="greedy")


def ilp(
    choices: Iterable[Choice],
    budget: float,
    *,
    further: Sequence[float] = (),
    ties: Iterable[Group] = (),
    seconds: float = 60.0,
) -> Allocation:
    """The allocation of least score within the budgets, by integer linear programming (HiGHS).

    One binary variable per choice and one choice per tensor, as in AdaQuant (arXiv 2006.10518) and HAWQ-V3 (arXiv
    2011.10680), which limits several costs at once, too. With one budget the greedy allocation is the incumbent: the
    result is never worse than it, and stands in when the time limit strikes first, which shows in `gap`.

    Args:
        choices: At least one per name.
        budget: Largest allowed sum of costs, in their unit.
        further: Largest allowed sum of each of `Choice.further`.
        ties: Names that must share bits.
        seconds: Time limit of the solver.

    Raises:
        UsageError: As `greedy`; also where each budget can be kept but not all of them at once.
    """
    units = make_units(choices, ties)
    require_budget(units, budget, further)
    best, bound = None, -math.inf
    if not further:
        picks, bound = _greedy(units, budget)
        best = make_allocation(units, picks, bound, solver="ilp")
        if best.gap == 0:
            return best
    program = _Program(units, budget, further)
    for _ in range(_CUTS):
        solved, proven = program.solve(seconds)
        bound = max(bound, proven)
        if solved is None:
            break
        found = make_allocation(units, solved, bound, solver="ilp")
        over = (total > limit for total, limit in zip(total_further(units, solved), further, strict=True))
        if found.cost > budget or any(over):  # within the solver's tolerance, not within the budget
            program.exclude(solved)
            continue
        best = found if best is None or found.score < best.score else best
        break
    if best is None:
        raise UsageError(
            "no allocation keeps all budgets at once", code="EQ-U242", hint="raise one of them, or offer fewer bits"
        )
    return replace(best, bound=min(bound, best.score))


def _hull(options: Sequence[Option]) -> list[int]:
    """Indices of the options on the lower convex hull of (cost, score)."""
    hull: list[int] = []
    for index, point in enumerate(options):
        while len(hull) > 1:
            start, middle = options[hull[-2]], options[hull[-1]]
            if (middle.score - start.score) * (point.cost - start.cost) < (point.score - start.score) * (
                middle.cost - start.cost
            ):
                break
            hull.pop()
        hull.append(index)
    return hull


def _greedy(units: Sequence[Unit], budget: float) -> tuple[list[int], float]:
    """Option index per unit, and the optimum of the linear relaxation."""
    steps = []
    for index, unit in enumerate(units):
        hull = _hull(unit.options)
        for here, there in itertools.pairwise(hull):
            cost = unit.options[there].cost - unit.options[here].cost
            gain = unit.options[here].score - unit.options[there].score
            steps.append((-gain / cost, index, there, gain, cost))
    picks = [0] * len(units)
    bound = math.nan
    for _, index, there, gain, cost in sorted(steps):
        before = picks[index]
        picks[index] = there
        if total_cost(units, picks) > budget:
            picks[index] = before
            spare = budget - total_cost(units, picks)
            bound = total_score(units, picks) - gain * min(1.0, spare / cost)
            break
    else:
        return picks, total_score(units, picks)
    _fill(units, picks, budget)
    return picks, bound


def _fill(units: Sequence[Unit], picks: list[int], budget: float) -> None:
    """Single changes that still fit, largest gain first."""
    while True:
        spare = budget - total_cost(units, picks)
        gains = [
            (unit.options[pick].score - option.score, index, there)
            for index, (unit, pick) in enumerate(zip(units, picks, strict=True))
            for there, option in enumerate(unit.options)
            if there > pick and option.cost - unit.options[pick].cost <= spare
        ]
        if not gains:
            return
        _, index, there = max(gains, key=lambda g: (g[0], -g[1], -g[2]))
        before, picks[index] = picks[index], there
        if total_cost(units, picks) > budget:  # fits by rounding only
            picks[index] = before
            return


class _Program:
    """The binary program, in units in which the budget left after the cheapest choices is 1."""

    def __init__(self, units: Sequence[Unit], budget: float, further: Sequence[float] = ()) -> None:
        self._units = units
        columns = [(i, j) for i, unit in enumerate(units) for j in range(len(unit.options))]
        self._columns = columns
        spare = budget - math.fsum(unit.options[0].cost for unit in units)
        least = [min(option.score for option in unit.options) for unit in units]
        self._least = math.fsum(least)
        span = max(max(o.score for o in unit.options) - low for unit, low in zip(units, least, strict=True))
        self._factor = _SPAN / max(span, 1e-290)
        self._objective = np.array([units[i].options[j].score - least[i] for i, j in columns])
        self._objective *= self._factor
        extra = np.array([units[i].options[j].cost - units[i].options[0].cost for i, j in columns])
        fits = extra <= spare
        one = np.zeros((len(units), len(columns)))
        one[[i for i, _ in columns], np.arange(len(columns))] = 1
        self._bounds = Bounds(0, fits.astype(float))
        # With one budget a positive `spare` is certain: without it greedy would have been optimal.
        self._constraints = [
            LinearConstraint(one, 1, 1),
            LinearConstraint(np.where(fits, extra, 0)[None] / max(spare, np.finfo(float).tiny), -np.inf, 1),
        ]
        for kind, limit in enumerate(further):
            costs = np.array([units[i].options[j].further[kind] for i, j in columns])
            self._constraints.append(LinearConstraint(costs[None] / max(limit, np.finfo(float).tiny), -np.inf, 1))

    def solve(self, seconds: float) -> tuple[list[int] | None, float]:
        """Option index per unit if a solution was found, and a proven lower bound of the score."""
        with native_output(1):  # now and then HiGHS prints a line of its own
            answer: OptimizeResult = milp(
                self._objective,
                integrality=np.ones(len(self._columns)),
                bounds=self._bounds,
                constraints=self._constraints,
                options={"mip_rel_gap": 0.0, "time_limit": seconds},
            )
        proven = getattr(answer, "mip_dual_bound", None)
        bound = -math.inf if proven is None else self._least + float(proven) / self._factor
        if answer.x is None:
            return None, bound
        weight = [np.zeros(len(unit.options)) for unit in self._units]
        for (i, j), value in zip(self._columns, answer.x, strict=True):
            weight[i][j] = value
        return [int(w.argmax()) for w in weight], bound

    def exclude(self, picks: Sequence[int]) -> None:
        """Forbid one solution."""
        row = np.array([[float(picks[i] == j) for i, j in self._columns]])
        self._constraints.append(LinearConstraint(row, -np.inf, len(self._units) - 1))
