"""Rotated and scaled heads: the same function, equal ranges, and heads that share channels left alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from edgeq.graph.capture import capture
from edgeq.graph.recognize import attention_sites
from edgeq.graph.rewrite import fetch
from edgeq.graph.transforms.channels import ChannelStatistics, channel_statistics
from edgeq.graph.transforms.heads import head_tensors, rotate_heads, scale_heads
from edgeq.graph.transforms.projections import attention_projections
from tests.unit.graph.transforms.small_models import SPELLINGS, Attention, Block, captured, relative
from tests.unit.graph.transforms.small_vits import FORMS, Form, vit

TOLERANCE = 5e-5
FEW = settings(max_examples=2, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))


def seen(graph: fx.GraphModule, *inputs: Tensor) -> dict[str, ChannelStatistics]:
    axes = head_tensors(graph)
    return channel_statistics(graph, list(axes), [(x,) for x in inputs], axes)


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"{f.qkv}-{f.width}-{f.end}")
@FEW
@given(weights=st.integers(0, 1000), seed=st.integers(0, 1000))
def test_rotating_and_scaling_keep_the_function(form: Form, weights: int, seed: int) -> None:
    graph, x = vit(form, weights)
    expected = graph(x)[0]
    sites = tuple(range(form.depth))
    rotated = rotate_heads(graph, seed)
    assert (rotated.sites, rotated.skipped) == (sites, ())
    assert relative(expected, graph(x)[0]) < TOLERANCE
    scaled = scale_heads(graph, seen(graph, x))
    assert (scaled.sites, scaled.skipped) == (sites, ())
    assert relative(expected, graph(x)[0]) < TOLERANCE


@pytest.mark.parametrize("how", SPELLINGS)
@FEW
@given(heads=st.integers(1, 4), head_dim=st.integers(1, 6), seed=st.integers(0, 1000))
def test_every_spelling_width_and_number_of_heads(how: str, heads: int, head_dim: int, seed: int) -> None:
    width = heads * head_dim
    graph, x = captured(Block(how, width, heads), 1, 4, width, seed=seed)
    expected = graph(x)[0]
    assert rotate_heads(graph, seed).sites == (0,)
    assert scale_heads(graph, seen(graph, x)).sites == (0,)
    assert relative(expected, graph(x)[0]) < TOLERANCE


def test_an_outlier_channel_spreads_over_its_head() -> None:
    graph, x = captured(Block("three", 16, 2), 1, 6, 16)
    with torch.no_grad():
        fetch(graph, "attn.k.weight")[3] *= 50
        fetch(graph, "attn.v.weight")[9] *= 50
    expected = graph(x)[0]
    names = ["attn_k", "attn_v"]
    before = channel_statistics(graph, names, [(x,)])
    rotate_heads(graph)
    after = channel_statistics(graph, names, [(x,)])
    for name, mine in (("attn_k", slice(0, 8)), ("attn_v", slice(8, 16))):
        assert float(after[name].absmax.max()) < 0.7 * float(before[name].absmax.max())
        assert float(after[name].absmax[mine].min()) > 5 * float(before[name].absmax[mine].median())
    assert relative(expected, graph(x)[0]) < TOLERANCE


def test_a_number_before_queries_keys_and_values_part_stays_with_the_values() -> None:
    class Halved(Attention):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (self.qkv(x) * 0.5).reshape(1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
            out: Tensor = self.proj(((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).reshape(x.shape))
            return out

    graph, x = captured(Halved("fused"), 1, 5, 8)
    expected = graph(x)[0]
    assert scale_heads(graph, seen(graph, x)).sites == (0,)
    assert relative(expected, graph(x)[0]) < TOLERANCE


def test_scaled_heads_reach_equally_far() -> None:
    graph, x = captured(Block("three", 12, 3), 1, 6, 12)
    with torch.no_grad():
        for name, factor in (("q", 20.0), ("k", 0.05), ("v", 30.0)):
            fetch(graph, f"attn.{name}.weight")[4:8] *= factor
            fetch(graph, f"attn.{name}.bias")[4:8] *= factor
    expected = graph(x)[0]
    scale_heads(graph, seen(graph, x))
    (site,) = attention_sites(graph)
    found = attention_projections(graph, site)
    after = seen(graph, x)
    assert found.value is not None
    peaks = after[found.value.node].absmax[found.value.channels].amax(1)
    torch.testing.assert_close(peaks, torch.ones_like(peaks), rtol=1e-4, atol=0)
    assert relative(expected, graph(x)[0]) < TOLERANCE


def test_the_difference_between_heads_is_split_between_operands_and_scores() -> None:
    graph, x = captured(Block("three", 12, 3), 1, 6, 12)
    (site,) = attention_sites(graph)
    found = attention_projections(graph, site)
    before = seen(graph, x)
    operands = [before[p.node].absmax[p.channels].amax(1) * p.factor for p in (found.query, found.key) if p]
    wanted = before[site.scores].absmax / (operands[0] * operands[1])
    scale_heads(graph, before)
    after = seen(graph, x)
    share = torch.sqrt(wanted / wanted.min())
    torch.testing.assert_close(after[site.scores].absmax / after[site.scores].absmax.min(), share, rtol=1e-3, atol=1e-3)
    for projection in (found.query, found.key):
        assert projection is not None
        peaks = after[projection.node].absmax[projection.channels].amax(1)
        torch.testing.assert_close(peaks.max() / peaks, share.sqrt(), rtol=1e-3, atol=1e-3)


def test_the_number_before_the_scores_moves_into_the_linear() -> None:
    graph, x = captured(Block("three", 8, 2), 1, 5, 8)
    (before,) = attention_sites(graph)
    query = attention_projections(graph, before).query
    assert query is not None
    assert (query.factor, before.scaled) == (pytest.approx(0.5), False)
    scale_heads(graph, seen(graph, x))
    (after,) = attention_sites(graph)
    query = attention_projections(graph, after).query
    assert query is not None
    assert (query.factor, after.scaled) == (1.0, True)


def test_a_head_that_is_always_zero_keeps_finite_weights() -> None:
    graph, x = captured(Block("three", 12, 3), 1, 5, 12)
    with torch.no_grad():
        for name in ("q", "v"):
            fetch(graph, f"attn.{name}.weight")[:4] = 0
            fetch(graph, f"attn.{name}.bias")[:4] = 0
    expected = graph(x)[0]
    assert scale_heads(graph, seen(graph, x)).sites == (0,)
    assert all(bool(torch.isfinite(p).all()) for p in graph.parameters())
    assert relative(expected, graph(x)[0]) < TOLERANCE


class Grouped(nn.Module):
    """Four query heads over two heads of keys and values (grouped queries)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.proj = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).reshape(1, -1, 4, 2).transpose(1, 2)
        k, v = self.kv(x).reshape(1, -1, 2, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        return self.proj(((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize("module", [Grouped(), Attention("shared-key")], ids=["grouped", "one-key"])
def test_heads_that_share_channels_are_skipped(module: nn.Module) -> None:
    graph, x = captured(module, 1, 5, 8)
    expected, text = graph(x)[0], str(graph.graph)
    assert head_tensors(graph) == {}
    for report in (rotate_heads(graph), scale_heads(graph, {})):
        assert report.sites == ()
        assert ["heads share the channels" in s.reason for s in report.skipped] == [True]
    assert torch.equal(graph(x)[0], expected)
    assert str(graph.graph) == text


@pytest.mark.parametrize("how", ["query-key-norm", "rotary"])
def test_what_lies_between_linear_and_heads_stops_it(how: str) -> None:
    graph, x = captured(Attention(how), 1, 5, 8)
    expected = graph(x)[0]
    (skipped,) = rotate_heads(graph).skipped
    assert skipped.reason
    assert torch.equal(graph(x)[0], expected)


def test_values_that_others_read_stay() -> None:
    class Shown(Attention):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.split(x)
            return self.proj(((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).reshape(x.shape)) + v.sum()

    graph, _ = captured(Shown("three"), 1, 5, 8)
    (skipped,) = rotate_heads(graph).skipped
    assert skipped.reason.endswith("reads the value too")


def test_without_statistics_nothing_is_scaled() -> None:
    graph, x = captured(Block("three", 8, 2), 1, 5, 8)
    statistics = seen(graph, x)
    (site,) = attention_sites(graph)
    del statistics[site.scores]
    expected = graph(x)[0]
    report = scale_heads(graph, statistics)
    assert report.sites == ()
    assert site.scores in report.skipped[0].reason
    assert torch.equal(graph(x)[0], expected)


def test_a_network_without_attention_is_left_as_it_is() -> None:
    graph = capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), (torch.randn(1, 3, 8, 8),))
    assert head_tensors(graph) == {}
    assert rotate_heads(graph) == scale_heads(graph, {})
