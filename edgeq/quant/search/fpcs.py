"""Fast progressive combining search: two parameters of a quantizer at once, by a beam over ever finer scales."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeq.errors import UsageError

Array = NDArray[np.float64]
PairErrors = Callable[[Array, Array], Array]
"""Errors `(n,)` of n candidates, given their scales `(n,)` and partners `(n,)`."""


@dataclass(frozen=True)
class FpcsBudget:
    """How much a progressive search may try.

    Args:
        survivors: Candidates kept after each step.
        width: New candidates of each step; `width / survivors` scales around each survivor.
        steps: Refinements after the first grid.

    Raises:
        UsageError: A survivor would get fewer than two new scales, or a number is not positive.
    """

    survivors: int = 16
    width: int = 128
    steps: int = 5

    def __post_init__(self) -> None:
        if self.survivors < 1 or self.steps < 0 or self.width < 2 * self.survivors:
            raise UsageError(
                f"impossible progressive search: {self}",
                code="EQ-U281",
                hint="the width must be at least twice the number of survivors",
            )


@dataclass(frozen=True)
class PairChoice:
    """What a progressive search found.

    Args:
        scale: The first parameter.
        partner: The second, one of those given.
        error: Its error.
        evaluations: Candidates tried.
    """

    scale: float
    partner: float
    error: float
    evaluations: int


def fpcs(errors: PairErrors, scales: ArrayLike, partners: ArrayLike, budget: FpcsBudget | None = None) -> PairChoice:
    """Choose a scale and a discrete partner (a zero point, the base of a logarithmic grid) together.

    AdaLog (Wu et al. 2024, arXiv 2407.12951, algorithm 1): try the whole coarse grid `scales x partners`, keep the
    best, surround each survivor with finer scales that span one step of the grid before, and repeat. Deviations:
    survivors stay in the race beside their offspring, so that the result is never worse than the best of the coarse
    grid; the step afterwards is the distance of neighbouring scales, new or kept.

    Args:
        errors: The objective.
        scales: Positive, evenly spaced, ascending, `(m,)`.
        partners: `(p,)`.
        budget: Size of the beam.

    Raises:
        UsageError: The scales are not positive and ascending, or there is no partner.
    """
    budget = budget or FpcsBudget()
    first, second = np.asarray(scales, dtype=np.float64), np.asarray(partners, dtype=np.float64)
    if first.ndim != 1 or second.ndim != 1 or not first.size or not second.size or not (np.diff(first) > 0).all():
        raise _impossible("the scales must ascend, and there must be a partner")
    if not (np.isfinite(first).all() and first[0] > 0):
        raise _impossible("scales must be positive and finite")
    step = float((first[-1] - first[0]) / (first.size - 1)) if first.size > 1 else 0.0
    pool = np.stack([axis.reshape(-1) for axis in np.meshgrid(first, second, indexing="ij")])
    found = np.asarray(errors(pool[0], pool[1]))
    evaluations, each = pool.shape[1], budget.width // budget.survivors
    offsets = np.linspace(-0.5, 0.5, each)
    for _ in range(budget.steps if step > 0 else 0):
        best = np.argsort(found, kind="stable")[: budget.survivors]
        pool, found = pool[:, best], found[best]
        finer = pool[0][:, None] + offsets * step
        finer = np.where(finer > 0, finer, pool[0][:, None])
        fresh = np.stack([finer.reshape(-1), np.repeat(pool[1], each)])
        pool = np.concatenate([pool, fresh], axis=1)
        found = np.concatenate([found, np.asarray(errors(fresh[0], fresh[1]))])
        evaluations += fresh.shape[1]
        step /= max(each - 1, 2)  # two new scales lie half a step from their survivor on either side
    winner = int(np.argmin(found))
    return PairChoice(float(pool[0, winner]), float(pool[1, winner]), float(found[winner]), evaluations)


def _impossible(message: str) -> UsageError:
    return UsageError(f"cannot search: {message}", code="EQ-U281", hint="pass the coarse grid of a range above zero")
