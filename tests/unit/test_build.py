"""What is decided between calibration and the file."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from edgeq.build import _with_islands
from edgeq.errors import UsageError
from edgeq.exporters import get_exporter
from edgeq.graph.capture import capture
from edgeq.recipe import recipe_for


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
