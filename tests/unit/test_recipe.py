"""What methods, roundings and widths stand for, and what keeps 8 bits."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

from edgeq.config_keys import BITS, METHODS, ROUNDINGS, split_bits
from edgeq.errors import UsageError
from edgeq.exporters import get_exporter
from edgeq.graph.capture import capture
from edgeq.quant.ranges import parse_estimator
from edgeq.quant.rounding import get_rounder
from edgeq.recipe import Recipe, place_scheme, recipe_for, transform_graph, width_problem
from edgeq.spec import Granularity, OpConfig, PerChannel, PerGroup, Precision, QuantConfig, QuantRule, QuantSpec


class Three(nn.Module):
    """A convolution, a linear and a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.nn.functional.gelu(self.middle(self.first(x).mean((2, 3)))))


@pytest.fixture(scope="module")
def graph() -> fx.GraphModule:
    torch.manual_seed(0)
    return capture(Three().eval(), (torch.randn(1, 3, 6, 6),))


@pytest.mark.parametrize("scheme", ["dynamic", "static", "integer"])
@pytest.mark.parametrize("method", METHODS)
def test_every_combination_is_a_recipe_of_known_parts(scheme: str, method: str) -> None:
    for rounding, bits in itertools.product(ROUNDINGS, BITS):
        recipe = recipe_for("percentile:0.999" if method == "percentile" else method, rounding, bits, scheme)
        assert recipe.transform in ("none", "rotate", "transformer", "layers", "convolution")
        assert get_rounder(recipe.rounding)
        assert rounding in ("auto", recipe.rounding)
        assert (recipe.precision.weight_bits, recipe.precision.activation_bits) == split_bits(bits)
        parse_estimator(recipe.precision.observer)
        assert recipe.precision.products_only == (recipe.transform in ("transformer", "layers"))


@pytest.mark.parametrize(
    ("method", "rounding", "bits", "scheme", "expected"),
    [
        ("auto", "auto", "w8a8", "dynamic", Recipe("rotate", "gptq", Precision())),
        ("auto", "auto", "w4a8", "weights", Recipe("rotate", "gptq", Precision(4, 8))),
        ("auto", "auto", "w4a8", "dynamic", Recipe("rotate", "gptq", Precision(4, 8))),
        ("auto", "auto", "w8a8", "static", Recipe("layers", "gptq", Precision(products_only=True))),
        ("auto", "erq", "w4a8", "integer", Recipe("transformer", "erq", Precision(4, 8, products_only=True))),
        ("rotate", "auto", "w8a8", "integer", Recipe("rotate", "gptq", Precision())),
        ("mse", "auto", "w8a8", "integer", Recipe("none", "nearest", Precision(observer="mse"))),
        ("percentile:0.99", "gptq", "w8a8", "static", Recipe("none", "gptq", Precision(observer="percentile:0.99"))),
    ],
)
def test_what_the_names_stand_for(method: str, rounding: str, bits: str, scheme: str, expected: Recipe) -> None:
    assert recipe_for(method, rounding, bits, scheme) == expected


def test_convolutional_networks_have_a_recipe_of_their_own() -> None:
    clipped = Precision(observer="mse")
    for scheme in ("static", "integer"):
        assert recipe_for("auto", "auto", "w8a8", scheme, "convolution") == Recipe("convolution", "gptq", clipped)
        four = replace(clipped, weight_bits=4)
        assert recipe_for("auto", "auto", "w4a8", scheme, "convolution") == Recipe("convolution", "gptq", four)
    assert recipe_for("auto", "auto", "w8a8", "dynamic", "convolution") == Recipe("none", "nearest", clipped)
    assert recipe_for("minmax", "auto", "w8a8", "static", "convolution") == Recipe("none", "nearest", Precision())


@pytest.mark.parametrize("bits", [(1, 8), (8, 1), (17, 8), (8, 32)])
def test_impossible_widths_are_refused(bits: tuple[int, int]) -> None:
    with pytest.raises(UsageError) as caught:
        Precision(*bits)
    assert caught.value.code == "EQ-U003"


def test_no_transform_is_the_graph_itself(graph: fx.GraphModule) -> None:
    assert transform_graph("none", graph, lambda: iter(()), 0) == (graph, ())
    for name in ("rotate", "transformer"):
        changed, applied = transform_graph(name, graph, lambda: iter([(torch.randn(1, 3, 6, 6),)]), 0)
        assert changed is not graph
        assert applied[0].name == "rotate streams"


def widths(graph: fx.GraphModule, scheme: str, precision: Precision | None) -> dict[str, tuple[int, int]]:
    config, placement = place_scheme(graph, get_exporter("tflite"), scheme, precision)
    found = {}
    for name in placement.weights:
        entry = config.resolve(name, placement.ops[name].op)
        found[name] = (entry.weight.bits, entry.activation.bits)
    return found


def test_few_codes_are_spent_where_most_values_are() -> None:
    assert recipe_for("auto", "auto", "w4a8", "integer").precision.observer == "minmax"
    assert recipe_for("auto", "auto", "w4a4", "integer").precision.observer == "mse"
    assert recipe_for("minmax", "auto", "w4a4", "integer").precision.observer == "minmax"


@pytest.mark.parametrize("scheme", ["dynamic", "static", "integer"])
def test_first_and_last_layer_keep_eight_bits(graph: fx.GraphModule, scheme: str) -> None:
    assert set(widths(graph, scheme, None).values()) == {(8, 8)}
    low = widths(graph, scheme, Precision(4, 6))
    assert low == {"first": (8, 8), "middle": (4, 6), "last": (8, 8)}


def test_the_activations_of_the_ends_keep_eight_bits_too(graph: fx.GraphModule) -> None:
    _, placement = place_scheme(graph, get_exporter("tflite"), "integer", Precision(4, 4, products_only=True))
    bits = {name: spec.bits for name, spec in placement.specs.items()}
    assert bits["first"] == bits["last"] == 8
    assert bits["mean"] == 4  # read by the layer in the middle
    assert bits["middle"] == 8  # read by GELU, which is no product


def test_a_single_layer_is_first_and_last() -> None:
    graph = capture(nn.Linear(4, 3).eval(), (torch.randn(1, 4),))
    (bits,) = widths(graph, "integer", Precision(4, 4)).values()
    assert bits == (8, 8)


def test_products_only_leaves_the_rest_float_with_a_reason(graph: fx.GraphModule) -> None:
    exporter = get_exporter("tflite")
    everything = place_scheme(graph, exporter, "integer")[1]
    products = place_scheme(graph, exporter, "integer", Precision(products_only=True))[1]
    kinds = {op.op: op.mode for op in everything.ops.values()}
    assert set(kinds.values()) == {"static"}
    floats = {op.op: op.reason for op in products.ops.values() if op.mode == "float"}
    assert set(floats) == {"gelu", "mean"}
    assert all("8 bits cost more accuracy" in reason for reason in floats.values())
    assert all(op.mode == "static" for op in products.ops.values() if op.op in ("linear", "conv2d"))


def test_an_unknown_scheme_is_refused(graph: fx.GraphModule) -> None:
    with pytest.raises(UsageError) as caught:
        place_scheme(graph, get_exporter("tflite"), "statik", Precision())
    assert caught.value.code == "EQ-U007"


def test_reasons_of_rules_follow_the_last_that_has_one_and_survive_json() -> None:
    base = OpConfig("float", QuantSpec(), QuantSpec())
    rules = (
        QuantRule(op="gelu", reason="first"),
        QuantRule(name="b*", reason="second"),
        QuantRule(name="bx", mode="static"),
    )
    config = QuantConfig(base, rules)
    reasons = {name: config.resolve(name, "gelu").reason for name in ("a", "b", "bx")}
    assert reasons == {"a": "first", "b": "second", "bx": "second"}
    assert config.resolve("a", "linear").reason == "kept float by the scheme"
    assert QuantConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


class Deep(nn.Module):
    """Three convolutions and three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1))
        self.layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(self.convs(x).mean((2, 3)))
        return result


def test_a_width_that_the_file_cannot_hold_is_not_paid_for() -> None:
    """TFLite's INT4 is for fully connected layers; 3 bits are simulation only, and for all kinds alike."""
    graph = capture(Deep().eval(), (torch.randn(1, 3, 8, 8),))
    four = widths(graph, "integer", Precision(4, 8))
    assert [four[n][0] for n in sorted(four)] == [8, 8, 8, 4, 4, 8]
    three = widths(graph, "integer", Precision(3, 8))
    assert [three[n][0] for n in sorted(three)] == [8, 3, 3, 3, 3, 8]


class Spoken(nn.Module):
    """A large table of tokens that is the last layer, too, and a small one of positions; depthwise in between."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(900, 64), nn.Embedding(7, 64)
        self.even, self.odd = nn.Linear(64, 96), nn.Linear(96, 64)
        self.depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=64)

    def forward(self, token: Tensor, position: Tensor) -> Tensor:
        x = self.tokens(token) + self.positions(position)
        x = self.odd(self.even(x)).reshape(1, 64, 1, 1)
        return nn.functional.linear(self.depthwise(x).reshape(1, 64), self.tokens.weight)


@pytest.fixture(scope="module")
def spoken() -> fx.GraphModule:
    torch.manual_seed(0)
    return capture(Spoken().eval(), (torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)))


@pytest.mark.parametrize(
    ("name", "scheme", "table", "group"),
    [
        ("openvino", "dynamic", 4, 64),
        ("openvino", "weights", 4, 64),
        ("openvino", "static", 8, None),
        ("tflite", "dynamic", 4, 64),
        ("tflite", "static", 8, None),
    ],
)
def test_most_of_a_model_is_worth_four_bits_at_its_ends_on_groups(
    spoken: fx.GraphModule, name: str, scheme: str, table: int, group: int | None
) -> None:
    config, placement = place_scheme(spoken, get_exporter(name), scheme, Precision(4))
    specs = {placement.weights[n]: config.resolve(n, placement.ops[n].op).weight for n in placement.weights}
    readers = [config.resolve(n, placement.ops[n].op).weight for n, p in placement.weights.items() if "tokens" in p]
    assert readers[0] == readers[1], "a file holds one of both"
    assert {path: spec.bits for path, spec in specs.items()} == {
        "tokens.weight": table,
        "positions.weight": 8,
        "even.weight": 4,
        "odd.weight": 4,
        "depthwise.weight": 8,
    }
    sizes = {p: s.granularity.size if isinstance(s.granularity, PerGroup) else None for p, s in specs.items()}
    assert sizes["tokens.weight"] == sizes["even.weight"] == group
    assert sizes["odd.weight"] is None, "64 does not divide its rows"


@pytest.mark.parametrize(
    ("name", "scheme", "large", "small"),
    [
        ("openvino", "static", PerGroup(64, two_level=True), PerChannel(0)),
        ("openvino", "integer", PerGroup(64, two_level=True), PerChannel(0)),
        ("openvino", "dynamic", PerGroup(64), PerGroup(64)),
        ("onnx", "static", PerChannel(0), PerChannel(0)),
        ("tflite", "integer", PerChannel(0), PerChannel(0)),
    ],
)
def test_large_weights_of_kernels_that_know_scales_of_rows_have_two_level_ones(
    name: str, scheme: str, large: Granularity, small: Granularity
) -> None:
    sizes = (64, 256, 512, 256, 96, 1400, 9)
    layers = nn.Sequential(*(nn.Linear(i, o) for i, o in itertools.pairwise(sizes)))
    graph = capture(layers.eval(), (torch.randn(1, 64),))
    config, placement = place_scheme(graph, get_exporter(name), scheme, Precision(4))
    found = [config.resolve(n, placement.ops[n].op).weight for n in placement.weights]
    assert [s.bits for s in found] == [8, 4, 4, 4, 4, 8]
    # 64 does not divide the rows of 96 inputs
    assert [s.granularity for s in found] == [PerChannel(0), large, large, small, PerChannel(0), PerChannel(0)]


def test_a_table_of_a_layer_is_offered_four_bits_where_the_file_holds_them(spoken: fx.GraphModule) -> None:
    for name, scheme, offered in (
        ("openvino", "dynamic", {8, 4}),
        ("tflite", "dynamic", {8, 4}),
        ("tflite", "static", {8}),
    ):
        problem, readers = width_problem(spoken, get_exporter(name), scheme, Precision(), 10**6, 10**6)
        assert set(problem.weights["tokens.weight"]) == offered
        assert len(readers["tokens.weight"]) == 2
        assert set(problem.weights["positions.weight"]) == {8}


def test_weights_too_small_for_the_scales_of_a_format_have_one_a_channel(spoken: fx.GraphModule) -> None:
    small = copy.deepcopy(spoken)
    with torch.no_grad():
        small.get_parameter("even.weight").mul_(1e-3)
    config, placement = place_scheme(small, get_exporter("tflite"), "dynamic", Precision(4))
    (even,) = [n for n, path in placement.weights.items() if path == "even.weight"]
    spec = config.resolve(even, "linear").weight
    assert (spec.bits, spec.granularity) == (4, PerChannel(0))
