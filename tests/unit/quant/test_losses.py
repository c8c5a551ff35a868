"""Reconstruction losses against closed forms: linear suffixes have known Fisher information and Hessians."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeq.errors import DataError, ModelError, UsageError
from edgeq.quant.losses import (
    FeatureDistance,
    ImportanceLoss,
    LossSum,
    PredictionDifference,
    TaskLoss,
    fisher_diagonal,
    global_local,
    mse,
    perturbation_importance,
)

INDEX = torch.arange(4)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def head(features: int = 3, classes: int = 5) -> nn.Linear:
    layer = nn.Linear(features, classes)
    with torch.no_grad():
        layer.weight.copy_(randn(classes, features, seed=9))
        layer.bias.copy_(randn(classes, seed=8))
    return layer


def covariance(logits: Tensor) -> Tensor:
    p = logits.double().softmax(-1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


def test_even_importance_is_the_mean_squared_error() -> None:
    output, target = randn(4, 6), randn(4, 6, seed=1)
    for importance in (torch.full((1, 6), 7.0), torch.full((10, 6), 0.3)):
        found = ImportanceLoss(importance)(output, target, INDEX)
        assert float(found) == pytest.approx(float(mse(output, target, INDEX)))


def test_importance_is_looked_up_by_sample() -> None:
    importance = torch.zeros(10, 1)
    importance[7] = 2.0
    output, target = torch.ones(2, 6), torch.zeros(2, 6)
    loss = ImportanceLoss(importance)
    assert float(loss(output, target, torch.tensor([3, 5]))) == 0
    assert float(loss(output, target, torch.tensor([7, 5]))) == pytest.approx(5.0)  # mean weight 1: 10 on one of ten


def test_fisher_information_of_a_linear_head() -> None:
    suffix, outputs = head(), randn(6, 3, seed=2)
    weight = suffix.weight.detach().double()
    exact = torch.einsum("ci,bcd,di->bi", weight, covariance(suffix(outputs)), weight)
    found = fisher_diagonal(suffix, outputs, draws=4000, batch_size=4)
    torch.testing.assert_close(found.double(), exact, rtol=0.12, atol=1e-3)
    assert torch.equal(fisher_diagonal(suffix, outputs, seed=3), fisher_diagonal(suffix, outputs, seed=3))
    assert all(p.grad is None for p in suffix.parameters())


def test_fisher_information_sees_where_the_network_looks() -> None:
    tail = head()
    found = fisher_diagonal(lambda tokens: tail(tokens[:, 0]), randn(8, 5, 3), draws=2)
    assert float(found[:, 1:].abs().max()) == 0
    assert float(found[:, 0].min()) >= 0 and float(found[:, 0].max()) > 0


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_perturbation_gives_the_row_sums_of_the_hessian(offset: float) -> None:
    suffix, outputs = head(), randn(6, 3, seed=2) + offset
    with torch.no_grad():  # the same logits at any offset: what differs is the rounding of the perturbed output
        suffix.bias -= offset * suffix.weight.sum(1)
    weight, temperature = suffix.weight.detach().double(), 20.0
    logits = outputs.double() @ weight.T + suffix.bias.detach().double()
    fisher = covariance(logits / temperature) / temperature**2
    exact = torch.einsum("ci,bcd,dj->bij", weight, fisher, weight).sum(2).abs().mean(0, keepdim=True)
    step = 1e-3 if offset == 0 else 1e-6
    found = perturbation_importance(suffix, outputs, step=step, temperature=temperature, batch_size=4)
    torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=1e-7)


def test_perturbation_leaves_the_suffix_as_it_was() -> None:
    suffix = head()
    perturbation_importance(suffix, randn(2, 3))
    assert suffix.weight.dtype == torch.float32


def test_the_difference_of_equal_predictions_is_zero_and_grows() -> None:
    suffix, target = head(), randn(4, 3)
    loss = PredictionDifference(suffix, suffix(target).detach())
    assert float(loss(target, target, INDEX).detach()) == pytest.approx(0, abs=1e-6)
    near, far = (float(loss(target + e, target, INDEX).detach()) for e in (0.1, 1.0))
    assert 0 < near < far


def test_the_prediction_ignores_what_the_head_ignores() -> None:
    suffix, target = head(), randn(4, 3)
    with torch.no_grad():
        suffix.weight[:, 2] = 0
    loss = PredictionDifference(suffix, suffix(target).detach())
    output = target.clone()
    output[:, 2] += 100
    assert float(loss(output, target, INDEX).detach()) == pytest.approx(0, abs=1e-6)
    assert float(mse(output, target, INDEX)) > 1000


def test_features_are_compared_behind_the_suffix() -> None:
    features = randn(9, 2)
    loss = FeatureDistance(lambda x: x[:, :2], features)
    index = torch.tensor([8, 1])
    output = torch.cat([features[index] + 2, torch.full((2, 3), 99.0)], dim=1)
    assert float(loss(output, torch.zeros(2, 5), index)) == pytest.approx(4)


def test_the_task_sees_output_and_sample() -> None:
    loss = TaskLoss(lambda output, index: output.sum() * float(index[0]))
    assert float(loss(torch.ones(2, 2), torch.zeros(2, 2), torch.tensor([3, 1]))) == 12


def test_terms_of_an_anchored_sum_are_relative_to_the_start() -> None:
    output, target = randn(4, 6), randn(4, 6, seed=1)
    total = LossSum.of((1.0, lambda o, t, i: 1e6 * mse(o, t, i)), (2.0, mse)).anchored(output, target, INDEX)
    assert float(total(output, target, INDEX)) == pytest.approx(3.0)
    half = target + (output - target) / 2
    assert float(total(half, target, INDEX)) == pytest.approx(0.75)
    exact = LossSum.of((1.0, mse)).anchored(target, target, INDEX)
    assert float(exact(output, target, INDEX)) == pytest.approx(float(mse(output, target, INDEX)))


def test_global_and_local_errors_add_up() -> None:
    suffix = head()
    target = randn(4, 3)
    loss = global_local(suffix, suffix(target).detach(), local=2.0)
    output = randn(4, 3, seed=5)
    with torch.no_grad():
        expected = functional.mse_loss(suffix(output), suffix(target)) + 2 * functional.mse_loss(output, target)
        assert float(loss(output, target, INDEX)) == pytest.approx(float(expected))
        assert float(loss.anchored(output, target, INDEX)(output, target, INDEX)) == pytest.approx(3.0)


def test_losses_carry_gradients_to_the_output() -> None:
    suffix, target = head(), randn(4, 3)
    losses = [
        mse,
        ImportanceLoss(torch.ones(1, 3)),
        PredictionDifference(suffix, suffix(target).detach()),
        global_local(suffix, suffix(target).detach()),
    ]
    for loss in losses:
        output = (target + 1).requires_grad_()
        (gradient,) = torch.autograd.grad(loss(output, target, INDEX), output)
        assert float(gradient.abs().sum()) > 0


@pytest.mark.parametrize("importance", [torch.zeros(1, 3), -torch.ones(1, 3), torch.tensor([float("nan")])])
def test_bad_importance_is_refused(importance: Tensor) -> None:
    with pytest.raises(DataError) as caught:
        ImportanceLoss(importance)
    assert caught.value.code == "EQ-D282"


def test_networks_without_logits_are_refused() -> None:
    for call in (
        lambda: fisher_diagonal(lambda x: x, randn(2, 3, 4)),
        lambda: perturbation_importance(nn.Identity(), randn(2, 3, 4)),
        lambda: PredictionDifference(nn.Identity(), randn(2, 3, 4)),
    ):
        with pytest.raises(ModelError) as caught:
            call()
        assert caught.value.code == "EQ-M280"


def test_impossible_settings_are_refused() -> None:
    outputs = randn(2, 3)
    for call in (
        lambda: fisher_diagonal(head(), outputs, draws=0),
        lambda: perturbation_importance(head(), outputs, step=0),
        lambda: perturbation_importance(head(), outputs, temperature=0),
        lambda: PredictionDifference(head(), outputs, temperature=-1),
        lambda: LossSum.of(),
        lambda: LossSum.of((0.0, mse)),
    ):
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.code == "EQ-U283"
