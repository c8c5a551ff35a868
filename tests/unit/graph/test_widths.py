"""Widths under a budget of bytes, on small networks with random weights: the mechanism, not accuracy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from edgeq.errors import UsageError
from edgeq.exporters import get_exporter
from edgeq.graph.capture import capture
from edgeq.graph.rewrite import fetch
from edgeq.graph.widths import (
    Study,
    WidthProblem,
    choose_widths,
    largest,
    relative_error,
    share_budget,
    weight_cost,
    weight_losses,
)
from edgeq.recipe import place_scheme, width_problem
from edgeq.spec import PerGroup, Precision, QuantSpec

OVERHEAD = 1000


class Tower(nn.Module):
    """Five linear layers; the fourth has outliers that 4 bits cannot hold, the last two share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(5))
        self.twin = nn.Linear(32, 32)
        with torch.no_grad():
            self.layers[3].weight[:, 0] *= 30

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.nn.functional.gelu(layer(x))
        shared = torch.nn.functional.linear(x, self.twin.weight)
        return self.layers[0](shared + torch.nn.functional.linear(shared, self.twin.weight))


@pytest.fixture(scope="module")
def graph() -> fx.GraphModule:
    torch.manual_seed(0)
    return capture(Tower().eval(), (torch.randn(1, 32),))


@pytest.fixture(scope="module")
def samples() -> list[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(1, 32, generator=generator),) for _ in range(6)]


def problem_of(graph: fx.GraphModule, budget: float) -> tuple[WidthProblem, dict[str, list[str]]]:
    exporter, precision = get_exporter("tflite"), Precision()
    _, placement = place_scheme(graph, exporter, "integer", precision)
    wide = sum(weight_cost(fetch(graph, path), QuantSpec()) for path in set(placement.weights.values()))
    return width_problem(graph, exporter, "integer", precision, wide + OVERHEAD, budget)


def test_ends_and_shared_weights_keep_eight_bits(graph: fx.GraphModule) -> None:
    problem, readers = problem_of(graph, 1e6)
    shared = [path for path, names in readers.items() if len(names) > 1]
    assert "twin.weight" in shared
    assert problem.overhead == OVERHEAD
    offered = {path: set(specs) for path, specs in problem.weights.items()}
    assert all(offered[path] == {8} for path in shared)
    assert {path for path, bits in offered.items() if bits == {4, 8}} == {f"layers.{i}.weight" for i in (1, 2, 3, 4)}


def test_the_sensitive_weight_is_the_last_to_lose_bits(graph: fx.GraphModule, samples: list[tuple[Tensor]]) -> None:
    problem, _ = problem_of(graph, 1e6)
    losses = weight_losses(graph, problem, samples, largest(relative_error))
    assert max(losses, key=losses.__getitem__) == "layers.3.weight"
    everything = choose_widths(graph, problem, losses)
    assert everything.narrow == ()
    saved = 32 * 32 // 2
    for narrow in (1, 2, 3):
        tight, _ = problem_of(graph, everything.expected_bytes - narrow * saved)
        choice = choose_widths(graph, tight, losses)
        assert len(choice.narrow) == narrow
        assert "layers.3.weight" not in choice.narrow
        assert choice.expected_bytes <= tight.budget
        assert choice.to_dict()["gap"] == 0


def test_trying_leaves_the_weights_as_they_were(graph: fx.GraphModule, samples: list[tuple[Tensor]]) -> None:
    problem, _ = problem_of(graph, 1e6)
    before = {path: fetch(graph, path).clone() for path in problem.weights}

    def broken(reference: Tensor, test: Tensor) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        weight_losses(graph, problem, samples, largest(broken))
    assert all(torch.equal(fetch(graph, path), value) for path, value in before.items())


def test_an_interrupted_trial_continues(graph: fx.GraphModule, samples: list[tuple[Tensor]], tmp_path: Path) -> None:
    problem, _ = problem_of(graph, 1e6)
    calls = 0

    def counted(reference: Tensor, test: Tensor) -> float:
        nonlocal calls
        calls += 1
        if calls > 2 * len(samples):
            raise KeyboardInterrupt
        return relative_error(reference, test)

    journal = tmp_path / "journal"
    with pytest.raises(KeyboardInterrupt):
        weight_losses(graph, problem, samples, largest(counted), journal=journal, key="k")
    seen: list[int] = []
    resumed = weight_losses(
        graph, problem, samples, largest(relative_error), journal=journal, key="k", advance=seen.append
    )
    assert resumed == weight_losses(graph, problem, samples, largest(relative_error))
    assert sum(seen) == 4


def test_a_budget_below_the_smallest_file_names_it(graph: fx.GraphModule) -> None:
    problem, _ = problem_of(graph, 2000)
    with pytest.raises(UsageError) as caught:
        choose_widths(graph, problem, dict.fromkeys(problem.weights, 1.0))
    assert caught.value.code == "EQ-U332"
    least = int(str(caught.value.hint).split()[1].strip(","))
    equal = dict.fromkeys(problem.weights, 1.0)
    roomy, _ = problem_of(graph, 1000 * least)
    assert choose_widths(graph, roomy, equal).expected_bytes <= 1000 * least
    tight, _ = problem_of(graph, 1000 * (least - 1))
    with pytest.raises(UsageError, match="smallest file"):
        choose_widths(graph, tight, equal)


def test_narrow_layers_get_four_bits_and_no_others(graph: fx.GraphModule) -> None:
    exporter = get_exporter("tflite")
    names = [n for n, p in place_scheme(graph, exporter, "integer")[1].weights.items() if p == "layers.2.weight"]
    config, placement = place_scheme(graph, exporter, "integer", Precision(narrow=tuple(names)))
    bits = {path: config.resolve(name, "linear").weight.bits for name, path in placement.weights.items()}
    assert {path for path, b in bits.items() if b == 4} == {"layers.2.weight"}


def test_networks_share_a_budget_by_what_their_weights_do(graph: fx.GraphModule) -> None:
    problem, _ = problem_of(graph, 1e6)
    mild, harsh = ({path: loss for path in problem.weights} for loss in (1.0, 100.0))
    studies = {"mild": Study(graph, problem, mild), "harsh": Study(graph, problem, harsh)}
    roomy = choose_widths(graph, problem, mild).expected_bytes
    tight = share_budget(studies, 2 * roomy - 1)
    assert {name: len(choice.narrow) for name, choice in tight.items()} == {"mild": 1, "harsh": 0}
    assert sum(choice.expected_bytes for choice in tight.values()) <= 2 * roomy - 1
    for name, choice in tight.items():  # a network alone, given its share, decides the same
        alone = choose_widths(graph, replace(problem, budget=choice.expected_bytes), studies[name].losses)
        assert alone.allocation.bits == choice.allocation.bits
    with pytest.raises(UsageError) as caught:
        share_budget(studies, 10)
    assert caught.value.code == "EQ-U332"


def test_what_a_weight_costs() -> None:
    weight, four = torch.zeros(10, 64), QuantSpec(4, True)
    assert weight_cost(weight, QuantSpec(8, True)) == 640 + 10 * 12
    assert weight_cost(weight, replace(four, granularity=PerGroup(32))) == 320 + 20 * 4
    assert weight_cost(weight, replace(four, granularity=PerGroup(32, half=True))) == 320 + 20 * 2
    assert weight_cost(weight, replace(four, granularity=PerGroup(32, two_level=True))) == 320 + 10 * 12 + 20
