"""Named one-operation networks for kernel parity: every integer operation the TFLite rules claim, and some they refuse.

Weights are random: this is about kernels, not accuracy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


class Lambda(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


@dataclass(frozen=True)
class Case:
    """One operation.

    Args:
        name: Test id.
        make: Builds the module (seeded by the test).
        shapes: Input shapes.
        flips: Largest share of outputs that may differ by one code from the simulation, on XNNPACK and builtin kernels.
        kernel: Operation name that must be integer in the file.
    """

    name: str
    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    kernel: str
    flips: float = 0.02


CASES = (
    Case("linear", lambda: nn.Linear(64, 48), ((1, 7, 64),), "FULLY_CONNECTED"),
    Case("linear_no_bias", lambda: nn.Linear(64, 48, bias=False), ((1, 64),), "FULLY_CONNECTED"),
    Case("linear_relu", lambda: nn.Sequential(nn.Linear(64, 48), nn.ReLU()), ((1, 64),), "FULLY_CONNECTED"),
    Case("conv3x3", lambda: nn.Conv2d(8, 16, 3, padding=1), ((1, 8, 12, 12),), "CONV_2D"),
    Case(
        "conv3x3_stride2_relu",
        lambda: nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()),
        ((1, 8, 12, 12),),
        "CONV_2D",
    ),
    Case("conv1x1", lambda: nn.Conv2d(8, 16, 1), ((1, 8, 6, 6),), "CONV_2D"),
    Case("patch_embed", lambda: nn.Conv2d(3, 32, 4, 4), ((1, 3, 16, 16),), "CONV_2D"),
    Case("depthwise", lambda: nn.Conv2d(16, 16, 3, padding=1, groups=16), ((1, 16, 9, 9),), "DEPTHWISE_CONV_2D"),
    Case("matmul", lambda: Lambda(torch.matmul), ((1, 2, 9, 16), (1, 2, 16, 9)), "BATCH_MATMUL"),
    Case("add", lambda: Lambda(torch.add), ((1, 5, 16), (1, 5, 16)), "ADD"),
    Case("add_constant", lambda: Lambda(lambda x: x + 0.5), ((1, 5, 16),), "ADD"),
    Case("add_relu6", lambda: Lambda(lambda x: functional.hardtanh(x + 3.0, 0.0, 6.0)), ((1, 5, 16),), "ADD"),
    Case("mul", lambda: Lambda(torch.mul), ((1, 5, 16), (1, 5, 16)), "MUL", 0.06),
    Case("mul_constant", lambda: Lambda(lambda x: x * 0.125), ((1, 5, 16),), "MUL"),
    Case("gelu", lambda: nn.GELU(), ((1, 5, 64),), "GELU"),
    Case("gelu_tanh", lambda: nn.GELU(approximate="tanh"), ((1, 5, 64),), "GELU"),
    Case("softmax", lambda: nn.Softmax(-1), ((1, 2, 9, 33),), "SOFTMAX"),
    Case("sigmoid", lambda: nn.Sigmoid(), ((1, 5, 64),), "LOGISTIC"),
    Case("tanh", lambda: nn.Tanh(), ((1, 5, 64),), "TANH"),
    Case("mean", lambda: Lambda(lambda x: x.mean(dim=1)), ((1, 9, 64),), "MEAN", 0.3),
    Case("max_pool", lambda: nn.MaxPool2d(2), ((1, 8, 8, 8),), "MAX_POOL_2D"),
    Case("avg_pool", lambda: nn.AvgPool2d(2), ((1, 8, 8, 8),), "AVERAGE_POOL_2D", 0.15),
    Case(
        "bilinear",
        lambda: Lambda(lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)),
        ((1, 4, 6, 6),),
        "RESIZE_BILINEAR",
        0.15,
    ),
)
