"""Rounders that descend a gradient: AdaRound, FlexRound and SignRound on one layer.

The error of a layer is quadratic in its weight, `tr(D C D^T)` with C the covariance of its inputs, so one product with
C gives the exact gradient over all rows: no batches, no random numbers, the same result every time.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from edgeq.quant.rounding.grid import WeightGrid
from edgeq.quant.rounding.problem import Effort, LayerProblem, Rounded
from edgeq.quant.rounding.soft import SOFT_ROUNDINGS, Descent

_ITERATIONS = {"adaround": 1000, "flexround": 500, "signround": 200}
_CHECKS = 20


@torch.enable_grad()  # whoever rounds a whole graph does it without gradients
def learn(problem: LayerProblem, effort: Effort | None = None, *, kind: str) -> Rounded:
    """Train a soft rounding on the training rows; return the best codes met, judged on the held-out rows.

    Nearest rounding is the first candidate, so that the result is never worse than it on those rows.

    Args:
        problem: The layer.
        effort: Iterations (1000, 500 and 200 for AdaRound, FlexRound and SignRound; 20 000, 5000 and 200 in the
            papers, which draw batches), learning rate and time.
        kind: Key of `SOFT_ROUNDINGS`.
    """
    effort = effort or Effort()
    grid = WeightGrid.of(problem.qparams, problem.goal)
    codes, qparams, moment = grid.codes(problem.goal), problem.qparams, "nearest"
    least = first = problem.error(grid.reals(codes))
    covariance = problem.moments.train.covariance(centred=problem.adjust_bias).to(torch.float32)
    unit = float(_quadratic(grid.reals(codes) - problem.goal.to(torch.float32), covariance))
    if not unit > 0:
        return problem.answer(codes, note="nearest: nothing to gain on the training rows")
    soft = SOFT_ROUNDINGS[kind](problem.goal, problem.qparams)
    count = effort.iterations or _ITERATIONS[kind]
    descent = Descent([soft], count, effort.learning_rate)
    pause = max(count // _CHECKS, 1)
    step = 0
    for progress in effort.steps(count):
        loss = _quadratic(soft.weight() - soft.target, covariance) / unit + soft.regularizer(progress)
        loss.backward()  # type: ignore[no-untyped-call]
        descent.step(progress)
        step += 1
        if step % pause and step != count:
            continue
        found = problem.answer(soft.codes(), soft.qparams())
        error = problem.error(found.weight)
        if error < least:
            codes, qparams, least, moment = found.codes, found.qparams, error, f"step {step} of {count}"
    judge = "held-out" if problem.moments.holdout.mass > 0 else "training"
    return problem.answer(codes, qparams, f"{moment}, error {least - first:+.3g} on the {judge} rows")


adaround = partial(learn, kind="adaround")
flexround = partial(learn, kind="flexround")
signround = partial(learn, kind="signround")


def _quadratic(error: Tensor, covariance: Tensor) -> Tensor:
    """`tr(D C D^T)`; C is symmetric, so that its gradient `2 D C` reuses the product of the value."""
    product = error.detach() @ covariance
    return 2 * (product * error).sum() - (product * error.detach()).sum()
