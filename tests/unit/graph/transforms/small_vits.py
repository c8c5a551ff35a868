"""Small vision transformers, from image to logits, in the forms that models have, with random weights."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from edgeq.graph.capture import capture
from tests.unit.graph.transforms.small_models import Block, lively

SIDE = 8
PATCH = 2
TOKENS = (SIDE // PATCH) ** 2


@dataclass(frozen=True)
class Form:
    """What a `Vit` looks like.

    Args:
        qkv: Spelling of the attention, see `small_models.Attention`.
        width: Channels.
        heads: Heads.
        depth: Blocks.
        scaled: LayerScale after attention and MLP.
        token: `none`, or a class token that is put first `before` or `after` the position is added.
        end: What reads the last norm: `token` (the first), `mean` (of all), `padded` or `plain` (a 3x3 convolution).
        affine: Whether norms have scale and shift.
        bias: Whether linears have biases.
    """

    qkv: str = "fused"
    width: int = 8
    heads: int = 2
    depth: int = 1
    scaled: bool = False
    token: str = "none"
    end: str = "mean"
    affine: bool = True
    bias: bool = True


class ScaledBlock(Block):
    """Block whose branches are multiplied by learned channel factors (LayerScale)."""

    def __init__(self, how: str, width: int, heads: int, bias: bool) -> None:
        super().__init__(how, width, heads, bias)
        self.gamma1, self.gamma2 = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma1 * self.attn(self.norm1(x))
        out: Tensor = x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x)))) * self.gamma2
        return out


class Vit(nn.Module):
    """`(1, 3, 8, 8) -> (1, 5)`, or with a convolution at the end `(1, 5, 4, 4)`."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.stem = nn.Conv2d(3, form.width, PATCH, PATCH)
        self.token = nn.Parameter(torch.randn(1, 1, form.width))
        self.position = nn.Parameter(torch.randn(1, TOKENS + (form.token == "before"), form.width))
        kind = ScaledBlock if form.scaled else Block
        self.blocks = nn.Sequential(*(kind(form.qkv, form.width, form.heads, form.bias) for _ in range(form.depth)))
        self.norm = nn.LayerNorm(form.width, elementwise_affine=form.affine)
        convolution = nn.Conv2d(form.width, 5, 3, padding=1 if form.end == "padded" else 0)
        self.head = convolution if form.end in ("padded", "plain") else nn.Linear(form.width, 5, bias=form.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        if self.form.token == "before":
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        else:
            x = x + self.position
            if self.form.token == "after":
                x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = self.norm(self.blocks(x))
        if self.form.end in ("padded", "plain"):
            side = SIDE // PATCH
            x = x[:, -TOKENS:].transpose(1, 2).reshape(x.shape[0], -1, side, side)
        else:
            x = x[:, 0] if self.form.end == "token" else x.mean(1)
        out: Tensor = self.head(x)
        return out


@functools.cache
def _captured(form: Form) -> fx.GraphModule:
    return capture(lively(Vit(form), 0), (torch.zeros(1, 3, SIDE, SIDE),))


FORMS = (
    Form(),
    Form(scaled=True, token="before", end="token", depth=2),
    Form(qkv="three", token="after", end="padded", width=12, heads=3),
    Form(qkv="slices", end="plain", affine=False, width=6, heads=1),
    Form(qkv="heads-first", width=9, heads=3, bias=False),
    Form(qkv="chunk", scaled=True, end="padded", width=16, heads=4),
)
"""One of everything."""


def vit(form: Form, seed: int = 0) -> tuple[fx.GraphModule, Tensor]:
    """The canonical graph of a `Vit` with weights of its own, and an input."""
    graph = copy.deepcopy(_captured(form))
    lively(graph, seed)
    return graph, images(1, seed + 1)[0][0]


def images(count: int, seed: int = 100) -> list[tuple[Tensor]]:
    """Inputs of a `Vit`."""
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn((1, 3, SIDE, SIDE), generator=generator),) for _ in range(count)]
