"""Tables and the store of costs: what files teach, what damage costs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.search.problem import FLOAT, FLOAT_FILE, Layer, Measured, Variant
from edgeq.search.store import CostStore
from edgeq.search.table import fitted_table


def layer(name: str, shape: str, macs: int) -> Layer:
    return Layer(name, "linear", shape, macs, (FLOAT, 8), {FLOAT: 4, 8: 1})


def measured(cost: float) -> Measured:
    return Measured(cost, cost, cost, "ms", 1)


@settings(max_examples=40)
@given(st.lists(st.floats(0.01, 5), min_size=2, max_size=6), st.floats(1, 20), st.integers(1, 3))
def test_files_without_noise_give_the_true_costs(costs: list[float], base: float, repeated: int) -> None:
    layers = [layer(f"l{i}_{j}", f"s{i}", 100) for i in range(len(costs)) for j in range(repeated)]
    true = {n.name: costs[int(n.shape[1:])] for n in layers}
    reference = Variant("w8", "static", dict.fromkeys(true, 8))
    files = [(reference, measured(base)), (Variant("float", FLOAT_FILE), measured(base + sum(true.values())))]
    for i in range(len(costs)):
        freed = {n.name for n in layers if n.shape == f"s{i}"}
        bits = {name: FLOAT if name in freed else 8 for name in true}
        files.append((Variant("probe", "static", bits, "probe"), measured(base + sum(true[n] for n in freed))))
    table = fitted_table(layers, reference, files, {})
    half = {n.name: FLOAT if i % 2 else 8 for i, n in enumerate(layers)}
    expected = base + sum(true[n] for n, b in half.items() if b == FLOAT)
    assert table.cost(half) == pytest.approx(expected, rel=0.01)


def test_without_probes_costs_follow_the_multiplications() -> None:
    layers = [layer("small", "s", 100), layer("large", "l", 300)]
    reference = Variant("w8", "static", {"small": 8, "large": 8})
    files = [(reference, measured(10.0)), (Variant("float", FLOAT_FILE), measured(14.0))]
    table = fitted_table(layers, reference, files, {})
    assert table.layer("large", FLOAT) == pytest.approx(3.0, rel=0.05)
    assert table.layer("small", FLOAT) == pytest.approx(1.0, rel=0.05)
    assert fitted_table(layers, reference, files, {("s", FLOAT): 2.0}).layer("small", FLOAT) > 1.3


def test_costs_are_kept_by_device() -> None:
    store = CostStore.open("some-key", "board | runtime")
    assert store.known == {} and store.damaged == ""
    assert store.keep("static", {("linear 2x3", 8): 1.5})
    again = CostStore.open("some-key", "board | runtime")
    assert again.of("static") == {("linear 2x3", 8): 1.5} and again.of("dynamic") == {} and again.measured_at
    assert CostStore.open("some-key", "another board").known == {}
    store.forget()
    assert CostStore.open("some-key", "board | runtime").known == {}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"schema": "edgeq.costs/2"}', '{"schema": "x", "device": "d", "costs": []}', "\x00\xff"],
)
def test_a_damaged_store_is_an_empty_one_that_says_so(text: str) -> None:
    store = CostStore.open("damaged", "d")
    store.path.parent.mkdir(parents=True, exist_ok=True)
    store.path.write_bytes(text.encode("latin-1"))
    found = CostStore.open("damaged", "d")
    assert found.known == {} and found.damaged
    assert found.keep("static", {("a", 8): 1.0}) and CostStore.open("damaged", "d").damaged == ""


def test_costs_that_are_no_numbers_are_damage() -> None:
    store = CostStore.open("nan", "d")
    store.keep("static", {("a", 8): float("nan")})
    assert CostStore.open("nan", "d").damaged


def test_a_disk_that_refuses_is_no_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert not CostStore(blocked / "costs.json", "d").keep("static", {("a", 8): 1.0})
