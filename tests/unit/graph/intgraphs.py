"""Small networks as integers, for tests of the graph, the interpreter and the C."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeq.graph.capture import capture
from edgeq.graph.intgraph.graph import IntGraph
from edgeq.graph.intgraph.interpret import quantize_input
from edgeq.graph.intgraph.lower import lower
from edgeq.graph.legalize import Legalized, legalize, observed
from edgeq.quant.calibrator import calibrate
from edgeq.recipe import place_integer
from edgeq.spec import Precision

Sample = tuple[Tensor, ...]


def legalized(module: nn.Module, samples: Sequence[Sample], precision: Precision | None = None) -> Legalized:
    """The everything-integer form of a module, calibrated on `samples`."""
    graph = capture(module, samples[0])
    config, placement, rules = place_integer(graph, precision)
    statistics = calibrate(graph, observed(graph, placement), iter(samples))
    return legalize(graph, placement, config, rules, statistics, "integer")


def lowered(module: nn.Module, samples: Sequence[Sample], precision: Precision | None = None) -> IntGraph:
    """The integers of a module."""
    form = legalized(module, samples, precision)
    return lower(form.emission, form.plan, "small")


def codes_of(graph: IntGraph, samples: Sequence[Sample]) -> list[list[NDArray[Any]]]:
    """Input codes of each sample."""
    return [[quantize_input(graph, p, x.numpy()) for p, x in zip(graph.inputs, s, strict=True)] for s in samples]


def noise(*shape: int, count: int = 4, seed: int = 0) -> list[Sample]:
    """Random inputs: they test plumbing and arithmetic, not accuracy."""
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(*shape, generator=generator),) for _ in range(count)]


class SmallCnn(nn.Module):
    """Convolution, depthwise, residual sum, both poolings, concatenation, several activations."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.wide = nn.Conv2d(8, 5, 2, dilation=2)
        self.head = nn.Linear(13, 7)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.stem(image))
        y = nn.functional.hardswish(self.depthwise(x))
        x = nn.functional.relu6(self.pointwise(y) + x)
        x = nn.functional.max_pool2d(x, 3, 2, 1)
        y = nn.functional.silu(self.wide(x))
        x = nn.functional.avg_pool2d(x, 2)[:, :, :2, :2]
        x = torch.cat((x, y[:, :, :2, :2]), dim=1)
        return self.head(x.mean((2, 3)))


class SmallAttention(nn.Module):
    """One attention with its norms, sizes that no vector register divides."""

    def __init__(self, tokens: int = 7, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.heads = heads
        self.position = nn.Parameter(torch.randn(1, tokens, width))
        self.norm = nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.scale = nn.Parameter(torch.rand(1, heads, 1, 1) + 0.5)
        self.fc, self.last = nn.Linear(width, 2 * width), nn.RMSNorm(2 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (qkv[0] @ qkv[1].transpose(-2, -1)) * self.scale
        mixed = scores.softmax(-1) @ qkv[2]
        x = x - self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return self.last(nn.functional.gelu(self.fc(x))).mean(1)
