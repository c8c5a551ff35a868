"""Repairs lower the output error on data they have not seen, and leave alone what they cannot improve."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeq.errors import DataError, ModelError, UsageError
from edgeq.quant.repair import (
    MAX_COMPENSATED,
    compensate,
    correct_bias,
    eora,
    output_errors,
    reestimate_batch_norm,
    tune_scales,
)
from edgeq.quant.rounding.moments import LayerMoments, Moments
from edgeq.quant.rounding.second_order import excess_error
from edgeq.quant.uniform import dequantize, fake_quantize
from edgeq.quant.weights import round_weights, weight_qparams
from edgeq.spec import Granularity, PerChannel, PerGroup, PerTensor, QParams, QuantSpec

ROWS, WHOLE, GROUPS = PerChannel(0), PerTensor(), PerGroup(8)


def rows(n: int, width: int = 24, seed: int = 0, mean: float = 1.0) -> Tensor:
    """Correlated inputs whose mean is not zero, from one distribution; `seed` draws the sample."""
    mix = torch.randn(width, width, generator=torch.Generator().manual_seed(99))
    mix *= torch.logspace(0, -1.5, width)[:, None]
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) @ mix + mean


def layer(bits: int = 3, granularity: Granularity = ROWS, outputs: int = 16) -> tuple[Tensor, Tensor, QParams, Tensor]:
    """Weight, codes, grid and bias."""
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(outputs, 24, generator=generator), torch.randn(outputs, generator=generator)
    grid = weight_qparams(weight, QuantSpec(bits, True, granularity, narrow=True))
    return weight, round_weights(weight, grid), grid, bias


def held_out(n: int, seed: int = 0, mean: float = 1.0) -> LayerMoments:
    moments = LayerMoments(24)
    for part in range(4):
        x = rows(n // 4, seed=seed + part, mean=mean)
        moments.update(x, x)
    return moments


def true_errors(
    weight: Tensor, quantized: Tensor, x: Tensor, bias: Tensor, new: Tensor, xq: Tensor | None = None
) -> Tensor:
    """Mean squared error of each output, summed row by row."""
    wanted = x.double() @ weight.double().T + bias.double()
    got = (x if xq is None else xq).double() @ quantized.double().T + new.double()
    return (wanted - got).square().mean(0)


def test_output_errors_are_those_of_the_rows() -> None:
    weight, codes, grid, bias = layer()
    quantized, x = dequantize(codes, grid), rows(200)
    torch.testing.assert_close(
        output_errors(weight, quantized, Moments.of(x), bias, bias + 0.3),
        true_errors(weight, quantized, x, bias, bias + 0.3),
        rtol=1e-5,
        atol=1e-6,
    )
    xq = x + 0.2 * rows(200, seed=5, mean=0.5)
    drifted = Moments.of(xq, x)
    first = output_errors(weight, quantized, drifted, bias) - output_errors(weight, weight, drifted, bias, bias + 1)
    exact = true_errors(weight, quantized, x, bias, bias, xq) - true_errors(weight, weight, x, bias, bias + 1, xq)
    torch.testing.assert_close(first, exact, atol=1e-6, rtol=1e-5)
    matched = output_errors(weight, quantized, drifted, bias, correct_bias(weight, quantized, drifted, bias).bias)
    assert float(matched.sum()) == pytest.approx(excess_error(weight, quantized, drifted), rel=1e-6)


def test_a_corrected_bias_helps_on_fresh_rows() -> None:
    weight, codes, grid, bias = layer(2)
    quantized = dequantize(codes, grid)
    repair = correct_bias(weight, quantized, held_out(256), bias)
    assert repair.after < 0.8 * repair.before
    fresh = rows(2000, seed=50)
    before = true_errors(weight, quantized, fresh, bias, bias).sum()
    after = true_errors(weight, quantized, fresh, bias, repair.bias).sum()
    assert after < 0.8 * before


def test_a_bias_stays_where_there_is_nothing_to_gain() -> None:
    weight, codes, grid, bias = layer()
    same = correct_bias(weight, weight, held_out(64), bias)
    assert torch.equal(same.bias, bias.double())
    assert same.before == same.after == 0
    # inputs without a mean: what the training rows show is noise, and the held-out rows refute it
    quantized = dequantize(codes, grid)
    noise = correct_bias(weight, quantized, held_out(32, mean=0.0), bias)
    assert noise.after <= noise.before
    assert bool((noise.bias == bias.double()).any())
    assert torch.equal(correct_bias(weight, quantized, Moments.empty(24), bias).bias, bias.double())
    assert torch.equal(correct_bias(weight, weight, Moments.of(rows(9))).bias, torch.zeros(16, dtype=torch.float64))


@pytest.mark.parametrize("granularity", [ROWS, WHOLE, GROUPS])
@pytest.mark.parametrize("centred", [True, False])
def test_tuned_scales_help_on_fresh_rows(granularity: Granularity, centred: bool) -> None:
    weight, codes, grid, bias = layer(2, granularity)
    repair = tune_scales(weight, codes, grid, held_out(512), bias, centred=centred)
    assert repair.qparams.spec == grid.spec
    assert repair.qparams.scale.shape == grid.scale.shape
    assert repair.multiplier.shape == (() if granularity is WHOLE else (16,))
    assert repair.after < 0.9 * repair.before
    assert centred or torch.equal(repair.bias, bias.double())
    fresh = rows(2000, seed=50)
    before = true_errors(weight, dequantize(codes, grid), fresh, bias, bias).sum()
    after = true_errors(weight, dequantize(codes, repair.qparams), fresh, bias, repair.bias).sum()
    assert after < 0.9 * before
    if centred:  # more than the bias alone
        assert repair.after < correct_bias(weight, dequantize(codes, grid), held_out(512), bias).after


def test_multipliers_are_those_of_least_squares() -> None:
    weight, codes, grid, _ = layer(3)
    x = rows(300)
    repair = tune_scales(weight, codes, grid, Moments.of(x), centred=False)
    y, z = x.double() @ weight.double().T, x.double() @ dequantize(codes, grid).double().T
    exact = (y * z).sum(0) / (z * z).sum(0)
    torch.testing.assert_close(repair.multiplier, exact, rtol=2e-6, atol=0)  # moments multiply in single precision
    np.testing.assert_allclose(repair.qparams.scale, grid.scale * exact.numpy(), rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(2, 60), st.sampled_from([2, 3, 8]), st.booleans(), st.sampled_from([ROWS, WHOLE])
)
def test_repairs_never_claim_a_loss(seed: int, n: int, bits: int, centred: bool, granularity: Granularity) -> None:
    weight, codes, grid, bias = layer(bits, granularity)
    moments = LayerMoments(24, holdout_every=2)
    for part in range(2):
        x = rows(n, seed=seed + part)
        moments.update(x + 0.05 * rows(n, seed=seed + 7), x)
    for repair in (
        correct_bias(weight, dequantize(codes, grid), moments, bias),
        tune_scales(weight, codes, grid, moments, bias, centred=centred),
    ):
        assert repair.after <= repair.before + 1e-9 * abs(repair.before)
    quantized = dequantize(codes, repair.qparams)
    judged = output_errors(weight, quantized, moments.holdout, bias, repair.bias)
    assert float(judged.sum()) == pytest.approx(repair.after, rel=1e-4, abs=1e-6)


def test_scales_stay_where_there_is_nothing_to_gain() -> None:
    grid = weight_qparams(torch.ones(4, 24), QuantSpec(4, True, ROWS, narrow=True))
    codes = torch.randint(-7, 8, (4, 24), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    exact = dequantize(codes, grid)
    for moments in (held_out(64), Moments.empty(24), Moments.of(torch.zeros(5, 24))):
        repair = tune_scales(exact, codes, grid, moments)
        assert repair.qparams == grid
        assert bool((repair.multiplier == 1).all())
    # codes of the opposite sign would need a negative scale
    assert tune_scales(exact, -codes, grid, Moments.of(rows(64))).qparams == grid


def test_scales_of_inputs_are_refused() -> None:
    weight = layer()[0]
    grid = weight_qparams(weight, QuantSpec(8, True, PerChannel(1)))
    with pytest.raises(UsageError, match="input channels") as caught:
        tune_scales(weight, round_weights(weight, grid), grid, Moments.of(rows(5)))
    assert caught.value.code == "EQ-U244"


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_a_branch_is_the_best_of_its_rank(rank: int) -> None:
    weight, codes, grid, _ = layer(3)
    quantized, moments = dequantize(codes, grid), Moments.of(rows(400))
    branch = eora(weight, quantized, moments, rank)
    assert branch is not None
    # the published form: project on the eigenvectors of the covariance, weight by their roots, invert
    covariance = moments.covariance()
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=1e-12).sqrt()
    u, s, v = torch.linalg.svd((weight - quantized).double() @ root, full_matrices=False)
    published = u[:, :rank] * s[:rank] @ v[:rank] @ torch.linalg.inv(root)
    torch.testing.assert_close((branch.up @ branch.down).double(), published, atol=1e-4, rtol=1e-3)
    assert branch.before == pytest.approx(float((s**2).sum()), rel=1e-5)
    assert branch.after == pytest.approx(float((s[rank:] ** 2).sum()), rel=1e-3)
    assert (branch.macs, branch.share) == (rank * 40, rank * 40 / (16 * 24))
    # a plain SVD of the error knows nothing of the inputs
    u, s, v = torch.linalg.svd((weight - quantized).double(), full_matrices=False)
    plain = u[:, :rank] * s[:rank] @ v[:rank]
    assert branch.after < excess_error(weight, quantized.double() + plain, moments)


def test_a_branch_helps_on_fresh_rows() -> None:
    weight, codes, grid, _ = layer(3)
    quantized = dequantize(codes, grid)
    branch = eora(weight, quantized, held_out(256), 4)
    assert branch is not None
    fresh = Moments.of(rows(2000, seed=50))
    repaired = quantized + branch.up @ branch.down
    assert excess_error(weight, repaired, fresh) < 0.5 * excess_error(weight, quantized, fresh)


def test_no_branch_where_there_is_nothing_to_gain() -> None:
    weight, codes, grid, _ = layer(3)
    assert eora(weight, weight, held_out(64), 4) is None
    assert eora(weight, dequantize(codes, grid), Moments.of(torch.ones(5, 24)), 4) is None  # the bias does it all


def test_branches_for_a_few_layers_only() -> None:
    weight, codes, grid, _ = layer(3)
    rounded = dequantize(codes, grid)
    layers = {name: (weight, weight if name == "b" else rounded, Moments.of(rows(64))) for name in "abcdef"}
    scores = {"a": 1.0, "b": 9.0, "c": 3.0, "d": 2.0, "e": 5.0}
    assert list(compensate(layers, scores, 2)) == ["e", "c"]
    assert list(compensate(layers, scores, 2, limit=2)) == ["e"]
    assert compensate(layers, scores, 2, limit=0) == {}
    for limit in (-1, MAX_COMPENSATED + 1):
        with pytest.raises(UsageError, match="layers with a branch"):
            compensate(layers, scores, 2, limit=limit)
    with pytest.raises(UsageError, match="not finite"):
        compensate(layers, {"a": math.nan}, 2)


@pytest.mark.parametrize("rank", [0, 10, 100])
def test_a_branch_as_large_as_its_layer_is_refused(rank: int) -> None:
    weight, codes, grid, _ = layer()
    with pytest.raises(UsageError, match=f"rank {rank}") as caught:
        eora(weight, dequantize(codes, grid), Moments.of(rows(5)), rank)
    assert "1 to 9" in str(caught.value.hint)
    with pytest.raises(UsageError) as tiny:
        eora(torch.ones(1, 3), torch.ones(1, 3), Moments.of(torch.ones(2, 3)), 1)
    assert "more bits" in str(tiny.value.hint)


def test_repairs_refuse_what_does_not_fit() -> None:
    weight, codes, grid, _ = layer()
    quantized, moments = dequantize(codes, grid), Moments.of(rows(9)[:, :12])
    for call in (
        lambda: correct_bias(weight, quantized, moments),
        lambda: tune_scales(weight, codes, grid, moments),
        lambda: eora(weight, quantized, moments, 2),
        lambda: correct_bias(weight, quantized[:4], Moments.of(rows(9))),
        lambda: tune_scales(weight, codes[:4], grid, Moments.of(rows(9))),
        lambda: eora(weight, quantized[:4], Moments.of(rows(9)), 2),
    ):
        with pytest.raises(UsageError):
            call()
    with pytest.raises(ModelError):
        correct_bias(weight / 0, quantized, Moments.of(rows(9)))


class ConvNet(nn.Module):
    """Two convolutions with batch norms, one of which is used by both, and one that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.second, self.last = nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.head, self.unused = nn.Linear(8, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.last(self.second(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def images(n: int, seed: int) -> Tensor:
    return torch.randn(n, 3, 10, 10, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5


@pytest.fixture
def networks() -> tuple[ConvNet, ConvNet]:
    """A float network whose batch norms know its data, and a copy with coarse kernels."""
    torch.manual_seed(0)
    net = ConvNet()
    for module in (net.norm, net.last):
        module.momentum = None
        nn.init.uniform_(module.weight, 0.5, 1.5)
    with torch.no_grad():
        for seed in range(8):
            net(images(16, seed))
        coarse = copy.deepcopy(net)
        for conv in (coarse.first, coarse.second):
            conv.weight.copy_(
                fake_quantize(conv.weight, weight_qparams(conv.weight, QuantSpec(2, True, WHOLE, narrow=True)))
            )
    return net.eval(), coarse.eval()


def output_error(net: nn.Module, reference: nn.Module, seed: int = 70) -> float:
    with torch.no_grad():
        return float((net(images(64, seed)) - reference(images(64, seed))).square().mean())


def test_new_statistics_help_on_fresh_images(networks: tuple[ConvNet, ConvNet]) -> None:
    net, coarse = networks
    before, ticks = output_error(coarse, net), []
    repair = reestimate_batch_norm(
        coarse.train(),
        net,
        [(images(16, s),) for s in range(20, 24)],
        holdout=[(images(16, 40),)],
        progress=ticks.append,
    )
    assert repair.applied
    assert repair.layers == ("norm", "last")
    assert repair.after < 0.7 * repair.before
    assert coarse.training
    assert ticks == [1] * 4
    assert output_error(coarse.eval(), net) < 0.7 * before
    assert torch.equal(coarse.unused.running_mean, torch.zeros(4))


def test_statistics_are_pooled_exactly(networks: tuple[ConvNet, ConvNet]) -> None:
    net, coarse = networks
    parts = [images(n, seed) for seed, n in enumerate((2, 7, 16))]
    reestimate_batch_norm(coarse, net, [(x,) for x in parts])
    with torch.no_grad():
        received = coarse.first(torch.cat(parts)).double().movedim(1, 0).flatten(1)
    torch.testing.assert_close(coarse.norm.running_mean.double(), received.mean(1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(coarse.norm.running_var.double(), received.var(1), atol=1e-6, rtol=1e-5)


def test_statistics_that_were_right_come_back(networks: tuple[ConvNet, ConvNet]) -> None:
    net, _ = networks
    same, state = copy.deepcopy(net), copy.deepcopy(net.state_dict())
    repair = reestimate_batch_norm(same, net, [(images(4, 90),)])
    assert not repair.applied
    assert repair.before == repair.after == 0
    for name, value in same.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_failing_network_is_left_as_it_was(networks: tuple[ConvNet, ConvNet]) -> None:
    net, coarse = networks
    state = copy.deepcopy(coarse.state_dict())
    with pytest.raises(DataError, match="1 value for each channel") as caught:
        reestimate_batch_norm(coarse, net, [(images(8, 1),), (images(1, 1)[..., :3, :3],)], holdout=[(images(8, 2),)])
    assert caught.value.code == "EQ-D241"
    for name, value in coarse.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_statistics_that_break_the_network_are_taken_back(networks: tuple[ConvNet, ConvNet]) -> None:
    net, coarse = networks
    state = copy.deepcopy(coarse.state_dict())

    class Brittle(nn.Module):
        """NaN as soon as the statistics have moved."""

        def __init__(self) -> None:
            super().__init__()
            self.net = coarse

        def forward(self, x: Tensor) -> Tensor:
            mean = self.net.norm.running_mean
            moved = mean is not None and not torch.equal(mean, state["norm.running_mean"])
            result: Tensor = self.net(x) / (0 if moved else 1)
            return result

    with pytest.raises(ModelError, match="NaN or infinite"):
        reestimate_batch_norm(Brittle(), net, [(images(16, 20),)])
    for name, value in coarse.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_networks_without_batch_norms_are_refused(networks: tuple[ConvNet, ConvNet]) -> None:
    net, coarse = networks
    bare = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(ModelError, match="no batch norm") as caught:
        reestimate_batch_norm(bare, bare, [(torch.ones(2, 3),)])
    assert caught.value.code == "EQ-M244"
    with pytest.raises(UsageError, match="need data"):
        reestimate_batch_norm(coarse, net, [])
    with pytest.raises(ModelError, match="NaN"):
        reestimate_batch_norm(coarse, net, [(images(4, 0) / 0,)])
