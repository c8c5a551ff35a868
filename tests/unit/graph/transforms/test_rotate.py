"""Rotated residual streams: the same function, no outlier channels, and nothing done where it cannot be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from edgeq.graph.capture import capture
from edgeq.graph.recognize import count_ops
from edgeq.graph.rewrite import fetch
from edgeq.graph.transforms.channels import channel_statistics
from edgeq.graph.transforms.rotate import rotate_streams
from tests.unit.graph.transforms.small_models import captured, relative
from tests.unit.graph.transforms.small_vits import FORMS, Form, vit

TOLERANCE = 2e-5
FEW = settings(max_examples=3, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"{f.qkv}-{f.width}-{f.end}")
@FEW
@given(weights=st.integers(0, 1000), seed=st.integers(0, 1000))
def test_rotating_keeps_the_function(form: Form, weights: int, seed: int) -> None:
    graph, x = vit(form, weights)
    expected = graph(x)[0]
    report = rotate_streams(graph, seed)
    kind = "hadamard" if form.width in (8, 12, 16) else "random"
    assert report.rotated == ((form.width, kind, 2 * form.depth + 1),)
    assert report.skipped == ()
    assert "layer_norm" not in count_ops(graph)
    assert relative(expected, graph(x)[0]) < TOLERANCE


def test_the_stream_is_really_rotated_and_centred() -> None:
    form = Form()
    graph, x = vit(form)
    names = ["blocks_0_add", "blocks_0_add_1"]
    with torch.no_grad():
        fetch(graph, "blocks.0.fc2.weight")[3] *= 100  # an outlier channel
    before = channel_statistics(graph, names, [(x,)])
    expected = graph(x)[0]
    rotate_streams(graph)
    after = channel_statistics(graph, names, [(x,)])
    spread = [float(s["blocks_0_add_1"].rms.max() / s["blocks_0_add_1"].rms.median()) for s in (before, after)]
    assert spread[0] > 10
    assert spread[1] < 3
    assert float(after["blocks_0_add_1"].absmax.max()) < 0.7 * float(before["blocks_0_add_1"].absmax.max())
    assert relative(expected, graph(x)[0]) < TOLERANCE


def test_seeds_decide_and_repeat() -> None:
    weights = []
    for seed in (0, 0, 1):
        graph, _ = vit(Form())
        rotate_streams(graph, seed)
        weights.append(fetch(graph, "stem.weight").clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_linear_may_read_and_write_the_same_stream() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.inner = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 8)
            self.last_norm, self.last = nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            x = x + self.inner(self.norm(x))
            x = x + self.inner(self.norm(x))  # the same weights again
            return self.last(self.last_norm(x))

    graph, x = captured(Loop(), 1, 5, 4)
    expected = graph(x)[0]
    assert rotate_streams(graph).rotated == ((8, "hadamard", 3),)
    assert relative(expected, graph(x)[0]) < TOLERANCE


def test_weights_shared_with_a_stranger_stay_for_it() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(8, 8))
            self.norm, self.first, self.last = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            aside = torch.relu(functional.linear(x, self.table))
            return self.last(self.norm(functional.linear(x, self.table) + self.first(x))) + aside.sum()

    graph, x = captured(Tied(), 1, 5, 8)
    expected = graph(x)[0]
    assert len(rotate_streams(graph).rotated) == 1
    assert relative(expected, graph(x)[0]) < TOLERANCE


def test_memory_that_other_graphs_share_is_untouched() -> None:
    graph, _ = vit(Form())
    originals = dict(graph.named_parameters())
    before = {name: value.clone() for name, value in originals.items()}
    rotate_streams(graph)
    assert all(torch.equal(before[name], value) for name, value in originals.items())


def test_a_dead_channel_before_a_padded_convolution_is_refused() -> None:
    graph, x = vit(Form(end="padded"))
    with torch.no_grad():
        fetch(graph, "norm.weight")[2] = 0
    expected = graph(x)[0]
    report = rotate_streams(graph)
    assert report.rotated == ()
    (skipped,) = report.skipped
    assert "scale 0 before a padded convolution" in skipped.reason
    assert torch.equal(graph(x)[0], expected)
    unpadded, x = vit(Form(end="plain"))
    with torch.no_grad():
        fetch(unpadded, "norm.weight")[2] = 0
    expected = unpadded(x)[0]
    assert len(rotate_streams(unpadded).rotated) == 1
    assert relative(expected, unpadded(x)[0]) < TOLERANCE


def test_a_large_epsilon_survives() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(4, 6), nn.LayerNorm(6, eps=0.5), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.norm(self.first(x)))

    graph, x = captured(Plain(), 2, 5, 4)
    expected = graph(x)[0]
    assert rotate_streams(graph).rotated == ((6, "random", 1),)
    assert relative(expected, graph(x)[0]) < TOLERANCE


def test_factors_and_pooling_before_a_reader_are_kept() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Linear(4, 8), nn.LayerNorm(8)
            self.last, self.other = nn.Linear(8, 3), nn.Linear(8, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.first(x))
            return self.last(x.mean(1, keepdim=True) * 3) + self.other(x / 2)

    graph, x = captured(Pooled(), 2, 5, 4)
    expected = graph(x)[0]
    assert len(rotate_streams(graph).rotated) == 1
    assert relative(expected, graph(x)[0]) < TOLERANCE


def test_what_cannot_be_rotated_is_skipped_with_the_reason() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.norm(torch.relu(self.first(x))))

    graph, x = captured(Fixed(), 1, 5, 4)
    expected, text = graph(x)[0], str(graph.graph)
    report = rotate_streams(graph)
    assert report.rotated == ()
    assert [(s.name, "relu" in s.reason) for s in report.skipped] == [("norm", True)]
    assert (torch.equal(graph(x)[0], expected), str(graph.graph)) == (True, text)


def test_a_network_without_streams_is_left_as_it_is() -> None:
    graph = capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), (torch.randn(1, 3, 8, 8),))
    text = str(graph.graph)
    report = rotate_streams(graph)
    assert (report.rotated, report.skipped, str(graph.graph)) == ((), (), text)
