"""Centred keys: the same function, smaller ranges, and nothing touched that something else reads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeq.errors import UsageError
from edgeq.graph.rewrite import fetch
from edgeq.graph.transforms.channels import ChannelStatistics, channel_statistics
from edgeq.graph.transforms.keys import center_keys, key_tensors, logit_ranges
from tests.unit.graph.transforms.small_models import SPELLINGS, Attention, Block, captured, relative


@pytest.mark.parametrize("how", SPELLINGS)
@settings(max_examples=2, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(heads=st.integers(1, 3), head_dim=st.integers(1, 6), bias=st.booleans(), seed=st.integers(0, 1000))
def test_softmax_does_not_see_it(how: str, heads: int, head_dim: int, bias: bool, seed: int) -> None:
    width = heads * head_dim
    graph, x = captured(Block(how, width, heads, bias), 1, 4, width, seed=seed)
    axes = key_tensors(graph)
    assert len(axes) == 1
    expected = graph(x)[0]
    statistics = channel_statistics(graph, list(axes), [(x,)], axes)
    report = center_keys(graph, statistics)
    assert len(report.sites) == 1 and not report.skipped
    assert relative(expected, graph(x)[0]) < 1e-4
    (name,) = axes
    again = channel_statistics(graph, [name], [(x,)], axes)[name]
    moved = (again.mean - statistics[name].mean).abs() > 1e-6
    assert int(moved.sum()) <= width
    assert not moved.any() or float(again.mean[moved].abs().max()) < 1e-5


def test_an_offset_of_the_keys_vanishes_from_keys_and_logits() -> None:
    graph, x = captured(Block("fused", 8, 2), 2, 5, 8)
    with torch.no_grad():
        fetch(graph, "attn.qkv.bias")[8:16] += 30
    (name,) = key_tensors(graph)
    before = logit_ranges(graph, [(x,)])[0]
    expected = graph(x)[0]
    (site,) = center_keys(graph, channel_statistics(graph, [name], [(x,)])).sites
    after = logit_ranges(graph, [(x,)])[0]
    assert site.before > 25 and site.after < 15
    assert after[1] - after[0] < 0.5 * (before[1] - before[0])
    assert relative(expected, graph(x)[0]) < 1e-4
    bias = fetch(graph, "attn.qkv.bias")
    assert float(bias[8:16].abs().max()) < 15


def test_a_mask_and_a_scale_after_the_product_do_not_matter() -> None:
    class Masked(Attention):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.split(x)
            logits = (q @ k.transpose(-1, -2)) * 0.3 + torch.full((5, 5), -9.0).triu(1)
            return self.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))

    graph, x = captured(Masked("three"), 1, 5, 8)
    expected = graph(x)[0]
    axes = key_tensors(graph)
    report = center_keys(graph, channel_statistics(graph, list(axes), [(x,)], axes))
    assert len(report.sites) == 1
    assert relative(expected, graph(x)[0]) < 1e-4


class Between(Attention):
    """Attention with an operation between logits and softmax that tells keys apart."""

    def __init__(self, what: str) -> None:
        super().__init__("three")
        self.what = what
        self.ramp = nn.Parameter(torch.linspace(0.2, 2.0, 5))
        self.register_buffer("hidden", torch.ones(5, 5, dtype=torch.bool).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        logits = q @ k.transpose(-1, -2)
        if self.what == "product":
            logits = logits * self.ramp
        elif self.what == "quotient":
            logits = logits / self.ramp
        elif self.what == "fill":
            logits = logits.masked_fill(self.hidden, 0.0)
        else:
            logits = torch.where(self.hidden, -1.0, logits)
        out: Tensor = self.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))
        return out


@pytest.mark.parametrize("what", ["product", "quotient", "fill", "where"])
def test_what_tells_keys_apart_before_the_softmax_keeps_them_as_they_are(what: str) -> None:
    graph, x = captured(Between(what), 1, 5, 8)
    with torch.no_grad():
        fetch(graph, "k.bias").add_(3)
    expected = graph(x)[0]
    axes = key_tensors(graph)
    report = center_keys(graph, channel_statistics(graph, list(axes), [(x,)], axes))
    assert relative(expected, graph(x)[0]) < 1e-4
    assert not report.sites
    assert all("between logits and softmax" in s.reason for s in report.skipped)


def test_a_mask_of_minus_infinity_does_not_matter() -> None:
    class Masked(Between):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.split(x)
            logits = (q @ k.transpose(-1, -2)).masked_fill(self.hidden, -torch.inf)
            out: Tensor = self.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))
            return out

    graph, x = captured(Masked(""), 1, 5, 8)
    expected = graph(x)[0]
    axes = key_tensors(graph)
    assert len(center_keys(graph, channel_statistics(graph, list(axes), [(x,)], axes)).sites) == 1
    assert relative(expected, graph(x)[0]) < 1e-4


class Reused(Attention):
    """Attention that lets something else see `what`."""

    def __init__(self, what: str) -> None:
        super().__init__("three")
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        logits = q @ k.transpose(-1, -2)
        out = self.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))
        return out + {"keys": k, "logits": logits}[self.what].sum()


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (lambda: Reused("keys"), "reads the keys too"),
        (lambda: Reused("logits"), "read the logits"),
        (lambda: Attention("query-key-norm"), "between"),
    ],
    ids=["keys", "logits", "normed"],
)
def test_what_is_skipped_stays(module: type[nn.Module], reason: str) -> None:
    graph, x = captured(module(), 1, 5, 8)
    state = {k: v.clone() for k, v in graph.state_dict().items()}
    axes = key_tensors(graph)
    report = center_keys(graph, channel_statistics(graph, list(axes), [(x,)], axes))
    assert not report.sites
    assert len(report.skipped) == 1 and reason in report.skipped[0].reason
    assert all(torch.equal(state[k], v) for k, v in graph.state_dict().items())


def test_statistics_that_are_missing_or_of_other_channels() -> None:
    graph, _ = captured(Attention("fused"), 1, 5, 8)
    report = center_keys(graph, {})
    assert not report.sites and "statistics" in report.skipped[0].reason
    (name,) = key_tensors(graph)
    with pytest.raises(UsageError, match="channels"):
        center_keys(graph, {name: ChannelStatistics(*[torch.zeros(8)] * 5)})
