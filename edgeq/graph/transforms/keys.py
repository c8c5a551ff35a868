"""Keys without their common offset, which softmax ignores: a smaller range for the keys and for the logits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from edgeq.graph.kinds import op_kind
from edgeq.graph.recognize import AttentionSite, attention_sites
from edgeq.graph.rewrite import constant_of, shape_of, single_user
from edgeq.graph.transforms.channels import ChannelStatistics, channel_statistics
from edgeq.graph.transforms.norm_sites import statistics_of
from edgeq.graph.transforms.parameters import parameter, set_parameter
from edgeq.graph.transforms.projections import Projection, attention_projections, channel_axis
from edgeq.graph.transforms.report import Report, Skipped

_HIDDEN = -1e4
"""What a mask puts in the place of a logit, or less: its share of the softmax is 0 whatever the others lose."""


@dataclass(frozen=True)
class CenteredKeys:
    """An attention whose keys have lost their mean.

    Args:
        site: Index of the attention.
        linear: The linear behind the keys.
        before: Width of the keys' range, 0 included, as the linear puts them out.
        after: The same afterwards.
    """

    site: int
    linear: str
    before: float
    after: float


def key_tensors(gm: fx.GraphModule) -> dict[str, int]:
    """The linears behind the keys of all attentions with the axis of their channels: what to take statistics of."""
    nodes = {n.name: n for n in gm.graph.nodes}
    keys = [attention_projections(gm, site).key for site in attention_sites(gm)]
    axes = {k.node: channel_axis(gm, nodes[k.node]) for k in keys if k is not None}
    return {name: axis for name, axis in axes.items() if axis is not None}


def center_keys(gm: fx.GraphModule, statistics: Mapping[str, ChannelStatistics]) -> Report[CenteredKeys]:
    """Subtract from each key channel its mean over tokens and samples, by way of the bias of its linear.

    A row of logits is `q (K - 1 m)^T = q K^T - (q m^T) 1^T`: all its entries lose the same number, which softmax does
    not see. A layer without bias gets one. Keys that anything besides the scores reads are left alone.

    Source: smoothing of K in SageAttention (Zhang et al., arXiv:2410.02367, section 4.2). Deviation: m is a constant
    from calibration rather than the mean of the current tokens, so that it costs nothing at run time.

    Args:
        gm: Canonical graph, changed in place.
        statistics: Of the tensors of `key_tensors`, by name; attentions without are skipped.

    Raises:
        UsageError: Statistics of other channels.
    """
    done: list[CenteredKeys] = []
    skipped: list[Skipped] = []
    nodes = {n.name: n for n in gm.graph.nodes}
    for site in attention_sites(gm):
        found = _centerable(gm, nodes, site)
        if isinstance(found, str):
            skipped.append(Skipped(site.scores, found))
            continue
        linear = nodes[found.node]
        weight, bias = parameter(gm, linear, "weight"), parameter(gm, linear, "bias")
        assert weight is not None
        seen = statistics_of(statistics, found.node, weight.shape[0])
        if seen is None:
            skipped.append(Skipped(site.scores, f"no statistics of {found.node}"))
            continue
        rows = found.channels.flatten()
        offset = torch.zeros(weight.shape[0], dtype=torch.float64)
        offset[rows] = seen.mean[rows]
        start = torch.zeros_like(offset) if bias is None else bias.double()
        set_parameter(gm, linear, "bias", start - offset)
        before = _width(seen.low[rows], seen.high[rows])
        after = _width((seen.low - offset)[rows], (seen.high - offset)[rows])
        done.append(CenteredKeys(site.index, found.node, before, after))
    return Report(tuple(done), tuple(skipped))


def logit_ranges(gm: fx.GraphModule, batches: Iterable[tuple[Tensor, ...]]) -> dict[int, tuple[float, float]]:
    """Smallest and largest product of queries and keys of each attention, by index of the attention.

    Args:
        gm: Canonical graph.
        batches: Inputs of the graph.

    Raises:
        DataError: There is no batch, or an input holds NaN or infinity.
    """
    sites: Sequence[AttentionSite] = attention_sites(gm)
    seen = channel_statistics(gm, [s.scores for s in sites], batches)
    return {s.index: (float(seen[s.scores].low.min()), float(seen[s.scores].high.max())) for s in sites}


def _centerable(gm: fx.GraphModule, nodes: Mapping[str, fx.Node], site: AttentionSite) -> Projection | str:
    """The linear behind the keys if a constant may be taken off them, else why not."""
    projections = attention_projections(gm, site)
    key = projections.key
    if key is None:
        return f"the keys cannot be followed to a linear: {projections.reasons['key']}"
    if key.shared:
        return f"{', '.join(key.shared)} reads the keys too"
    node = nodes[site.scores]
    width = shape_of(node)[-1]
    while node.name != site.softmax:
        if not single_user(node):
            return f"{', '.join(sorted(u.name for u in node.users))} read the logits {node.name}"
        source, node = node, next(iter(node.users))
        if node.name != site.softmax and not (shape_of(node)[-1] == width and _harmless(gm, source, node)):
            return f"{node.name} lies between logits and softmax"
    bias = nodes[key.node].args[2] if len(nodes[key.node].args) > 2 else None
    if bias is not None and parameter(gm, nodes[key.node], "bias") is None:
        return f"the bias of {key.node} is computed"
    return key


def _harmless(gm: fx.GraphModule, source: fx.Node, node: fx.Node) -> bool:
    """Whether logits that lose a number along each row still do so, or become hidden, behind `node`."""
    kind, others = op_kind(node), [a for a in node.args if a is not source]
    if kind in ("mul", "div"):  # a factor of the row
        even = all(not isinstance(a, fx.Node) or shape_of(a)[-1:] in ((), (1,)) for a in others)
        return even and (kind == "mul" or node.args[0] is source)
    if kind in ("where", "masked_fill"):
        fill = others[-1] if others else None
        value = torch.tensor(fill) if isinstance(fill, (int, float)) else constant_of(gm, fill)
        return value is not None and bool((value <= _HIDDEN).all())
    return kind in ("add", "reshape")


def _width(low: Tensor, high: Tensor) -> float:
    """Width of the range over all channels, 0 included."""
    return max(float(high.max()), 0.0) - min(float(low.min()), 0.0)
