"""Operations that stay float. The networks are built so that the culprit is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeq.exporters import get_exporter
from edgeq.graph.capture import capture
from edgeq.graph.islands import IslandChoice, choose_islands
from edgeq.graph.legalize import legalize, observed
from edgeq.quant.calibrator import calibrate
from edgeq.recipe import place_scheme
from edgeq.spec import Precision


class Uneven(nn.Module):
    """One activation whose channels differ a thousandfold, and that a depthwise layer evens out."""

    def __init__(self, even: bool) -> None:
        super().__init__()
        self.first, self.depth = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.second, self.last = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 8, 1)
        if not even:
            factors = torch.logspace(-1.5, 1.5, 16).view(-1, 1, 1, 1)
            self.first.weight.data *= factors
            self.first.bias.data *= factors.flatten()
            self.depth.weight.data /= factors

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nn.functional.silu(self.depth(torch.nn.functional.silu(self.first(x))))
        return self.last(torch.nn.functional.silu(self.second(x)))


def choose(fmt: str, scheme: str, even: bool = False, **options: Any) -> tuple[IslandChoice, Any]:
    torch.manual_seed(0)
    exporter = get_exporter(fmt)
    graph = exporter.prepare(capture(Uneven(even).eval(), (torch.zeros(1, 3, 16, 16),)))
    samples = [(torch.rand(1, 3, 16, 16) * 4 - 2,) for _ in range(4)]

    def place(ops: tuple[str, ...]) -> Any:
        return place_scheme(graph, exporter, scheme, Precision(keep_float=ops))[1]

    config, placement = place_scheme(graph, exporter, scheme, Precision())
    statistics = calibrate(graph, observed(graph, placement), samples)
    legalized = legalize(graph, placement, config, exporter.rules, statistics, scheme)
    return choose_islands(graph, legalized, place, samples[:2], **options), place


@pytest.mark.parametrize(("fmt", "scheme"), [("openvino", "static"), ("tflite", "integer")])
def test_the_uneven_activation_is_found_and_its_readers_freed(fmt: str, scheme: str) -> None:
    choice, place = choose(fmt, scheme)
    assert choice.tensors[0] in ("silu", "mul", "first")
    assert "depth" in choice.ops
    assert "last" not in choice.ops
    assert max(choice.alone, key=lambda name: choice.alone[name]) == choice.tensors[0]
    assert choice.error <= max(1.25 * min(choice.errors.values()), 0.002)
    assert choice.error < choice.errors[0] / 4
    assert 0 < choice.mac_share <= 0.25
    placed = place(choice.ops)
    assert all(placed.ops[name].mode == "float" and "--keep-float" in placed.ops[name].reason for name in choice.ops)
    assert not set(choice.tensors) & set(placed.specs)
    assert choice.to_dict()["ops"] == list(choice.ops)


def test_a_network_without_a_culprit_keeps_its_integers() -> None:
    choice, _ = choose("openvino", "static", even=True)
    assert choice.ops == ()
    assert choice.mac_share == 0
    assert choice.errors[0] <= 0.002 or choice.errors[0] <= 1.25 * min(choice.errors.values())


def test_a_number_is_obeyed_and_none_are_none() -> None:
    assert len(choose("openvino", "static", even=True, count=2)[0].tensors) == 2
    assert choose("openvino", "static", count=0)[0].ops == ()


def test_measurements_are_found_again(tmp_path: Path) -> None:
    seen: list[int] = []
    journal = tmp_path / "j.jsonl"
    first, _ = choose("openvino", "static", journal=journal, key="k", advance=seen.append)
    lines = journal.read_text().splitlines()
    assert len(lines) == len(seen) + 1  # a line for the key
    second, _ = choose("openvino", "static", journal=journal, key="k")
    assert second == first
    assert journal.read_text().splitlines() == lines
    assert replace(first, ops=()) != first
