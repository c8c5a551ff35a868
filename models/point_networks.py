"""Networks on point clouds, with the neighbours as inputs: sampling and search run on the host (`edgeq.points`).

Tensors are `(1, points, channels)`, so that every layer is a matrix product over the last axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

EPSILON = 1e-5
"""What PointMLP adds to a standard deviation."""


@dataclass(frozen=True)
class MlpStage:
    """One stage of PointMLP.

    Args:
        width: Channels behind it.
        before: Residual blocks before the maximum over neighbours.
        after: Residual blocks behind it.
        inner: Channels inside its blocks.
    """

    width: int
    before: int
    after: int
    inner: int


class Residual(nn.Module):
    """Two layers around a narrow middle, and a sum."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(width, inner)
        self.restore = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape with `width` channels to the same."""
        result: Tensor = (x + self.restore(self.reduce(x).relu())).relu()
        return result


class Stage(nn.Module):
    """Grouping, geometric affine normalization, and the blocks of one stage (PointMLP, equation 3).

    The first layer of a stage reads `[alpha (g - c) / deviation + beta, c]` of every neighbour `g` of a centre `c`. It
    is linear, so its product with `g` is the same for all centres that have `g` as a neighbour: it is computed once per
    point and picked afterwards, which takes 24 times fewer multiplications and is the same function.
    """

    def __init__(self, channels: int, stage: MlpStage) -> None:
        super().__init__()
        self.neighbour = nn.Linear(channels, stage.width, bias=False)
        self.centre = nn.Linear(channels, stage.width)
        self.before = nn.Sequential(*(Residual(stage.width, stage.inner) for _ in range(stage.before)))
        self.after = nn.Sequential(*(Residual(stage.width, stage.inner) for _ in range(stage.after)))

    def forward(self, x: Tensor, picked: Tensor, centres: int) -> Tensor:
        """Features `(1, n, channels)` and indices `(centres * k,)` to `(1, centres, width)`."""
        middle = x[:, :centres]
        apart = self.grouped(x, picked, centres) - middle.unsqueeze(2)
        count = apart[0].numel()
        variance = (apart - apart.mean((1, 2, 3), keepdim=True)).square().mean((1, 2, 3), keepdim=True)
        spread = (variance * (count / (count - 1))).sqrt() + EPSILON  # torch.std divides by one less
        moved = self.neighbour(x)
        difference = self.grouped(moved, picked, centres) - moved[:, :centres].unsqueeze(2)
        joined = (difference / spread + self.centre(middle).unsqueeze(2)).relu()
        result: Tensor = self.after(self.before(joined).amax(2))
        return result

    def grouped(self, x: Tensor, picked: Tensor, centres: int) -> Tensor:
        """Rows of `(1, n, c)` by indices: `(1, centres, k, c)`."""
        return x.index_select(1, picked).reshape(1, centres, -1, x.shape[-1])


class PointMlp(nn.Module):
    """PointMLP (arXiv 2202.07123): residual MLPs on groups of neighbours, with batch norms folded."""

    def __init__(
        self, columns: int, embed: int, stages: Sequence[MlpStage], hidden: Sequence[int], classes: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Linear(columns, embed)
        widths = [embed, *(s.width for s in stages)]
        self.stages = nn.ModuleList(Stage(w, s) for w, s in zip(widths, stages, strict=False))
        sizes = [widths[-1], *hidden]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, hidden, strict=False))
        self.head = nn.Linear(sizes[-1], classes)

    def forward(self, points: Tensor, *picked: Tensor) -> Tensor:
        """Logits `(1, classes)`.

        Args:
            points: `(1, n, columns)` in the order of farthest point sampling.
            *picked: int32 neighbours of each stage, `(centres * k,)`; each stage halves the points.
        """
        x, count = self.embedding(points).relu(), points.shape[1]
        for stage, indices in zip(self.stages, picked, strict=True):
            count //= 2
            x = stage(x, indices, count)
        x = x.amax(1)
        for layer in self.hidden:
            x = layer(x).relu()
        result: Tensor = self.head(x)
        return result


class Alignment(nn.Module):
    """The small network of PointNet that finds a matrix to align its input with (a T-Net)."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in ((channels, 64), (64, 128), (128, 1024)))
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in ((1024, 512), (512, 256)))
        self.head = nn.Linear(256, size * size)

    def forward(self, x: Tensor) -> Tensor:
        """`(1, n, channels)` to a matrix `(1, size, size)`."""
        for layer in self.layers:
            x = layer(x).relu()
        x = x.amax(1)
        for layer in self.hidden:
            x = layer(x).relu()
        matrix = self.head(x).reshape(1, self.size, self.size)
        result: Tensor = matrix + torch.eye(self.size)
        return result


class PointNet(nn.Module):
    """PointNet (arXiv 1612.00593), classification, with batch norms folded.

    Args:
        columns: 3, or 6 with normals.
        classes: Number of classes.
        align: Align the coordinates.
        align_features: Align the 64 features.
    """

    def __init__(self, columns: int, classes: int, align: bool = True, align_features: bool = True) -> None:
        super().__init__()
        self.align = Alignment(columns, 3) if align else None
        self.align_features = Alignment(64, 64) if align_features else None
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in ((columns, 64), (64, 128), (128, 1024)))
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in ((1024, 512), (512, 256)))
        self.head = nn.Linear(256, classes)

    def forward(self, points: Tensor) -> Tensor:
        """Points `(1, n, columns)` to logits `(1, classes)`."""
        x = points
        if self.align is not None:
            moved = x[..., :3] @ self.align(x)
            x = torch.cat([moved, x[..., 3:]], -1) if x.shape[-1] > 3 else moved
        x = self.layers[0](x).relu()
        if self.align_features is not None:
            x = x @ self.align_features(x)
        x = self.layers[1](x).relu()
        x = self.layers[2](x).amax(1)
        for layer in self.hidden:
            x = layer(x).relu()
        result: Tensor = self.head(x)
        return result


class Pillars(nn.Module):
    """PointPillars (arXiv 1812.05784) with a heatmap of centres as its head (CenterPoint, arXiv 2006.11275), small.

    Args:
        features: Figures of a point.
        grid: Rows and columns of the grid, multiples of 4.
        classes: Number of classes.
        width: Channels of the pillars; the convolutions have one and a half and three times as many.
    """

    stride = 2
    """Cells of the grid per cell of the maps, along each axis."""

    def __init__(self, features: int, grid: tuple[int, int], classes: int, width: int = 16) -> None:
        super().__init__()
        self.grid = grid
        middle, deep = 3 * width // 2, 3 * width
        self.pillar = nn.Linear(features, width)
        self.first = _convolutions(width, middle)
        self.second = _convolutions(middle, deep)
        self.lateral = nn.Conv2d(deep, middle, 1)
        self.joined = nn.Conv2d(2 * middle, middle, 3, padding=1)
        self.head = nn.Conv2d(middle, classes + 6, 1)

    def forward(self, points: Tensor, where: Tensor) -> Tensor:
        """Maps `(1, classes + 6, rows / 2, columns / 2)`, see `edgeq.points.find_objects`.

        Args:
            points: `(1, pillars, points, features)`.
            where: int32 `(rows * columns,)`; the number of pillars where a cell has none.
        """
        return self.maps(self.scatter(points, where))

    def scatter(self, points: Tensor, where: Tensor) -> Tensor:
        """The map seen from above `(1, width, rows, columns)`: picked by cell, with zeros behind the last pillar."""
        pillars = self.pillar(points).relu().amax(2)
        padded = torch.cat([pillars, pillars.new_zeros(1, 1, pillars.shape[2])], 1)
        return padded.index_select(1, where).reshape(1, *self.grid, -1).permute(0, 3, 1, 2)

    def maps(self, seen: Tensor) -> Tensor:
        """The heads of a map seen from above, `(batch, width, rows, columns)`."""
        near = self.first(seen)
        far = nn.functional.interpolate(self.lateral(self.second(near)), scale_factor=2.0, mode="nearest")
        result: Tensor = self.head(self.joined(torch.cat([near, far], 1)).relu())
        return result


def _convolutions(channels: int, width: int) -> nn.Sequential:
    """Half the size, then two convolutions more."""
    layers: list[nn.Module] = []
    for source, stride in ((channels, 2), (width, 1), (width, 1)):
        layers += [nn.Conv2d(source, width, 3, stride, 1), nn.ReLU()]
    return nn.Sequential(*layers)
