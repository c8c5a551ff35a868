"""The reference ViT without a float operation: real weights, real images, generated C, an emulated core."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import fx

from edgeq.data import open_images
from edgeq.devices import get_target
from edgeq.devices.cortex_m import missing_tools, run_emulated
from edgeq.exporters import get_exporter
from edgeq.exporters.c.exporter import codes_in_plan_order
from edgeq.exporters.c.memory import memory_of
from edgeq.exporters.c.project import write_project
from edgeq.firmware import misfits, run_in_patches
from edgeq.graph.intgraph.file import load, save
from edgeq.graph.intgraph.graph import Conv, FullyConnected, IntGraph, Norm, Softmax
from edgeq.graph.intgraph.interpret import dequantize_output, interpret, quantize_input, trace
from edgeq.graph.intgraph.lower import lower
from edgeq.graph.legalize import Legalized, legalize, observed
from edgeq.graph.solve import Rounding
from edgeq.graph.transforms.report import Batches
from edgeq.metrics import sqnr_db
from edgeq.models import load_model
from edgeq.models.base import parse_model
from edgeq.quant.calibrator import calibrate
from edgeq.recipe import Recipe, place_scheme, transform_graph
from edgeq.spec import Precision, codes_hash
from tests.unit.exporters.test_c_project import SANITIZERS, selftest
from tests.unit.graph.intgraphs import Sample, codes_of

pytestmark = pytest.mark.real


@dataclass(frozen=True)
class Nano:
    """The ViT, its integers, and held-out images with labels."""

    form: Legalized
    graph: IntGraph
    network: fx.GraphModule
    images: list[Sample]
    labels: list[int]


def integer_network(network: fx.GraphModule, batches: Batches, recipe: Recipe) -> tuple[IntGraph, Legalized]:
    """What an export makes of a network for microcontrollers."""
    exporter = get_exporter("c")
    graph, _ = transform_graph(recipe.transform, network, batches, 0)
    config, placement = place_scheme(graph, exporter, "integer", recipe.precision)
    statistics = calibrate(graph, observed(graph, placement), batches())
    rounding = Rounding(recipe.rounding, lambda: list(batches()))
    form = legalize(graph, placement, config, exporter.rules, statistics, "integer", rounding)
    return lower(form.emission, form.plan, "vit_nano"), form


@pytest.fixture(scope="module")
def nano(real_data: Path) -> Nano:
    adapter = load_model(parse_model("vit_nano", None, None))
    source = open_images(real_data / "cifar10" / "test.npz", role="evaluation")

    def sample(index: int) -> Sample:
        return tuple(torch.from_numpy(a) for a in adapter.inputs(source.read(index)))

    network = adapter.loaded.graph

    def calibration() -> Iterator[Sample]:
        return (sample(i) for i in range(32))

    graph, form = integer_network(network, calibration, Recipe("none", "nearest", Precision()))
    held_out = range(100, 200)
    labels = [int(np.load(real_data / "cifar10" / "test.npz")["label"][i]) for i in held_out]
    return Nano(form, graph, network, [sample(i) for i in held_out], labels)


def outputs(nano: Nano) -> list[np.ndarray]:
    port = nano.graph.outputs[0]
    return [dequantize_output(nano.graph, port, interpret(nano.graph, c)[0]) for c in codes_of(nano.graph, nano.images)]


def test_integers_stay_near_float_and_keep_the_classes(nano: Nano) -> None:
    found = outputs(nano)
    with torch.no_grad():
        exact = [nano.network(*image)[0].numpy() for image in nano.images]
    assert np.median([sqnr_db(a, b) for a, b in zip(exact, found, strict=True)]) >= 30
    hits = [[int(np.argmax(x) == y) for x, y in zip(side, nano.labels, strict=True)] for side in (exact, found)]
    assert abs(sum(hits[0]) - sum(hits[1])) <= 1  # of 100


@pytest.mark.parametrize("kind, floor", [(Softmax, 40.0), (Norm, 70.0)])
def test_tables_and_roots_on_real_activations(nano: Nano, kind: type[Softmax] | type[Norm], floor: float) -> None:
    """What the kernel adds to its grids: its result against the exact function of the same codes, before rounding."""
    codes = [quantize_input(nano.graph, p, x.numpy()) for p, x in zip(nano.graph.inputs, nano.images[0], strict=True)]
    values = trace(nano.graph, codes)
    tensors = nano.graph.tensors
    for op in nano.graph.ops:
        if not isinstance(op, kind) or not (kind is Softmax or tensors[op.output].wide):
            continue
        source, result = tensors[op.inputs[0]], tensors[op.output]
        reals = torch.from_numpy((values[source.name].astype(float) - source.zero_point) * source.scale)
        rows = reals.reshape(op.rows, op.length)
        if isinstance(op, Softmax):
            exact = rows.softmax(-1)
        else:
            node = next(n for n in nano.network.graph.nodes if n.name == op.name)
            weight, bias = (nano.network.get_parameter(str(node.args[i].target)).double() for i in (2, 3))
            exact = torch.nn.functional.layer_norm(rows, (op.length,), weight, bias, 1e-5)
        got = ((values[result.name].astype(float) - result.zero_point) * result.scale).reshape(op.rows, op.length)
        # The 8-bit grid of a result is the plan's choice: the exact result on the same grid is what is compared.
        steps = torch.round(exact / result.scale) * result.scale
        wanted = steps.clamp(
            (result.low - result.zero_point) * result.scale, (result.high - result.zero_point) * result.scale
        )
        assert sqnr_db(wanted.numpy(), got) >= floor, op.name


def test_the_transformed_vit_has_integer_kernels_too(nano: Nano) -> None:
    recipe = Recipe("transformer", "nearest", Precision())
    graph, _ = integer_network(nano.network, lambda: iter(nano.images[:8]), recipe)
    found = []
    for image, codes in zip(nano.images[50:60], codes_of(graph, nano.images[50:60]), strict=True):
        with torch.no_grad():
            exact = nano.network(*image)[0].numpy()
        found.append(sqnr_db(exact, dequantize_output(graph, graph.outputs[0], interpret(graph, codes)[0])))
    assert np.median(found) >= 28


@pytest.mark.parametrize("line", ["gcc -O2", "clang -O2", f"clang {SANITIZERS}"])
def test_generated_c_of_the_vit(nano: Nano, line: str, tmp_path: Path) -> None:
    project = write_project(nano.graph, tmp_path, codes_of(nano.graph, nano.images[:3]))
    assert project.arena.bytes == project.arena.bound
    assert selftest(tmp_path, line) == "vit_nano: 0 of 30 codes differ\n"


@pytest.mark.skipif(bool(missing_tools()), reason=missing_tools())
@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m55"])
def test_the_vit_runs_on_an_emulated_core(nano: Nano, core: str, tmp_path: Path) -> None:
    write_project(nano.graph, tmp_path, codes_of(nano.graph, nano.images[:1]))
    run = run_emulated(tmp_path, core)
    assert run.outcome.different == 0
    assert len(run.layers) == len(nano.graph.ops)


@pytest.mark.skipif(bool(missing_tools()), reason=missing_tools())
def test_depth_runs_on_a_board_that_does_not_hold_its_first_images(real_data: Path, tmp_path: Path) -> None:
    adapter = load_model(parse_model("depth_nano", None, None))
    photos = open_images(real_data / "yolo" / "images", role="calibration")
    batches = [tuple(torch.from_numpy(a) for a in adapter.inputs(photos.read(i))) for i in range(4)]
    graph, _ = integer_network(adapter.loaded.graph, lambda: iter(batches), Recipe("none", "nearest", Precision()))
    board = get_target("nrf52840-dk")
    assert "RAM" in misfits(board, memory_of(graph))[0]
    save(graph, tmp_path / "model.intgraph")
    assert run_in_patches(tmp_path / "model.intgraph", board, "auto")
    made = load(tmp_path / "model.intgraph")
    assert not misfits(board, memory_of(made))
    write_project(made, tmp_path / "c", codes_of(made, batches[:1]))
    run = run_emulated(tmp_path / "c", "cortex-m4")
    assert run.outcome.different == 0 and len(run.layers) == len(graph.ops)


@pytest.mark.parametrize("name", ["cifar_cnn", "vit_micro"])
def test_the_small_networks_keep_their_accuracy(name: str, real_data: Path) -> None:
    adapter = load_model(parse_model(name, None, None))
    calibration = open_images(adapter.sample_file or real_data, role="calibration")

    def batches() -> Iterator[Sample]:
        for index in range(0, 100, 2):
            yield tuple(torch.from_numpy(a) for a in adapter.inputs(calibration.read(index)))

    network = adapter.loaded.graph
    graph, form = integer_network(network, batches, Recipe("none", "gptq", Precision()))
    assert sum(codes.nbytes for codes in read_back_weights(graph, form).values()) <= 256 * 1024
    source = open_images(real_data / "cifar10" / "test.npz", role="evaluation")
    hits = [0, 0]
    for index in range(len(source)):
        sample = tuple(torch.from_numpy(a) for a in adapter.inputs(source.read(index)))
        with torch.no_grad():
            exact = network(*sample)[0].numpy()
        found = dequantize_output(graph, graph.outputs[0], interpret(graph, codes_of(graph, [sample])[0])[0])
        for side, logits in enumerate((exact, found)):
            hits[side] += int(np.argmax(logits) == source.items[index].label)
    assert abs(hits[0] - hits[1]) <= 0.01 * len(source)


def read_back_weights(graph: IntGraph, form: Legalized) -> dict[str, np.ndarray]:
    """The weights of a network as bytes, all of the plan."""
    layers = [op for op in graph.ops if isinstance(op, (Conv, FullyConnected))]
    codes = {op.name: codes_in_plan_order(op) for op in layers}
    assert {codes_hash(c) for c in codes.values()} == {t.codes_sha256 for t in form.plan.weights()}
    return {name: c.astype(np.int8) for name, c in codes.items()}
