"""The rows of `vit_fidelity.py`: ways to quantize a ViT, from nothing to the whole recipe, step by step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType

from torch import Tensor, fx

from edgeq.graph.bounds import set_bounds
from edgeq.graph.naming import rebuild
from edgeq.graph.rewrite import refresh
from edgeq.graph.transforms.balance import balance_hidden, balance_stems, hidden_tensors, stem_tensors
from edgeq.graph.transforms.channels import ChannelStatistics, channel_statistics
from edgeq.graph.transforms.heads import head_tensors, rotate_heads, scale_heads
from edgeq.graph.transforms.keys import center_keys, key_tensors
from edgeq.graph.transforms.norm_sites import norm_sites
from edgeq.graph.transforms.probabilities import split_probabilities
from edgeq.graph.transforms.reparameterize import reparameterize
from edgeq.graph.transforms.rotate import rotate_streams
from edgeq.graph.transforms.smooth import smooth, smoothing_tensors
from edgeq.graph.transforms.transformer import HEADS_EVERY
from edgeq.recipe import transform_graph
from edgeq.spec import QuantSpec

Batches = Callable[[], Iterator[tuple[Tensor, ...]]]

STEPS = ("streams", "heads", "keys", "balance", "probabilities")
"""Steps of the recipe `transformer`, each with all those before it; the last one is the recipe."""

FOR_A_WIDTH = frozenset({"repq", "smooth"})
"""Transforms that fit the graph to the grids it will get."""


@dataclass(frozen=True)
class Row:
    """One way to quantize.

    Args:
        label: For the table.
        transform: `none`, `repq`, `smooth` or one of `STEPS`.
        observer: Range estimator of activations.
        rounding: Key of `edgeq.quant.rounding.ROUNDERS`.
        retarget: See `edgeq.graph.solve.Rounding`.
        products_only: See `edgeq.spec.Precision`.
        float_free: The everything-integer form of `edgeq.graph.integer`, in place of TFLite's.
        slow: Only measured when asked for.
    """

    label: str
    transform: str = "none"
    observer: str = "minmax"
    rounding: str = "nearest"
    retarget: bool = True
    products_only: bool = True
    float_free: bool = False
    slow: bool = False


_WHOLE = STEPS[-1]

ROWS: Mapping[str, Row] = MappingProxyType(
    {
        "everything-integer": Row("every operation in integers, min-max", products_only=False),
        "minmax": Row("min-max"),
        "percentile": Row("percentile 0.9999", observer="percentile:0.9999"),
        "mse": Row("least squared error of the histogram", observer="mse"),
        "repq": Row("RepQ-ViT reparameterization", "repq"),
        "smooth": Row("SmoothQuant, strength chosen per tensor", "smooth"),
        "streams": Row("streams rotated", "streams"),
        "heads": Row("+ heads rotated", "heads"),
        "keys": Row("+ keys centred, heads scaled", "keys"),
        "balance": Row("+ hidden layers and stem balanced", "balance"),
        "transformer-nearest": Row("+ probabilities split: `transformer`", _WHOLE),
        "transformer-gptq-plain": Row(
            "`transformer`, GPTQ without retargeting", _WHOLE, rounding="gptq", retarget=False
        ),
        "transformer-gptq": Row("`transformer`, GPTQ", _WHOLE, rounding="gptq"),
        "transformer-gptq-mse": Row("`transformer`, GPTQ, least squared error", _WHOLE, "mse", "gptq"),
        "float-free": Row(
            "the same without a float operation, 16 bits between products", _WHOLE, rounding="gptq", float_free=True
        ),
        "transformer-coordinate": Row("`transformer`, coordinate", _WHOLE, rounding="coordinate"),
        "transformer-erq": Row("`transformer`, ERQ", _WHOLE, rounding="erq"),
        "transformer-decoupleq": Row("`transformer`, decoupleQ", _WHOLE, rounding="decoupleq", slow=True),
        "transformer-adaround": Row("`transformer`, AdaRound", _WHOLE, rounding="adaround", slow=True),
        "transformer-flexround": Row("`transformer`, FlexRound", _WHOLE, rounding="flexround", slow=True),
        "transformer-signround": Row("`transformer`, SignRound", _WHOLE, rounding="signround", slow=True),
    }
)
"""Rows by name, in the order of the table. Neighbours that share a transform are fitted and calibrated once."""


def fit(transform: str, graph: fx.GraphModule, batches: Batches, grids: tuple[QuantSpec, QuantSpec]) -> fx.GraphModule:
    """The float graph of a row; the function stays.

    Args:
        transform: `Row.transform`.
        graph: Canonical float graph, prepared for the runtime; not changed.
        batches: Calibration inputs.
        grids: Of weights and activations, for the transforms `FOR_A_WIDTH`.
    """
    if transform == "none":
        return graph
    if transform == _WHOLE:
        return transform_graph("transformer", graph, batches, 0)[0]
    copied = copy.deepcopy(graph)
    if transform == "repq":
        _reparameterize(copied, batches, grids[1])
    elif transform == "smooth":
        smooth(copied, _statistics(copied, smoothing_tensors(copied), batches), *grids)
    else:
        build_up(copied, batches, STEPS.index(transform) + 1)
    refresh(copied)
    return rebuild(copied)


def build_up(gm: fx.GraphModule, batches: Batches, steps: int, seed: int = 0) -> None:
    """The first `steps` of `STEPS` in place, in the order and with the statistics of `fit_transformer`."""
    stems = stem_tensors(gm)
    rotate_streams(gm, seed)
    if steps >= 2:
        rotate_heads(gm, seed)
    if steps >= 3:
        axes = {**dict.fromkeys(hidden_tensors(gm), -1), **key_tensors(gm), **stems}
        seen = _statistics(gm, axes, batches)
        center_keys(gm, seen)
        if steps >= 4:
            balance_hidden(gm, seen)
            balance_stems(gm, {name: seen[name] for name in stems})
        axes = head_tensors(gm)
        few = islice(batches(), 0, None, HEADS_EVERY)
        scale_heads(gm, channel_statistics(gm, list(axes), few, axes) if axes else {})
    if steps >= 5:
        split_probabilities(gm)


def _reparameterize(gm: fx.GraphModule, batches: Batches, activation: QuantSpec) -> None:
    """RepQ-ViT's layer norms; their shared grids are noted, so that calibration does not replace them."""
    outputs = {site.output: -1 for site in norm_sites(gm)[0]}
    report = reparameterize(gm, _statistics(gm, outputs, batches), activation)
    nodes = {node.name: node for node in gm.graph.nodes}
    for site in report.sites:
        scale, zero = float(site.qparams.scale), int(site.qparams.zero_point)
        spec = site.qparams.spec
        set_bounds(nodes[site.tensor], scale * (spec.qmin - zero), scale * (spec.qmax - zero), "RepQ-ViT")


def _statistics(gm: fx.GraphModule, axes: Mapping[str, int], batches: Batches) -> dict[str, ChannelStatistics]:
    return channel_statistics(gm, list(axes), batches(), axes) if axes else {}
