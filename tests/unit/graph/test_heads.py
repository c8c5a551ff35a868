"""Where a detector is cut. Random weights: structure only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeq.graph.capture import capture
from edgeq.graph.heads import by_size, cut_at, prediction_layers


class Mean(nn.Module):
    """The mean of 16 bins, as a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 1, 1, bias=False)
        self.conv.weight.data[:] = torch.arange(16.0).view(1, 16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, n = x.shape
        return self.conv(x.view(b, 4, 16, n).transpose(2, 1).softmax(1)).view(b, 4, n)


class Bins(nn.Module):
    """A detector of two feature maps with boxes as distributions, decoded inside, as ultralytics writes them."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.SiLU())
        self.down = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.SiLU())
        self.box = nn.ModuleList(nn.Conv2d(8, 64, 1) for _ in range(2))
        self.kind = nn.ModuleList(nn.Conv2d(8, classes, 1) for _ in range(2))
        self.mean = Mean()

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.stem(x)]
        maps.append(self.down(maps[0]))
        boxes = torch.cat([c(m).flatten(2) for c, m in zip(self.box, maps, strict=True)], 2)
        kinds = torch.cat([c(m).flatten(2) for c, m in zip(self.kind, maps, strict=True)], 2)
        distances = self.mean(boxes)
        cells, strides = [], []
        for m, stride in zip(maps, (4.0, 8.0), strict=True):
            y, c = torch.meshgrid(torch.arange(m.shape[2]) + 0.5, torch.arange(m.shape[3]) + 0.5, indexing="ij")
            cells.append(torch.stack([c.flatten(), y.flatten()]))
            strides.append(m.new_full((1, m.shape[2] * m.shape[3]), stride))
        cell, stride_of = torch.cat(cells, 1), torch.cat(strides, 1)
        low, high = cell - distances[:, :2], cell + distances[:, 2:]
        return torch.cat([torch.cat([(low + high) / 2, high - low], 1) * stride_of, kinds.sigmoid()], 1)


def test_the_cut_is_at_the_last_layers_and_not_at_the_mean_of_bins() -> None:
    torch.manual_seed(0)
    graph = capture(Bins().eval(), (torch.zeros(1, 3, 32, 64),))
    layers = prediction_layers(graph)
    assert sorted(layer.name for layer in layers) == ["box_0", "box_1", "kind_0", "kind_1"]
    assert {size: len(group) for size, group in by_size(layers).items()} == {(8, 16): 2, (4, 8): 2}
    cut = cut_at(graph, layers)
    assert len(list(graph.graph.nodes)) > len(list(cut.graph.nodes))
    x = torch.rand(1, 3, 32, 64)
    expected = {n.name: n for n in layers}
    for value, name in zip(cut(x), expected, strict=True):
        assert value.shape == expected[name].meta["val"].shape
    assert [n.name for n in cut.graph.output_node().all_input_nodes] == list(expected)
