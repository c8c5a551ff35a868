"""EoRA: a low-rank branch beside a quantized layer that makes good what rounding did to the outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeq.errors import UsageError
from edgeq.quant.rounding.grid import require_matrix
from edgeq.quant.rounding.moments import LayerMoments, Moments, fit_and_judge
from edgeq.quant.rounding.second_order import excess_error

MAX_COMPENSATED = 3
"""Layers that may get a branch: each costs two more kernel launches and float multiplications on the device."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """The branch `y = W' x + up (down x)`.

    Args:
        up: Float32 `(O, rank)`, orthonormal columns.
        down: Float32 `(rank, I)`.
        before: Output error without the branch, means matched; see `excess_error`.
        after: Output error with it.
        macs: Extra multiply-accumulates for each row of inputs, which is also the number of extra weights.
        share: `macs` over those of the layer itself.
    """

    up: Tensor
    down: Tensor
    before: float
    after: float
    macs: int
    share: float


@torch.no_grad()
def eora(weight: Tensor, quantized: Tensor, moments: Moments | LayerMoments, rank: int) -> LowRank | None:
    """The branch of a given rank that lowers the output error most; None where it gains nothing.

    Liu et al. 2024, "EoRA" (arXiv 2410.21271): the best rank-r approximation of the error `E = W - W'` weighted by the
    inputs' covariance C, `min tr (E - U D) C (E - U D)^T`. Deviations: the same optimum is reached without inverting
    eigenvalues, since `U D = P P^T E` for the leading eigenvectors P of `E C E^T`; C is centred because the bias
    carries the mean; and a branch that gains nothing on the held-out rows is refused.

    Args:
        weight: Float weight `(O, I)`.
        quantized: Values (not codes) of the rounded weight `(O, I)`.
        moments: Inputs of the layer.
        rank: Width of the branch.

    Raises:
        UsageError: The shapes do not fit, or the branch would cost as much as the layer.
        ModelError: A weight holds NaN or infinity.
    """
    require_matrix(weight)
    outputs, inputs = weight.shape
    macs = rank * (outputs + inputs)
    if rank < 1 or macs >= outputs * inputs:
        limit = (outputs * inputs - 1) // (outputs + inputs)
        raise UsageError(
            f"a branch of rank {rank} costs {macs} multiplications beside a layer of {outputs * inputs}",
            code="EQ-U244",
            hint=f"use a rank of 1 to {limit}" if limit else "keep this small layer at more bits instead",
        )
    fit, judge = fit_and_judge(moments)
    before = excess_error(weight, quantized, judge)
    error = weight.to(torch.float64) - quantized.to(torch.float64)
    leading = torch.linalg.eigh(error @ fit.covariance() @ error.T).eigenvectors[:, -rank:].flip(1)
    up, down = leading.to(torch.float32).contiguous(), (leading.T @ error).to(torch.float32)
    after = excess_error(weight, quantized.to(torch.float64) + up.double() @ down.double(), judge)
    if not after < before - 1e-9 * abs(before):
        return None
    return LowRank(up, down, before, after, macs, macs / (outputs * inputs))


def compensate(
    layers: Mapping[str, tuple[Tensor, Tensor, Moments | LayerMoments]],
    scores: Mapping[str, float],
    rank: int,
    *,
    limit: int = MAX_COMPENSATED,
) -> dict[str, LowRank]:
    """Branches for the most sensitive layers, at most a few; see `eora`.

    Args:
        layers: Float weight, rounded weight and input moments by name.
        scores: Sensitivity by name; layers without one are left out.
        rank: Width of every branch.
        limit: Most branches, up to `MAX_COMPENSATED`.

    Returns:
        Branches by name, most sensitive layer first, without those that would gain nothing.

    Raises:
        UsageError: A limit out of bounds, a score that is not finite, or as `eora`.
        ModelError: As `eora`.
    """
    if not 0 <= limit <= MAX_COMPENSATED:
        raise UsageError(
            f"{limit} layers with a branch: 0 to {MAX_COMPENSATED} are allowed",
            code="EQ-U244",
            hint="give more layers more bits instead: a branch everywhere costs more than it saves",
        )
    known = [name for name in layers if name in scores]
    if not all(math.isfinite(scores[name]) for name in known):
        raise UsageError("a sensitivity is not finite", code="EQ-U244", hint="measure the sensitivities again")
    ranked = sorted(known, key=lambda name: -scores[name])[:limit]
    found = {name: eora(*layers[name], rank) for name in ranked}
    return {name: branch for name, branch in found.items() if branch is not None}
