"""What is decided between calibration and the file."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from edgeq.build import _with_islands
from edgeq.exporters import get_exporter
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
