"""The search on a fake device: budgets kept, kills survived, costs corrected, ties and limits respected."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeq.errors import DeviceError, GateError, UsageError
from edgeq.search.engine import summary
from edgeq.search.problem import FLOAT, Budgets
from tests.unit.search.fakes import SHAPES, FakeBench, searching

FACTS = {"model": "m", "target": "t", "device": {}, "table": {}, "artifact": "out/best", "seconds": 1.0}


def test_the_winner_keeps_the_budget_and_frees_what_loses_most(tmp_path: Path) -> None:
    bench = FakeBench()
    found = searching(bench, Budgets(0.5, "ratio"), tmp_path).run()
    assert found.complete and found.winner is not None
    assert found.winner.found.cost <= 0.5 * bench.float_cost
    assert found.winner.variant.kind == "mixed"
    assert {n for n, b in found.winner.variant.bits.items() if b == FLOAT} == {"stem", "head"}
    assert found.winner.off == pytest.approx(0, abs=1e-3)
    assert bench.published[-1] == found.winner.variant


@pytest.mark.parametrize("fail_at", range(1, 8))
def test_a_kill_at_any_measurement_is_continued_and_nothing_is_measured_twice(tmp_path: Path, fail_at: int) -> None:
    whole = FakeBench()
    wanted = searching(whole, Budgets(0.5, "ratio"), tmp_path / "whole").run()
    bench = FakeBench(fail_at=fail_at)
    if fail_at <= len(whole.measured):
        with pytest.raises(KeyboardInterrupt):
            searching(bench, Budgets(0.5, "ratio"), tmp_path / "killed").run()
    found = searching(bench, Budgets(0.5, "ratio"), tmp_path / "killed").run()
    assert sorted(bench.measured) == sorted(whole.measured)
    assert found.winner is not None and wanted.winner is not None
    assert found.winner.variant.bits == wanted.winner.variant.bits
    assert summary(found, FACTS) == summary(wanted, FACTS)


def test_a_device_lost_in_mid_search_leaves_the_best_so_far(tmp_path: Path) -> None:
    lost = DeviceError("gone", code="EQ-X873")
    bench = FakeBench(fail_at=4, error=lost)
    told: list[bool] = []
    work = searching(bench, Budgets(0.5, "ratio"), tmp_path, published=lambda: told.append(True))
    with pytest.raises(DeviceError) as caught:
        work.run()
    assert caught.value.exit_code == 5
    assert [v.label for v in bench.published] == ["static w8a8"] and told == [True]
    result = summary(work.findings, FACTS)
    assert (result["ok"], result["complete"], result["winner"]["label"]) == (False, False, "static w8a8")


def test_another_budget_measures_its_own_files_only(tmp_path: Path) -> None:
    bench = FakeBench()
    searching(bench, Budgets(0.5, "ratio"), tmp_path).run()
    before = len(bench.measured)
    found = searching(bench, Budgets(0.7, "ratio"), tmp_path).run()
    assert all(label.startswith("mixed") for label in bench.measured[before:])
    assert found.winner is not None and found.winner.found.cost <= 0.7 * bench.float_cost


def test_what_the_journal_knows_is_published_once(tmp_path: Path) -> None:
    searching(FakeBench(), Budgets(0.5, "ratio"), tmp_path).run()
    again = FakeBench()
    found = searching(again, Budgets(0.5, "ratio"), tmp_path).run()
    assert found.winner is not None and again.measured == []
    assert [v.key for v in again.published] == [found.winner.variant.key]


def test_costs_known_by_shape_are_not_probed_again(tmp_path: Path) -> None:
    first, second = FakeBench(), FakeBench()
    searching(first, Budgets(0.5, "ratio"), tmp_path).run()
    work = searching(second, Budgets(0.5, "ratio"), tmp_path / "other")
    work._store.known.update({("static", f"linear {w}", FLOAT): 3.0 * w for w in SHAPES.values()})
    found = work.run()
    assert any(label.startswith("cost of") for label in first.measured)
    assert not any(label.startswith("cost of") for label in second.measured)
    assert found.winner is not None and found.winner.found.cost <= 0.5 * second.float_cost


def test_a_table_that_promises_too_much_is_corrected(tmp_path: Path) -> None:
    bench = FakeBench(bias=1.08)
    found = searching(bench, Budgets(0.57, "ratio"), tmp_path).run()
    assert found.mixed[0].found.cost > 0.57 * bench.float_cost
    assert found.winner is not None and found.winner.found.cost <= 0.57 * bench.float_cost
    assert abs(found.mixed[-1].off or 0) < abs(found.mixed[0].off or 0)


def test_two_budgets_on_a_device_that_counts_layers(tmp_path: Path) -> None:
    bench = FakeBench(exact=True, narrow=True)
    found = searching(bench, Budgets(1.15, "ratio", kb=2.1), tmp_path).run()
    assert found.winner is not None and found.winner.variant.kind == "mixed"
    assert found.winner.found.bytes <= 2100
    assert found.winner.found.cost <= 1.15 * found.reference
    assert found.winner.off == pytest.approx(0, abs=1e-12)
    assert {found.winner.variant.bits[n] for n in ("stem", "head")} == {8}


def test_tied_layers_share_their_bits(tmp_path: Path) -> None:
    bench = FakeBench(exact=True, narrow=True, tie=("stem", "fc2"))
    found = searching(bench, Budgets(kb=2.1), tmp_path).run()
    assert all(t.variant.bits["stem"] == t.variant.bits["fc2"] for t in found.mixed)


def test_a_uniform_file_that_is_as_good_wins(tmp_path: Path) -> None:
    class Flat(FakeBench):
        def losses(self, scheme: str) -> dict[tuple[str, int], float]:
            return {(n, b): 0.0001 for n in SHAPES for b in (8, 4)}

    found = searching(Flat(), Budgets(0.5, "ratio"), tmp_path).run()
    assert found.winner is not None and found.winner.variant.kind == "uniform"


@pytest.mark.parametrize(
    ("budgets", "exact", "hint"),
    [
        (Budgets(0.2, "ratio"), False, "--budget-ratio 0."),
        (Budgets(10, "ms"), False, "--budget-ms "),
        (Budgets(kb=0.5), True, "--budget-kb "),
        (Budgets(20, "instructions", kb=1.4), True, "--budget-instructions "),
    ],
)
def test_a_budget_out_of_reach_names_one_within_reach(tmp_path: Path, budgets: Budgets, exact: bool, hint: str) -> None:
    bench = FakeBench(exact=exact, narrow=exact)
    with pytest.raises(GateError) as caught:
        searching(bench, budgets, tmp_path).run()
    assert caught.value.code == "EQ-G880" and str(caught.value.hint).startswith(hint)
    assert bench.published == []
    option, value = str(caught.value.hint).split()
    again = Budgets(kb=float(value)) if option == "--budget-kb" else Budgets(float(value), budgets.unit, kb=budgets.kb)
    assert searching(bench, again, tmp_path).run().winner is not None


def test_files_that_may_not_ship_do_not_win(tmp_path: Path) -> None:
    bench = FakeBench(missed={"uniform": ("below the floor",), "mixed": ("below the floor",)})
    with pytest.raises(GateError) as caught:
        searching(bench, Budgets(0.5, "ratio"), tmp_path).run()
    assert caught.value.code == "EQ-G881" and "below the floor" in caught.value.message
    assert bench.published == []


def test_minutes_end_the_building_but_not_the_result(tmp_path: Path) -> None:
    bench = FakeBench()
    found = searching(bench, Budgets(0.5, "ratio"), tmp_path, minutes=0.0).run()
    assert bench.measured == ["float", "static w8a8"]
    assert found.winner is not None and found.winner.variant.kind == "uniform"
    assert any("minutes are over" in note for note in found.notes)


def test_builds_are_not_exceeded(tmp_path: Path) -> None:
    bench = FakeBench(bias=1.5)
    found = searching(bench, Budgets(0.5, "ratio"), tmp_path, builds=2).run()
    assert len(found.mixed) == 2


def test_a_budget_beyond_float_quantizes_nothing_more(tmp_path: Path) -> None:
    found = searching(FakeBench(), Budgets(1.5, "ratio"), tmp_path).run()
    assert found.winner is not None and any("nothing needs to be quantized" in note for note in found.notes)


@pytest.mark.parametrize("values", [{}, {"cost": 0.0}, {"cost": -1.0}, {"kb": float("nan")}, {"cost": float("inf")}])
def test_impossible_budgets_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(UsageError) as caught:
        Budgets(**values)  # type: ignore[arg-type]
    assert caught.value.code == "EQ-U882"
