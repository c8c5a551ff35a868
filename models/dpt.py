"""Depth networks on a vision transformer: Depth Anything (v1, v2, metric v2) and MiDaS' DPT-Large.

Four depths of the encoder become maps of four sizes, which are fused from the coarsest to the finest (DPT, Ranftl et
al., arXiv:2103.13413; Depth Anything, Yang et al., arXiv:2401.10891 and arXiv:2406.09414). The encoders are timm's.
Modules are named so that the published checkpoints fit by name: `pretrained.*`, `depth_head.*`, `scratch.*`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeq.errors import MissingError
from edgeq.spec import Preprocess

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Encoder:
    """A vision transformer with what the decoder takes of it.

    Args:
        name: As timm calls it.
        side: Input size in pixels.
        patch: Side of a patch in pixels.
        width: Of a token.
        blocks: Indices of the four blocks whose results are read.
        features: Channels of the decoder.
        channels: Of the four maps before it.
    """

    name: str
    side: int
    patch: int
    width: int
    blocks: tuple[int, ...]
    features: int
    channels: tuple[int, ...]


@dataclass(frozen=True)
class Architecture:
    """A published depth network.

    Args:
        encoder: Its transformer.
        layout: Which of the two families of checkpoints.
        kind: Of its output, as in `edgeq.depthmap`.
        normalization: Mean and standard deviation of the channels.
        deepest: Metres at full scale of a metric network, 0 for others.
    """

    encoder: Encoder
    layout: str = "depth_anything"
    kind: str = "disparity"
    normalization: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    deepest: float = 0.0

    @property
    def preprocess(self) -> Preprocess:
        """The authors' bicubic resize, of the whole photo to the fixed size that the encoder was trained on.

        The authors keep the aspect ratio and let the size vary; a fixed graph cannot.
        """
        side = self.encoder.side
        return Preprocess(side, side, *self.normalization, "squash", 1.0, "bicubic")


_V2 = {
    "vits": Encoder("vit_small_patch14_dinov2", 518, 14, 384, (2, 5, 8, 11), 64, (48, 96, 192, 384)),
    "vitb": Encoder("vit_base_patch14_dinov2", 518, 14, 768, (2, 5, 8, 11), 128, (96, 192, 384, 768)),
    "vitl": Encoder("vit_large_patch14_dinov2", 518, 14, 1024, (4, 11, 17, 23), 256, (256, 512, 1024, 1024)),
}
_LAST = {"vits": (8, 9, 10, 11), "vitb": (8, 9, 10, 11), "vitl": (20, 21, 22, 23)}
_METRIC = {"hypersim": 20.0, "vkitti": 80.0}


def _architectures() -> dict[str, Architecture]:
    found = {}
    for size, encoder in _V2.items():
        last = Encoder(**{**vars(encoder), "blocks": _LAST[size]})
        found[f"depth_anything_{size}"] = Architecture(last)
        found[f"depth_anything_v2_{size}"] = Architecture(encoder)
        for data, deepest in _METRIC.items():
            found[f"depth_anything_v2_metric_{data}_{size}"] = Architecture(encoder, kind="metric", deepest=deepest)
    large = Encoder("vit_large_patch16_384", 384, 16, 1024, (5, 11, 17, 23), 256, (256, 512, 1024, 1024))
    found["dpt_large_384"] = Architecture(large, "dpt", normalization=HALF)
    return found


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(_architectures())
"""By the names of the published checkpoints."""

UNUSED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "depth_anything": ("pretrained.mask_token",),
        "dpt": ("pretrained.model.head.weight", "pretrained.model.head.bias"),
    }
)
"""Weights of the checkpoints that take no part in depth."""


class Residual(nn.Module):
    """Two convolutions with rectifiers before them and a way around, `(N, C, H, W)` to the same."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Both, added."""
        out: Tensor = self.conv2(functional.relu(self.conv1(functional.relu(x)))) + x
        return out


class Fusion(nn.Module):
    """Adds a finer map to what came from the coarser ones, and enlarges; `(N, C, h, w) -> (N, C, H, W)`."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.resConfUnit1 = Residual(features)  # the coarsest fusion of the checkpoints has one, too, and ignores it
        self.resConfUnit2 = Residual(features)
        self.out_conv = nn.Conv2d(features, features, 1)

    def forward(self, x: Tensor, finer: Tensor | None, size: Sequence[int]) -> Tensor:
        """The fused map at `size`."""
        if finer is not None:
            x = x + self.resConfUnit1(finer)
        out: Tensor = self.out_conv(_enlarged(self.resConfUnit2(x), size))
        return out


class Scratch(nn.Module):
    """What both layouts call `scratch`: the fusions, without the last layers."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        for level, channels in enumerate(encoder.channels, start=1):
            self.add_module(f"layer{level}_rn", nn.Conv2d(channels, encoder.features, 3, padding=1, bias=False))
            self.add_module(f"refinenet{level}", Fusion(encoder.features))

    def fuse(self, maps: Sequence[Tensor]) -> Tensor:
        """`(N, features, H, W)`, twice as large as the finest of four maps, which comes first."""
        layers = [self.get_submodule(f"layer{i}_rn")(m) for i, m in enumerate(maps, start=1)]
        rows, columns = layers[0].shape[2:]
        sizes = [(2 * rows, 2 * columns), *(layer.shape[2:] for layer in layers[:-1])]
        fused: Tensor = self.get_submodule("refinenet4")(layers[3], None, sizes[3])
        for level in (3, 2, 1):
            fused = self.get_submodule(f"refinenet{level}")(fused, layers[level - 1], sizes[level - 1])
        return fused


class DptHead(nn.Module):
    """The decoder of Depth Anything: tokens of four depths to a map of the size of the input."""

    def __init__(self, encoder: Encoder, metric: bool) -> None:
        super().__init__()
        width, channels = encoder.width, encoder.channels
        self.projects = nn.ModuleList(nn.Conv2d(width, c, 1) for c in channels)
        self.resize_layers = _resizers(channels)
        self.scratch = Scratch(encoder)
        self.scratch.output_conv1 = nn.Conv2d(encoder.features, encoder.features // 2, 3, padding=1)
        self.scratch.output_conv2 = nn.Sequential(
            nn.Conv2d(encoder.features // 2, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 1, 1),
            nn.Sigmoid() if metric else nn.ReLU(),
        )

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """The map `(N, 1, *size)` from four maps of tokens `(N, width, h, w)`."""
        pairs = zip(maps, self.projects, self.resize_layers, strict=True)
        fused = self.scratch.fuse([resize(project(m)) for m, project, resize in pairs])
        large = _enlarged(self.scratch.get_submodule("output_conv1")(fused), size)
        out: Tensor = self.scratch.get_submodule("output_conv2")(large)
        return out


class DepthAnything(nn.Module):
    """`(N, 3, S, S) -> (N, 1, S, S)`: disparity, or metres of a metric network."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.encoder, self.deepest = architecture.encoder, architecture.deepest
        self.pretrained = _transformer(self.encoder)
        self.depth_head = DptHead(self.encoder, metric=self.deepest > 0)

    def forward(self, image: Tensor) -> Tensor:
        """Encode and decode."""
        taken = [self.pretrained.norm(tokens) for tokens in _tokens(self.pretrained, image, self.encoder.blocks)]
        maps = [_as_map(tokens[:, 1:], image, self.encoder.patch) for tokens in taken]
        out: Tensor = self.depth_head(maps, image.shape[2:])
        return out * self.deepest if self.deepest else out


class Dpt(nn.Module):
    """MiDaS' DPT, `(N, 3, S, S) -> (N, 1, S, S)` disparity; the class token is mixed into every token that is read."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.encoder = encoder = architecture.encoder
        self.pretrained = nn.Module()
        self.pretrained.model = _transformer(encoder)
        for level, (channels, resize) in enumerate(zip(encoder.channels, _resizers(encoder.channels), strict=True), 1):
            # Numbered as in the checkpoint, where two steps without weights follow the first.
            steps = {"0": Readout(encoder.width), "3": nn.Conv2d(encoder.width, channels, 1), "4": resize}
            self.pretrained.add_module(f"act_postprocess{level}", nn.ModuleDict(steps))
        self.scratch = Scratch(encoder)
        self.scratch.output_conv = nn.Sequential(
            nn.Conv2d(encoder.features, encoder.features // 2, 3, padding=1),
            nn.UpsamplingBilinear2d(scale_factor=2),  # with corners aligned
            nn.Conv2d(encoder.features // 2, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 1, 1),
            nn.ReLU(),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Encode and decode."""
        maps = []
        for level, tokens in enumerate(_tokens(self.pretrained.model, image, self.encoder.blocks), start=1):
            steps: Any = self.pretrained.get_submodule(f"act_postprocess{level}")
            maps.append(steps["4"](steps["3"](_as_map(steps["0"](tokens), image, self.encoder.patch))))
        out: Tensor = self.scratch.get_submodule("output_conv")(self.scratch.fuse(maps))
        return out


class Readout(nn.Module):
    """Mixes the class token into the others, `(N, 1 + T, C) -> (N, T, C)` (DPT, section 3.1, "proj")."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(2 * width, width), nn.GELU())

    def forward(self, tokens: Tensor) -> Tensor:
        """Concatenate and project."""
        rest = tokens[:, 1:]
        out: Tensor = self.project(torch.cat([rest, tokens[:, :1].expand_as(rest)], dim=-1))
        return out


def build(architecture: Architecture) -> nn.Module:
    """The untrained network.

    Raises:
        MissingError: EQ-P002, timm is not installed.
    """
    return DepthAnything(architecture) if architecture.layout == "depth_anything" else Dpt(architecture)


def _transformer(encoder: Encoder) -> Any:
    try:
        import timm
    except ImportError as error:
        raise MissingError(
            f"{encoder.name} is a timm architecture and timm is not installed",
            code="EQ-P002",
            hint="pip install 'edgeq[vit]'",
        ) from error
    return timm.create_model(encoder.name, pretrained=False, img_size=encoder.side, num_classes=0)


def _tokens(transformer: Any, image: Tensor, blocks: Sequence[int]) -> list[Tensor]:
    """Results `(N, 1 + T, C)` of some blocks, the class token first; blocks after the last of them are not run."""
    x = transformer.norm_pre(transformer.patch_drop(transformer._pos_embed(transformer.patch_embed(image))))
    taken = []
    for index, block in enumerate(transformer.blocks[: max(blocks) + 1]):
        x = block(x)
        if index in blocks:
            taken.append(x)
    return taken


def _as_map(tokens: Tensor, image: Tensor, patch: int) -> Tensor:
    """Tokens `(N, T, C)` where they came from, `(N, C, h, w)`."""
    rows, columns = image.shape[2] // patch, image.shape[3] // patch
    return tokens.transpose(1, 2).reshape(image.shape[0], tokens.shape[2], rows, columns)


def _resizers(channels: Sequence[int]) -> nn.ModuleList:
    """To four times, twice, once and half the size of the tokens' map."""
    return nn.ModuleList(
        (
            nn.ConvTranspose2d(channels[0], channels[0], 4, stride=4),
            nn.ConvTranspose2d(channels[1], channels[1], 2, stride=2),
            nn.Identity(),
            nn.Conv2d(channels[3], channels[3], 3, stride=2, padding=1),
        )
    )


def _enlarged(x: Tensor, size: Sequence[int]) -> Tensor:
    return functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)
