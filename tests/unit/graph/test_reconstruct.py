"""Batches, cuts and block reconstruction on tiny networks with random weights: structure, not accuracy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from edgeq.errors import DataError, ModelError, UsageError
from edgeq.exporters import get_exporter
from edgeq.graph import reconstruct as module_of_reconstruct
from edgeq.graph.batch import batched
from edgeq.graph.blocks import blocks_of, extract, whole
from edgeq.graph.capture import capture
from edgeq.graph.learn import LEAST_STEPS, blocks_to_learn, learn, steps_within
from edgeq.graph.legalize import Legalized, legalize, observed
from edgeq.graph.placement import Placement
from edgeq.graph.reconstruct import Effort, Reconstructed, Reconstruction, reconstruct, reconstructed
from edgeq.graph.rewrite import fetch
from edgeq.models.vit_nano import VitNano
from edgeq.quant.calibrator import calibrate
from edgeq.quant.reconstruct import BlockSettings, FitSettings
from edgeq.quant.reconstruct import block as block_module
from edgeq.quant.reconstruct.fitting import FitResult, ParameterGroup, fit
from edgeq.quant.uniform import fake_quantize, quantize
from edgeq.recipe import place_scheme, transform_graph
from edgeq.spec import PerGroup, Precision, QuantRule, QuantSpec, codes_hash

SHAPE = (1, 3, 32, 32)
QUICK = Effort(BlockSettings(FitSettings(iterations=12, batch_size=8, evaluations=3), weight_rate=0.02, drop=0.0))


class Tokens(nn.Module):
    """A class token joined to others, and a linear layer with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token, x.reshape(1, 4, 8)], dim=1)
        result: Tensor = x + self.fc(x)
        return result


class Merged(nn.Module):
    """Merges the batch with the tokens, which no shape can free."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc1(x).reshape(4, 8)
        result: Tensor = x + self.fc2(torch.relu(y)).reshape(1, 4, 8)
        return result


class Pyramid(nn.Module):
    """Two stages, the first of which a head far behind reads again, and two outputs of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.deep = nn.ModuleList(nn.Conv2d(8, 8, 3, 1, 1) for _ in range(9))
        self.up, self.small, self.large = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        near = torch.relu(self.first(x))
        far = torch.relu(self.down(near))
        for layer in self.deep:
            far = far + torch.relu(layer(far))
        back = nn.functional.interpolate(self.up(far), scale_factor=2.0, mode="nearest")
        return self.small(far), self.large(torch.cat([near, back], dim=1))


class Pair(nn.Module):
    """Two inputs."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


@dataclass(frozen=True)
class Case:
    """A network as reconstruction takes it."""

    graph: fx.GraphModule
    placement: Placement
    legalized: Legalized
    samples: Tensor


def refused(*_args: object) -> fx.GraphModule:
    """`batched`, for a graph that it does not fit."""
    raise ModelError("one by one", code="EQ-M320")


def case(
    module: nn.Module,
    samples: Tensor,
    *,
    scheme: str = "integer",
    bits: int = 3,
    transform: str = "none",
    rule: QuantRule | None = None,
) -> Case:
    batches = [(x,) for x in torch.split(samples, 1)]
    exporter = get_exporter("tflite")
    captured = exporter.prepare(capture(module.eval(), batches[0]))
    graph, _ = transform_graph(transform, captured, lambda: iter(batches), 0)
    config, placement = place_scheme(graph, exporter, scheme, Precision(bits, bits, "mse", products_only=True))
    if rule is not None:
        exporter = get_exporter("openvino")  # whose emission knows such weights
        config, placement = place_scheme(graph, exporter, scheme, Precision(4))
        config = replace(config, rules=(*config.rules, rule))
    statistics = calibrate(graph, observed(graph, placement), iter(batches))
    return Case(graph, placement, legalize(graph, placement, config, exporter.rules, statistics, scheme), samples)


def vit(transform: str = "none", scheme: str = "integer", rule: QuantRule | None = None) -> Case:
    torch.manual_seed(0)
    module = VitNano(width=16, depth=1, heads=2, mlp_ratio=2, classes=4)
    for parameter in module.parameters():  # as initialized, all images give nearly the same
        if parameter.dim() > 1:
            parameter.data.mul_(5.0)
    return case(module, torch.randn(24, *SHAPE[1:]), transform=transform, scheme=scheme, rule=rule)


@pytest.fixture(scope="module")
def tiny() -> Case:
    return vit()


def run(c: Case, settings: Reconstruction) -> Legalized:
    return reconstructed(c.legalized, reconstruct(c.graph, c.legalized, c.placement, c.samples, settings))


def error(c: Case, legalized: Legalized) -> float:
    """Squared error of the quantized network on the samples."""
    with torch.no_grad():
        pairs = [(c.graph(x)[0], legalized.simulation(x)[0]) for x in torch.split(c.samples, 1)]
    return float(torch.stack([(a - b).square().mean() for a, b in pairs]).mean())


@pytest.mark.parametrize("transform", ["none", "rotate", "transformer"])
def test_batches_give_what_single_samples_give(transform: str) -> None:
    c = vit(transform)
    many = batched(c.graph, (c.samples[:1],))
    with torch.no_grad():
        single = torch.cat([c.graph(x)[0] for x in torch.split(c.samples[:5], 1)])
        torch.testing.assert_close(many(c.samples[:5])[0], single, atol=1e-4, rtol=1e-3)
        assert batched(c.legalized.simulation, (c.samples[:1],))(c.samples[:5])[0].shape == single.shape


def test_a_class_token_is_repeated_for_every_sample() -> None:
    graph = capture(Tokens().eval(), (torch.randn(1, 32),))
    x = torch.randn(3, 32)
    with torch.no_grad():
        single = torch.cat([graph(part)[0] for part in torch.split(x, 1)])
        torch.testing.assert_close(batched(graph, (x[:1],))(x)[0], single)


def test_a_batch_merged_with_other_axes_is_refused() -> None:
    graph = capture(Merged().eval(), (torch.randn(1, 4, 8),))
    with pytest.raises(ModelError) as caught:
        batched(graph, (torch.randn(1, 4, 8),))
    assert caught.value.code == "EQ-M320"


def test_blocks_end_at_the_residual_stream(tiny: Case) -> None:
    layers = frozenset(tiny.placement.weights)
    stem, block, head = blocks_of(tiny.graph, layers)
    assert stem.layers == ("stem_0", "stem_3", "stem_6")
    assert (stem.sources, stem.results) == (("image",), ("add",))
    assert [name.rpartition("_")[2] for name in block.layers] == ["qkv", "proj", "fc1", "fc2"]
    assert (block.sources, block.results) == (("add",), head.sources)
    assert head.layers == ("head",)
    halves = blocks_of(tiny.graph, layers, max_layers=2)
    assert [b.layers for b in halves if "attn" in b.layers[0]] == [block.layers[:2]]
    assert sorted(name for b in halves for name in b.layers) == sorted(layers)


def test_parts_put_together_are_the_whole(tiny: Case) -> None:
    x = tiny.samples[:1]
    with torch.no_grad():
        wanted = tiny.graph(x)[0]
        for block in blocks_of(tiny.graph, frozenset(tiny.placement.weights)):
            x = extract(tiny.graph, block.sources, block.results)(x)
    assert torch.equal(x, wanted)


@pytest.fixture(scope="module")
def pyramid() -> Case:
    torch.manual_seed(0)
    return case(Pyramid(), torch.randn(16, 3, 16, 16), bits=4)


def test_what_far_layers_read_is_carried_past_the_blocks_between(pyramid: Case) -> None:
    layers = frozenset(pyramid.placement.weights)
    blocks = blocks_of(pyramid.graph, layers)
    assert sorted(name for block in blocks for name in block.layers) == sorted(layers)
    assert len(blocks) >= 4
    assert max(len(block.sources) for block in blocks) == 2  # the last: what the deep layers gave, and the first stage
    values = {blocks[0].sources[0]: pyramid.samples[:1]}
    with torch.no_grad():
        for block in blocks:
            found = extract(pyramid.graph, block.sources, block.results)(*(values[name] for name in block.sources))
            values |= zip(block.results, found if isinstance(found, tuple) else (found,), strict=True)
        outputs = whole(pyramid.graph, blocks).results
        for name, wanted in zip(outputs, pyramid.graph(pyramid.samples[:1]), strict=True):
            assert torch.equal(values[name], wanted)


@pytest.mark.parametrize("settings", [Reconstruction(QUICK), Reconstruction(None, QUICK)])
def test_every_layer_of_a_pyramid_is_learned(pyramid: Case, settings: Reconstruction) -> None:
    found = reconstruct(pyramid.graph, pyramid.legalized, pyramid.placement, pyramid.samples, settings)
    assert found.left == ()
    assert set(found.weights) == set(pyramid.placement.weights)
    assert any(f.best < f.start for f in found.fits.values())
    reconstructed(pyramid.legalized, found).simulation(pyramid.samples[:1])


def test_losses_through_the_suffix_want_one_tensor(pyramid: Case) -> None:
    settings = Reconstruction(replace(QUICK, loss="fisher"))
    with pytest.raises(ModelError) as caught:
        reconstruct(pyramid.graph, pyramid.legalized, pyramid.placement, pyramid.samples, settings)
    assert caught.value.code == "EQ-M322"


def test_what_cannot_be_cut_is_refused() -> None:
    graph = capture(Pair(), (torch.randn(1, 4), torch.randn(1, 4)))
    with pytest.raises(ModelError) as caught:
        blocks_of(graph, frozenset())
    assert caught.value.code == "EQ-M321"
    graph = capture(Tokens().eval(), (torch.randn(1, 32),))
    with pytest.raises(ModelError):
        blocks_of(graph, frozenset())  # nothing to learn
    with pytest.raises(ModelError):
        extract(graph, ["fc"], ["add"])  # the residual goes past it


@pytest.mark.parametrize("transform", ["none", "transformer"])
def test_without_a_step_nothing_changes(transform: str) -> None:
    c = vit(transform)
    found = reconstruct(c.graph, c.legalized, c.placement, c.samples, Reconstruction(QUICK, budget_seconds=0.0))
    result = reconstructed(c.legalized, found)
    assert {f.stopped for f in found.fits.values()} == {"budget"}
    assert not found.activations
    assert found.left == ()
    x = c.samples[:1]
    with torch.no_grad():
        assert torch.equal(result.simulation(x)[0], c.legalized.simulation(x)[0])


def test_blocks_come_closer_to_float_and_the_start_is_left_alone(tiny: Case) -> None:
    x, plan = tiny.samples[:1], tiny.legalized.plan.to_dict()
    with torch.no_grad():
        before = tiny.graph(x)[0], tiny.legalized.simulation(x)[0]
    found = reconstruct(tiny.graph, tiny.legalized, tiny.placement, tiny.samples, Reconstruction(QUICK))
    result = reconstructed(tiny.legalized, found)
    assert all(f.best <= f.start for f in found.fits.values())
    assert any(f.best < f.start for f in found.fits.values())
    assert error(tiny, result) < error(tiny, tiny.legalized)
    with torch.no_grad():
        after = tiny.graph(x)[0], tiny.legalized.simulation(x)[0]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert tiny.legalized.plan.to_dict() == plan


def test_plan_and_graph_agree_afterwards(tiny: Case) -> None:
    result = run(tiny, Reconstruction(QUICK))
    for name, attribute in tiny.placement.weights.items():
        entry = result.plan.tensors[attribute]
        weight = fetch(result.emission, attribute)
        assert torch.equal(fake_quantize(weight, entry.uniform), weight), name
        assert codes_hash(quantize(weight, entry.uniform).numpy()) == entry.codes_sha256
        assert "in blocks" in entry.rounding
    quantizers = [n for n in result.emission.graph.nodes if "quantize_per_tensor" in str(n.target)]
    grids = {float(t.uniform.scale) for t in result.plan.tensors.values() if t.role == "activation"}
    assert {n.args[1] for n in quantizers} <= grids
    groups = tiny.placement.groups
    for name, root in groups.items():
        assert result.plan.tensors[name].qparams == result.plan.tensors[root].qparams


def test_biases_are_learned_at_a_rate_of_their_own(tiny: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step of a weight's rate is worth is nothing on the fine grid of a bias."""
    seen: dict[str, float] = {}

    def watched(groups: list[ParameterGroup], *args: Any, **named: Any) -> FitResult:
        seen.update((key, group.learning_rate) for group in groups for key in group.parameters)
        return fit(groups, *args, **named)

    monkeypatch.setattr(block_module, "fit", watched)
    run(tiny, Reconstruction(Effort(replace(QUICK.settings, weight_rate=1e-6))))
    weights = {rate for name, rate in seen.items() if name.endswith("weight:shift")}
    biases = {rate for name, rate in seen.items() if name.endswith("bias:shift")}
    assert weights == {1e-6}
    assert min(biases) > 1e-3


@pytest.mark.parametrize("rounding", ["straight", "flexround"])
def test_codes_on_two_level_scales_are_learned(rounding: str) -> None:
    two_level = QuantRule(op="linear", weight=QuantSpec(3, True, PerGroup(8, two_level=True), "mse", narrow=True))
    c = vit(rule=two_level)
    fit = FitSettings(iterations=20, batch_size=8, evaluations=4)
    result = run(c, Reconstruction(Effort(BlockSettings(fit, weight_rate=0.1, drop=0.0), rounding=rounding)))
    changed = 0
    for attribute in set(c.placement.weights.values()):
        before, entry = c.legalized.plan.tensors[attribute], result.plan.tensors[attribute]
        weight, rows = fetch(result.emission, attribute), entry.uniform.on_rows()
        assert torch.equal(fake_quantize(weight, entry.uniform), weight)
        assert torch.equal(fake_quantize(weight, rows), weight), "the 8-bit grid that the file has"
        assert codes_hash(quantize(weight, entry.uniform).numpy()) == entry.codes_sha256
        (holder,) = [n for n in result.emission.graph.nodes if n.target == f"{attribute.replace('.', '_')}_scale"]
        assert torch.equal(fetch(result.emission, str(holder.target)), torch.from_numpy(rows.scale))
        changed += entry.codes_sha256 != before.codes_sha256
        if rounding != "flexround":
            assert entry.uniform == before.uniform, "multiples and steps stay"
    assert changed


@pytest.mark.parametrize("loss", ["mse", "fisher", "features"])
def test_every_loss_never_ends_worse_on_held_out_samples(tiny: Case, loss: str) -> None:
    effort = Effort(QUICK.settings, loss, "adaround", learn_biases=False)  # type: ignore[arg-type]
    found = reconstruct(tiny.graph, tiny.legalized, tiny.placement, tiny.samples, Reconstruction(effort))
    assert all(f.best <= f.start for f in found.fits.values())
    assert set(found.weights) == set(tiny.placement.weights)


def test_all_blocks_together(tiny: Case) -> None:
    found = reconstruct(tiny.graph, tiny.legalized, tiny.placement, tiny.samples, Reconstruction(None, QUICK))
    assert list(found.fits) == ["joint"]
    assert {solved.note for solved in found.weights.values()} == {"straight in all blocks together"}
    assert set(found.weights) == set(tiny.placement.weights)


def test_finished_work_is_not_done_again(tiny: Case, tmp_path: Path) -> None:
    settings = Reconstruction(QUICK, folder=tmp_path)
    first = run(tiny, settings)
    stamps = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    second = run(tiny, settings)
    assert first.plan.to_dict() == second.plan.to_dict()
    assert len(stamps) == 3
    assert stamps == {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}


def test_a_network_without_batches_runs_one_by_one() -> None:
    torch.manual_seed(0)
    c = case(Merged(), torch.randn(12, 4, 8), bits=8)
    found = reconstruct(c.graph, c.legalized, c.placement, c.samples, Reconstruction(QUICK))
    assert set(found.weights) == {"fc1", "fc2"}


@pytest.mark.parametrize("loss", ["fisher", "features"])
def test_losses_through_the_suffix_also_run_one_by_one(tiny: Case, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> Reconstructed:
        effort = replace(QUICK, loss=loss)  # type: ignore[arg-type]
        return reconstruct(tiny.graph, tiny.legalized, tiny.placement, tiny.samples, Reconstruction(effort))

    together = found()
    monkeypatch.setattr(module_of_reconstruct, "batched", refused)
    single = found()
    assert {n: f.start for n, f in single.fits.items()} == pytest.approx(
        {n: f.start for n, f in together.fits.items()}, rel=1e-3
    )
    assert all(f.iterations == 12 for f in single.fits.values())


def test_grids_are_learned_too_when_only_the_teacher_takes_no_batches(
    tiny: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    effort = Effort(replace(QUICK.settings, scale_rate=0.05), learn_biases=False)

    def found() -> Reconstructed:
        return reconstruct(tiny.graph, tiny.legalized, tiny.placement, tiny.samples, Reconstruction(effort))

    monkeypatch.setattr(module_of_reconstruct, "batched", refused)
    wanted = found()
    calls = iter((batched, refused))
    monkeypatch.setattr(module_of_reconstruct, "batched", lambda *args: next(calls)(*args))
    mixed = found()
    assert wanted.activations
    assert mixed.activations == wanted.activations


def test_bad_input_is_refused(tiny: Case) -> None:
    with pytest.raises(DataError) as few:
        reconstruct(tiny.graph, tiny.legalized, tiny.placement, tiny.samples[:1])
    dynamic = vit(scheme="dynamic")
    with pytest.raises(UsageError) as run_time:
        reconstruct(dynamic.graph, dynamic.legalized, dynamic.placement, dynamic.samples)
    for make in (
        lambda: Effort(loss="l1"),  # type: ignore[arg-type]
        lambda: Effort(rounding="up"),
        lambda: Reconstruction(None),
        lambda: Reconstruction(budget_seconds=-1.0),
    ):
        with pytest.raises(UsageError) as caught:
            make()
        assert caught.value.code == "EQ-U320"
    assert (few.value.code, run_time.value.code) == ("EQ-D320", "EQ-U321")


def test_learning_by_steps_is_repeatable_and_never_worse(tiny: Case, tmp_path: Path) -> None:
    seen: list[int] = []
    first, report = learn(tiny.graph, tiny.legalized, tiny.placement, tiny.samples, 12, progress=seen.append)
    again, _ = learn(tiny.graph, tiny.legalized, tiny.placement, tiny.samples, 12, folder=tmp_path)
    assert first.plan.to_dict() == again.plan.to_dict()
    assert sum(seen) == 12 * blocks_to_learn(tiny.graph, tiny.placement)
    assert report.steps == 12
    before, after = report.network
    assert report.kept == (after < before)
    assert (first.plan.to_dict() == tiny.legalized.plan.to_dict()) == (not report.kept)
    assert all(report.after[name] <= report.before[name] for name in report.before)
    assert any(report.after[name] < report.before[name] for name in report.before)
    assert len(report.to_dict()["blocks"]) == len(report.before)


def test_a_learned_plan_keeps_the_notes(tiny: Case) -> None:
    noted = replace(tiny.legalized, plan=replace(tiny.legalized.plan, notes=("rotated",)))
    learned, _ = learn(tiny.graph, noted, tiny.placement, tiny.samples, 1)
    assert learned.plan.notes == ("rotated",)


def test_minutes_become_steps(tiny: Case) -> None:
    """With a clock that says a trial of one step took 2 s and one of four steps 5 s, a step of 8 samples is 1 s."""

    def steps(seconds: float, samples: Tensor) -> int:
        times = iter((0.0, 2.0, 7.0))
        return steps_within(tiny.graph, tiny.legalized, tiny.placement, samples, seconds, clock=lambda: next(times))

    assert steps(0.0, tiny.samples) == LEAST_STEPS
    # 24 samples: a step of 24 takes 3 s, everything else 1.5 * 0.1 s a sample, the trial itself 7 s.
    assert steps(7 + 3.6 + 300, tiny.samples) == pytest.approx(100, abs=1)
    assert steps(7 + 3.6 + 600, tiny.samples) == pytest.approx(200, abs=1)
