"""Bit allocation: optimality against brute force, budgets, ties, and how often a network is tried."""

from __future__ import annotations

import itertools
import math
import os
import random
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.errors import UsageError
from edgeq.quant.allocation import Choice, Group, bisect, bit_operations, greedy, ilp, knapsack, weight_bytes

WIDTHS = (8, 6, 4, 2)


def net(sizes: dict[str, int], sensitivity: dict[str, float]) -> list[Choice]:
    """Costs in bytes, scores that quadruple with every bit taken away."""
    return [
        Choice(name, bits, weight_bytes(size, bits), sensitivity[name] * 4.0**-bits)
        for name, size in sizes.items()
        for bits in WIDTHS
    ]


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Choice], list[Group], float]:
    """Up to six tensors with arbitrary scores (also not monotone), perhaps tied, and a budget that can be met."""
    names = [f"t{i}" for i in range(draw(st.integers(1, 6)))]
    whole = draw(st.booleans())
    number = st.integers(0, 40).map(float) if whole else st.floats(0, 40, allow_subnormal=False)
    widths = draw(st.lists(st.sampled_from(WIDTHS), min_size=1, max_size=4, unique=True))
    choices = [
        Choice(n, b, draw(number), draw(st.floats(-1, 10, allow_subnormal=False))) for n in names for b in widths
    ]
    ties = draw(st.lists(st.lists(st.sampled_from(names), min_size=2, max_size=3).map(tuple).map(Group), max_size=2))
    low, high = cheapest(choices, ties), math.fsum(c.cost for c in choices)
    fraction = draw(st.floats(0, 1))
    return choices, ties, max(low, low + fraction * (high - low) / len(widths))


def assignments(choices: list[Choice], ties: list[Group]) -> list[tuple[float, float, dict[str, int]]]:
    """Score and cost of every assignment that respects the ties."""
    table = {(c.name, c.bits): c for c in choices}
    names = list(dict.fromkeys(c.name for c in choices))
    widths = [[c.bits for c in choices if c.name == name] for name in names]
    found = []
    for picks in itertools.product(*widths):
        bits = dict(zip(names, picks, strict=True))
        if all(len({bits[n] for n in group.names}) == 1 for group in ties):
            chosen = [table[item] for item in bits.items()]
            found.append((math.fsum(c.score for c in chosen), math.fsum(c.cost for c in chosen), bits))
    return found


def cheapest(choices: list[Choice], ties: list[Group]) -> float:
    return min(cost for _, cost, _ in assignments(choices, ties))


@settings(max_examples=120, deadline=None)
@given(problems())
def test_ilp_is_optimal_and_greedy_within_its_stated_gap(problem: tuple[list[Choice], list[Group], float]) -> None:
    choices, ties, budget = problem
    best = min(score for score, cost, _ in assignments(choices, ties) if cost <= budget)
    exact, quick = ilp(choices, budget, ties=ties), greedy(choices, budget, ties=ties)
    assert exact.score == pytest.approx(best, abs=1e-8)
    assert exact.score <= quick.score
    assert exact.gap == pytest.approx(0, abs=1e-7)
    for found in (exact, quick):
        assert found.cost <= budget
        assert found.bound is not None
        assert found.bound <= best + 1e-8
        table = {(c.name, c.bits): c for c in choices}
        assert set(found.bits) == {c.name for c in choices}
        assert found.score == math.fsum(table[item].score for item in found.bits.items())
        assert found.cost == math.fsum(table[item].cost for item in found.bits.items())
        for group in ties:
            assert len({found.bits[name] for name in group.names}) == 1


def test_a_hundred_layers_in_bytes() -> None:
    sizes = {f"layer{i}": 1000 + 137 * (i * i % 29) for i in range(100)}
    sensitivity = {name: 1.0 + (i * 31 % 17) for i, name in enumerate(sizes)}
    choices = net(sizes, sensitivity)
    budget = sum(weight_bytes(size, 5) for size in sizes.values())
    exact, quick = ilp(choices, budget), greedy(choices, budget)
    assert exact.score <= quick.score <= 1.01 * exact.score
    assert exact.gap == pytest.approx(0, abs=1e-9 * exact.score)
    assert exact.cost <= budget
    assert len(set(exact.bits.values())) > 1


def test_the_budget_may_be_met_exactly() -> None:
    choices = net({"a": 100, "b": 300, "c": 500}, {"a": 1, "b": 2, "c": 3})
    for solver in (greedy, ilp):
        assert set(solver(choices, cheapest(choices, [])).bits.values()) == {2}
        full = solver(choices, 900 + 3 * 4)
        assert set(full.bits.values()) == {8}
        assert full.gap == 0


def test_a_budget_missed_by_the_tolerance_of_the_solver_is_missed() -> None:
    over = [Choice(n, 8, 0.5 + 1e-9, 0.0) for n in "ab"]
    choices = [*over, *(Choice(n, 4, 0.0, 1.0) for n in "ab"), Choice("c", 8, 0.3, 0.0), Choice("c", 4, 0.0, 0.1)]
    found = ilp(choices, 1.0)
    assert found.cost <= 1.0
    assert found.score == pytest.approx(1.0)
    assert found.bits["c"] == 8


def test_what_the_solver_prints_is_no_answer(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """HiGHS of scipy 1.17 prints a line in one of seventy problems, into what `--json` promises to be one object."""
    called, solve = [], knapsack.milp

    def loud(*args: object, **more: object) -> object:
        called.append(os.write(1, b"HighsMipSolverData::transformNewIntegerFeasibleSolution"))
        return solve(*args, **more)

    monkeypatch.setattr(knapsack, "milp", loud)
    generator = random.Random(0)
    choices = [Choice(f"t{i}", b, b * generator.random(), generator.random() / b) for i in range(60) for b in WIDTHS]
    ilp(choices, 0.4 * sum(c.cost for c in choices if c.bits == 8))
    assert called
    assert capfd.readouterr().out == ""


def test_greedy_stands_in_when_there_is_no_time() -> None:
    generator = random.Random(0)
    choices = [Choice(f"t{i}", b, b * generator.random(), generator.random() / b) for i in range(60) for b in WIDTHS]
    budget = 0.4 * sum(c.cost for c in choices if c.bits == 8)
    hurried, quick = ilp(choices, budget, seconds=0.0), greedy(choices, budget)
    assert hurried.score == quick.score
    assert hurried.gap == quick.gap
    assert quick.gap is not None
    assert quick.gap > 0
    proven = ilp(choices, budget)
    assert proven.score <= quick.score
    assert proven.gap == pytest.approx(0, abs=1e-7)


def test_more_sensitive_tensors_get_more_bits() -> None:
    choices = net({"dull": 1000, "keen": 1000}, {"dull": 1, "keen": 1000})
    found = ilp(choices, weight_bytes(1000, 8) + weight_bytes(1000, 2))
    assert found.bits == {"dull": 2, "keen": 8}


def test_a_choice_that_costs_more_and_is_worse_is_never_taken() -> None:
    choices = [Choice("a", 8, 5.0, 1.0), Choice("a", 4, 9.0, 2.0)]
    for found in (ilp(choices, 100), greedy(choices, 100), bisect(choices, lambda bits: True)):
        assert found.bits == {"a": 8}


def test_ties_are_transitive_and_keep_to_common_widths() -> None:
    choices = [
        Choice(n, b, b, 1 / b) for n, widths in {"a": (8, 4), "b": (4, 2), "c": (8, 4, 2)}.items() for b in widths
    ]
    found = ilp(choices, 100, ties=[Group(("a", "b")), Group(("b", "c"))])
    assert set(found.bits.values()) == {4}
    with pytest.raises(UsageError, match="no common width") as caught:
        ilp([*choices, Choice("d", 6, 1, 1)], 100, ties=[Group(("a", "d"))])
    assert caught.value.code == "EQ-U241"
    with pytest.raises(UsageError, match="unknown tensor in a tie") as unknown:
        greedy(choices, 100, ties=[Group(("a", "bb"))])
    assert "did you mean 'b'" in str(unknown.value.hint)


@pytest.mark.parametrize("budget", [7.0, math.nan])
def test_an_infeasible_budget_names_the_cheapest_cost(budget: float) -> None:
    choices = [Choice("a", 4, 3, 0), Choice("b", 8, 5.5, 0), Choice("b", 4, 4.5, 1)]
    for solver in (greedy, ilp):
        with pytest.raises(UsageError, match=r"the cheapest costs 7\.5") as caught:
            solver(choices, budget)
        assert caught.value.code == "EQ-U242"
        assert "7.5" in str(caught.value.hint)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.data())
def test_bisection_tries_few_networks_and_finds_the_border(layers: int, data: st.DataObject) -> None:
    tolerated = data.draw(st.integers(0, layers))
    sensitivity = data.draw(st.permutations(range(layers)))
    choices = [Choice(f"t{i}", bits, bits, (rank + 1) / bits) for i, rank in enumerate(sensitivity) for bits in (8, 4)]
    tried: list[Mapping[str, int]] = []

    def accept(bits: Mapping[str, int]) -> bool:
        tried.append(bits)
        return sum(b == 4 for b in bits.values()) <= tolerated

    ticks: list[int] = []
    found = bisect(choices, accept, progress=ticks.append)
    assert sum(b == 4 for b in found.bits.values()) == tolerated
    assert found.evaluations == len(tried) == len(ticks) <= max(2, math.ceil(math.log2(layers)) + 1)
    assert found.bits in tried
    dropped = [rank for rank, bits in zip(sensitivity, found.bits.values(), strict=True) if bits == 4]
    assert sorted(dropped) == list(range(len(dropped)))


def test_bisection_needs_log_many_evaluations_for_many_layers() -> None:
    choices = [Choice(f"t{i}", bits, bits, (i + 1) / bits) for i in range(1024) for bits in (8, 4)]
    found = bisect(choices, lambda bits: sum(b == 4 for b in bits.values()) <= 700)
    assert found.evaluations <= 11
    assert [found.bits[f"t{i}"] for i in (0, 699, 700, 1023)] == [4, 4, 8, 8]


def test_pairs_change_the_order() -> None:
    choices = [Choice(n, b, b, 0.0 if b == 8 else s) for n, s in {"a": 1.0, "b": 2.0, "c": 3.0}.items() for b in (8, 4)]

    def two(bits: Mapping[str, int]) -> bool:
        return sum(b == 4 for b in bits.values()) <= 2

    assert bisect(choices, two).bits == {"a": 4, "b": 4, "c": 8}
    coupled = bisect(choices, two, pairwise={("b", "a"): 5.0})
    assert coupled.bits == {"a": 4, "b": 8, "c": 4}
    assert coupled.score == 4.0
    forced = bisect(choices, lambda bits: True, pairwise={("b", "a"): 5.0})
    assert forced.score == 11.0
    tied = bisect(choices, lambda bits: True, ties=[Group(("a", "b"))], pairwise={("a", "b"): 5.0})
    assert tied.score == 11.0
    with pytest.raises(UsageError, match="unknown tensor in a pair"):
        bisect(choices, two, pairwise={("a", "z"): 1.0})
    with pytest.raises(UsageError, match="nan"):
        bisect(choices, two, pairwise={("a", "b"): math.nan})


def test_relevance_decides_between_equal_steps_only() -> None:
    choices = [Choice(n, b, b, 0.0 if b == 8 else s) for n, s in {"a": 1.0, "b": 1.0, "c": 0.5}.items() for b in (8, 4)]
    relevance = {"a": 0.7, "b": 0.1, "c": 0.9}
    for steps, lowered in ((1, {"c"}), (2, {"b", "c"})):
        found = bisect(choices, lambda bits, n=steps: sum(b == 4 for b in bits.values()) <= n, tie_break=relevance)  # type: ignore[misc]
        assert {name for name, bits in found.bits.items() if bits == 4} == lowered


def test_several_widths_step_down_one_at_a_time() -> None:
    choices = net({"a": 100, "b": 100}, {"a": 1, "b": 1000})
    seen: list[Mapping[str, int]] = []
    found = bisect(choices, lambda bits: not seen.append(bits) and sum(bits.values()) >= 10)  # type: ignore[func-returns-value]
    assert found.bits == {"a": 2, "b": 8}


def test_bisection_that_never_succeeds_says_so() -> None:
    with pytest.raises(UsageError, match="highest precision") as caught:
        bisect([Choice("a", 8, 1, 0), Choice("a", 4, 0, 1)], lambda bits: False)
    assert caught.value.code == "EQ-U243"


@pytest.mark.parametrize(
    ("bits", "cost", "score"), [(1, 1, 1), (33, 1, 1), (8, -1, 1), (8, math.nan, 1), (8, 1, math.nan), (8, 1, math.inf)]
)
def test_bad_choices_are_refused(bits: int, cost: float, score: float) -> None:
    with pytest.raises(UsageError) as caught:
        Choice("a", bits, cost, score)
    assert caught.value.code == "EQ-U240"


def test_empty_and_duplicate_choices_are_refused() -> None:
    with pytest.raises(UsageError, match="nothing to allocate"):
        greedy([], 1)
    with pytest.raises(UsageError, match="twice"):
        ilp([Choice("a", 8, 1, 1), Choice("a", 8, 2, 1)], 10)


def test_cost_helpers() -> None:
    assert weight_bytes(1000, 8, scales=10) == 1040
    assert weight_bytes(7, 4) == 4 + 4
    assert bit_operations(10, 4, 8) == 320


@st.composite
def limited(draw: st.DrawFn) -> tuple[list[Choice], list[Group], float, tuple[float, ...]]:
    """A problem of `problems` whose choices cost something else, too, with a budget for that; perhaps out of reach."""
    choices, ties, budget = draw(problems())
    kinds = draw(st.integers(1, 2))
    costs = st.lists(st.integers(0, 20).map(float), min_size=kinds, max_size=kinds).map(tuple)
    choices = [Choice(c.name, c.bits, c.cost, c.score, draw(costs)) for c in choices]
    return (
        choices,
        ties,
        budget,
        draw(st.lists(st.integers(0, 60).map(float), min_size=kinds, max_size=kinds).map(tuple)),
    )


@settings(max_examples=60)
@given(limited())
def test_several_budgets_are_kept_at_once_at_the_least_score(
    problem: tuple[list[Choice], list[Group], float, tuple[float, ...]],
) -> None:
    choices, ties, budget, further = problem
    table = {(c.name, c.bits): c for c in choices}

    def others(bits: dict[str, int]) -> list[float]:
        return [math.fsum(table[item].further[k] for item in bits.items()) for k in range(len(further))]

    fitting = [
        score
        for score, cost, bits in assignments(choices, ties)
        if cost <= budget and all(total <= limit for total, limit in zip(others(bits), further, strict=True))
    ]
    if not fitting:
        with pytest.raises(UsageError) as refused:
            ilp(choices, budget, further=further, ties=ties)
        assert refused.value.code == "EQ-U242"
        return
    found = ilp(choices, budget, further=further, ties=ties)
    assert found.cost <= budget
    assert all(total <= limit for total, limit in zip(others(dict(found.bits)), further, strict=True))
    assert found.score == pytest.approx(min(fitting), abs=1e-6)


def test_further_budgets_and_costs_must_match() -> None:
    choices = [Choice("a", 8, 2, 0, (1.0,)), Choice("a", 4, 1, 1, (1.0,))]
    with pytest.raises(UsageError, match="1 further kinds"):
        ilp(choices, 2)
    with pytest.raises(UsageError, match="more kinds"):
        ilp([*choices, Choice("b", 4, 1, 1)], 2, further=(2,))
    with pytest.raises(UsageError, match="least possible is 1"):
        ilp(choices, 2, further=(0.5,))
