"""Whisper's encoder and decoder as two networks of fixed shapes, so that each can be exported and quantized alone.

The architecture is that of Radford et al. 2022, arXiv 2212.04356, section 2.2, as openai-whisper's checkpoints hold it.
Differences that leave every value as it is: one-dimensional convolutions are written as two-dimensional ones of height
1; the encoder ends with the keys and values of the decoder's cross attention, which are the same for every token; the
decoder takes one token a call and its past as inputs, so that the host holds the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

FRAMES = 3000
"""Frames of 10 ms in a window of 30 s."""


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a model, under the names that checkpoints use."""

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_vocab: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int

    def __post_init__(self) -> None:
        values = [getattr(self, f.name) for f in fields(self)]
        if any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in values):
            raise ValueError("sizes are positive whole numbers")
        if self.n_audio_state % self.n_audio_head or self.n_text_state % self.n_text_head:
            raise ValueError("the width is no multiple of the number of heads")
        if self.n_audio_ctx != FRAMES // 2:
            raise ValueError(f"windows of {self.n_audio_ctx} positions; Whisper's have {FRAMES // 2}")

    @property
    def steps(self) -> int:
        """Tokens that a window can have, prompt included: half of the text context, as Whisper itself has it."""
        return self.n_text_ctx // 2


class Attention(nn.Module):
    """Projections of multi-head attention; keys have no bias."""

    def __init__(self, width: int, heads: int, own: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        if own:
            self.key = nn.Linear(width, width, bias=False)
            self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """`(1, n, width)` to `(1, heads, n, width / heads)`."""
        return x.reshape(1, x.shape[1], self.heads, -1).transpose(1, 2)

    def attend(self, x: Tensor, turned: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention of `x` `(1, n, width)` to keys `(1, heads, d, m)` and values `(1, heads, m, d)`."""
        query = self.split(self.query(x))
        scores = (query * query.shape[-1] ** -0.5) @ turned
        if mask is not None:
            scores = scores + mask
        mixed = scores.softmax(-1) @ values
        result: Tensor = self.out(mixed.transpose(1, 2).reshape(1, x.shape[1], -1))
        return result


class Mlp(nn.Sequential):
    """Two layers with a GELU between."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class EncoderBlock(nn.Module):
    """Self attention and MLP, each after a normalization and around a sum."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.attn_ln = nn.LayerNorm(width)
        self.mlp = Mlp(width)
        self.mlp_ln = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """`(1, n, width)` to the same."""
        y = self.attn_ln(x)
        keys, values = self.attn.split(self.attn.key(y)), self.attn.split(self.attn.value(y))
        x = x + self.attn.attend(y, keys.transpose(-2, -1), values)
        result: Tensor = x + self.mlp(self.mlp_ln(x))
        return result


class Projections(nn.Module):
    """Keys and values of one layer of cross attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(1, n, width)` to keys `(1, heads, d, n)` and values `(1, heads, n, d)`."""
        shape = (1, x.shape[1], self.heads, -1)
        keys, values = self.key(x).reshape(shape), self.value(x).reshape(shape)
        return keys.permute(0, 2, 3, 1), values.transpose(1, 2)


class Encoder(nn.Module):
    """A window of sound to what the decoder attends to."""

    def __init__(self, dims: Dimensions) -> None:
        super().__init__()
        width = dims.n_audio_state
        self.conv1 = nn.Conv2d(dims.n_mels, width, (1, 3), padding=(0, 1))
        self.conv2 = nn.Conv2d(width, width, (1, 3), stride=(1, 2), padding=(0, 1))
        self.positional_embedding = nn.Parameter(torch.zeros(dims.n_audio_ctx, width))
        self.blocks = nn.ModuleList(EncoderBlock(width, dims.n_audio_head) for _ in range(dims.n_audio_layer))
        self.ln_post = nn.LayerNorm(width)
        self.cross = nn.ModuleList(Projections(width, dims.n_text_head) for _ in range(dims.n_text_layer))

    def forward(self, mel: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        """Encode a window.

        Args:
            mel: Log-mel spectrogram `(1, mels, 1, 3000)`.
            positions: int32 `(1500,)`, from 0 on; an input, because a table of constants that is picked from can be
                stored in integers, and one that is added cannot.

        Returns:
            Keys and values of each layer of the decoder's cross attention, alternating.
        """
        x = nn.functional.gelu(self.conv1(mel))
        x = nn.functional.gelu(self.conv2(x))
        x = x.squeeze(2).transpose(1, 2) + nn.functional.embedding(positions, self.positional_embedding)
        for block in self.blocks:
            x = block(x)
        x = self.ln_post(x)
        return tuple(tensor for layer in self.cross for tensor in layer(x))

    def example(self, dims: Dimensions) -> tuple[Tensor, ...]:
        """Inputs of the right shapes."""
        return torch.zeros(1, dims.n_mels, 1, FRAMES), torch.arange(dims.n_audio_ctx, dtype=torch.int32)


class DecoderBlock(nn.Module):
    """Self attention over the cache, cross attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.attn_ln = nn.LayerNorm(width)
        self.cross_attn = Attention(width, heads, own=False)
        self.cross_attn_ln = nn.LayerNorm(width)
        self.mlp = Mlp(width)
        self.mlp_ln = nn.LayerNorm(width)

    def forward(
        self, x: Tensor, mask: Tensor, past: tuple[Tensor, Tensor], cross: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One token `(1, 1, width)`; returns it with its key and value `(1, heads, 1, d)` for the cache."""
        y = self.attn_ln(x)
        key, value = self.attn.split(self.attn.key(y)), self.attn.split(self.attn.value(y))
        keys, values = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        x = x + self.attn.attend(y, keys.transpose(-2, -1), values, mask)
        x = x + self.cross_attn.attend(self.cross_attn_ln(x), *cross)
        return x + self.mlp(self.mlp_ln(x)), key, value


class Decoder(nn.Module):
    """One token, its past and the encoded window to the logits of the next token."""

    def __init__(self, dims: Dimensions) -> None:
        super().__init__()
        width = dims.n_text_state
        self.token_embedding = nn.Embedding(dims.n_vocab, width)
        self.positional_embedding = nn.Parameter(torch.zeros(dims.steps, width))
        self.blocks = nn.ModuleList(DecoderBlock(width, dims.n_text_head) for _ in range(dims.n_text_layer))
        self.ln = nn.LayerNorm(width)

    def forward(self, token: Tensor, position: Tensor, mask: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Decode one token.

        Args:
            token: int32 `(1,)`.
            position: int32 `(1,)`, from 0.
            mask: `(1, 1, 1, steps + 1)`: 0 for what the token may see, -10000 for places of the cache that are empty.
            *past: Of each layer the cached keys and values `(1, heads, steps, d)`, alternating; then what the encoder
                returned.

        Returns:
            Logits `(1, vocabulary)`, then of each layer the key and value `(1, heads, 1, d)` of this token.
        """
        count = 2 * len(self.blocks)
        cache, cross = past[:count], past[count:]
        x = self.token_embedding(token) + nn.functional.embedding(position, self.positional_embedding)
        x, new = x[None], []
        for i, block in enumerate(self.blocks):
            pair = slice(2 * i, 2 * i + 2)
            x, key, value = block(x, mask, cache[pair], cross[pair])
            new += [key, value]
        logits = nn.functional.linear(self.ln(x), self.token_embedding.weight)
        return (logits[0], *new)

    def example(self, dims: Dimensions) -> tuple[Tensor, ...]:
        """Inputs of the right shapes, no two of them one tensor."""
        heads, layers, size = dims.n_text_head, dims.n_text_layer, dims.n_text_state // dims.n_text_head
        cached = [torch.zeros(1, heads, dims.steps, size) for _ in range(2 * layers)]
        turned = (1, heads, size, dims.n_audio_ctx), (1, heads, dims.n_audio_ctx, size)
        cross = [torch.zeros(shape) for _ in range(layers) for shape in turned]
        token, position = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        return token, position, torch.zeros(1, 1, 1, dims.steps + 1), *cached, *cross


def build_networks(dims: Dimensions, state: Mapping[str, Tensor]) -> tuple[Encoder, Decoder, dict[str, Any]]:
    """The two networks with the weights of a checkpoint.

    Args:
        dims: Sizes.
        state: Tensors by openai-whisper's names.

    Returns:
        Encoder, decoder, and the tensors of each under its own names, for `load_into`.
    """
    encoder: dict[str, Tensor] = {}
    decoder: dict[str, Tensor] = {}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        if part == "encoder":
            encoder[rest] = value.unsqueeze(2) if rest in ("conv1.weight", "conv2.weight") else value
        elif ".cross_attn.key." in name or ".cross_attn.value." in name:
            encoder[rest.replace("blocks", "cross", 1).replace("cross_attn.", "", 1)] = value
        elif name == "decoder.positional_embedding":
            decoder[rest] = value[: dims.steps]
        else:
            decoder[rest if part == "decoder" else name] = value
    return Encoder(dims), Decoder(dims), {"encoder": encoder, "decoder": decoder}
