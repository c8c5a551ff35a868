"""What is decided between calibration and the file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from edgeq.build import _with_islands, build_scheme
from edgeq.candidate import Candidate
from edgeq.errors import UsageError
from edgeq.exporters import get_exporter
from edgeq.graph.capture import capture
from edgeq.graph.rewrite import fetch
from edgeq.graph.widths import Study, weight_cost
from edgeq.recipe import place_scheme, recipe_for, width_problem
from edgeq.spec import QuantSpec


def test_microcontrollers_keep_nothing_float_by_themselves() -> None:
    """`auto` freed convolutions of a network whose every operation must run in integers, which ended in EQ-M500."""
    session: Any = SimpleNamespace(
        config=SimpleNamespace(keep_float="auto"),
        exporter=get_exporter("c"),
        adapter=SimpleNamespace(loaded=SimpleNamespace(network="convolution")),
    )
    recipe = recipe_for("auto", "auto", "w8a8", "integer", "convolution")
    untouched: Any = None
    assert _with_islands(session, "integer", recipe, untouched, untouched) == (None, recipe)


def test_names_to_keep_float_are_those_of_operations() -> None:
    graph = capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), (torch.zeros(1, 4),))
    (linear, _) = [n.name for n in graph.graph.nodes if n.op == "call_function"]
    session: Any = SimpleNamespace(exporter=get_exporter("tflite"))
    fitted: Any = SimpleNamespace(graph=graph)
    recipe = recipe_for("minmax", "auto", "w8a8", "integer")
    for wish in (linear, f"{linear[:3]}*"):
        session.config = SimpleNamespace(keep_float=wish)
        choice, changed = _with_islands(session, "integer", recipe, fitted, fitted)
        assert (choice, changed.precision.keep_float) == (None, (wish,))
    session.config = SimpleNamespace(keep_float=f"{linear},conv_9")
    with pytest.raises(UsageError) as caught:
        _with_islands(session, "integer", recipe, fitted, fitted)
    assert caught.value.code == "EQ-U334"
    assert "conv_9" in caught.value.message


def test_widths_are_chosen_again_until_the_file_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow weight that needs more than its codes: the file of the first choice is over the budget."""
    graph = capture(nn.Sequential(*(nn.Linear(32, 32) for _ in range(6))).eval(), (torch.zeros(1, 32),))
    exporter, recipe = get_exporter("tflite"), recipe_for("minmax", "auto", "mixed", "integer")
    _, placement = place_scheme(graph, exporter, "integer", recipe.precision)
    wide = sum(weight_cost(fetch(graph, path), QuantSpec()) for path in placement.weights.values())
    problem, readers = width_problem(graph, exporter, "integer", recipe.precision, wide, wide - 1000.0)
    study = Study(graph, problem, {path: float(i) for i, path in enumerate(problem.weights)})
    extra, sizes = 100, []

    def build(*args: Any) -> tuple[Candidate, None]:
        sizes.append(wide - len(args[2].precision.narrow) * (512 - extra))
        made: Any = dict.fromkeys(("plan", "read_back"))
        return Candidate("integer", Path(), sizes[-1], recipe=args[2], **made), None

    monkeypatch.setattr("edgeq.build.recipe_of", lambda *_: recipe)
    monkeypatch.setattr("edgeq.build._with_islands", lambda *_: (None, recipe))
    monkeypatch.setattr("edgeq.build._study", lambda *_: (study, readers))
    monkeypatch.setattr("edgeq.build._build", build)
    fitted: Any = SimpleNamespace(graph=graph)
    config = SimpleNamespace(bits="mixed")
    session: Any = SimpleNamespace(config=config, adapter=None, exporter=exporter, fitted={recipe.transform: fitted})
    untouched: Any = None
    candidate, _ = build_scheme(session, "integer", Path(), untouched)
    assert [found <= problem.budget for found in sizes] == [False, True]
    assert candidate.widths is not None
    assert len(candidate.widths.narrow) == len(candidate.recipe.precision.narrow) == 3
