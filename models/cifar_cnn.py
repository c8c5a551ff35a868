"""`cifar_cnn`: the reference convolutional network for microcontrollers (CIFAR-10, 32x32, about 78,000 parameters).

A residual network (He et al., arXiv:1512.03385) of eight weighted layers, of the size that MLPerf Tiny takes for image
classification (Banbury et al., arXiv:2106.07597).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


def _conv(fan_in: int, fan_out: int, kernel: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(fan_in, fan_out, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(fan_out))


class Residual(nn.Module):
    """Two convolutions and a way around them, `(N, C, H, W) -> (N, C', H / stride, W / stride)`."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.first = _conv(fan_in, fan_out, 3, stride)
        self.second = _conv(fan_out, fan_out, 3, 1)
        self.around = _conv(fan_in, fan_out, 1, stride) if (fan_in, stride) != (fan_out, 1) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Both branches, added."""
        out: Tensor = functional.relu(self.second(functional.relu(self.first(x))) + self.around(x))
        return out


class CifarCnn(nn.Module):
    """Image classifier, `(N, 3, 32, 32) -> (N, classes)` logits; input RGB in [0, 1], normalized by the caller."""

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.stem = _conv(3, width, 3, 1)
        self.stages = nn.Sequential(
            Residual(width, width, 1), Residual(width, 2 * width, 2), Residual(2 * width, 4 * width, 2)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return class logits for a batch of normalized images."""
        features = self.pool(self.stages(functional.relu(self.stem(image))))
        logits: Tensor = self.head(features.flatten(1))
        return logits
