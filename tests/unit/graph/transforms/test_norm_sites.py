"""Norm sites: what is found, and that moving a scale and a shift through them changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeq.errors import DataError, InternalError, UsageError
from edgeq.graph.capture import capture
from edgeq.graph.rewrite import fetch, refresh, shape_of
from edgeq.graph.transforms.channels import ChannelStatistics, channel_statistics
from edgeq.graph.transforms.norm_sites import NormSite, affine, norm_sites, shift_and_scale
from tests.unit.graph.transforms.small_models import Block, captured, relative

WIDTH = 6
NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)


class Around(nn.Module):
    """A function of an input, a norm and two linears."""

    def __init__(
        self, function: Callable[..., Tensor], norm: nn.Module | None = None, linear: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.function = function
        self.norm = norm or nn.LayerNorm(WIDTH)
        self.a, self.b = linear or nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 4, bias=False)
        self.gain, self.offset = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.randn(1, 1, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def root(x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)


FOUND: dict[str, Callable[[], nn.Module]] = {
    "one": lambda: Around(lambda m, x: m.a(m.norm(x))),
    "two": lambda: Around(lambda m, x: m.a(n := m.norm(x)) + m.b(n)),
    "tied": lambda: Around(lambda m, x: m.a(m.norm(x)) + m.a(x)),
    "bare": lambda: Around(lambda m, x: m.a(m.norm(x)), nn.LayerNorm(WIDTH, elementwise_affine=False)),
    "no-beta": lambda: Around(lambda m, x: m.b(m.norm(x)), nn.LayerNorm(WIDTH, bias=False)),
    "first-token": lambda: Around(lambda m, x: m.a(m.norm(x)[:, 0])),
    "flattened": lambda: Around(lambda m, x: m.a(m.norm(x).flatten(1)), linear=nn.Linear(5 * WIDTH, 4)),
    "windows": lambda: Around(lambda m, x: m.a(m.norm(x).roll(1, 1).reshape(-1, 1, WIDTH))),
    "scaled": lambda: Around(lambda m, x: m.a(m.norm(x) * 3) + m.b(m.norm(x) / 2)),
    "pointwise": lambda: Around(lambda m, x: m.a(m.norm(x).transpose(1, 2)), linear=nn.Conv1d(WIDTH, 4, 1)),
    "rms": lambda: Around(lambda m, x: m.a(m.norm(x)), nn.RMSNorm(WIDTH, eps=1e-6)),
    "rms-bare": lambda: Around(lambda m, x: m.a(m.norm(x)), nn.RMSNorm(WIDTH, eps=1e-6, elementwise_affine=False)),
    "root": lambda: Around(lambda m, x: m.a(root(x))),
    "root-gain": lambda: Around(lambda m, x: m.a(m.gain * root(x))),
    "root-both": lambda: Around(lambda m, x: m.a(root(x) * m.gain + m.offset)),
    "root-offset": lambda: Around(lambda m, x: m.a(root(x) + m.offset)),
}


@pytest.mark.parametrize("name", FOUND)
def test_moving_shift_and_scale_changes_nothing(name: str) -> None:
    original, x = captured(FOUND[name](), 2, 5, WIDTH)
    before = {n.name: shape_of(n) for n in original.graph.nodes if n.op != "output"}
    state = {k: v.clone() for k, v in original.state_dict().items()}
    graph = copy.deepcopy(original)
    sites, skipped = norm_sites(graph)
    assert sites and not skipped
    generator = torch.Generator().manual_seed(3)
    expected = original(x)[0]
    for site in sites:
        assert site.width == WIDTH
        shift = torch.randn(WIDTH, generator=generator).double()
        scale = torch.exp(torch.randn(WIDTH, generator=generator)).double()
        value = run_to(graph, site.output, x)
        changed = shift_and_scale(graph, site, shift, scale)
        torch.testing.assert_close(
            run_to(graph, changed.output, x), ((value + shift) / scale).float(), rtol=1e-4, atol=1e-4
        )
        for path in (changed.gamma, changed.beta, *(r.weight for r in changed.readers)):
            assert fetch(graph, path).dtype == torch.float32
        again, _ = norm_sites(graph)
        assert [s.output for s in again if s.norm == site.norm] == [changed.output]
    graph.graph.lint()
    refresh(graph)
    assert relative(expected, graph(x)[0]) < 1e-5
    after = {n.name: shape_of(n) for n in graph.graph.nodes if n.op != "output"}
    constants = {n.name for n in graph.graph.nodes if n.op == "get_attr"}
    assert all(after[name] == shape for name, shape in before.items() if name in after)
    assert set(before) - set(after) <= {"a_weight", "a_bias"}, "only a tied constant may be replaced by another"
    assert all(fetch(graph, str(n.target)) is not None for n in graph.graph.nodes if n.name in constants)
    assert all(torch.equal(state[k], v) for k, v in original.state_dict().items())


def run_to(graph: torch.fx.GraphModule, name: str, x: Tensor) -> Tensor:
    """The tensor `name` of the graph."""
    seen: list[Tensor] = []

    class Stop(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            if n.name == name:
                seen.append(value)
            return value

    Stop(graph).run(x)
    return seen[0]


def test_a_neutral_move_creates_nothing() -> None:
    graph, _ = captured(FOUND["root"](), 2, 5, WIDTH)
    (site,), _ = norm_sites(graph)
    count = len(graph.graph.nodes)
    assert shift_and_scale(graph, site, torch.zeros(WIDTH), torch.ones(WIDTH)).output == site.output
    assert len(graph.graph.nodes) == count
    assert [part.tolist() for part in affine(graph, site)] == [[1.0] * WIDTH, [0.0] * WIDTH]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda m, x: m.a(n := m.norm(x)) + n.sum(), "sum"),
        (lambda m, x: m.a(m.norm(x).mean(1)), "mean"),
        (lambda m, x: m.norm(x), "output"),
        (lambda m, x: m.a(m.norm(x).reshape(2, WIDTH, 5).transpose(1, 2)), "other channels"),
        (lambda m, x: m.a(nn.functional.pad(m.norm(x), (0, 0, 1, 1))), "pad"),
        (lambda m, x: m.a(nn.functional.layer_norm(x, (5, WIDTH))), "more than the last axis"),
        (lambda m, x: m.a(nn.functional.layer_norm(x, (WIDTH,), None, x[0, 0])), "its shift is computed"),
    ],
    ids=["sum", "pooled", "output", "mixed", "padded", "two-axes", "computed"],
)
def test_what_is_skipped_says_why(function: Callable[..., Tensor], reason: str) -> None:
    graph, _ = captured(Around(function), 2, 5, WIDTH)
    sites, skipped = norm_sites(graph)
    assert not sites
    assert len(skipped) == 1 and reason in skipped[0].reason


@settings(max_examples=4, deadline=None, phases=NO_SHRINKING)
@given(
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 5),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
    how=st.sampled_from(["fused", "three"]),
)
def test_random_blocks(heads: int, head_dim: int, bias: bool, seed: int, how: str) -> None:
    width = heads * head_dim
    graph, x = captured(nn.Sequential(*(Block(how, width, heads, bias) for _ in range(2))), 1, 4, width, seed=seed)
    expected = graph(x)[0]
    sites, _ = norm_sites(graph)
    assert len(sites) == 4
    assert [len(s.readers) for s in sites] == [3 if how == "three" else 1, 1] * 2
    generator = torch.Generator().manual_seed(seed)
    for site in sites:
        noise = torch.randn(2, width, generator=generator)
        shift_and_scale(graph, site, noise[0], torch.exp(noise[1]))
    assert relative(expected, graph(x)[0]) < 1e-4


def test_timm_and_its_final_norm() -> None:
    timm = pytest.importorskip("timm")
    graph = capture(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2), (torch.randn(1, 3, 32, 32),))
    sites, skipped = norm_sites(graph)
    assert (len(sites), len(skipped)) == (5, 0)


def a_site() -> tuple[torch.fx.GraphModule, NormSite]:
    graph, _ = captured(FOUND["one"](), 2, 5, WIDTH)
    return graph, norm_sites(graph)[0][0]


@pytest.mark.parametrize(
    ("shift", "scale"),
    [
        (torch.zeros(WIDTH - 1), torch.ones(WIDTH)),
        (torch.zeros(WIDTH), torch.zeros(WIDTH)),
        (torch.zeros(WIDTH), -torch.ones(WIDTH)),
        (torch.full((WIDTH,), torch.nan), torch.ones(WIDTH)),
        (torch.zeros(WIDTH), torch.full((WIDTH,), torch.inf)),
        (torch.zeros(WIDTH), torch.ones(1, WIDTH)),
    ],
)
def test_impossible_values(shift: Tensor, scale: Tensor) -> None:
    graph, site = a_site()
    with pytest.raises(UsageError, match=r"channels|positive") as caught:
        shift_and_scale(graph, site, shift, scale)
    assert caught.value.code == "EQ-U260"


def test_a_site_of_another_graph() -> None:
    graph, site = a_site()
    with pytest.raises(InternalError, match="elsewhere"):
        shift_and_scale(graph, replace(site, output="elsewhere"), torch.zeros(WIDTH), torch.ones(WIDTH))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 5), st.integers(0, 99))
def test_statistics_stream(sizes: list[int], width: int, seed: int) -> None:
    torch.manual_seed(seed)
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Identity()))
    batches = [(torch.randn(n, 3, width) * 5,) for n in sizes]
    name = next(n.name for n in graph.graph.nodes if n.op == "placeholder")
    seen = channel_statistics(graph, [name], batches)[name]
    rows = torch.cat([b[0] for b in batches]).reshape(-1, width).double()
    assert torch.equal(seen.low, rows.amin(0)) and torch.equal(seen.high, rows.amax(0))
    assert torch.equal(seen.absmax, rows.abs().amax(0))
    torch.testing.assert_close(seen.mean, rows.mean(0))
    torch.testing.assert_close(seen.rms, rows.square().mean(0).sqrt())
    other = channel_statistics(graph, [name], batches, {name: 1})[name]
    assert other.channels == 3


def test_statistics_of_nothing() -> None:
    graph, _ = a_site()
    with pytest.raises(DataError, match="nothing"):
        channel_statistics(graph, ["norm"], [])
    with pytest.raises(InternalError, match="no_such"):
        channel_statistics(graph, ["no_such"], [])


@pytest.mark.parametrize("bad", ["nan", "shape", "reversed", "empty"])
def test_damaged_statistics(bad: str) -> None:
    low, high = -torch.ones(3), torch.ones(3)
    low = {"nan": low * torch.nan, "shape": low[:2], "reversed": low + 5, "empty": low}[bad]
    parts = [low, high, torch.zeros(3), high, high]
    with pytest.raises(DataError) as caught:
        ChannelStatistics(*(p[:0] if bad == "empty" else p for p in parts))
    assert caught.value.code == "EQ-D260"
