"""Scale reparameterization: the same function, and the same integer codes on one grid as on a grid for each channel."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from edgeq.errors import UsageError
from edgeq.graph.rewrite import fetch
from edgeq.graph.transforms.channels import ChannelStatistics, channel_statistics
from edgeq.graph.transforms.norm_sites import norm_sites
from edgeq.graph.transforms.reparameterize import Factor, reparameterize
from edgeq.quant.uniform import qparams_from_range, quantize
from edgeq.spec import PerChannel, QuantSpec
from tests.unit.graph.transforms.small_models import Block, captured, relative
from tests.unit.graph.transforms.test_norm_sites import run_to


def prepared(seed: int, width: int = 8, heads: int = 2) -> tuple[fx.GraphModule, Tensor, dict[str, ChannelStatistics]]:
    graph, x = captured(Block("fused", width, heads), 1, 5, width, seed=seed)
    names = [s.output for s in norm_sites(graph)[0]]
    return graph, x, channel_statistics(graph, names, [(x,)])


@settings(max_examples=4, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    seed=st.integers(0, 1000),
    bits=st.sampled_from([3, 4, 8]),
    symmetric=st.booleans(),
    factor=st.sampled_from(["mean", "median"]),
    head_dim=st.integers(1, 8),
)
def test_codes_are_identical(seed: int, bits: int, symmetric: bool, factor: Factor, head_dim: int) -> None:
    graph, x, statistics = prepared(seed, 2 * head_dim)
    before = {name: run_to(graph, name, x) for name in statistics}
    expected = graph(x)[0]
    spec = QuantSpec(bits=bits, symmetric=symmetric)
    report = reparameterize(graph, statistics, spec, factor)
    assert relative(expected, graph(x)[0]) < 1e-4
    assert {s.tensor for s in report.sites} == set(statistics) and not report.skipped
    for site in report.sites:
        seen = statistics[site.tensor]
        each = qparams_from_range(seen.low.numpy(), seen.high.numpy(), replace(spec, granularity=PerChannel(-1)))
        old, new = before[site.tensor], run_to(graph, site.tensor, x)
        codes, again = quantize(old, each), quantize(new, site.qparams)
        # float32 may put a value that lies on the border of two codes on the other side of it
        place = old.double() / torch.from_numpy(each.scale).double()
        border = ((place - place.floor()) - 0.5).abs() < 1e-3
        assert torch.equal(codes[~border], again[~border])
        assert int((codes - again).abs().max()) <= 1
        assert site.qparams.scale.ndim == 0
        assert site.smallest <= 1 + 1e-6 <= site.largest + 2e-6


def test_mean_and_median_differ_by_one_number_only() -> None:
    weights, results = [], []
    for factor in ("mean", "median"):
        graph, x, statistics = prepared(7)
        reparameterize(graph, statistics, QuantSpec(bits=4), factor)  # type: ignore[arg-type]
        results.append(graph(x)[0])
        weights.append(fetch(graph, norm_sites(graph)[0][0].readers[0].weight))
    ratio = weights[0] / weights[1]
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))
    assert abs(float(ratio[0, 0]) - 1) > 1e-3
    assert relative(results[0], results[1]) < 1e-5


def test_a_dead_channel_keeps_its_value() -> None:
    graph, x, statistics = prepared(3)
    site = norm_sites(graph)[0][0]
    with torch.no_grad():
        fetch(graph, site.gamma)[2] = 0
        fetch(graph, site.beta)[2] = 0
    statistics = channel_statistics(graph, list(statistics), [(x,)])
    expected = graph(x)[0]
    reparameterize(graph, statistics, QuantSpec())
    assert relative(expected, graph(x)[0]) < 1e-4


def test_sites_without_statistics_are_skipped() -> None:
    graph, _, statistics = prepared(5)
    kept = dict(list(statistics.items())[:1])
    report = reparameterize(graph, kept, QuantSpec())
    assert [s.tensor for s in report.sites] == list(kept)
    assert len(report.skipped) == 1 and all("statistics" in s.reason for s in report.skipped)


def test_bad_settings() -> None:
    graph, _, statistics = prepared(5)
    with pytest.raises(UsageError, match="factor") as caught:
        reparameterize(graph, statistics, QuantSpec(), "mode")  # type: ignore[arg-type]
    assert caught.value.code == "EQ-U261"
    with pytest.raises(UsageError, match="one scale"):
        reparameterize(graph, statistics, QuantSpec(granularity=PerChannel()))
    short = {name: ChannelStatistics(*[torch.zeros(3)] * 5) for name in statistics}
    with pytest.raises(UsageError, match="channels"):
        reparameterize(graph, short, QuantSpec())
