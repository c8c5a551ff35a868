"""Other quantizers in their own processes: absent, crashing, and a real run on a tiny network with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeq import peers
from edgeq.config_keys import PEERS
from edgeq.peers import Recipe, quantize_by_peers
from edgeq.peers.recipes import RECIPES
from edgeq.progress import Silent

ITEMS = [(np.random.default_rng(i).normal(size=(1, 3, 8, 8)).astype(np.float32),) for i in range(4)]


def test_every_recipe_has_its_function_and_every_peer_its_name() -> None:
    assert tuple(peers.PEERS) == PEERS
    assert {recipe.name for recipes in peers.PEERS.values() for recipe in recipes} == set(RECIPES)


def test_absent_packages_and_crashes_are_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Recipe("absent", "onnx", "m.onnx", (("no_such_module", "no-such"),))
    crash = Recipe("no such recipe", "onnx", "m.onnx", ())
    monkeypatch.setitem(peers.PEERS, "nncf", (absent, crash))
    first, second = quantize_by_peers(["nncf"], lambda name: tmp_path / name, ITEMS, tmp_path / "p", Silent())
    assert first.failed == "not installed: pip install no-such"
    assert second.failed == "failed: KeyError: 'no such recipe'"


def test_a_recipe_that_takes_too_long_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "TIMEOUT", 0.01)
    monkeypatch.setitem(peers.PEERS, "ort", (Recipe("ort dynamic", "onnx", "m.onnx", ()),))
    (late,) = quantize_by_peers(["ort"], lambda name: tmp_path / name, ITEMS, tmp_path / "p", Silent())
    assert late.failed.startswith("failed: not done")


def test_a_real_recipe_writes_a_file_that_runs(tiny_float: Path, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_quantizer")
    from edgeq.devices import open_model

    dynamic, static = quantize_by_peers(["aeq"], lambda name: tiny_float, ITEMS, tmp_path / "p", Silent())
    for contender in (dynamic, static):
        assert not contender.failed
        (found,) = open_model(contender.path).run(*ITEMS[0])
        (wanted,) = open_model(tiny_float).run(*ITEMS[0])
        assert np.abs(found - wanted).max() <= 0.2 * np.abs(wanted).max()
