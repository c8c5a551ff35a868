"""Hybrid networks: bridges are found, and their grids are chosen by what comes out of the layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from edgeq.errors import DataError, UsageError
from edgeq.graph.capture import capture
from edgeq.graph.rewrite import fetch
from edgeq.graph.transforms.hybrid import BridgeBlock, bridge_blocks, choose_bridge_grids
from edgeq.spec import PerChannel
from tests.unit.graph.transforms.small_models import Block, captured


class Hybrid(nn.Module):
    """Convolutions, `count` times a transformer block over pixels and a convolution."""

    def __init__(self, count: int, tail: bool = True, stem: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(stem)))
        self.blocks = nn.ModuleList(Block("fused", 8, 2) for _ in range(count))
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(count - (not tail)))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for i, block in enumerate(self.blocks):
            tokens = block(x.flatten(2).transpose(1, 2))
            if i == len(self.convs):
                return tokens
            x = torch.relu(self.convs[i](tokens.transpose(1, 2).reshape(x.shape)))
        return x


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("tail", [True, False])
def test_every_bridge_is_found(count: int, tail: bool) -> None:
    graph, _ = captured(Hybrid(count, tail), 1, 3, 4, 4)
    blocks = bridge_blocks(graph)
    assert [b.first for b in blocks] == [(f"blocks_{i}_attn_qkv",) for i in range(count)]
    exits = [(f"convs_{i}",) for i in range(count)]
    assert [b.exits for b in blocks] == (exits if tail else [*exits[:-1], ()])
    assert all(len(b.inputs) == 1 for b in blocks)


def test_a_plain_vit_has_none() -> None:
    graph, x = captured(Hybrid(1, tail=False, stem=1), 1, 3, 4, 4)
    assert bridge_blocks(graph) == ()
    assert choose_bridge_grids(graph, [(x,)]) == ()


@pytest.mark.parametrize(("name", "count"), [("mobilevit_xxs", 3), ("efficientformer_l1", 1)])
def test_as_many_as_the_paper_counts(name: str, count: int) -> None:
    timm = pytest.importorskip("timm")
    size = 64 if name.startswith("mobile") else 224
    graph = capture(timm.create_model(name), (torch.randn(1, 3, size, size),))
    blocks = bridge_blocks(graph)
    assert len(blocks) == count
    if count == 3:
        first = ("stages_2_1_transformer_0_attn_qkv",)
        assert blocks[0] == BridgeBlock(("stages_2_1_conv_1x1",), first, ("stages_2_1_conv_proj_conv",))


def uneven() -> tuple[fx.GraphModule, Tensor]:
    """A hybrid with one channel a hundred times larger than the others at the way in."""
    graph, x = captured(Hybrid(1), 1, 3, 6, 6)
    with torch.no_grad():
        gamma, weight = fetch(graph, "blocks.0.norm1.weight"), fetch(graph, "blocks.0.attn.qkv.weight")
        gamma[0] *= 100
        weight[:, 0] /= 100
    return graph, x


def test_uneven_channels_get_a_grid_each_if_allowed() -> None:
    graph, x = uneven()
    for bits in (4, 8):
        grids = {g.layer: g for g in choose_bridge_grids(graph, [(x,)], bits)}
        assert set(grids) == {"blocks_0_attn_qkv", "convs_0"}
        entry = grids["blocks_0_attn_qkv"]
        assert isinstance(entry.qparams.spec.granularity, PerChannel)
        assert entry.error < 0.1 * min(entry.errors["tensor/asymmetric"], entry.errors["tensor/symmetric"])
        for grid in choose_bridge_grids(graph, [(x,)], bits, per_channel=False):
            assert grid.qparams.scale.ndim == 0
            assert set(grid.errors) == {"tensor/asymmetric", "tensor/symmetric"}
            assert grid.error == min(grid.errors.values())


def test_a_zero_point_never_overflows() -> None:
    class Positive(nn.Module):
        """Values from 50 to 51 at the way out: with a range that left 0 out the zero point would be about -12800."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = Hybrid(1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner.blocks[0](torch.relu(self.inner.stem(x)).flatten(2).transpose(1, 2))
            return self.inner.convs[0]((torch.sigmoid(y) + 50).transpose(1, 2).reshape(1, 8, 4, 4))

    graph, x = captured(Positive(), 1, 3, 4, 4)
    grid = next(g for g in choose_bridge_grids(graph, [(x,)]) if g.layer == "inner_convs_0")
    spec, zero = grid.qparams.spec, grid.qparams.zero_point
    assert (zero >= spec.qmin).all() and (zero <= spec.qmax).all()
    top = grid.qparams.scale * (spec.qmax - zero)
    assert np.all(top > 50) and np.all(grid.qparams.scale * (spec.qmin - zero) <= 0)


def test_bad_input() -> None:
    graph, x = uneven()
    with pytest.raises(DataError, match="nothing"):
        choose_bridge_grids(graph, [])
    with pytest.raises(DataError, match="NaN"):
        choose_bridge_grids(graph, [(x * torch.nan,)])
    with pytest.raises(UsageError, match="bits"):
        choose_bridge_grids(graph, [(x,)], bits=1)
