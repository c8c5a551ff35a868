"""Small transformers in the spellings that models use, with random weights, for the tests of exact transforms."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from edgeq.graph.capture import capture


class Attention(nn.Module):
    """Self-attention whose projections are spelled `how`."""

    def __init__(self, how: str, width: int = 8, heads: int = 2, bias: bool = True) -> None:
        super().__init__()
        self.how, self.heads, self.head_dim = how, heads, width // heads
        if how in ("three", "query-key-norm", "rotary"):
            self.q, self.k, self.v = (nn.Linear(width, width, bias=bias) for _ in range(3))
        elif how == "shared-key":
            self.q, self.kv = nn.Linear(width, width, bias=bias), nn.Linear(width, 2 * self.head_dim, bias=bias)
        else:
            self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.norm = nn.LayerNorm(self.head_dim)
        self.proj = nn.Linear(width, width, bias=bias)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `(N, heads, T, head_dim)`."""
        batch, tokens, width = x.shape

        def apart(y: Tensor) -> Tensor:
            return y.reshape(batch, tokens, -1, self.head_dim).transpose(1, 2)

        if self.how in ("three", "query-key-norm", "rotary"):
            q, k, v = apart(self.q(x)), apart(self.k(x)), apart(self.v(x))
            if self.how == "query-key-norm":
                q, k = self.norm(q), self.norm(k)
            if self.how == "rotary":
                k = k * torch.linspace(0, 1, tokens)[:, None].cos()
            return q, k, v
        if self.how == "shared-key":
            k, v = self.kv(x).reshape(batch, tokens, 2, 1, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
            return apart(self.q(x)), k, v
        y = self.qkv(x)
        if self.how == "slices":
            q, k, v = (apart(y[..., i * width : (i + 1) * width]) for i in range(3))
        elif self.how == "chunk":
            q, k, v = (apart(t) for t in y.chunk(3, dim=-1))
        elif self.how == "heads-first":  # every head holds its own q, k, v
            q, k, v = y.reshape(batch, tokens, self.heads, 3, self.head_dim).permute(3, 0, 2, 1, 4).unbind(0)
        else:
            q, k, v = y.reshape(batch, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        scale = self.head_dim**-0.5
        if self.how == "fused":
            mixed = functional.scaled_dot_product_attention(q, k, v)
        elif self.how == "chunk":
            mixed = ((q @ k.transpose(-2, -1)) * scale).softmax(-1) @ v
        else:
            mixed = ((q * scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(x.shape))
        return out


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, how: str, width: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width, bias=bias)
        self.attn = Attention(how, width, heads, bias)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width, bias=bias), nn.Linear(2 * width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))
        return out


SPELLINGS = ("fused", "slices", "chunk", "heads-first", "three")


def lively(module: nn.Module, seed: int) -> nn.Module:
    """`module` with gains, shifts and weights of unequal channels, as trained networks have them."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        with torch.no_grad():
            if name.endswith("bias"):
                value.copy_(noise)
            elif "norm" in name:
                value.copy_(torch.exp(noise))
            else:
                value.copy_(noise / value[0].numel() ** 0.5)
    return module.eval()


def captured(module: nn.Module, *shape: int, seed: int = 0) -> tuple[fx.GraphModule, Tensor]:
    """The canonical graph of a lively `module`, and an input of `shape`."""
    generator = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(shape, generator=generator)
    return capture(lively(module, seed), (x,)), x


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value of `a`."""
    return float((a - b).abs().max() / a.abs().max())
