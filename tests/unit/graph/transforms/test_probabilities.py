"""Probabilities split over two ranges: the same function, and bounds that spare calibration."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeq.exporters import get_exporter
from edgeq.graph.bounds import bounds_of
from edgeq.graph.capture import capture
from edgeq.graph.legalize import observed
from edgeq.graph.rewrite import aten, calls
from edgeq.graph.transforms.probabilities import split_probabilities, threshold_of
from edgeq.recipe import place_scheme
from tests.unit.graph.transforms.small_models import Attention, captured, relative
from tests.unit.graph.transforms.small_vits import FORMS, Form, vit

FEW = settings(max_examples=2, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"{f.qkv}-{f.width}-{f.end}")
@FEW
@given(weights=st.integers(0, 1000))
def test_splitting_keeps_the_function(form: Form, weights: int) -> None:
    graph, x = vit(form, weights)
    expected = graph(x)[0]
    report = split_probabilities(graph)
    threshold = 0.5  # the nearest power of two to 8/16 and 8/17
    assert report.thresholds == dict.fromkeys(range(form.depth), threshold)
    assert report.skipped == ()
    assert relative(expected, graph(x)[0]) < 1e-5
    parts = [bounds_of(n) for n in calls(graph, aten.clamp.default, aten.sub.Tensor)]
    assert [(b.low, b.high) for b in parts if b is not None] == [(0, threshold), (0, 1 - threshold)] * form.depth


@given(st.integers(1, 5000))
def test_the_threshold_is_a_power_of_two_below_one(keys: int) -> None:
    threshold = threshold_of(keys)
    assert 0 < threshold <= 0.5
    assert math.log2(threshold) == int(math.log2(threshold))
    assert keys < 16 or 0.7 <= threshold * keys / 8 <= 1.42


def test_the_threshold_of_a_vit_s() -> None:
    assert threshold_of(257) == 1 / 32


def test_both_parts_need_no_calibration() -> None:
    graph, _ = vit(Form())
    split_probabilities(graph)
    _, placement = place_scheme(graph, get_exporter("tflite"), "integer")
    parts = {n.name for n in graph.graph.nodes if bounds_of(n) is not None}
    assert len(parts) == 2
    assert parts <= set(placement.specs)
    assert not parts & set(observed(graph, placement))


class Shown(Attention):
    """Attention that puts its probabilities out."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        q, k, v = self.split(x)
        probabilities = (q @ k.transpose(-1, -2)).softmax(-1)
        return self.proj((probabilities @ v).transpose(1, 2).reshape(x.shape)), probabilities


def test_probabilities_that_others_read_stay() -> None:
    graph, _ = captured(Shown("three"), 1, 5, 8)
    text = str(graph.graph)
    report = split_probabilities(graph)
    assert report.thresholds == {}
    assert ["read the probabilities too" in s.reason for s in report.skipped] == [True]
    assert str(graph.graph) == text


def test_a_softmax_head_is_not_split() -> None:
    graph = capture(nn.Sequential(nn.Linear(4, 3), nn.Softmax(-1)), (torch.randn(1, 2, 4),))
    assert split_probabilities(graph).thresholds == {}
