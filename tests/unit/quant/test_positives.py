"""The task-guided positive loss: what counts, and what does not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgeq.errors import UsageError
from edgeq.quant.losses import LossSum, TaskLoss, mse
from edgeq.quant.positives import PositiveLoss, positives


def maps(seed: int = 0) -> Tensor:
    return 2 * torch.randn((3, 5, 4, 6), generator=torch.Generator().manual_seed(seed))


def loss_of(**changes: float) -> PositiveLoss:
    return PositiveLoss(lambda x: x, maps(), 2, **{"threshold": 0.5, **changes})  # type: ignore[arg-type]


INDEX = torch.tensor([2, 0])


def test_only_what_float_sees_counts() -> None:
    loss, exact = loss_of(), maps()[INDEX]
    assert float(loss(exact, INDEX)) == 0
    background = exact.clone()
    unseen = exact[:, :2].sigmoid() < 0.5
    background[:, :2][unseen] += 9
    assert float(loss(background, INDEX)) == 0
    elsewhere = (~(exact[:, :2].sigmoid() >= 0.5).any(1, keepdim=True)).expand(-1, 3, -1, -1)
    background[:, 2:][elsewhere] -= 5
    assert float(loss(background, INDEX)) == 0


@given(st.integers(0, 500), st.floats(0.01, 3))
def test_any_error_at_a_positive_costs_and_more_costs_more(seed: int, size: float) -> None:
    loss, exact = loss_of(), maps()[INDEX]
    noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(seed))
    small, large = (float(loss(exact + factor * size * noise, INDEX)) for factor in (1, 4))
    assert 0 < small < large


def test_boxes_have_their_weight_and_scores_their_gradient() -> None:
    exact = maps()[INDEX]
    moved = exact.clone()
    moved[:, 2:] += 1
    assert float(loss_of(boxes=0)(moved, INDEX)) == 0
    assert float(loss_of(boxes=3)(moved, INDEX)) == pytest.approx(3)
    leaf = (exact - 1).requires_grad_()
    total = LossSum.of((1, TaskLoss(loss_of())), (1, mse))
    (gradient,) = torch.autograd.grad(total(leaf, exact, INDEX), leaf)
    assert (gradient[:, :2][exact[:, :2].sigmoid() >= 0.5] < 0).all()  # scores are to rise to those of float


def test_the_best_are_kept_and_none_is_no_error() -> None:
    scores = torch.tensor([0.9, 0.2, 0.8, 0.7]).reshape(1, 1, 2, 2)
    assert positives(scores, 0.1, 2).flatten().tolist() == [True, False, True, False]
    assert positives(scores, 0.75, 9).flatten().tolist() == [True, False, True, False]
    silent = PositiveLoss(lambda x: x, maps() - 100, 2)
    assert float(silent(maps()[INDEX], INDEX)) == 0


@pytest.mark.parametrize("changes", [{"classes": 0}, {"classes": 6}, {"threshold": 1.0}, {"most": 0}, {"boxes": -1}])
def test_arguments_out_of_bounds_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(UsageError) as caught:
        PositiveLoss(lambda x: x, maps(), **{"classes": 2, **changes})  # type: ignore[arg-type]
    assert caught.value.code == "EQ-U831"
