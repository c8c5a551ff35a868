"""GELU to ReLU: the new MLP reproduces the old one better than a plain replacement, on samples it has not seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from edgeq.errors import DataError, ModelError, UsageError
from edgeq.quant.reconstruct import FitSettings
from edgeq.quant.relu_mlp import MlpWeights, ReluSettings, relu_mlp

FIT = FitSettings(iterations=40, batch_size=8, evaluations=4)


def mlp(width: int = 6, hidden: int = 24) -> MlpWeights:
    generator = torch.Generator().manual_seed(0)
    shapes = [(hidden, width), (hidden,), (width, hidden), (width,)]
    return MlpWeights(*(0.5 * torch.randn(shape, generator=generator) for shape in shapes))


def inputs(samples: int = 24, tokens: int = 5, width: int = 6) -> Tensor:
    return torch.randn(samples, tokens, width, generator=torch.Generator().manual_seed(1))


def error(weights: MlpWeights, x: Tensor) -> float:
    original = mlp()
    wanted = functional.linear(
        functional.gelu(functional.linear(x, original.weight1, original.bias1)), original.weight2
    )
    wanted = wanted + original.bias2
    hidden = functional.relu(functional.linear(x, weights.weight1, weights.bias1))
    return float(functional.mse_loss(functional.linear(hidden, weights.weight2, weights.bias2), wanted))


def test_it_beats_plain_replacement_on_new_inputs() -> None:
    found = relu_mlp(mlp(), inputs(), settings=ReluSettings(FIT, clip_quantile=1.0, rate=3e-3))
    assert found.error < 0.5 * found.replaced_error
    assert found.refitted_error < 0.6 * found.replaced_error
    assert found.error <= found.refitted_error
    fresh = torch.randn(50, 5, 6, generator=torch.Generator().manual_seed(7))
    assert error(found.weights, fresh) < 0.6 * error(mlp(), fresh)
    assert found.clip == float("inf")


def test_descent_alone_helps_too() -> None:
    settings = ReluSettings(FIT, clip_quantile=1.0, rate=1e-2, ridge=1e9)
    found = relu_mlp(mlp(), inputs(), settings=settings)
    assert found.error < 0.7 * found.replaced_error
    assert found.fit.best < found.fit.start


def test_biases_of_zero_are_learned_too() -> None:
    old = mlp()
    old = replace(old, bias1=torch.zeros(24), bias2=torch.zeros(6))
    settings = ReluSettings(FIT, clip_quantile=1.0, rate=1e-2, ridge=1e9)
    new = relu_mlp(old, inputs(), settings=settings).weights
    assert float(new.bias1.abs().mean()) > 1e-3
    assert float(new.bias2.abs().mean()) > 1e-3


def test_the_clip_is_a_quantile_of_the_positive_hidden_values_and_is_learned_to_be_harmless() -> None:
    x = inputs()
    settings = ReluSettings(replace(FIT, iterations=150), clip_quantile=0.9, rate=1e-2)
    found = relu_mlp(mlp(), x, settings=settings)
    hidden = functional.gelu(functional.linear(x, mlp().weight1, mlp().bias1))
    assert 0.85 < float((hidden[hidden > 0] <= found.clip).float().mean()) < 0.95
    assert found.fit.best < 0.9 * found.fit.start


def test_it_is_never_worse_than_its_start_and_does_not_touch_the_inputs() -> None:
    original, x = mlp(), inputs()
    kept = [t.clone() for t in (*original.tensors(), x)]
    found = relu_mlp(original, x, settings=ReluSettings(FIT, rate=1e3))
    assert found.fit.best <= found.fit.start
    assert all(torch.equal(a, b) for a, b in zip(kept, (*original.tensors(), x), strict=True))


def test_importance_decides_which_outputs_are_kept() -> None:
    importance = torch.tensor([100.0, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3])
    settings = ReluSettings(replace(FIT, iterations=200), clip_quantile=1.0, rate=1e-2, ridge=1e9)
    weighted, plain = (relu_mlp(mlp(), inputs(), importance=i, settings=settings) for i in (importance, None))
    x = inputs()
    wanted = functional.gelu(functional.linear(x, mlp().weight1, mlp().bias1)) @ mlp().weight2[0] + mlp().bias2[0]

    def first(weights: MlpWeights) -> float:
        hidden = functional.relu(functional.linear(x, weights.weight1, weights.bias1))
        return float((hidden @ weights.weight2[0] + weights.bias2[0] - wanted).square().mean())

    assert first(weighted.weights) < first(plain.weights)


def test_it_is_repeatable_and_continues(tmp_path: Path) -> None:
    settings = ReluSettings(FIT)
    once, again = (relu_mlp(mlp(), inputs(), settings=settings) for _ in range(2))
    stopped = ReluSettings(replace(FIT, budget_seconds=0.0))
    part = relu_mlp(mlp(), inputs(), settings=stopped, path=tmp_path / "mlp.pt")
    assert part.fit.stopped == "budget"
    whole = relu_mlp(mlp(), inputs(), settings=settings, path=tmp_path / "mlp.pt")
    for found in (again, whole):
        assert found.fit == once.fit
        assert all(torch.equal(a, b) for a, b in zip(found.weights.tensors(), once.weights.tensors(), strict=True))


def test_shapes_that_are_no_mlp_are_refused() -> None:
    w = mlp()
    for tensors in (
        (w.weight1.T, w.bias1, w.weight2, w.bias2),
        (w.weight1, w.bias2, w.weight2, w.bias2),
        (w.weight1 * float("nan"), w.bias1, w.weight2, w.bias2),
    ):
        with pytest.raises(ModelError) as caught:
            MlpWeights(*tensors)
        assert caught.value.code == "EQ-M282"
    with pytest.raises(ModelError):
        relu_mlp(w, inputs(width=5))


def test_bad_data_is_refused() -> None:
    bad = inputs()
    bad[3, 2, 1] = float("inf")
    for x, code in ((bad, "EQ-D280"), (inputs()[:0], "EQ-D280"), (inputs()[:1], "EQ-D283")):
        with pytest.raises(DataError) as caught:
            relu_mlp(mlp(), x, settings=ReluSettings(FIT))
        assert caught.value.code == code
    for importance in (torch.ones(7), -torch.ones(1), torch.zeros(1)):
        with pytest.raises(DataError) as caught:
            relu_mlp(mlp(), inputs(), importance=importance)
        assert caught.value.code == "EQ-D281"


@pytest.mark.parametrize("bad", [{"rate": 0.0}, {"clip_quantile": 0.4}, {"clip_weight": -1.0}, {"ridge": 0.0}])
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError) as caught:
        ReluSettings(**bad)
    assert caught.value.code == "EQ-U286"
