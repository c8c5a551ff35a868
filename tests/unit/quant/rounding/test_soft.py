"""Soft roundings: where they start, what they stand for, and that training a block with them pays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from edgeq.errors import ModelError, UsageError
from edgeq.quant.rounding.soft import SOFT_ROUNDINGS, AdaRound, Descent, FlexRound, SignRound, SoftRounding
from edgeq.quant.uniform import dequantize, fake_quantize, quantize
from edgeq.quant.weights import weight_qparams
from edgeq.spec import Granularity, PerChannel, PerGroup, PerTensor, QParams, QuantSpec

GRIDS: list[tuple[Granularity, tuple[int, ...]]] = [
    (PerTensor(), (6, 8)),
    (PerChannel(0), (6, 8)),
    (PerChannel(1), (6, 8)),
    (PerGroup(4), (6, 8)),
    (PerChannel(0), (4, 3, 3, 3)),
    (PerGroup(9), (4, 2, 3, 3)),
    (PerTensor(), (7,)),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def grid(weight: Tensor, granularity: Granularity, bits: int = 3, *, symmetric: bool = True) -> QParams:
    return weight_qparams(weight, QuantSpec(bits, symmetric, granularity, "mse", narrow=symmetric))


def train(soft: SoftRounding, wanted: Tensor, steps: int = 60) -> None:
    """Towards a weight that nearest rounding would not choose."""
    descent = Descent([soft], steps)
    first = float((fake_quantize(soft.target, soft.start) - wanted).square().sum())
    for step in range(steps):
        loss = (soft.weight() - wanted).square().sum() / first + soft.regularizer(step / steps)
        loss.backward()  # type: ignore[no-untyped-call]
        descent.step(step / steps)


@pytest.mark.parametrize("kind", SOFT_ROUNDINGS)
@pytest.mark.parametrize(("granularity", "shape"), GRIDS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_it_starts_at_nearest_and_its_codes_are_its_weight(
    kind: str, granularity: Granularity, shape: tuple[int, ...], symmetric: bool
) -> None:
    weight = normal(*shape)
    qparams = grid(weight, granularity, symmetric=symmetric)
    soft = SOFT_ROUNDINGS[kind](weight, qparams)
    assert torch.equal(soft.codes(), quantize(weight, qparams))
    train(soft, weight + 0.6 * torch.from_numpy(qparams.scale).max() * normal(*shape, seed=1).sign())
    codes, found = soft.codes(), soft.qparams()
    assert codes.dtype == torch.int32
    assert codes.shape == weight.shape
    assert int(codes.min()) >= qparams.spec.qmin
    assert int(codes.max()) <= qparams.spec.qmax
    assert not torch.equal(codes, quantize(weight, qparams))
    assert found.spec == qparams.spec
    assert found.scale.shape == qparams.scale.shape
    if symmetric:
        assert not found.zero_point.any()
    if kind != "adaround":
        torch.testing.assert_close(dequantize(codes, found), soft.weight().detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", SOFT_ROUNDINGS)
def test_every_parameter_receives_a_gradient(kind: str) -> None:
    weight = normal(4, 3, 3, 3)
    soft = SOFT_ROUNDINGS[kind](weight, grid(weight, PerChannel(0), symmetric=False))
    (soft.weight() - weight - 0.1).square().sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in soft.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name


def test_adaround_starts_at_the_weight_and_ends_decided() -> None:
    weight = normal(6, 8)
    qparams = weight_qparams(weight, QuantSpec(4, True, PerChannel(0), narrow=True))
    soft = AdaRound(weight, qparams)
    torch.testing.assert_close(soft.weight().detach(), weight, rtol=1e-4, atol=1e-5)
    assert float(soft.regularizer(0.1).detach()) == 0
    late, early = (float(soft.regularizer(p).detach()) for p in (1.0, 0.3))
    assert 0 < late < early <= 10
    train(soft, weight, steps=1000)
    torch.testing.assert_close(soft.weight().detach(), dequantize(soft.codes(), qparams), rtol=1e-4, atol=1e-4)
    assert float(soft.regularizer(1.0).detach()) == pytest.approx(0, abs=1e-3)
    assert bool(((soft.codes() - torch.floor(weight / torch.from_numpy(qparams.scale)[:, None])) >= 0).all())


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 8), st.booleans(), st.integers(0, 2**31))
def test_signround_keeps_its_parameters_and_its_grid_in_range(bits: int, symmetric: bool, seed: int) -> None:
    weight = normal(3, 8, seed=seed)
    qparams = grid(weight, PerGroup(4), bits, symmetric=symmetric)
    soft = SignRound(weight, qparams)
    descent = Descent([soft], 5, learning_rate=0.7)
    for step in range(5):
        (soft.weight() - normal(3, 8, seed=seed + step + 1)).square().sum().backward()  # type: ignore[no-untyped-call]
        descent.step(step / 5)
        found = soft.qparams()
        assert float(soft.shift.detach().abs().max()) <= 0.5
        assert (found.scale <= qparams.scale * 1.0001).all()
        assert ((found.zero_point >= qparams.spec.qmin) & (found.zero_point <= qparams.spec.qmax)).all()


def test_flexround_may_move_a_weight_several_codes() -> None:
    weight = torch.tensor([[1.0, 0.9, -0.3, 0.2]])
    soft = FlexRound(weight, weight_qparams(weight, QuantSpec(8, True, PerChannel(0), narrow=True)))
    train(soft, weight * torch.tensor([1.0, 0.8, 1.0, 1.0]), steps=200)
    assert int((soft.codes() - quantize(weight, soft.start)).abs().max()) > 1


def _block(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return functional.gelu(x @ first.T) @ second.T


@pytest.mark.parametrize("kind", SOFT_ROUNDINGS)
def test_two_layers_trained_together_beat_nearest_on_unseen_rows(kind: str) -> None:
    mixing = normal(16, 16, seed=3) / 2
    first, second = normal(24, 16, seed=4) / 4, normal(16, 24, seed=5) / 5
    x, unseen = normal(512, 16, seed=6) @ mixing, normal(512, 16, seed=7) @ mixing
    softs = [SOFT_ROUNDINGS[kind](w, grid(w, PerChannel(0))) for w in (first, second)]

    def error(rows: Tensor, weights: Callable[[SoftRounding], Tensor]) -> Tensor:
        return (_block(rows, *(weights(s) for s in softs)) - _block(rows, first, second)).square().mean()

    def rounded(soft: SoftRounding) -> Tensor:
        return dequantize(soft.codes(), soft.qparams())

    nearest, unit = float(error(unseen, rounded)), float(error(x, rounded))
    descent = Descent(softs, 200)
    for step in range(200):
        regularizer = sum((s.regularizer(step / 200) for s in softs), torch.zeros(()))
        loss = error(x, lambda s: s.weight()) / unit + regularizer
        loss.backward()  # type: ignore[no-untyped-call]
        descent.step(step / 200)
    assert float(error(unseen, rounded)) < 0.8 * nearest


def test_bad_requests_are_refused() -> None:
    weight = normal(4, 8)
    qparams = grid(weight, PerChannel(0))
    for kind in SOFT_ROUNDINGS.values():
        with pytest.raises(ModelError, match="NaN"):
            kind(weight * float("nan"), qparams)
        with pytest.raises(UsageError, match="do not fit"):
            kind(weight[:3], qparams)
        with pytest.raises(UsageError, match="no values"):
            kind(weight[:, :0], qparams)
    mixed = [AdaRound(weight, qparams), FlexRound(weight, qparams)]
    for softs, steps in ((mixed, 5), ([], 5), (mixed[:1], 0)):
        with pytest.raises(UsageError, match="cannot train"):
            Descent(softs, steps)
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="learning rate"):
            Descent(mixed[:1], 5, rate)


@pytest.mark.parametrize("kind", SOFT_ROUNDINGS)
def test_constant_and_zero_weights_survive_training(kind: str) -> None:
    for weight in (torch.zeros(3, 4), torch.full((3, 4), 0.7), torch.full((1, 1), -2.0)):
        qparams = grid(weight, PerChannel(0))
        soft = SOFT_ROUNDINGS[kind](weight, qparams)
        descent = Descent([soft], 10)
        for step in range(10):
            (soft.weight() - weight).square().sum().backward()  # type: ignore[no-untyped-call]
            descent.step(step / 10)
        assert bool(torch.isfinite(soft.weight()).all())
        torch.testing.assert_close(dequantize(soft.codes(), soft.qparams()), weight, rtol=0.1, atol=1e-6)
