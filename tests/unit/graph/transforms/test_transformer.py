"""All transforms together: the same function on transformers, nothing on other networks, and grids that fit better."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from edgeq.errors import DataError
from edgeq.exporters import get_exporter
from edgeq.graph.bounds import bounds_of
from edgeq.graph.capture import capture
from edgeq.graph.legalize import Legalized, legalize, observed
from edgeq.graph.transforms.report import Applied
from edgeq.graph.transforms.transformer import fit_transformer, spread_outliers
from edgeq.metrics import sqnr_db
from edgeq.quant.calibrator import calibrate
from edgeq.recipe import place_scheme
from edgeq.spec import Precision
from tests.unit.graph.transforms.small_models import captured, relative
from tests.unit.graph.transforms.small_vits import FORMS, Form, images, vit

TOLERANCE = 5e-5
ONCE = settings(max_examples=1, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
STEPS = (
    "rotate streams",
    "rotate heads",
    "centre keys",
    "balance hidden layers",
    "balance stems",
    "scale heads",
    "split probabilities",
)


def constants(graph: fx.GraphModule) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in graph.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"{f.qkv}-{f.width}-{f.end}")
@ONCE
@given(weights=st.integers(0, 1000), seed=st.integers(0, 1000))
def test_fitting_keeps_the_function(form: Form, weights: int, seed: int) -> None:
    graph, x = vit(form, weights)
    expected, before, text = graph(x)[0], constants(graph), str(graph.graph)
    fitted, applied = fit_transformer(graph, lambda: iter(images(2)), seed)
    assert [(a.name, a.sites) for a in applied] == [
        (name, 1 if name in ("rotate streams", "balance stems") else form.depth) for name in STEPS
    ]
    assert all(a.skipped == () for a in applied)
    assert relative(expected, fitted(x)[0]) < TOLERANCE
    assert same(constants(graph), before)
    assert str(graph.graph) == text
    noted = [n.name for n in fitted.graph.nodes if bounds_of(n) is not None]
    assert len(noted) == 4 * form.depth + 1  # two of each hidden layer, two of each softmax, the stem


def test_the_same_seed_gives_the_same_graph() -> None:
    graph, _ = vit(Form())
    results = [fit_transformer(graph, lambda: iter(images(2)), seed)[0] for seed in (4, 4, 5)]
    assert str(results[0].graph) == str(results[1].graph)
    assert same(constants(results[0]), constants(results[1]))
    assert not same(constants(results[0]), constants(results[2]))


class Cnn(nn.Module):
    """Convolutions, batch norm, ReLU, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


@pytest.mark.parametrize(
    "function", [lambda g: fit_transformer(g, lambda: iter(images(1))), spread_outliers], ids=["fit", "spread"]
)
def test_a_cnn_stays_as_it_is(function: Callable[[fx.GraphModule], tuple[fx.GraphModule, tuple[Applied, ...]]]) -> None:
    graph, x = captured(Cnn(), 1, 3, 8, 8)
    fitted, applied = function(graph)
    assert all((a.sites, a.skipped) == (0, ()) for a in applied)
    assert str(fitted.graph) == str(graph.graph)
    assert same(constants(fitted), constants(graph))
    assert torch.equal(fitted(x)[0], graph(x)[0])


def test_a_cnn_needs_no_data() -> None:
    graph, _ = captured(Cnn(), 1, 3, 8, 8)
    assert all(a.sites == 0 for a in fit_transformer(graph, lambda: iter(()))[1])


def test_a_transformer_without_data_is_an_error() -> None:
    graph, _ = vit(Form())
    with pytest.raises(DataError):
        fit_transformer(graph, lambda: iter(()))


def test_damaged_data_is_an_error() -> None:
    graph, x = vit(Form())
    with pytest.raises(DataError):
        fit_transformer(graph, lambda: iter([(x * float("nan"),)]))


def test_spreading_needs_no_data_and_only_rotates() -> None:
    graph, x = vit(Form(scaled=True, token="before", end="token", depth=2))
    spread, (applied,) = spread_outliers(graph, 3)
    assert (applied.name, applied.sites, applied.skipped) == ("rotate streams", 1, ())
    assert relative(graph(x)[0], spread(x)[0]) < TOLERANCE
    assert not [n for n in spread.graph.nodes if bounds_of(n) is not None]


def test_gelus_and_attentions_of_other_forms_are_reported() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.gelu(x) + (x @ x.transpose(1, 2)).softmax(-1) @ x

    graph = capture(Odd(), (torch.randn(1, 5, 4),))
    applied = {a.name: a for a in fit_transformer(graph, lambda: iter([(torch.randn(1, 5, 4),)]))[1]}
    for name in ("rotate heads", "centre keys", "balance hidden layers", "scale heads"):
        assert (applied[name].sites, len(applied[name].skipped)) == (0, 1)
    assert applied["split probabilities"].sites == 1


def quantized(graph: fx.GraphModule, batches: list[tuple[Tensor]], precision: Precision) -> Legalized:
    exporter = get_exporter("tflite")
    config, placement = place_scheme(graph, exporter, "integer", precision)
    statistics = calibrate(graph, observed(graph, placement), iter(batches))
    return legalize(graph, placement, config, exporter.rules, statistics, "integer")


def test_a_transformer_with_outliers_quantizes_better() -> None:
    graph, _ = vit(Form(width=16, heads=2, depth=2), 3)
    with torch.no_grad():
        for name, value in graph.named_parameters():
            if name.endswith(("fc2.weight", "proj.weight")):
                value[5] *= 20  # outlier channels of the stream
            if name.endswith("qkv.weight"):
                value[19] *= 10  # and of the keys
    batches, held_out = images(8), images(8, seed=7)
    results = []
    for candidate in (graph, fit_transformer(graph, lambda: iter(batches))[0]):
        simulation = quantized(candidate, batches, Precision(8, 8, products_only=True)).simulation
        with torch.no_grad():
            pairs = [(graph(*x)[0].numpy(), simulation(*x)[0].numpy()) for x in held_out]
        results.append(sorted(sqnr_db(a, b) for a, b in pairs)[len(pairs) // 2])
    assert results[1] > results[0] + 3


def test_bounds_reach_the_plan() -> None:
    graph, _ = vit(Form())
    fitted, _ = fit_transformer(graph, lambda: iter(images(3)))
    plan = quantized(fitted, images(3), Precision(products_only=True)).plan
    origins = [t.provenance.partition(",")[0] for t in plan.tensors.values() if t.role == "activation"]
    assert origins.count("split of the probabilities") == 2
    assert origins.count("balanced channels") == 3
