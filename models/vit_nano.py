"""`vit_nano`: the reference vision transformer that ships with edgeq (CIFAR-10, 32x32, about 1 M parameters).

A pre-norm ViT (Dosovitskiy et al., arXiv:2010.11929) with two deviations that let it train in about an hour on a
laptop CPU: a three-layer convolutional stem in place of the linear patch projection (Xiao et al., arXiv:2106.14881)
and mean pooling in place of the class token.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Multi-head self-attention, `(N, T, C) -> (N, T, C)`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the T tokens of `x`."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        # Written out: the fused kernel's CPU backward takes a third of the training time.
        scores = (query * (width // self.heads) ** -0.5) @ key.transpose(-2, -1)
        mixed = scores.softmax(dim=-1) @ value
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return out


class Mlp(nn.Module):
    """Two linear layers with GELU between, `(N, T, C) -> (N, T, C)`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the two layers to every token."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Pre-norm transformer block, `(N, T, C) -> (N, T, C)`."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_ratio * width)

    def forward(self, x: Tensor) -> Tensor:
        """Attention and MLP, each added to the residual stream."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VitNano(nn.Module):
    """Image classifier, `(N, 3, 32, 32) -> (N, classes)` logits; input RGB in [0, 1], normalized by the caller."""

    def __init__(self, width: int = 128, depth: int = 5, heads: int = 4, mlp_ratio: int = 4, classes: int = 10) -> None:
        super().__init__()
        widths = (3, width // 4, width // 2, width)
        layers: list[nn.Module] = []
        for index, (fan_in, fan_out) in enumerate(pairwise(widths)):
            stride = 1 if index == 0 else 2
            layers.append(nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1, bias=False))
            layers.append(nn.BatchNorm2d(fan_out))
            if index < 2:
                layers.append(nn.ReLU())
        self.stem = nn.Sequential(*layers)
        self.position = nn.Parameter(torch.zeros(1, 64, width))
        self.blocks = nn.Sequential(*(Block(width, heads, mlp_ratio) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.position, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Return class logits for a batch of normalized images."""
        tokens = self.stem(image).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(dim=1))
        return logits
