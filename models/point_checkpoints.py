"""Published checkpoints of point networks as the weights of ours: sizes from shapes, batch norms folded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from edgeq.errors import ModelError
from edgeq.models.checkpoint import load_into
from edgeq.models.point_networks import MlpStage, PointMlp, PointNet

Network = TypeVar("Network", bound=nn.Module)

_EPSILON = 1e-5
"""Of torch's batch norms."""


class Tensors:
    """The tensors of a checkpoint, taken one after the other; what nobody takes is an error in the end.

    Args:
        state: By name.
        place: The file, for messages.
    """

    def __init__(self, state: Mapping[str, Tensor], place: str) -> None:
        self._left = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
        self._place = place

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def names(self) -> list[str]:
        """What has not been taken."""
        return sorted(self._left)

    def take(self, name: str) -> Tensor:
        """Tensor `name` in double precision, so that folding rounds once.

        Raises:
            ModelError: EQ-M830, it is absent.
        """
        if name not in self._left:
            raise self.misfit(f"lacks {name}")
        return self._left.pop(name).double()

    def optional(self, name: str) -> Tensor | None:
        """Tensor `name`, None where it is absent."""
        return self.take(name) if name in self._left else None

    def layer(self, name: str, norm: str | None = None) -> tuple[Tensor, Tensor]:
        """Weight `(out, in)` and bias `(out,)` of a layer, also one written as a convolution, with its batch norm.

        Raises:
            ModelError: EQ-M830.
        """
        weight = self.take(f"{name}.weight")
        if weight.dim() > 2 and weight.shape[2:].numel() != 1:
            raise self.misfit(f"has {name}.weight of shape {tuple(weight.shape)}; a layer on points has (out, in)")
        weight = weight.flatten(1)
        bias = self.optional(f"{name}.bias")
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        if norm is None:
            return weight, bias
        factor = self.take(f"{norm}.weight") / (self.take(f"{norm}.running_var") + _EPSILON).sqrt()
        return weight * factor[:, None], (bias - self.take(f"{norm}.running_mean")) * factor + self.take(f"{norm}.bias")

    def finish(self) -> None:
        """Check that everything was taken.

        Raises:
            ModelError: EQ-M830.
        """
        if self._left:
            names = self.names()
            raise self.misfit(f"has {len(names)} tensors that the architecture has not ({', '.join(names[:3])})")

    def misfit(self, what: str) -> ModelError:
        """The error for a checkpoint of another architecture: EQ-M830."""
        return ModelError(
            f"{self._place} {what}",
            code="EQ-M830",
            place=self._place,
            hint="name the architecture that the checkpoint was trained with (`edgeq models`)",
        )


def pointmlp_of(state: Mapping[str, Tensor], place: str) -> PointMlp:
    """PointMLP with the weights of a checkpoint in the names of the published code.

    Args:
        state: Tensors by name.
        place: The file, for messages.

    Raises:
        ModelError: EQ-M830, tensors are missing, left over or of other shapes.
    """
    tensors, ours = Tensors(state, place), {}

    def put(name: str, layer: tuple[Tensor, Tensor]) -> None:
        ours[f"{name}.weight"], ours[f"{name}.bias"] = layer

    put("embedding", tensors.layer("embedding.net.0", "embedding.net.1"))
    embed, columns = ours["embedding.weight"].shape
    stages, channels = [], embed
    for i in range(sum(name.endswith("affine_alpha") for name in tensors.names())):
        alpha, beta = (tensors.take(f"groupers.{i}.affine_{part}").flatten() for part in ("alpha", "beta"))
        if len(alpha) != channels:
            raise tensors.misfit(
                f"normalizes {len(alpha)} channels in stage {i}; edgeq knows {channels} (no coordinates)"
            )
        weight, bias = tensors.layer(f"pre_extractors.{i}.transfer.net.0", f"pre_extractors.{i}.transfer.net.1")
        ours[f"stages.{i}.neighbour.weight"] = weight[:, :channels] * alpha
        put(f"stages.{i}.centre", (weight[:, channels:], bias + weight[:, :channels] @ beta))
        counts = []
        for side, name in (("before", "pre_extractors"), ("after", "post_extractors")):
            blocks = _blocks(tensors, f"{name}.{i}.blocks")
            for b in range(blocks):
                source, target = f"{name}.{i}.blocks.{b}.net", f"stages.{i}.{side}.{b}"
                put(f"{target}.reduce", tensors.layer(f"{source}.0", f"{source}.1"))
                put(f"{target}.restore", tensors.layer(f"{source}.3", f"{source}.4"))
            counts.append(blocks)
        channels = len(weight)
        inner = len(ours[f"stages.{i}.before.0.reduce.weight"])
        stages.append(MlpStage(channels, counts[0], counts[1], inner))
    hidden: list[int] = []
    while f"classifier.{4 * len(hidden) + 1}.weight" in tensors:
        number = 4 * len(hidden)  # layer, norm, activation, dropout
        put(f"hidden.{len(hidden)}", tensors.layer(f"classifier.{number}", f"classifier.{number + 1}"))
        hidden.append(len(ours[f"hidden.{len(hidden)}.weight"]))
    put("head", tensors.layer(f"classifier.{4 * len(hidden)}"))
    tensors.finish()
    return _filled(PointMlp(columns, embed, stages, hidden, len(ours["head.weight"])), ours, place)


def pointnet_of(state: Mapping[str, Tensor], place: str) -> PointNet:
    """PointNet with the weights of a checkpoint in the names that its PyTorch versions share.

    `feat.stn` aligns the points, `feat.fstn`, where it is, the features; `feat.conv1` to `conv3` and `fc1` to `fc3`.

    Args:
        state: Tensors by name.
        place: The file, for messages.

    Raises:
        ModelError: EQ-M830, tensors are missing, left over or of other shapes.
    """
    tensors, ours = Tensors(state, place), {}

    def put(name: str, source: str, norm: str | None) -> None:
        ours[f"{name}.weight"], ours[f"{name}.bias"] = tensors.layer(source, norm)

    for own, theirs in (("align", "feat.stn"), ("align_features", "feat.fstn")):
        if f"{theirs}.conv1.weight" in tensors:
            for i in (1, 2, 3):
                put(f"{own}.layers.{i - 1}", f"{theirs}.conv{i}", f"{theirs}.bn{i}")
            put(f"{own}.hidden.0", f"{theirs}.fc1", f"{theirs}.bn4")
            put(f"{own}.hidden.1", f"{theirs}.fc2", f"{theirs}.bn5")
            put(f"{own}.head", f"{theirs}.fc3", None)
    for i in (1, 2, 3):
        put(f"layers.{i - 1}", f"feat.conv{i}", f"feat.bn{i}")
    put("hidden.0", "fc1", "bn1")
    put("hidden.1", "fc2", "bn2")
    put("head", "fc3", None)
    tensors.finish()
    columns, classes = ours["layers.0.weight"].shape[1], len(ours["head.weight"])
    aligned = [f"{name}.head.weight" in ours for name in ("align", "align_features")]
    return _filled(PointNet(columns, classes, *aligned), ours, place)


def _filled(model: Network, ours: Mapping[str, Tensor], place: str) -> Network:
    load_into(model, {name: value.float() for name, value in ours.items()}, Path(place))
    return model.eval()


def _blocks(tensors: Tensors, prefix: str) -> int:
    found = [re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in tensors.names()]
    return 1 + max((int(m[1]) for m in found if m), default=-1)
