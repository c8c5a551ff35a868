"""Balanced hidden layers and stems: the same function, channels within the bounds that are noted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional

from edgeq.graph.bounds import bounds_of
from edgeq.graph.rewrite import fetch
from edgeq.graph.transforms.balance import HEADROOM, balance_hidden, balance_stems, hidden_tensors, stem_tensors
from edgeq.graph.transforms.channels import ChannelStatistics, channel_statistics
from tests.unit.graph.transforms.small_models import Block, captured, relative
from tests.unit.graph.transforms.small_vits import FORMS, Form, images, vit

TOLERANCE = 2e-5
FEW = settings(max_examples=3, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))


def hidden(graph: fx.GraphModule, *inputs: Tensor) -> dict[str, ChannelStatistics]:
    return channel_statistics(graph, list(hidden_tensors(graph)), [(x,) for x in inputs])


def values(graph: fx.GraphModule, x: Tensor) -> dict[str, Tensor]:
    """The values of all bounded nodes."""
    found: dict[str, Tensor] = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if bounds_of(n) is not None:
                found[n.name] = value
            return value

    with torch.no_grad():
        Watch(graph).run(x)
    return found


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"{f.qkv}-{f.width}-{f.end}")
@FEW
@given(weights=st.integers(0, 1000))
def test_balancing_keeps_the_function_and_the_bounds(form: Form, weights: int) -> None:
    graph, x = vit(form, weights)
    expected = graph(x)[0]
    assert hidden_tensors(graph) == tuple(f"blocks_{i}_fc1" for i in range(form.depth))
    axes = stem_tensors(graph)
    assert axes == {"stem": 1}
    stems = channel_statistics(graph, ["stem"], [(x,)], axes)
    report = balance_hidden(graph, hidden(graph, x))
    assert (len(report.sites), report.skipped) == (form.depth, ())
    assert balance_stems(graph, stems).sites == ("stem",)
    assert relative(expected, graph(x)[0]) < TOLERANCE
    found = values(graph, x)
    assert len(found) == 2 * form.depth + 1
    for node in graph.graph.nodes:
        bounds = bounds_of(node)
        if bounds is not None and "fc1" not in node.name:  # saturated ends of GELU's input may lie below
            assert float(found[node.name].max()) <= bounds.high * (1 + 1e-5)
            assert float(found[node.name].min()) >= bounds.low * (1 + 1e-5) - 1e-6


def test_what_lies_below_the_bounds_before_gelu_is_nothing_behind_it() -> None:
    graph, x = vit(Form())
    balance_hidden(graph, hidden(graph, x))
    exact = graph(x)[0]
    (first,) = [n for n in graph.graph.nodes if n.name == "blocks_0_fc1"]
    with graph.graph.inserting_after(first):
        clamped = graph.graph.call_function(torch.clamp, (first, -1.0, 1.0))
    first.replace_all_uses_with(clamped, delete_user_cb=lambda user: user is not clamped)
    graph.recompile()
    assert relative(exact, graph(x)[0]) < 2e-3


def test_ranges_meet_half_way() -> None:
    graph, x = captured(Block("three", 8, 2), 1, 6, 8)
    with torch.no_grad():
        fetch(graph, "fc1.weight")[2] *= 100
    before = hidden(graph, x)["fc1"]
    balance_hidden(graph, {"fc1": before})
    after = channel_statistics(graph, ["fc1"], [(x,)])["fc1"]
    reach = before.high.clamp(min=0.1)
    expected_top = (reach * reach.max()).sqrt() * HEADROOM
    scale = fetch(graph, "fc1.scale").double()
    offset = fetch(graph, "fc1.offset").double()
    torch.testing.assert_close(scale + offset, expected_top, rtol=1e-5, atol=1e-5)
    assert float((offset - scale).min()) >= -4 - 1e-6  # what GELU maps to 0 gets no codes
    loud = int(before.high.argmax())
    assert float(after.high[loud]) == pytest.approx(float((before.high[loud] - offset[loud]) / scale[loud]), rel=1e-4)


def test_a_dead_layer_is_balanced_without_infinities() -> None:
    graph, x = captured(Block("three", 8, 2), 1, 6, 8)
    with torch.no_grad():
        fetch(graph, "fc1.weight").zero_()
        fetch(graph, "fc1.bias").zero_()
    expected = graph(x)[0]
    balance_hidden(graph, hidden(graph, x))
    assert all(bool(torch.isfinite(p).all()) for p in graph.parameters())
    assert relative(expected, graph(x)[0]) < TOLERANCE


class Mlp(nn.Module):
    """Two linears with GELU between, spelled `how`."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.fc1, self.fc2 = how, nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc1(x)
        z = functional.gelu(y)
        if self.how == "hidden-shown":
            return self.fc2(z) + y.sum()
        if self.how == "gelu-shown":
            return self.fc2(z) + z.sum()
        if self.how == "sum":
            return self.fc2(functional.gelu(y + self.fc1(x * 2)))
        return self.fc2(z)


@pytest.mark.parametrize("how", ["hidden-shown", "gelu-shown", "sum"])
def test_hidden_layers_that_others_read_are_skipped(how: str) -> None:
    graph, x = captured(Mlp(how), 1, 5, 4)
    expected = graph(x)[0]
    assert hidden_tensors(graph) == ()
    report = balance_hidden(graph, {})
    assert report.sites == ()
    assert ["not between two linears" in s.reason for s in report.skipped] == [True]
    assert torch.equal(graph(x)[0], expected)


def test_without_statistics_a_layer_is_skipped() -> None:
    graph, _ = captured(Mlp("plain"), 1, 5, 4)
    assert hidden_tensors(graph) == ("fc1",)
    assert [s.reason for s in balance_hidden(graph, {}).skipped] == ["no statistics of fc1"]


def test_a_linear_without_bias_gets_one() -> None:
    graph, x = captured(Block("three", 8, 2, bias=False), 1, 6, 8)
    expected = graph(x)[0]
    assert balance_hidden(graph, hidden(graph, x)).sites == ("fc1",)
    assert relative(expected, graph(x)[0]) < TOLERANCE


def test_loud_channels_of_a_stem_become_quiet() -> None:
    graph, x = vit(Form())
    with torch.no_grad():
        fetch(graph, "stem.weight")[1] *= 50
    batches = images(3)
    before = channel_statistics(graph, ["stem"], batches, {"stem": 1})
    expected = graph(x)[0]
    balance_stems(graph, before)
    after = channel_statistics(graph, ["stem"], batches, {"stem": 1})["stem"]
    assert float(before["stem"].absmax.max() / before["stem"].absmax.median()) > 10
    assert float(after.absmax.max() / after.absmax.median()) < 10
    assert float(after.absmax.max()) <= 1 / HEADROOM + 1e-5
    assert relative(expected, graph(x)[0]) < TOLERANCE


def test_convolutions_of_a_cnn_are_no_stems() -> None:
    graph, _ = captured(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), 1, 3, 8, 8)
    assert stem_tensors(graph) == {}
