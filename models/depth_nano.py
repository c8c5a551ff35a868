"""`depth_nano`: the reference network for monocular depth that ships with edgeq (96x128, synthetic rooms).

Inverted residuals (Sandler et al., arXiv:1801.04381) down to 1/32 of the picture, and the light decoder of FastDepth
(Wofk et al., arXiv:1903.03273): doubled by repetition, added to what the encoder saw at that size, and smoothed by a
depthwise convolution. Everything is a convolution, a rectifier, a sum or a repetition, which every backend has in
integers.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

HEIGHT, WIDTH = 96, 128


def _conv(fan_in: int, fan_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(fan_in, fan_out, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(fan_out))


class Inverted(nn.Module):
    """Widen, filter each channel, narrow; `(N, C, H, W) -> (N, C', H / stride, W / stride)`."""

    def __init__(self, fan_in: int, fan_out: int, stride: int, factor: int) -> None:
        super().__init__()
        wide = factor * fan_in
        self.widen = _conv(fan_in, wide, 1)
        self.filter = _conv(wide, wide, 3, stride, groups=wide)
        self.narrow = _conv(wide, fan_out, 1)
        self.around = (fan_in, stride) == (fan_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """With a way around where nothing changes its size."""
        wide = functional.relu(self.filter(functional.relu(self.widen(x))))
        out: Tensor = self.narrow(wide)
        return x + out if self.around else out


class Smooth(nn.Module):
    """A depthwise separable convolution, `(N, C, H, W) -> (N, C', H, W)`."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.filter = _conv(fan_in, fan_in, 3, groups=fan_in)
        self.mix = _conv(fan_in, fan_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Filter each channel, then mix them."""
        out: Tensor = functional.relu(self.mix(functional.relu(self.filter(x))))
        return out


class DepthNano(nn.Module):
    """Logarithm of depth in metres, `(N, 3, H, W) -> (N, 1, H / 2, W / 2)`; sides are multiples of 32.

    RGB in [0, 1], normalized by the caller. Logarithms, so that a step of an 8-bit grid is the same share of every
    depth.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 16, 3, 2)
        self.stages = nn.ModuleList(
            (
                nn.Sequential(Inverted(16, 24, 2, 3), Inverted(24, 24, 1, 3)),
                nn.Sequential(Inverted(24, 40, 2, 3), Inverted(40, 40, 1, 3)),
                nn.Sequential(Inverted(40, 64, 2, 4), Inverted(64, 64, 1, 4), Inverted(64, 64, 1, 4)),
                nn.Sequential(Inverted(64, 96, 2, 4), Inverted(96, 96, 1, 4)),
            )
        )
        self.up = nn.ModuleList((Smooth(96, 64), Smooth(64, 40), Smooth(40, 24), Smooth(24, 16)))
        self.smooth = Smooth(16, 16)
        self.head = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """The map, half as wide and high as the picture."""
        seen = [functional.relu(self.stem(image))]
        for stage in self.stages:
            seen.append(stage(seen[-1]))
        x = seen.pop()
        for up in self.up:
            x = functional.interpolate(up(x), scale_factor=2.0, mode="nearest") + seen.pop()
        out: Tensor = self.head(self.smooth(x))
        return out
