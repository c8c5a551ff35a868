"""Block reconstruction on tiny blocks: better than nearest rounding, never worse, repeatable, and resumable."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from edgeq.errors import DataError, ModelError, UsageError
from edgeq.quant.losses import LossSum, global_local, mse
from edgeq.quant.reconstruct import (
    BlockData,
    BlockSettings,
    FitResult,
    FitSettings,
    LearnedScale,
    ParameterGroup,
    StraightThrough,
    checkpoint,
    fit,
    reconstruct_block,
)
from edgeq.quant.rounding.soft import SOFT_ROUNDINGS, SoftRounding
from edgeq.quant.uniform import dequantize, fake_quantize, qparams_from_range, quantize
from edgeq.quant.weights import weight_qparams
from edgeq.spec import PerChannel, PerGroup, QParams, QuantSpec

WEIGHT = QuantSpec(3, symmetric=True, granularity=PerChannel(0), narrow=True)
FIT = FitSettings(iterations=60, batch_size=16, evaluations=6)
KINDS: dict[str, Callable[[Tensor, QParams], SoftRounding]] = {**SOFT_ROUNDINGS, "straight": StraightThrough}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Mlp(nn.Module):
    """LayerNorm, fc1, GELU, fc2 and a residual, with grids for both inputs when `quantized`."""

    def __init__(self, quantized: bool, width: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        for i, p in enumerate([*self.fc1.parameters(), *self.fc2.parameters()]):
            p.data.copy_(0.5 * randn(*p.shape, seed=i))
        grids = [qparams_from_range(-3, 3, QuantSpec(4)), qparams_from_range(-0.17, 3, QuantSpec(4))]
        self.grid1, self.grid2 = (LearnedScale(g) if quantized else nn.Identity() for g in grids)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.gelu(self.fc1(self.grid1(self.norm(x))))
        result: Tensor = x + self.fc2(self.grid2(hidden))
        return result


class Attention(nn.Module):
    """Two heads, with per-head grids of the queries and one of the probabilities when `quantized`."""

    def __init__(self, quantized: bool, width: int = 8) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        for i, p in enumerate([*self.qkv.parameters(), *self.proj.parameters()]):
            p.data.copy_(0.5 * randn(*p.shape, seed=i))
        heads = QuantSpec(4, granularity=PerChannel(1))
        grids = [qparams_from_range([-3, -2], [3, 2], heads), qparams_from_range(0, 1, QuantSpec(4))]
        self.query, self.chance = (LearnedScale(g) if quantized else nn.Identity() for g in grids)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        chances = self.chance((self.query(q) @ k.transpose(-1, -2) / 2).softmax(-1))
        result: Tensor = self.proj((chances @ v).transpose(1, 2).reshape(x.shape))
        return result


def work(
    kind: str, make: type[Mlp] | type[Attention] = Mlp
) -> tuple[Mlp | Attention, BlockData, dict[str, SoftRounding]]:
    block = make(quantized=True)
    x = randn(40, 5, 8, seed=5)
    with torch.no_grad():
        data = BlockData((x,), (x + 0.05 * randn(40, 5, 8, seed=6),), make(quantized=False)(x))
    weights = {name: p for name, p in block.named_parameters() if p.ndim == 2}
    return block, data, {n: KINDS[kind](w.detach(), weight_qparams(w, WEIGHT)) for n, w in weights.items()}


def deployed_error(block: nn.Module, data: BlockData, roundings: dict[str, SoftRounding]) -> float:
    weights = {name: dequantize(r.codes(), r.qparams()) for name, r in roundings.items()}
    with torch.no_grad():
        return float(
            mse(torch.func.functional_call(block, weights, data.quantized_inputs), data.targets, torch.empty(0))
        )


@pytest.mark.parametrize("make", [Mlp, Attention])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_rounding_beats_nearest(kind: str, make: type[Mlp] | type[Attention]) -> None:
    block, data, roundings = work(kind, make)
    before = deployed_error(block, data, roundings)
    result = reconstruct_block(block, data, roundings, settings=BlockSettings(replace(FIT, iterations=120)))
    assert result.best < 0.95 * result.start
    assert deployed_error(block, data, roundings) < 0.97 * before
    assert (result.stopped, result.iterations, len(result.history)) == ("iterations", 120, 6)


def test_the_kept_values_are_those_of_the_reported_loss() -> None:
    block, data, roundings = work("straight")
    result = reconstruct_block(block, data, roundings, settings=BlockSettings(FIT))
    _, held = FIT.split(40)
    part = BlockData((data.float_inputs[0][held],), (data.quantized_inputs[0][held],), data.targets[held])
    assert deployed_error(block, part, roundings) == pytest.approx(result.best, rel=1e-5)


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.floats(1e-6, 1e3), st.integers(0, 5))
def test_it_is_never_worse_than_its_start(kind: str, rate: float, seed: int) -> None:
    block, data, roundings = work(kind)
    short = BlockSettings(FitSettings(iterations=4, batch_size=8, evaluations=2, seed=seed), weight_rate=rate)
    result = reconstruct_block(block, data, roundings, settings=short)
    assert result.best <= result.start
    _, held = short.fit.split(40)
    part = BlockData((data.float_inputs[0][held],), (data.quantized_inputs[0][held],), data.targets[held])
    assert deployed_error(block, part, roundings) <= result.start * (1 + 1e-5)


def test_what_is_better_nowhere_leaves_everything_as_it_was() -> None:
    block, data, roundings = work("straight")
    codes = {name: r.codes() for name, r in roundings.items()}
    result = reconstruct_block(block, data, roundings, settings=BlockSettings(FIT, weight_rate=1e3))
    assert result.best_iteration == 0 and result.best == result.start
    assert all(torch.equal(codes[name], r.codes()) for name, r in roundings.items())
    assert all(float(m.log_factor.detach().abs().max()) == 0 for m in block.modules() if isinstance(m, LearnedScale))


def test_the_block_itself_is_left_alone() -> None:
    block, data, roundings = work("adaround")
    before = {name: p.detach().clone() for name, p in block.named_parameters() if "log_factor" not in name}
    reconstruct_block(block, data, roundings, settings=BlockSettings(FIT))
    after = dict(block.named_parameters())
    assert all(torch.equal(p, after[name]) and after[name].requires_grad for name, p in before.items())
    assert all(after[name].grad is None for name in before)


def test_scales_are_learned_or_kept() -> None:
    moved = []
    for rate in (0.0, 1e-2):
        block, data, roundings = work("straight")
        reconstruct_block(block, data, roundings, settings=BlockSettings(FIT, scale_rate=rate))
        moved.append(float(block.grid1.log_factor.detach().abs()))  # type: ignore[union-attr]
    assert moved[0] == 0 < moved[1]


def outcome(roundings: dict[str, SoftRounding], block: nn.Module) -> list[Tensor]:
    scales = [m.log_factor.detach() for m in block.modules() if isinstance(m, LearnedScale)]
    return [p.detach() for r in roundings.values() for p in r.parameters()] + scales


class Stopped(Exception):
    pass


@pytest.mark.parametrize("kind", ["adaround", "signround"])
def test_an_interrupted_run_continues_to_the_same_result(kind: str, tmp_path: Path) -> None:
    block, data, roundings = work(kind)
    whole = reconstruct_block(block, data, roundings, settings=BlockSettings(FIT))
    expected = outcome(roundings, block)
    path = tmp_path / "deep" / "block.pt"
    done = 0

    def stop(steps: int) -> None:
        nonlocal done
        done += steps
        if done == 37:
            raise Stopped

    block, data, roundings = work(kind)
    with pytest.raises(Stopped):
        reconstruct_block(block, data, roundings, settings=BlockSettings(FIT), path=path, progress=stop)
    block, data, roundings = work(kind)
    steps: list[int] = []
    again = reconstruct_block(block, data, roundings, settings=BlockSettings(FIT), path=path, progress=steps.append)
    assert again == whole
    assert steps == [30] + [1] * 30  # the state of the look before the interruption
    assert all(torch.equal(a, b) for a, b in zip(expected, outcome(roundings, block), strict=True))
    assert [p.name for p in path.parent.iterdir()] == ["block.pt"]


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    results, values = [], []
    for _ in range(2):
        block, data, roundings = work("flexround")
        path = tmp_path / "block.pt"
        results.append(reconstruct_block(block, data, roundings, settings=BlockSettings(FIT), path=path))
        values.append(outcome(roundings, block))
    assert results[0] == results[1]
    assert all(torch.equal(a, b) for a, b in zip(*values, strict=True))


def test_a_used_up_budget_keeps_the_state_and_is_no_other_work(tmp_path: Path) -> None:
    path = tmp_path / "block.pt"
    block, data, roundings = work("adaround")
    short = BlockSettings(replace(FIT, budget_seconds=0.0))
    part = reconstruct_block(block, data, roundings, settings=short, path=path)
    assert (part.stopped, part.iterations, part.best) == ("budget", 0, part.start)
    block, data, roundings = work("adaround")
    whole = reconstruct_block(block, data, roundings, settings=BlockSettings(FIT), path=path)
    assert whole.stopped == "iterations"


def test_a_checkpoint_of_other_work_is_refused_and_a_damaged_one_ignored(tmp_path: Path) -> None:
    path = tmp_path / "block.pt"
    block, data, roundings = work("adaround")
    reconstruct_block(block, data, roundings, settings=BlockSettings(FIT), path=path)
    for other in (
        BlockSettings(replace(FIT, seed=1)),
        BlockSettings(FIT, drop=0.1),
        BlockSettings(FIT, scale_rate=0.1),
    ):
        block, data, roundings = work("adaround")
        with pytest.raises(UsageError) as caught:
            reconstruct_block(block, data, roundings, settings=other, path=path)
        assert caught.value.code == "EQ-U284"
    block, data, roundings = work("adaround")
    moved = replace(data, targets=data.targets + 1e-3)
    with pytest.raises(UsageError):
        reconstruct_block(block, moved, roundings, settings=BlockSettings(FIT), path=path)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"nonsense"):
        path.write_bytes(damaged)
        block, data, roundings = work("adaround")
        assert reconstruct_block(block, data, roundings, settings=BlockSettings(FIT), path=path).iterations == 60


def test_other_weights_behind_the_same_codes_are_other_work(tmp_path: Path) -> None:
    path = tmp_path / "block.pt"
    block, data, roundings = work("straight")
    reconstruct_block(block, data, roundings, settings=BlockSettings(FIT), path=path)
    block, data, roundings = work("straight")
    other = {n: StraightThrough(dequantize(r.codes(), r.start), r.start) for n, r in roundings.items()}
    assert all(torch.equal(r.codes(), other[n].codes()) for n, r in roundings.items())
    with pytest.raises(UsageError) as caught:
        reconstruct_block(block, data, other, settings=BlockSettings(FIT), path=path)
    assert caught.value.code == "EQ-U284"


def test_batches_of_one_sample_give_the_same() -> None:
    results = []
    for one_by_one in (False, True):
        block, data, roundings = work("straight")
        how = BlockSettings(replace(FIT, iterations=4, evaluations=2), drop=0.0, one_by_one=one_by_one)
        results.append(reconstruct_block(block, data, roundings, settings=how))
    assert results[0].start == pytest.approx(results[1].start, rel=1e-5)
    assert results[0].history[-1][1] == pytest.approx(results[1].history[-1][1], rel=1e-2)


def test_a_traced_block_is_reconstructed_too() -> None:
    class Product(nn.Module):
        def __init__(self, width: int = 8) -> None:
            super().__init__()
            self.register_buffer("weight", 0.5 * randn(width, width))
            self.weight: Tensor

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return functional.linear(x, self.weight) + y

    graph = torch.fx.symbolic_trace(Product())
    x, y = randn(20, 8, seed=1), randn(20, 8, seed=2)
    roundings = {"weight": StraightThrough(graph.weight, weight_qparams(graph.weight, WEIGHT))}
    data = BlockData((x, y), (x, y), graph(x, y))
    result = reconstruct_block(graph, data, roundings, settings=BlockSettings(FIT, weight_rate=3e-2))
    assert result.best < result.start


def test_a_sum_of_losses_is_relative_to_the_start() -> None:
    block, data, roundings = work("straight")
    suffix = nn.Linear(8, 3).requires_grad_(False)
    loss = global_local(lambda o: suffix(o.mean(1)), suffix(data.targets.mean(1)), local=2.0)
    result = reconstruct_block(block, data, roundings, loss=loss, settings=BlockSettings(FIT))
    assert result.start == pytest.approx(3.0)
    assert result.best < 3.0
    assert suffix.weight.grad is None
    assert LossSum.of((1.0, mse)).references == ()


def test_learning_without_drop_matches_deployment() -> None:
    x = 2 * randn(3, 2, 5)
    for grid in (
        qparams_from_range(-1.3, 2.1, QuantSpec(4)),
        qparams_from_range([-1, -0.2], [1, 3], QuantSpec(4, granularity=PerChannel(1))),
    ):
        module = LearnedScale(grid)
        assert torch.equal(module(x), fake_quantize(x, grid))
        module.learn(torch.Generator(), 0.0)
        torch.testing.assert_close(module(x).detach(), fake_quantize(x, grid))
        module.learn(None)
        with torch.no_grad():
            module.log_factor.fill_(math.log(2))
        np.testing.assert_allclose(module.qparams().scale, 2 * grid.scale, rtol=1e-6)


def test_gradients_of_the_scale_are_those_of_lsq() -> None:
    grid = qparams_from_range(-0.5, 1.0, QuantSpec(3))
    scale, zero = float(grid.scale), int(grid.zero_point)
    x = torch.tensor([0.31, -0.2, 5.0, -5.0])
    module = LearnedScale(grid)
    module.learn(torch.Generator(), 0.0)
    x.requires_grad_()
    for i in range(4):
        by_x, by_scale = torch.autograd.grad(module(x)[i], (x, module.log_factor))
        inside = i < 2
        steps = float(x[i].detach()) / scale
        expected = round(steps) - steps if inside else (grid.spec.qmax if i == 2 else grid.spec.qmin) - zero
        assert float(by_scale) == pytest.approx(expected * scale, rel=1e-4)  # with respect to the logarithm
        assert float(by_x[i]) == float(inside)


def test_dropped_values_stay_float() -> None:
    grid, x = qparams_from_range(-3, 3, QuantSpec(2)), randn(50, 40)
    module = LearnedScale(grid)
    module.learn(torch.Generator().manual_seed(0), 0.5)
    with torch.no_grad():
        share = float((module(x) == x).float().mean())
    assert 0.45 < share < 0.55


def test_straight_through_starts_at_nearest_and_may_move_far() -> None:
    weight = randn(4, 6)
    grid = weight_qparams(weight, WEIGHT)
    rounding = StraightThrough(weight, grid)
    assert torch.equal(rounding.codes(), quantize(weight, grid))
    torch.testing.assert_close(rounding.weight().detach(), dequantize(rounding.codes(), grid))
    with torch.no_grad():
        rounding.shift.fill_(3.0)
    assert int((rounding.codes() - quantize(weight, grid)).max()) > 1


def descend(rates: float, **changes: object) -> tuple[FitResult, nn.Parameter]:
    parameter = nn.Parameter(torch.tensor([4.0, -3.0]))
    result = fit(
        [ParameterGroup({"x": parameter}, rates)],
        lambda step: parameter.square().sum(),
        lambda: parameter.detach().square().sum()[None],
        FitSettings(**{"iterations": 50, "evaluations": 10, **changes}),  # type: ignore[arg-type]
    )
    return result, parameter


def test_fit_finds_a_minimum_and_says_how() -> None:
    result, parameter = descend(0.5)
    assert result.start == 25 and result.best < 0.05
    assert result.best == pytest.approx(float(parameter.detach().square().sum()))
    assert [iteration for iteration, _ in result.history] == list(range(5, 55, 5))


def test_fit_gives_up_when_patience_is_lost_or_it_diverges() -> None:
    result, parameter = descend(1e4, patience=2)
    assert (result.stopped, result.iterations, result.best) == ("patience", 10, 25.0)
    assert parameter.tolist() == [4.0, -3.0]
    weight = nn.Parameter(torch.ones(1))
    bad = fit([ParameterGroup({"x": weight}, 0.1)], lambda step: weight.sum() / 0, lambda: torch.ones(1), FitSettings())
    assert (bad.stopped, bad.iterations) == ("diverged", 0)


@given(st.integers(2, 300), st.floats(0.01, 0.99), st.integers(0, 9))
def test_samples_are_split_in_two(samples: int, holdout: float, seed: int) -> None:
    train, held = FitSettings(holdout=holdout, seed=seed).split(samples)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(samples))
    assert len(train) >= 1 and len(held) >= 1


def test_a_state_on_disk_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    assert checkpoint.load(path, "a") is None
    checkpoint.save(path, "a", {"x": torch.ones(2)})
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(path, "a", {"x": lambda: 0})
    loaded = checkpoint.load(path, "a")
    assert loaded is not None and torch.equal(loaded["x"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def test_bad_data_is_refused() -> None:
    x = randn(4, 3)
    bad = x.clone()
    bad[1, 1] = float("nan")
    for arguments, code in (
        (((x,), (x,), bad), "EQ-D280"),
        (((x,), (bad,), x), "EQ-D280"),
        (((x,), (x[:, :2],), x), "EQ-D281"),
        (((x,), (x,), x[:3]), "EQ-D281"),
        (((), (), x), "EQ-D281"),
    ):
        with pytest.raises(DataError) as caught:
            BlockData(*arguments)
        assert caught.value.code == code
    block, data, roundings = work("straight")
    single = BlockData((data.float_inputs[0][:1],), (data.quantized_inputs[0][:1],), data.targets[:1])
    with pytest.raises(DataError) as caught:
        reconstruct_block(block, single, roundings)
    assert caught.value.code == "EQ-D283"
    with pytest.raises(DataError) as caught:
        fit(
            [ParameterGroup({"x": nn.Parameter(x)}, 1.0)],
            lambda step: x.sum(),
            lambda: torch.full((2,), math.nan),
            FitSettings(),
        )
    assert caught.value.code == "EQ-D284"


def test_what_does_not_fit_the_block_is_refused() -> None:
    block, data, roundings = work("straight")
    weight = randn(3, 3)
    other = StraightThrough(weight, weight_qparams(weight, WEIGHT))
    for wrong in ({"nothing": other}, {"fc1.weight": other}):
        with pytest.raises(UsageError) as caught:
            reconstruct_block(block, data, wrong)
        assert caught.value.code == "EQ-U285"
    with pytest.raises(UsageError) as caught:
        reconstruct_block(Mlp(quantized=False), data, {})
    assert caught.value.code == "EQ-U285"
    with pytest.raises(ModelError) as caught_model:
        reconstruct_block(block, replace(data, targets=data.targets[..., :4]), roundings)
    assert caught_model.value.code == "EQ-M281"
    with pytest.raises(UsageError):
        LearnedScale(weight_qparams(randn(4, 8), QuantSpec(4, symmetric=True, granularity=PerGroup(4))))
    with pytest.raises(UsageError):
        grid = qparams_from_range([-1, -1], [1, 1], QuantSpec(4, granularity=PerChannel(1)))
        LearnedScale(grid).learn(torch.Generator())
        module = LearnedScale(grid)
        module.learn(torch.Generator())
        module(randn(4, 3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: FitSettings(iterations=0),
        lambda: FitSettings(holdout=0),
        lambda: FitSettings(holdout=1),
        lambda: FitSettings(batch_size=0),
        lambda: FitSettings(patience=0),
        lambda: FitSettings(budget_seconds=math.nan),
        lambda: BlockSettings(drop=1.0),
        lambda: BlockSettings(scale_rate=-1),
        lambda: descend(0.0),
        lambda: descend(math.inf),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert caught.value.code == "EQ-U286"
