"""SmoothQuant, with an optional shift: outliers of activation channels move into the weights that read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, fx

from edgeq.errors import UsageError
from edgeq.graph.kinds import op_kind
from edgeq.graph.recognize import attention_sites
from edgeq.graph.transforms.channels import ChannelStatistics
from edgeq.graph.transforms.norm_sites import (
    NormSite,
    adapt_columns,
    norm_sites,
    shift_and_scale,
    statistics_of,
)
from edgeq.graph.transforms.parameters import parameter, set_parameter
from edgeq.graph.transforms.permute import HOMOGENEOUS, ChannelPair, channel_pairs
from edgeq.graph.transforms.projections import Projection, attention_projections, channel_axis, number_factor
from edgeq.graph.transforms.report import Report, Skipped
from edgeq.quant.uniform import fake_quantize, qparams_from_range
from edgeq.quant.weights import weight_qparams
from edgeq.spec import QuantSpec

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Migration strengths that `alpha="auto"` tries, besides leaving the tensor as it is."""


@dataclass(frozen=True)
class Smoothed:
    """A tensor whose channels were evened out.

    Args:
        tensor: What the linears read.
        alpha: Migration strength.
        smallest: Smallest divisor of a channel.
        largest: Largest divisor.
        before: Estimated squared error at the outputs before, for one position.
        after: The same afterwards.
    """

    tensor: str
    alpha: float
    smallest: float
    largest: float
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class _Site:
    """A tensor that can be smoothed.

    Args:
        tensor: Its name.
        axis: Axis of its channels.
        weights: The weights `(outputs, C)` that read it, as they are now.
        shiftable: Whether a shift is exact too.
        apply: Puts a shift and a scale `(C,)` into the layers around it.
    """

    tensor: str
    axis: int
    weights: Callable[[], list[Tensor]]
    shiftable: bool
    apply: Callable[[Tensor, Tensor], object]


def smooth(
    gm: fx.GraphModule,
    statistics: Mapping[str, ChannelStatistics],
    weight: QuantSpec,
    activation: QuantSpec,
    alpha: float | Literal["auto"] = "auto",
    shift: bool = False,
) -> Report[Smoothed]:
    """Divide activation channels by `max|X|^alpha / max|W|^(1 - alpha)` and multiply the weights by it.

    Exact are three places: a normalization read by linears; the values of an attention and the linear after it, since
    the softmax mixes tokens, not channels; two layers with nothing but ReLU between. GELU and its kin do not let a
    scale pass, so what follows them is skipped. With `shift` the mean of each channel is taken off first, which a bias
    takes up: exact after a normalization and for values, as softmax rows sum to 1, and left out after ReLU.

    Source: SmoothQuant (Xiao et al., arXiv:2211.10438, equations 3 and 4); the shift is SQ-b of MPTQ-ViT (Tai and Wu,
    arXiv:2401.14895). Deviations: alpha is chosen for each tensor, by the error that `estimate` predicts from
    statistics alone, and divisors are normalized to a geometric mean of 1.

    Args:
        gm: Canonical graph, changed in place.
        statistics: Of the tensors of `smoothing_tensors`, by name; tensors without are skipped.
        weight: Grid of the weights.
        activation: Grid of the activations, one scale.
        alpha: Migration strength from 0 (only weights count) to 1 (only activations), or `auto`, which also leaves
            alone what it would not improve.
        shift: Take the means off.

    Raises:
        UsageError: Alpha is out of range, or the statistics are of other channels.
    """
    if alpha != "auto" and not 0 <= alpha <= 1:
        raise UsageError(f"alpha must be 0 to 1 or auto, not {alpha}", code="EQ-U263", hint="0.5 is usual")
    found, skipped = _sites(gm)
    done: list[Smoothed] = []
    for site in found:
        weights = site.weights()
        seen = statistics_of(statistics, site.tensor, weights[0].shape[1])
        if seen is None:
            skipped.append(Skipped(site.tensor, "no statistics of it"))
            continue
        offset = -seen.mean if shift and site.shiftable else torch.zeros(seen.channels, dtype=torch.float64)
        none = torch.ones(seen.channels, dtype=torch.float64)
        before = estimate(seen, weights, torch.zeros_like(none), none, weight, activation)
        options = {a: divisors(seen, weights, offset, a) for a in (ALPHAS if alpha == "auto" else (alpha,))}
        errors = {a: estimate(seen, weights, offset, d, weight, activation) for a, d in options.items()}
        best = min(errors, key=errors.__getitem__)
        if alpha == "auto" and errors[best] >= before:
            skipped.append(Skipped(site.tensor, "no alpha lowers the estimated error"))
            continue
        scale = options[best]
        site.apply(offset, scale)
        done.append(Smoothed(site.tensor, best, float(scale.min()), float(scale.max()), before, errors[best]))
    return Report(tuple(done), tuple(skipped))


def smoothing_tensors(gm: fx.GraphModule) -> dict[str, int]:
    """The tensors that `smooth` can work on, with the axis of their channels: what to take statistics of."""
    return {site.tensor: site.axis for site in _sites(gm)[0]}


def divisors(seen: ChannelStatistics, weights: Sequence[Tensor], shift: Tensor, alpha: float) -> Tensor:
    """`max|X + shift|^alpha / max|W|^(1 - alpha)` for each channel, float64 `(C,)`, of geometric mean 1.

    Args:
        seen: Statistics of X.
        weights: Readers `(outputs, C)`.
        shift: float64 `(C,)`.
        alpha: Migration strength.
    """
    activations = torch.maximum((seen.low + shift).abs(), (seen.high + shift).abs())
    columns = torch.stack([w.abs().amax(0).double() for w in weights]).amax(0)
    # a dead channel must not get a divisor of zero, nor one that drags the others along
    floors = [torch.clamp(v, min=max(float(v.max()) * 1e-5, 1e-30)) for v in (activations, columns)]
    logarithms = alpha * floors[0].log() - (1 - alpha) * floors[1].log()
    return torch.exp(logarithms - logarithms.mean())


def estimate(
    seen: ChannelStatistics,
    weights: Sequence[Tensor],
    shift: Tensor,
    scale: Tensor,
    weight: QuantSpec,
    activation: QuantSpec,
) -> float:
    """Expected squared error at the outputs of the linears for one position, from statistics alone.

    With `x' = (x + shift) / scale` and `W' = W * scale` on their grids: the activation's step s adds noise of
    variance `s^2 / 12` to each channel, hence `s^2 / 12 * ||W'||^2`; the weight's error D adds
    `sum_c E[x'_c^2] ||D_c||^2`. Channels are taken as uncorrelated.

    Args:
        seen: Statistics of x.
        weights: Readers `(outputs, C)`.
        shift: float64 `(C,)`.
        scale: float64 `(C,)`.
        weight: Grid of the weights.
        activation: Grid of the activations, one scale.
    """
    low, high = (seen.low + shift) / scale, (seen.high + shift) / scale
    step = float(qparams_from_range(np.asarray(float(low.min())), np.asarray(float(high.max())), activation).scale)
    energy = (seen.rms.square() + 2 * shift * seen.mean + shift.square()) / scale.square()
    total = 0.0
    for value in weights:
        moved = (value.double() * scale).float()
        error = (fake_quantize(moved, weight_qparams(moved, weight)) - moved).double().square().sum(0)
        total += step * step / 12 * float(moved.double().square().sum()) + float((energy * error).sum())
    return total


def _sites(gm: fx.GraphModule) -> tuple[list[_Site], list[Skipped]]:
    """All places that can be smoothed, and those that look like it."""
    nodes = {n.name: n for n in gm.graph.nodes}
    norms, left = norm_sites(gm)
    skipped = list(left)
    sites = [_norm_site(gm, nodes, site) for site in norms]
    for attention in attention_sites(gm):
        projections = attention_projections(gm, attention)
        value, output = projections.value, projections.output
        if value is None or output is None:
            skipped.append(Skipped(attention.context, "; ".join(projections.reasons.values())))
        elif value.shared:
            skipped.append(Skipped(attention.context, f"{', '.join(value.shared)} reads the values too"))
        elif value.channels.numel() != len(set(value.channels.flatten().tolist())):
            skipped.append(Skipped(attention.context, "heads share their values"))
        else:
            sites.append(_value_site(gm, nodes, value, output))
    for pair in channel_pairs(gm):
        curved = [n for n in pair.between if op_kind(nodes[n]) not in HOMOGENEOUS and not number_factor(gm, nodes[n])]
        if channel_axis(gm, nodes[pair.consumer]) is None:
            skipped.append(Skipped(pair.consumer, "it is a convolution over several positions"))
        elif curved:
            skipped.append(Skipped(pair.consumer, f"a scale does not pass through {', '.join(curved)}"))
        else:
            sites.append(_pair_site(gm, nodes, pair))
    return sites, skipped


def _norm_site(gm: fx.GraphModule, nodes: Mapping[str, fx.Node], site: NormSite) -> _Site:
    """A normalization read by linears."""

    def weights() -> list[Tensor]:
        return [_by_channel(_matrix(gm, nodes[r.node]) * r.factor, r.columns, site.width) for r in site.readers]

    return _Site(site.output, -1, weights, True, lambda shift, scale: shift_and_scale(gm, site, shift, scale))


def _by_channel(weight: Tensor, columns: Tensor, width: int) -> Tensor:
    """A weight `(outputs, inputs)` as `(rows, C)`; where it reads a channel several times, each is a row of its own."""
    rank = torch.zeros_like(columns)
    for channel in columns.unique().tolist():  # type: ignore[no-untyped-call]
        places = torch.nonzero(columns == channel).flatten()
        rank[places] = torch.arange(len(places))
    result = weight.new_zeros(int(rank.max()) + 1, weight.shape[0], width)
    result[rank, :, columns] = weight.T
    return result.flatten(0, 1)


def _value_site(gm: fx.GraphModule, nodes: Mapping[str, fx.Node], value: Projection, output: Projection) -> _Site:
    """The result of an attention, between its values and its output linear."""
    reader = nodes[output.node]
    source, axis = reader.args[0], channel_axis(gm, reader)
    assert isinstance(source, fx.Node) and axis is not None
    rows = torch.empty_like(value.channels.flatten())
    rows[output.channels.flatten()] = value.channels.flatten()  # row of the values behind each input channel
    factor = value.factor * output.factor

    def apply(shift: Tensor, scale: Tensor) -> None:
        _scale_rows(gm, nodes[value.node], rows, shift / factor, scale)
        adapt_columns(gm, reader, scale, shift)

    return _Site(source.name, axis, lambda: [_matrix(gm, reader)], True, apply)


def _pair_site(gm: fx.GraphModule, nodes: Mapping[str, fx.Node], pair: ChannelPair) -> _Site:
    """What the second of two layers reads, if only functions that let a scale pass lie between."""
    reader = nodes[pair.consumer]
    source, axis = reader.args[0], channel_axis(gm, reader)
    assert isinstance(source, fx.Node) and axis is not None

    def apply(shift: Tensor, scale: Tensor) -> None:
        _scale_rows(gm, nodes[pair.producer], torch.arange(pair.width), shift, scale)
        adapt_columns(gm, reader, scale, shift)

    return _Site(source.name, axis, lambda: [_matrix(gm, reader)], False, apply)


def _scale_rows(gm: fx.GraphModule, node: fx.Node, rows: Tensor, shift: Tensor, scale: Tensor) -> None:
    """Make output channel `rows[i]` of a layer `(y + shift[i]) / scale[i]`."""
    weight, bias = parameter(gm, node, "weight"), parameter(gm, node, "bias")
    assert weight is not None
    wide = weight.to(torch.float64, copy=True)
    wide[rows] /= scale.reshape(-1, *[1] * (weight.dim() - 1))
    set_parameter(gm, node, "weight", wide)
    if bias is None and not bool(shift.any()):
        return
    start = torch.zeros(weight.shape[0], dtype=torch.float64) if bias is None else bias.to(torch.float64, copy=True)
    start[rows] = (start[rows] + shift) / scale
    set_parameter(gm, node, "bias", start)


def _matrix(gm: fx.GraphModule, node: fx.Node) -> Tensor:
    """The weight of a linear as `(outputs, inputs)`."""
    weight = parameter(gm, node, "weight")
    assert weight is not None
    return weight.flatten(1)
