"""Taken-apart layer norms, activations and attentions are found again, in many spellings, and nothing else is."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from edgeq.graph.capture import capture
from edgeq.graph.recognize import AttentionSite, attention_sites, count_ops, network_kind, op_kind

ROOT2 = math.sqrt(2.0)
TANH = math.sqrt(2 / math.pi)
Function = Callable[[Tensor], Tensor]


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


ACTIVATIONS: dict[str, list[Function]] = {
    "gelu": [
        lambda x: x * 0.5 * (1 + torch.erf(x / ROOT2)),
        lambda x: x * (torch.erf(x / ROOT2) + 1) / 2,
        lambda x: (x * (1 + torch.erf(x * (1 / ROOT2)))) * 0.5,
        lambda x: x * (0.5 * torch.erf(x / ROOT2) + 0.5),
        lambda x: 0.5 * x + 0.5 * x * torch.erf(x / ROOT2),
        lambda x: x * 0.5 * (1 + torch.tanh(TANH * (x + 0.044715 * torch.pow(x, 3)))),
        lambda x: 0.5 * x * (1 + torch.tanh(TANH * x * (1 + 0.044715 * x * x))),
        lambda x: 0.5 * x * (1 + torch.tanh((x + x * x * x * 0.044715) * TANH)),
        lambda x: x * torch.sigmoid(2 * TANH * (x + 0.044715 * x**3)),
    ],
    "silu": [
        lambda x: x * torch.sigmoid(x),
        lambda x: torch.sigmoid(x) * x,
        lambda x: x / (1 + torch.exp(-x)),
        lambda x: x * torch.reciprocal(1 + torch.exp(-x)),
    ],
    "hardswish": [
        lambda x: x * functional.relu6(x + 3) / 6,
        lambda x: x * torch.clamp(x + 3, 0, 6) * (1 / 6),
        lambda x: x * functional.hardsigmoid(x),
        lambda x: x * torch.clamp(x / 6 + 0.5, 0.0, 1.0),
    ],
    "hardsigmoid": [lambda x: torch.clamp(x / 6 + 0.5, 0.0, 1.0), lambda x: functional.relu6(x + 3.0) / 6.0],
    "mish": [lambda x: x * torch.tanh(functional.softplus(x))],
}
SPELLINGS = [(kind, i) for kind, functions in ACTIVATIONS.items() for i in range(len(functions))]


@pytest.mark.parametrize(("kind", "index"), SPELLINGS)
def test_activations_in_every_spelling(kind: str, index: int) -> None:
    function = ACTIVATIONS[kind][index]
    x = torch.linspace(-6, 6, 97).reshape(1, 97)
    module = Call(lambda v: function(v * 1.5) + v)
    graph = capture(module, (x,))
    assert count_ops(graph) == {"add": 1, kind: 1, "mul": 1}
    torch.testing.assert_close(graph(x)[0], module(x), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * torch.sigmoid(1.702 * x),
        lambda x: x * 0.5 * (1 + torch.erf(x / 1.5)),
        lambda x: x * torch.sigmoid(x.flip(-1)),
        lambda x: x.sum(-1, keepdim=True) * torch.sigmoid(x),
        lambda x: torch.cat([x * torch.sigmoid(x[:, :1]), x]),
    ],
    ids=["quick-gelu", "other-width", "other-input", "broadcast", "gate"],
)
def test_look_alikes_stay(function: Function) -> None:
    graph = capture(Call(function), (torch.randn(2, 5),))
    assert not {"gelu", "silu", "mish", "hardswish"} & set(count_ops(graph))


def test_a_shared_inner_value_is_kept() -> None:
    graph = capture(Call(lambda x: x * (s := torch.sigmoid(x)) + s), (torch.randn(3),))
    assert count_ops(graph) == {"add": 1, "mul": 1, "sigmoid": 1}


WIDTH = 6
GAIN, BIAS = torch.randn(WIDTH), torch.randn(WIDTH)


def mean(x: Tensor) -> Tensor:
    return x.mean(-1, keepdim=True)


def centre(x: Tensor) -> Tensor:
    return x - mean(x)


NORMS: dict[str, Function] = {
    "pow": lambda x: centre(x) / torch.sqrt(mean(centre(x).pow(2)) + 1e-5) * GAIN + BIAS,
    "one-centre": lambda x: (d := centre(x)) / torch.sqrt(mean(d.pow(2)) + 1e-5) * GAIN + BIAS,
    "product": lambda x: (d := centre(x)) / torch.sqrt(mean(d * d) + 1e-5) * GAIN + BIAS,
    "rsqrt": lambda x: (d := centre(x)) * torch.rsqrt(mean(d * d) + 1e-5) * GAIN + BIAS,
    "power": lambda x: (d := centre(x)) * (mean(d * d) + 1e-5).pow(-0.5) * GAIN + BIAS,
    "root-power": lambda x: (d := centre(x)) / (mean(d * d) + 1e-5).pow(0.5) * GAIN + BIAS,
    "reciprocal": lambda x: torch.reciprocal(torch.sqrt(1e-5 + mean((d := centre(x)) ** 2))) * d * GAIN + BIAS,
    "left-constants": lambda x: BIAS + GAIN * ((d := centre(x)) / torch.sqrt(mean(d * d) + 1e-5)),
    "variance": lambda x: centre(x) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5) * GAIN + BIAS,
    "shaped": lambda x: (d := centre(x)) / torch.sqrt(mean(d * d) + 1e-5) * GAIN.reshape(1, 1, -1) + BIAS,
    "plain": lambda x: (d := centre(x)) / torch.sqrt(mean(d * d) + 1e-5),
    "gain-only": lambda x: (d := centre(x)) / torch.sqrt(mean(d * d) + 1e-5) * GAIN,
    "eps": lambda x: (d := centre(x)) / torch.sqrt(mean(d * d) + 0.5) * GAIN + BIAS,
}


@pytest.mark.parametrize("name", NORMS)
def test_layer_norms_in_every_spelling(name: str) -> None:
    x = torch.randn(2, 3, WIDTH) * 3 + 1
    graph = capture(Call(lambda v: torch.relu(NORMS[name](v))), (x,))
    assert count_ops(graph) == {"layer_norm": 1, "relu": 1}
    torch.testing.assert_close(graph(x)[0], torch.relu(NORMS[name](x)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (d := x - x.mean(1, keepdim=True)) / torch.sqrt((d * d).mean(1, keepdim=True) + 1e-5),
        lambda x: centre(x) / torch.sqrt(x.var(-1, keepdim=True) + 1e-5),
        lambda x: x / torch.sqrt(mean(x * x) + 1e-5),
        lambda x: centre(x) / torch.sqrt(mean(centre(x * 2) ** 2) + 1e-5),
    ],
    ids=["channels", "unbiased", "root-mean-square", "other-input"],
)
def test_other_norms_stay(function: Function) -> None:
    x = torch.randn(2, 3, WIDTH)
    graph = capture(Call(function), (x,))
    assert "layer_norm" not in count_ops(graph)
    torch.testing.assert_close(graph(x)[0], function(x), rtol=1e-5, atol=1e-6)


def test_what_reads_the_plain_norm_too_keeps_it() -> None:
    def function(x: Tensor) -> Tensor:
        return (n := NORMS["plain"](x)) * GAIN + n

    x = torch.randn(2, 3, WIDTH)
    graph = capture(Call(function), (x,))
    assert count_ops(graph) == {"add": 1, "layer_norm": 1, "mul": 1}
    torch.testing.assert_close(graph(x)[0], function(x), rtol=1e-5, atol=1e-5)


class Attention(nn.Module):
    """Attention with the scale and the mask where the options put them."""

    def __init__(self, scale: str, mask: str, dim: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.qkv, self.heads, self.scale, self.mask = nn.Linear(dim, 3 * dim), heads, scale, mask
        self.bias = nn.Parameter(torch.randn(heads, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        factor = q.shape[-1] ** -0.5
        q = q * factor if self.scale == "query" else q
        scores = q @ k.transpose(-2, -1)
        scores = {"product": scores * factor, "quotient": scores / (1 / factor)}.get(self.scale, scores)
        if self.mask == "bias":
            scores = scores + self.bias
        if self.mask == "hidden":
            scores = scores.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -1e9)
        return (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, width)


@pytest.mark.parametrize("scale", ["query", "product", "quotient"])
@pytest.mark.parametrize("mask", ["none", "bias", "hidden"])
def test_attention_is_found_wherever_scale_and_mask_are(scale: str, mask: str) -> None:
    graph = capture(Attention(scale, mask), (torch.randn(1, 5, 8),))
    (site,) = attention_sites(graph)
    assert (site.index, site.heads, site.tokens, site.keys, site.head_dim) == (0, 2, 5, 5, 4)
    assert (site.scaled, site.masked) == (scale != "query", mask != "none")
    kinds = {n.name: op_kind(n) for n in graph.graph.nodes}
    assert [kinds[n] for n in (site.scores, site.softmax, site.context)] == ["matmul", "softmax", "matmul"]
    for copied in (graph, copy.deepcopy(graph)):
        marked = [n.name for n in copied.graph.nodes if isinstance(n.meta.get("attention"), AttentionSite)]
        assert marked == [site.scores, site.softmax, site.context]


def test_a_softmax_head_is_no_attention() -> None:
    graph = capture(nn.Sequential(nn.Linear(4, 3), nn.Softmax(-1)), (torch.randn(1, 2, 4),))
    assert attention_sites(graph) == []


def test_what_a_network_is_taken_for() -> None:
    convolutions = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    with_scores = nn.Sequential(convolutions, nn.Softmax(-1))
    image = (torch.randn(1, 3, 6, 6),)
    for network in (convolutions, with_scores):
        assert network_kind(capture(network.eval(), image)) == "convolution"
    assert network_kind(capture(Attention("query", "none"), (torch.randn(1, 5, 8),))) == "transformer"
    mixer = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU())
    assert network_kind(capture(mixer, (torch.randn(1, 5, 8),))) == "transformer"


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.sampled_from(["gelu0", "gelu5", "silu0", "silu2", "hardswish0", "add", "mul", "relu", "norm", "linear"]),
        min_size=1,
        max_size=7,
    ),
    st.integers(0, 10_000),
)
def test_random_chains_keep_their_function(steps: list[str], seed: int) -> None:
    torch.manual_seed(seed)
    layer = nn.Linear(WIDTH, WIDTH)

    def run(x: Tensor) -> Tensor:
        start = x
        for step in steps:
            if step[-1].isdigit():
                x = ACTIVATIONS[step[:-1]][int(step[-1])](x)
            elif step == "norm":
                x = NORMS["one-centre"](x)
            elif step == "linear":
                x = layer(x)
            else:
                x = {"add": x + start, "mul": x * 0.7, "relu": torch.relu(x)}[step]
        return x

    module, x = Call(run), torch.randn(2, 3, WIDTH)
    module.add_module("layer", layer)
    graph = capture(module, (x,))
    counts = count_ops(graph)
    expected = {k: sum(s.startswith(k) and s[-1].isdigit() for s in steps) for k in ("gelu", "silu", "hardswish")}
    assert {k: counts.get(k, 0) for k in expected} == expected
    with torch.no_grad():
        torch.testing.assert_close(graph(x)[0], module(x), rtol=1e-4, atol=1e-4)
