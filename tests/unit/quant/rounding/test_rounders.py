"""What all rounders promise, and what single ones add."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgeq.errors import ModelError, UsageError
from edgeq.quant.rounding import ROUNDERS, Effort, LayerMoments, LayerProblem, Rounded, get_rounder
from edgeq.quant.rounding.decoupleq import fit_grid
from edgeq.quant.rounding.erq import round_by_halves
from edgeq.quant.rounding.grid import WeightGrid
from edgeq.quant.rounding.refine import refine
from edgeq.quant.uniform import quantize
from edgeq.quant.weights import round_weights, weight_qparams
from edgeq.spec import Granularity, PerChannel, PerGroup, PerTensor, QParams, QuantSpec
from tests.unit.quant.rounding.layers import Layer, make_layer

TWO_LEVEL = PerGroup(8, two_level=True)
ITERATIVE = ["adaround", "flexround", "signround", "decoupleq"]
WITH_DATA = [name for name, entry in ROUNDERS.items() if entry.needs_data]


def grid(weight: Tensor, bits: int = 3, granularity: Granularity | None = None, *, symmetric: bool = True) -> QParams:
    return weight_qparams(weight, QuantSpec(bits, symmetric, granularity or PerChannel(0), "mse", narrow=symmetric))


def problem(layer: Layer, qparams: QParams | None = None, *, drift: bool = False) -> LayerProblem:
    return LayerProblem(layer.weight, qparams or grid(layer.weight), layer.moments(drift=drift), layer.bias)


def unseen_error(layer: Layer, rounded: Rounded) -> float:
    wanted = layer.unseen_x @ layer.weight.T + layer.bias
    got = layer.unseen_xq @ rounded.weight.T + layer.bias + rounded.bias_delta.float()
    return float((got - wanted).square().mean())


@pytest.mark.parametrize("name", WITH_DATA)
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerChannel(1), PerGroup(8), TWO_LEVEL])
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_rounder_beats_nearest_on_unseen_rows(name: str, granularity: Granularity, symmetric: bool) -> None:
    if (name == "decoupleq" and granularity == PerChannel(1)) or (granularity == TWO_LEVEL and not symmetric):
        return
    layer = make_layer(drift=0)
    task = problem(layer, grid(layer.weight, 3, granularity, symmetric=symmetric))
    entry = ROUNDERS[name]
    found = entry.round(task)
    spec = task.qparams.spec
    assert found.codes.dtype == torch.int32
    assert found.codes.shape == layer.weight.shape
    assert int(found.codes.min()) >= spec.qmin
    assert int(found.codes.max()) <= spec.qmax
    assert found.qparams.spec == spec
    assert entry.moves_grid or found.qparams == task.qparams
    assert not (symmetric and found.qparams.zero_point.any())
    assert unseen_error(layer, found) < 0.9 * unseen_error(layer, ROUNDERS["nearest"].round(task))


@pytest.mark.parametrize("name", ROUNDERS)
def test_the_mean_output_is_exact_and_the_answer_repeats(name: str) -> None:
    layer = make_layer()
    task, _ = problem(layer, drift=True).retargeted()
    found, again = (ROUNDERS[name].round(task, Effort(iterations=40)) for _ in range(2))
    assert torch.equal(found.codes, again.codes)
    assert found.qparams == again.qparams
    x, xq = layer.x.double(), layer.xq.double()
    wanted, got = (x @ layer.weight.double().T).mean(0), (xq @ found.weight.double().T).mean(0) + found.bias_delta
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ROUNDERS)
def test_a_retargeted_problem_is_solved_better_than_the_plain_one(name: str) -> None:
    if name == "erq":  # it retargets itself
        return
    layer = make_layer(drift=0.2)
    task = problem(layer, grid(layer.weight, 4), drift=True)
    aimed, found = task.retargeted()
    assert found.shrink > 0
    errors = [unseen_error(layer, ROUNDERS[name].round(t, Effort(iterations=100))) for t in (aimed, task)]
    assert errors[0] < errors[1]


def test_erq_retargets_unless_it_was_done() -> None:
    layer = make_layer(drift=0.2)
    task = problem(layer, drift=True)
    aimed, found = task.retargeted()
    first, second = ROUNDERS["erq"].round(task), ROUNDERS["erq"].round(aimed)
    assert first.note == found.note
    assert second.note == "target given"
    assert torch.equal(first.codes, second.codes)


@pytest.mark.parametrize("name", ROUNDERS)
def test_a_layer_without_bias_keeps_none(name: str) -> None:
    layer = make_layer(drift=0, offset=2.0)
    task = replace(problem(layer), bias=None, adjust_bias=False)
    found = ROUNDERS[name].round(task, Effort(iterations=100))
    assert not bool(found.bias_delta.any())
    if name != "nearest":
        nearest = ROUNDERS["nearest"].round(task)
        errors = [(layer.unseen_x @ (r.weight - layer.weight).T).square().mean() for r in (found, nearest)]
        assert errors[0] < errors[1]


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(ITERATIVE),
    st.integers(1, 5),
    st.integers(1, 10),
    st.integers(0, 40),
    st.sampled_from([2, 4, 8]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_iterative_rounders_are_never_worse_than_nearest_on_held_out_rows(
    name: str, outputs: int, inputs: int, rows: int, bits: int, symmetric: bool, seed: int
) -> None:
    layer = make_layer(outputs, inputs, max(rows, 8), seed=seed)
    task = problem(layer, grid(layer.weight, bits, symmetric=symmetric), drift=True)
    if rows < 8:
        task = replace(task, moments=LayerMoments(inputs))
    found = ROUNDERS[name].round(task, Effort(iterations=6))
    assert task.error(found.weight) <= task.error(ROUNDERS["nearest"].round(task).weight)


@pytest.mark.parametrize("name", ROUNDERS)
class TestOddLayers:
    """Layers with little to work on: every rounder answers, with codes of the grid."""

    def check(self, name: str, task: LayerProblem) -> Rounded:
        found = ROUNDERS[name].round(task, Effort(iterations=8))
        assert found.codes.shape == task.weight.shape
        assert int(found.codes.min()) >= task.qparams.spec.qmin
        assert int(found.codes.max()) <= task.qparams.spec.qmax
        assert bool(torch.isfinite(found.weight).all())
        assert bool(torch.isfinite(found.bias_delta).all())
        return found

    def test_without_data_it_is_nearest(self, name: str) -> None:
        weight = make_layer().weight
        found = self.check(name, LayerProblem(weight, grid(weight), LayerMoments(32)))
        assert torch.equal(found.codes, quantize(weight, grid(weight)))
        assert not bool(found.bias_delta.any())

    @pytest.mark.parametrize("value", [0.0, 0.7, -3.0])
    def test_constant_weights(self, name: str, value: float) -> None:
        layer = replace(make_layer(outputs=3, inputs=8, rows=64), weight=torch.full((3, 8), value))
        found = self.check(name, problem(layer, drift=True))
        torch.testing.assert_close(found.weight, layer.weight, rtol=0.5, atol=1e-6)

    def test_fewer_rows_than_inputs(self, name: str) -> None:
        self.check(name, problem(make_layer(rows=8), drift=True))

    def test_one_row_one_output_one_input(self, name: str) -> None:
        for outputs, inputs, rows in ((1, 32, 64), (5, 1, 64), (1, 1, 8), (3, 8, 8)):
            self.check(name, problem(make_layer(outputs, inputs, rows), drift=True))
        single = LayerMoments(32)
        single.update(torch.ones(1, 32))
        self.check(name, LayerProblem(make_layer().weight, grid(make_layer().weight), single))

    def test_dead_inputs(self, name: str) -> None:
        layer = make_layer(drift=0)
        x = layer.xq.clone()
        x[:, ::3] = 0.0
        self.check(name, problem(replace(layer, x=x, xq=x), grid(layer.weight, 2, PerGroup(4))))

    def test_a_gram_that_is_not_positive_semidefinite(self, name: str) -> None:
        task = problem(make_layer(inputs=16))
        gram = task.moments.train.gram.clone()
        gram.diagonal()[::2] -= 2 * float(gram.diagonal().mean())
        task.moments.train = replace(task.moments.train, gram=gram)
        self.check(name, task)

    def test_infinite_weights_are_refused(self, name: str) -> None:
        layer = make_layer()
        broken = layer.weight.clone()
        broken[2, 2] = float("inf")
        with pytest.raises(ModelError) as caught:
            ROUNDERS[name].round(replace(problem(layer), target=broken))
        assert caught.value.code == "EQ-M220"


def test_refining_never_increases_the_error_and_stays_on_the_grid() -> None:
    layer = make_layer(drift=0)
    covariance = layer.moments().total.covariance()
    qparams = grid(layer.weight, 2, symmetric=False)
    spread = WeightGrid.of(qparams, layer.weight)

    def errors(codes: Tensor) -> Tensor:
        delta = spread.reals(codes).double() - layer.weight.double()
        return (delta @ covariance * delta).sum(1)

    codes = spread.codes(layer.weight)
    for _ in range(5):
        moved = refine(codes, layer.weight, spread, covariance, 3)
        assert bool((errors(moved) <= errors(codes)).all())
        assert float(moved.min()) >= spread.qmin
        assert float(moved.max()) <= spread.qmax
        assert float((moved - codes).abs().sum(1).max()) <= 3
        codes = moved
    settled = refine(codes, layer.weight, spread, covariance, 10_000)
    assert torch.equal(settled, refine(settled, layer.weight, spread, covariance, 10))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([PerTensor(), PerChannel(0), PerGroup(4)]),
    st.booleans(),
    st.sampled_from([2, 4, 8]),
    st.integers(0, 2**31),
)
def test_fitting_a_grid_never_increases_the_error(
    granularity: Granularity, symmetric: bool, bits: int, seed: int
) -> None:
    layer = make_layer(5, 8, 40, seed=seed)
    qparams = grid(layer.weight, bits, granularity, symmetric=symmetric)
    hessian = layer.moments().total.covariance()
    codes = quantize(layer.weight * 1.1, qparams)
    found = fit_grid(codes, layer.weight.double(), qparams, hessian)
    assert found.scale.shape == qparams.scale.shape

    def error(on: QParams) -> float:
        delta = WeightGrid.of(on, codes).reals(codes).double() - layer.weight
        return float((delta @ hessian * delta).sum())

    assert error(found) <= error(qparams) * (1 + 1e-5)


def test_fitting_a_grid_finds_the_grid_the_weight_is_on() -> None:
    layer = make_layer(6, 16, drift=0)
    codes = torch.randint(-8, 8, layer.weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    for granularity in (PerTensor(), PerChannel(0), PerGroup(8)):
        for symmetric in (True, False):
            qparams = grid(layer.weight, 4, granularity, symmetric=symmetric)
            shifted = qparams if symmetric else replace(qparams, zero_point=qparams.zero_point // 2)
            weight = WeightGrid.of(shifted, codes).reals(codes)
            start = replace(qparams, scale=qparams.scale * 1.3)
            found = fit_grid(codes, weight.double(), start, layer.moments().total.covariance())
            torch.testing.assert_close(torch.from_numpy(found.scale), torch.from_numpy(shifted.scale))
            assert (found.zero_point == shifted.zero_point).all()


def test_decoupleq_refuses_scales_of_inputs() -> None:
    layer = make_layer()
    with pytest.raises(UsageError) as caught:
        ROUNDERS["decoupleq"].round(problem(layer, grid(layer.weight, 3, PerChannel(1))))
    assert caught.value.code == "EQ-U224"


def test_rounding_by_halves_of_uncorrelated_inputs_is_nearest() -> None:
    weight = make_layer().weight
    spread = WeightGrid.of(grid(weight), weight)
    codes = round_by_halves(weight, spread, torch.eye(32, dtype=torch.float64))
    assert torch.equal(codes, spread.codes(weight))


@pytest.mark.parametrize("name", ITERATIVE)
def test_time_and_steps_are_kept_and_reported(name: str) -> None:
    task = problem(make_layer())
    done: list[int] = []
    ROUNDERS[name].round(task, Effort(iterations=7, advance=done.append))
    assert done == [1] * 7
    hurried = ROUNDERS[name].round(task, Effort(budget_seconds=1e-9))
    assert torch.equal(hurried.codes, ROUNDERS["nearest"].round(task).codes)


def test_coordinate_moves_only_what_held_out_rows_confirm() -> None:
    layer = make_layer(drift=0)
    task = problem(layer, grid(layer.weight, 2))
    plain, found = ROUNDERS["gptq"].round(task), ROUNDERS["coordinate"].round(task)
    assert found.note.endswith("codes moved")
    assert unseen_error(layer, found) < unseen_error(layer, plain)
    task.moments.holdout = replace(task.moments.holdout, gram=-task.moments.holdout.gram)
    doubted = ROUNDERS["coordinate"].round(task)
    assert "no moves" in doubted.note


def test_bad_problems_and_efforts_are_refused() -> None:
    layer = make_layer()
    good = problem(layer)
    broken = layer.weight * float("nan")
    for change in ({"weight": broken}, {"target": broken}):
        with pytest.raises(ModelError, match="NaN"):
            replace(good, **change)  # type: ignore[arg-type]
    changes = (
        {"weight": layer.weight[0]},
        {"target": layer.weight[:, :5]},
        {"moments": LayerMoments(5)},
        {"bias": layer.bias[:3]},
        {"qparams": grid(layer.weight[:3])},
    )
    for wrong in changes:
        with pytest.raises(UsageError) as caught:
            replace(good, **wrong)  # type: ignore[arg-type]
        assert caught.value.code == "EQ-U222"
    for numbers in ({"iterations": 0}, {"learning_rate": -1.0}, {"budget_seconds": float("nan")}):
        with pytest.raises(UsageError, match="must be positive"):
            Effort(**numbers)  # type: ignore[arg-type]


def test_names_lead_to_rounders() -> None:
    assert get_rounder("gptq") is ROUNDERS["gptq"]
    with pytest.raises(UsageError) as unknown:
        get_rounder("adaruond")
    assert "adaround" in str(unknown.value.hint)
    with pytest.raises(UsageError) as starved:
        round_weights(make_layer().weight, grid(make_layer().weight), "gptq")
    assert starved.value.code == "EQ-U225"
    assert "nearest" in str(starved.value.hint)
