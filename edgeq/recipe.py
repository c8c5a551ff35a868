"""What `--method` and `--rounding` stand for: which transforms, range estimator and rounder make a candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import Tensor, fx

from edgeq.config_keys import split_bits
from edgeq.exporters.base import Exporter
from edgeq.graph.integer import integer_config, integer_rules
from edgeq.graph.kinds import op_kind
from edgeq.graph.placement import TABLE, BackendRules, Placement, is_floating, place, weight_of
from edgeq.graph.rewrite import fetch
from edgeq.graph.transforms.convolution import fit_convolution
from edgeq.graph.transforms.report import Applied, Batches
from edgeq.graph.transforms.transformer import fit_transformer, spread_outliers
from edgeq.graph.widths import NARROW, WIDE, WidthProblem, weight_cost
from edgeq.spec import HALF_SCALES, PerChannel, PerGroup, Precision, QuantConfig, QuantRule, QuantSpec


@dataclass(frozen=True)
class Recipe:
    """How one candidate is quantized.

    Args:
        transform: `none`, `rotate` (residual streams, without data), `transformer` (everything that fits), `layers`
            (of that, what is not for products of two activations alone) or `convolution` (channels around swishes).
        rounding: Key of `edgeq.quant.rounding.ROUNDERS`.
        precision: Widths and range estimator.
    """

    transform: str
    rounding: str
    precision: Precision


_PLAIN = ("none", "nearest")
_BEST: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "transformer": {
        "weights": ("rotate", "gptq"),
        "dynamic": ("rotate", "gptq"),
        "static": ("layers", "gptq"),
        "integer": ("transformer", "gptq"),
    },
    "convolution": {
        "weights": _PLAIN,
        "dynamic": _PLAIN,
        "static": ("convolution", "gptq"),
        "integer": ("convolution", "gptq"),
    },
}
"""Transform and rounding that `auto` means for a kind of network and a scheme, by measurement
(`tools/bench/vit_fidelity.py`, `tools/bench/yolo.py`)."""

_CLIPPED = "mse"
"""Ranges of convolutional networks: single pixels reach far beyond all others, and no stream carries them on."""

_ABOVE_LEAST = 16
"""Smaller groups of a weight whose largest scale is so many times the least of 16 bits lose nothing that counts."""

BULK = 0.25
"""Share of all weights from which on an end of the network is worth 4 bits."""

_KEPT = "kept float by the family or by --keep-float; its auto frees what costs the outputs most in 8 bits"


def recipe_for(method: str, rounding: str, bits: str, scheme: str, network: str = "transformer") -> Recipe:
    """The recipe of a scheme.

    Args:
        method: `auto`, a transform, or a range estimator, which means no transform.
        rounding: `auto` or a rounder.
        bits: Widths such as `w8a8`.
        scheme: The scheme.
        network: `LoadedModel.network`.
    """
    best_transform, best_rounding = _BEST[network][scheme]
    weight_bits, activation_bits = split_bits(bits)
    ranges = "minmax" if activation_bits >= 8 else "mse"  # few codes are better spent where most values are
    if method == "auto":
        transform, observer = best_transform, ranges
        if network == "convolution":
            observer, best_rounding = _CLIPPED, "gptq" if weight_bits < 8 else best_rounding
    elif method in ("rotate", "transformer"):
        # What only products of two activations need costs time and gives nothing where these are float.
        transform, observer = "layers" if (method, scheme) == ("transformer", "static") else method, ranges
    elif method == "convolution":
        transform, observer = method, _CLIPPED
    else:
        transform, observer, best_rounding = "none", method, "nearest"
    precision = Precision(weight_bits, activation_bits, observer, products_only=transform in ("transformer", "layers"))
    return Recipe(transform, best_rounding if rounding == "auto" else rounding, precision)


def transform_graph(
    name: str, graph: fx.GraphModule, batches: Batches, seed: int
) -> tuple[fx.GraphModule, tuple[Applied, ...]]:
    """The float graph that a recipe quantizes, and what was done to it.

    Args:
        name: `Recipe.transform`.
        graph: Canonical float graph, prepared for the runtime; not changed.
        batches: Calibration inputs.
        seed: Of the rotations.
    """
    if name == "none":
        return graph, ()
    if name == "rotate":
        return spread_outliers(graph, seed)
    if name == "convolution":
        return fit_convolution(graph, batches)
    return fit_transformer(graph, batches, seed, products=name == "transformer")


def place_scheme(
    graph: fx.GraphModule, exporter: Exporter, scheme: str, precision: Precision | None = None
) -> tuple[QuantConfig, Placement]:
    """The placement of a scheme on an exporter's runtime.

    Below 8 bits the first and the last layer keep 8, and of 4-bit weights those that the format cannot hold so and
    those of depthwise convolutions: fewer codes would cost accuracy and save nothing or little. (Other widths are for
    simulation; no format here stores them.)

    Args:
        graph: The graph that is quantized.
        exporter: The runtime.
        scheme: The scheme.
        precision: Widths and range estimator; 8 bits and min-max when None.
    """
    wanted = precision or Precision()
    config = _config(graph, exporter, scheme, wanted)
    if wanted.keep_float:
        kept = tuple(QuantRule(name=name, mode="float", reason=_KEPT) for name in wanted.keep_float)
        config = replace(config, rules=(*config.rules, *kept))
    if wanted.narrow:
        few = _config(graph, exporter, scheme, replace(wanted, weight_bits=NARROW))
        named = [n for n in _layers(graph, exporter.rules) if any(fnmatchcase(n.name, p) for p in wanted.narrow)]
        rules = tuple(QuantRule(name=n.name, weight=few.resolve(n.name, op_kind(n)).weight) for n in named)
        config = replace(config, rules=(*config.rules, *rules))
    return config, place(graph, config, exporter.rules)


def _config(graph: fx.GraphModule, exporter: Exporter, scheme: str, wanted: Precision) -> QuantConfig:
    """The rules of a scheme, and of the weights of `graph` that are exceptions at these widths."""
    config = exporter.config(scheme, wanted)
    full = exporter.config(scheme, replace(wanted, weight_bits=8, activation_bits=8))
    if wanted.weight_bits == NARROW:
        config = _keep_stored(config, full, exporter.rules)
        config = _keep_depthwise(graph, config, full, exporter.rules)
        config = _fit_groups(graph, config, exporter.rules)
    config = _keep_ends(graph, config, full, exporter.rules)
    return _share_tables(graph, config, exporter.rules) if wanted.weight_bits == NARROW else config


def width_problem(
    graph: fx.GraphModule,
    exporter: Exporter,
    scheme: str,
    precision: Precision,
    wide_bytes: int,
    budget: float,
    narrow_bytes: int | None = None,
) -> tuple[WidthProblem, dict[str, list[str]]]:
    """What `--bits mixed` decides, and the layers that read each weight.

    Args:
        graph: The graph that is quantized.
        exporter: The runtime.
        scheme: The scheme.
        precision: Range estimator and structure.
        wide_bytes: Size of the file with all weights in 8 bits.
        budget: Largest size of the artifact in bytes.
        narrow_bytes: Size of the file with all weights in 4 bits that can be; what it has beyond their codes and scales
            is shared out to them. Nothing when None.
    """
    wishes: dict[str, dict[int, list[QuantSpec]]] = {}
    readers: dict[str, list[str]] = {}
    for bits in (WIDE, NARROW):
        config, placement = place_scheme(graph, exporter, scheme, replace(precision, weight_bits=bits, narrow=()))
        for name, path in placement.weights.items():
            spec = config.resolve(name, placement.ops[name].op).weight
            wishes.setdefault(path, {}).setdefault(bits, []).append(spec)
            if bits == WIDE:
                readers.setdefault(path, []).append(name)
    specs = {path: {WIDE: asked[WIDE][0]} for path, asked in wishes.items()}
    for path, asked in wishes.items():
        layers = [n for n in readers[path] if placement.ops[n].op != TABLE]
        first, *others = asked[NARROW]  # what several layers share keeps 8 bits: they may want other grids
        if first.bits == NARROW and all(other == first for other in others) and len(layers) == 1:
            specs[path][NARROW] = first
    stored = sum(weight_cost(fetch(graph, path), found[WIDE]) for path, found in specs.items())
    overhead, extra = wide_bytes - stored, 0.0
    narrow = [path for path, found in specs.items() if NARROW in found]
    if narrow_bytes is not None and narrow:
        least = sum(weight_cost(fetch(graph, path), found[min(found)]) for path, found in specs.items())
        extra = max(0.0, (narrow_bytes - overhead - least) / len(narrow))
    return WidthProblem(specs, overhead, budget, extra), readers


def place_integer(
    graph: fx.GraphModule, precision: Precision | None = None
) -> tuple[QuantConfig, Placement, BackendRules]:
    """The placement of the everything-integer form, which no float operation is part of; see `edgeq.graph.integer`.

    Args:
        graph: The graph that is quantized.
        precision: Widths of what products read, and range estimator; 8 bits and min-max when None.
    """
    wanted = precision or Precision()
    rules = integer_rules({op_kind(n) for n in graph.graph.nodes if n.op == "call_function" and is_floating(n)})
    full = integer_config(replace(wanted, weight_bits=8, activation_bits=8))
    config = _keep_ends(graph, integer_config(wanted), full, rules)
    return config, place(graph, config, rules), rules


def _keep_stored(config: QuantConfig, full: QuantConfig, rules: BackendRules) -> QuantConfig:
    """`config` with the 8-bit weights of `full` where the format has no others."""
    kept = tuple(QuantRule(op=kind, weight=full.base.weight) for kind in rules.weighted if kind not in rules.int4)
    return replace(config, rules=(*config.rules, *kept))


def _keep_depthwise(graph: fx.GraphModule, config: QuantConfig, full: QuantConfig, rules: BackendRules) -> QuantConfig:
    """`config` with the 8-bit weights of `full` in depthwise convolutions.

    They are 2 % of the bytes of a YOLOX-nano, and its 4-bit weights lose 5.8 points of mAP with them in 8 bits, 7.1
    without (`tools/bench/yolo.py`): no sum of many products averages their errors out.
    """
    found = [
        n for n in _layers(graph, rules) if (w := _weight(graph, n)) is not None and w.ndim == 4 and w.shape[1] == 1
    ]
    kept = tuple(QuantRule(name=n.name, weight=full.resolve(n.name, op_kind(n)).weight) for n in found)
    return replace(config, rules=(*config.rules, *kept))


def _fit_groups(graph: fx.GraphModule, config: QuantConfig, rules: BackendRules) -> QuantConfig:
    """`config` with one scale per channel where the format holds no groups of a weight or they are not worth it."""
    found = []
    for node in _layers(graph, rules):
        spec, weight = config.resolve(node.name, op_kind(node)).weight, _weight(graph, node)
        if isinstance(spec.granularity, PerGroup) and weight is not None and not _has_groups(weight, spec, rules):
            found.append(QuantRule(name=node.name, weight=replace(spec, granularity=PerChannel(0))))
    return replace(config, rules=(*config.rules, *found))


def _has_groups(weight: Tensor, spec: QuantSpec, rules: BackendRules) -> bool:
    """Whether groups divide the rows of a weight, and its scales are far above the least that 16 bits hold.

    Two-level scales also want a weight that is large enough, and more than one group a row.
    """
    group = spec.granularity
    assert isinstance(group, PerGroup)
    if group.two_level and (weight.numel() < rules.least_two_level or weight[0].numel() == group.size):
        return False
    least = _ABOVE_LEAST * HALF_SCALES[0] * spec.qmax if group.half else 0.0
    return weight[0].numel() % group.size == 0 and float(weight.abs().max()) >= least


def _keep_ends(graph: fx.GraphModule, config: QuantConfig, full: QuantConfig, rules: BackendRules) -> QuantConfig:
    """`config` with the 8-bit grids of `full` for the first and the last layer, as the literature does.

    A weight on groups that is most of the model is none of these: there 4 bits save much, and groups cost little (the
    vocabulary of Whisper tiny: half of the bytes, `tools/bench/whisper_tiny.py`).
    """
    layers = _layers(graph, rules)
    ends = [n for n in (*layers[:1], *layers[-1:]) if not _is_bulk(graph, n, layers, config)]
    wide = {n.name: full.resolve(n.name, op_kind(n)) for n in ends}
    kept = tuple(QuantRule(name=n, weight=c.weight, activation=c.activation) for n, c in wide.items())
    return replace(config, rules=(*config.rules, *kept))


def _is_bulk(graph: fx.GraphModule, node: fx.Node, layers: Sequence[fx.Node], config: QuantConfig) -> bool:
    """Whether a layer with a scale of its own for each group reads the weight of `node`, a large part of all."""
    path = weight_of(node)
    readers = [n for n in layers if weight_of(n) == path]
    specs = [config.resolve(n.name, op_kind(n)).weight for n in readers]
    if not any(isinstance(spec.granularity, PerGroup) and not spec.two_level for spec in specs):
        return False
    sizes = {p: fetch(graph, p).numel() for n in layers if (p := weight_of(n))}
    return path is not None and sizes[path] > BULK * sum(sizes.values())


def _share_tables(graph: fx.GraphModule, config: QuantConfig, rules: BackendRules) -> QuantConfig:
    """`config` in which a table has the grid of the layer that shares its weight: the file holds one of both."""
    layers = _layers(graph, rules)
    owners = {weight_of(n): n for n in layers if op_kind(n) != TABLE}
    shared = [(n, owners[weight_of(n)]) for n in layers if op_kind(n) == TABLE and weight_of(n) in owners]
    found = tuple(QuantRule(name=t.name, weight=config.resolve(o.name, op_kind(o)).weight) for t, o in shared)
    return replace(config, rules=(*config.rules, *found))


def _layers(graph: fx.GraphModule, rules: BackendRules) -> list[fx.Node]:
    """The operations of `graph` that have a weight, in order."""
    return [n for n in graph.graph.nodes if op_kind(n) in rules.weighted]


def _weight(graph: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """The constant weight of a layer, or None."""
    path = weight_of(node)
    return None if path is None else fetch(graph, path)
