"""Attention heads: rotated so that no channel sticks out, and scaled so that all heads fit one grid."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from edgeq.graph.recognize import AttentionSite, attention_sites
from edgeq.graph.rewrite import aten, call, refresh, shape_of, supersede
from edgeq.graph.transforms.channels import ChannelStatistics
from edgeq.graph.transforms.parameters import parameter, set_parameter, store_constant
from edgeq.graph.transforms.projections import (
    Projection,
    Projections,
    attention_projections,
    channel_axis,
    number_factor,
)
from edgeq.graph.transforms.report import Report, Skipped
from edgeq.quant.hadamard import rotation

_FLOOR = 1e-6  # of the largest head: a head that is always zero keeps a finite scale


def rotate_heads(gm: fx.GraphModule, seed: int = 0) -> Report[int]:
    """Rotate queries and keys of each head by one orthogonal matrix, and its values by one that the output undoes.

    `(q R)(k R)^T = q k^T` and `P (v R) R^T = P v`. Source: QuaRot (Ashkboos et al., arXiv:2404.00456, section 4);
    deviation: folded into the weights for queries and keys too, which is exact without rotary embeddings.

    Args:
        gm: Canonical graph, changed in place.
        seed: Of the rotation, the same for all heads.
    """
    nodes = {n.name: n for n in gm.graph.nodes}
    sites, skipped = _sites(gm)
    for site, (query, key, value, output) in sites:
        matrix, _ = rotation(site.head_dim, seed)
        values, _ = rotation(value.channels.shape[1], seed)
        for projection, turn in ((query, matrix), (key, matrix), (value, values)):
            _turn_rows(gm, nodes[projection.node], projection.channels, turn)
        _turn_columns(gm, nodes[output.node], output.channels, values)
    return Report(tuple(site.index for site, _ in sites), tuple(skipped))


def head_tensors(gm: fx.GraphModule) -> dict[str, int]:
    """What `scale_heads` takes statistics of: the linears behind the heads, and the scores, by their channel axis.

    The scores count as channels of the axis of their heads.
    """
    nodes = {n.name: n for n in gm.graph.nodes}
    axes: dict[str, int] = {}
    for site, found in _sites(gm)[0]:
        for projection in found[:3]:
            axis = channel_axis(gm, nodes[projection.node])
            axes[projection.node] = -1 if axis is None else axis
        axes[site.scores] = len(shape_of(nodes[site.scores])) - 3
    return axes


def scale_heads(gm: fx.GraphModule, statistics: Mapping[str, ChannelStatistics]) -> Report[int]:
    """Bring queries, keys and values of all heads to one range, so that a grid per tensor serves each of them.

    Head h of the queries is divided by `a_h`, of the keys by `b_h`, and the scores are multiplied by `a_h b_h` after
    their matmul; head h of the values is divided by `c_h` and the columns of the output linear multiplied. A number
    that scaled queries or keys on the way moves into their linears. This is a grid per head (AdaLog and APHQ-ViT
    assume one) on runtimes that know a grid per tensor.

    The heads' scores would keep different ranges; `a_h b_h` grows with the square root of the heads' largest score,
    which splits the difference between the grids of queries and keys and that of the scores.

    Args:
        gm: Canonical graph, changed in place; refreshed afterwards.
        statistics: Of the tensors of `head_tensors`, by name; attentions without are skipped.
    """
    sites, skipped = _sites(gm)
    done = []
    for site, found in sites:
        names = {p.node for p in found[:3]} | {site.scores}
        if missing := sorted(n for n in names if n not in statistics):
            skipped.append(Skipped(site.scores, f"no statistics of {missing[0]}"))
            continue
        _scale_site(gm, site, found, statistics)
        done.append(site.index)
    gm.graph.lint()
    gm.recompile()
    refresh(gm)
    return Report(tuple(done), tuple(skipped))


_Found = tuple[Projection, Projection, Projection, Projection]


def _sites(gm: fx.GraphModule) -> tuple[list[tuple[AttentionSite, _Found]], list[Skipped]]:
    """The attentions whose projections nothing else reads, and the others with the reason."""
    found: list[tuple[AttentionSite, _Found]] = []
    skipped = []
    nodes = {n.name: n for n in gm.graph.nodes}
    for site in attention_sites(gm):
        projections = _free(attention_projections(gm, site))
        if isinstance(projections, str):
            skipped.append(Skipped(site.scores, projections))
        elif len(shape_of(nodes[site.scores])) < 3:
            skipped.append(Skipped(site.scores, "the scores have no axis of heads"))
        else:
            found.append((site, projections))
    return found, skipped


def _free(projections: Projections) -> _Found | str:
    """Query, key, value and output projection when nothing else reads them, else why not."""
    found = (projections.query, projections.key, projections.value, projections.output)
    names = ("query", "key", "value", "output")
    for name, projection in zip(names, found, strict=True):
        if projection is None:
            return f"{name}: {projections.reasons[name]}"
        if projection.shared:
            return f"{', '.join(projection.shared)} reads the {name} too"
        if len(set(projection.channels.flatten().tolist())) != projection.channels.numel():
            return f"heads share the channels of the {name}"
    query, key, value, output = found
    assert query is not None and key is not None and value is not None and output is not None
    return query, key, value, output


def _turn_rows(gm: fx.GraphModule, node: fx.Node, channels: Tensor, matrix: Tensor) -> None:
    """Rows (outputs) of each head times `matrix` transposed."""
    for name in ("weight", "bias"):
        value = parameter(gm, node, name)
        if value is not None:
            new = value.double().clone()
            heads = new[channels]  # (heads, head_dim, ...)
            new[channels] = torch.einsum("hd...,de->he...", heads, matrix)
            set_parameter(gm, node, name, new)


def _turn_columns(gm: fx.GraphModule, node: fx.Node, channels: Tensor, matrix: Tensor) -> None:
    """Columns (inputs) of each head times `matrix`, which undoes `_turn_rows` of what they read."""
    weight = parameter(gm, node, "weight")
    assert weight is not None
    columns = weight.double().movedim(1, 0).clone()
    columns[channels] = torch.einsum("hd...,de->he...", columns[channels], matrix)
    set_parameter(gm, node, "weight", columns.movedim(0, 1))


def _scale_site(
    gm: fx.GraphModule, site: AttentionSite, found: _Found, statistics: Mapping[str, ChannelStatistics]
) -> None:
    nodes = {n.name: n for n in gm.graph.nodes}
    query, key, value, output = found
    scores = nodes[site.scores]
    for position, projection in ((0, query), (1, key)):
        _drop_factor(gm, scores, position, projection)
    rest = attention_projections(gm, site).value  # a number from before the three part has gone from the values too
    assert rest is not None
    peaks = [_peaks(statistics[p.node].absmax[p.channels]) * abs(p.factor) for p in (query, key)]
    logits = statistics[site.scores].absmax
    spread = _spread(logits / (peaks[0] * peaks[1]))
    a, b = peaks[0] * spread, peaks[1] * spread
    c = _peaks(statistics[value.node].absmax[value.channels])
    for projection, divisor, factor in (
        (query, a, query.factor),
        (key, b, key.factor),
        (value, c, value.factor / rest.factor),
    ):
        rows = (factor / divisor)[:, None].expand(projection.channels.shape)
        _scale_rows(gm, nodes[projection.node], projection.channels, rows)
    weight = parameter(gm, nodes[output.node], "weight")
    assert weight is not None
    columns = weight.double().movedim(1, 0).clone()
    columns[output.channels] *= c.reshape(-1, *([1] * (columns.dim())))
    set_parameter(gm, nodes[output.node], "weight", columns.movedim(0, 1))
    following = scores.next
    users = list(scores.users)
    constant = store_constant(gm, f"{scores.name}.scale", (a * b).reshape(-1, 1, 1), following)
    scaled = call(gm, aten.mul.Tensor, scores, constant, before=following, like=scores)
    scaled.meta["val"] = scores.meta["val"]
    for user in users:
        user.replace_input_with(scores, scaled)


def _drop_factor(gm: fx.GraphModule, scores: fx.Node, position: int, projection: Projection) -> None:
    """Erase the multiplications by a number between a projection and the scores; its linear takes them over."""
    node = scores.args[position]
    while isinstance(node, fx.Node) and node.name != projection.node:
        scaled = number_factor(gm, node)
        source = scaled[0] if scaled is not None else node.args[0]
        if scaled is not None:
            supersede(node, scaled[0])
        node = source


def _scale_rows(gm: fx.GraphModule, node: fx.Node, channels: Tensor, factors: Tensor) -> None:
    for name in ("weight", "bias"):
        value = parameter(gm, node, name)
        if value is not None:
            new = value.double().clone()
            new[channels] *= factors.reshape(*factors.shape, *([1] * (new.dim() - 1)))
            set_parameter(gm, node, name, new)


def _peaks(channels: Tensor) -> Tensor:
    """Largest magnitude of each head, `(heads, head_dim) -> (heads,)`, kept away from 0."""
    peaks = channels.amax(1)
    largest = float(peaks.max())
    return peaks.clamp(min=_FLOOR * largest if largest > 0 else 1.0)


def _spread(peaks: Tensor) -> Tensor:
    """Fourth root of the heads' largest scores over the smallest of them: the share of queries, and of keys."""
    floor = peaks.clamp(min=1e-3 * float(peaks.max()) if float(peaks.max()) > 0 else 1.0)
    return (floor / floor.min()) ** 0.25
