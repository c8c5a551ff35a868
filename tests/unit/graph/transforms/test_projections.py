"""The channels behind queries, keys and values are found in every spelling: running the linears by hand proves it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from edgeq.errors import InternalError
from edgeq.graph.capture import capture
from edgeq.graph.recognize import attention_sites
from edgeq.graph.rewrite import fetch
from edgeq.graph.transforms.projections import Projection, attention_projections
from tests.unit.graph.transforms.small_models import SPELLINGS, Attention, Block, captured


def values(graph: fx.GraphModule, x: Tensor) -> dict[str, Tensor]:
    """Every tensor of the graph."""
    seen: dict[str, Tensor] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            seen[n.name] = super().run_node(n)
            return seen[n.name]

    Recorder(graph).run(x)
    return seen


def check_rows(projection: Projection, linear: Tensor, operand: Tensor) -> None:
    """`operand` `(N, heads, T, head_dim)` consists of the named channels of `linear` `(..., O)`."""
    flat = linear.reshape(operand.shape[0], -1, linear.shape[-1])
    picked = flat[:, :, projection.channels].permute(0, 2, 1, 3) * projection.factor
    torch.testing.assert_close(picked, operand.expand(picked.shape))


def check(graph: fx.GraphModule, x: Tensor) -> None:
    nodes = {n.name: n for n in graph.graph.nodes}
    seen = values(graph, x)
    for site in attention_sites(graph):
        found = attention_projections(graph, site)
        assert found.reasons == {}
        assert found.query and found.key and found.value and found.output
        assert found.query.channels.shape == (site.heads, site.head_dim)
        scores, context = nodes[site.scores], nodes[site.context]
        query, key = (seen[n.name] for n in scores.args)
        check_rows(found.query, seen[found.query.node], query)
        check_rows(found.key, seen[found.key.node], key.transpose(-1, -2))
        check_rows(found.value, seen[found.value.node], seen[context.args[1].name])
        assert found.query.shared == found.key.shared == found.value.shared == ()
        reader = nodes[found.output.node]
        before = seen[reader.args[0].name].reshape(x.shape[0], -1, site.heads * site.head_dim)
        check_rows(found.output, before, seen[context.name])


@pytest.mark.parametrize("how", [*SPELLINGS, "shared-key"])
@settings(max_examples=4, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    heads=st.integers(1, 4),
    head_dim=st.integers(1, 5),
    tokens=st.integers(1, 5),
    batch=st.integers(1, 2),
    bias=st.booleans(),
)
def test_every_spelling(how: str, heads: int, head_dim: int, tokens: int, batch: int, bias: bool) -> None:
    graph, x = captured(Attention(how, heads * head_dim, heads, bias), batch, tokens, heads * head_dim)
    if attention_sites(graph):  # heads or tokens of 1 may have been folded away
        check(graph, x)


def test_the_module_of_pytorch() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(12, 3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    graph, x = captured(Wrapped(), 1, 5, 12)
    assert len(attention_sites(graph)) == 1
    check(graph, x)


SMALL = {
    "vit_tiny_patch16_224": (48, {"img_size": 48, "depth": 3}),
    "swin_tiny_patch4_window7_224": (56, {"img_size": 56, "depths": (2, 1), "num_heads": (2, 4), "embed_dim": 16}),
    "pvt_v2_b0": (64, {"depths": (1, 1, 1, 1)}),
}


@pytest.mark.parametrize("name", SMALL)
def test_models_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    size, options = SMALL[name]
    graph = capture(timm.create_model(name, **options), (torch.randn(1, 3, size, size),))
    sites = attention_sites(graph)
    assert len(sites) >= 3
    for site in sites:
        found = attention_projections(graph, site)
        assert found.reasons == {}, site
        assert found.query and found.key and found.value and found.output
        channels = [p.channels.flatten().tolist() for p in (found.query, found.key, found.value) if p]
        if name == "vit_tiny_patch16_224":
            assert found.query.node == found.key.node == found.value.node
            assert [c for part in channels for c in part] == list(range(3 * 192))
            assert found.query.factor == pytest.approx(site.head_dim**-0.5)
        weight = {n.name: n.args[1].target for n in graph.graph.nodes if n.name == found.output.node}
        columns = fetch(graph, weight[found.output.node]).shape[1]
        assert sorted(found.output.channels.flatten().tolist()) == list(range(columns))


def test_convolutions_of_size_1() -> None:
    class Convolved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.proj = nn.Conv2d(8, 24, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).reshape(x.shape[0], 3, 2, 4, -1).transpose(-1, -2).unbind(1)
            mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ v
            return self.proj(mixed.transpose(-1, -2).reshape(x.shape))

    graph, _ = captured(Convolved(), 2, 8, 3, 3)
    found = attention_projections(graph, attention_sites(graph)[0])
    assert found.reasons == {}
    assert found.key is not None and found.output is not None
    assert found.key.channels.tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert found.output.channels.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(("how", "lost"), [("query-key-norm", {"query", "key"}), ("rotary", {"key"})])
def test_what_is_computed_in_between_is_named(how: str, lost: set[str]) -> None:
    graph, _ = captured(Attention(how), 1, 5, 8)
    found = attention_projections(graph, attention_sites(graph)[0])
    assert set(found.reasons) == lost
    assert found.key is None and found.value is not None and found.output is not None
    assert all("between" in reason for reason in found.reasons.values())


def test_attention_over_channels_has_no_heads_of_channels() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(8, 24)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).reshape(1, 5, 3, 2, 4).permute(2, 0, 3, 4, 1).unbind(0)
            return (q @ k.transpose(-1, -2)).softmax(-1) @ v

    graph, _ = captured(Crossed(), 1, 5, 8)
    found = attention_projections(graph, attention_sites(graph)[0])
    assert found.query is found.key is found.value is found.output is None
    assert "token" in found.reasons["key"]


def test_other_readers_of_the_keys_are_named() -> None:
    class Leaky(Attention):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.split(x)
            return self.proj(((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).reshape(x.shape)) + k.sum()

    graph, _ = captured(Leaky("fused"), 1, 5, 8)
    found = attention_projections(graph, attention_sites(graph)[0])
    assert found.query and found.key and found.value
    assert (found.query.shared, found.value.shared) == ((), ())
    assert len(found.key.shared) == 1 and "sum" in found.key.shared[0]


def test_queries_that_are_the_keys_share() -> None:
    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            k = self.k(x).reshape(1, 5, 2, 4).transpose(1, 2)
            return (k @ k.transpose(-1, -2)).softmax(-1) @ k

    graph, _ = captured(Same(), 1, 5, 8)
    site = attention_sites(graph)[0]
    found = attention_projections(graph, site)
    assert found.key and set(found.key.shared) == {site.scores, site.context}
    assert found.output is None and "output" in found.reasons["output"]


def test_a_site_of_another_graph() -> None:
    graph, _ = captured(Block("fused", 8, 2), 1, 5, 8)
    site = replace(attention_sites(graph)[0], scores="elsewhere")
    with pytest.raises(InternalError, match="elsewhere"):
        attention_projections(graph, site)
