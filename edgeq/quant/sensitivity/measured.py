"""Sensitivity by trying: quantize one tensor at a time and look at the outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from edgeq.errors import InternalError, ModelError, UsageError
from edgeq.journal import Journal
from edgeq.progress import Advance

Key = TypeVar("Key")

_SCHEMA = "edgeq.sensitivity/1"


def measured(
    widths: Mapping[str, Sequence[int]],
    loss: Callable[[str, int], float],
    *,
    journal: Path | None = None,
    key: str = "",
    progress: Advance | None = None,
) -> dict[tuple[str, int], float]:
    """Loss of the network with one tensor at each of its widths, one tensor at a time.

    The sensitivity of ZeroQ (arXiv 2001.00281) and of AdaQuant's integer program (arXiv 2006.10518). Usual losses are
    `kl_divergence` of the outputs for logits and `mean_squared_error` for everything else.

    Args:
        widths: Bits to try, by name.
        loss: Runs the network with that tensor at that many bits, all others as they are; lower is better.
        journal: File that keeps every finished measurement, so that an interrupted run resumes where it stopped.
        key: What the measurements depend on (a hash of model, data and settings); a journal of another key is refused.
        progress: Called with 1 after each measurement, and at once for those found in the journal.

    Returns:
        Loss by (name, bits), in the order of `widths`.

    Raises:
        UsageError: There is nothing to measure.
        ModelError: A loss is NaN or infinite.
        DataError: The journal is damaged or belongs to something else.
    """
    wanted = [(name, bits) for name, offered in widths.items() for bits in offered]
    if not wanted:
        raise UsageError("there is no tensor to measure", code="EQ-U246", hint="name at least one tensor and width")
    known = Journal(_SCHEMA, key, journal)
    result: dict[tuple[str, int], float] = {}
    for name, bits in wanted:
        if (name, bits) not in known:
            value = float(loss(name, bits))
            if not math.isfinite(value):
                raise ModelError(
                    f"with {name} alone at {bits} bits the loss is {value}",
                    code="EQ-M241",
                    place=name,
                    hint=f"leave {bits} bits out for this tensor",
                )
            known[name, bits] = value
        result[name, bits] = float(known[name, bits])
        if progress is not None:
            progress(1)
    return result


@torch.no_grad()
def kl_divergence(reference: Tensor, test: Tensor) -> float:
    """Mean over rows of `KL(softmax(reference) || softmax(test))` in nats; infinite where `test` is not finite.

    Args:
        reference: Logits of the float network, `(..., classes)`.
        test: Logits of the quantized network, same shape.

    Raises:
        InternalError: The shapes differ or are empty.
        ModelError: The reference is not finite.
    """
    if not _comparable(reference, test):
        return math.inf
    p = torch.log_softmax(reference.to(torch.float64), dim=-1)
    q = torch.log_softmax(test.to(torch.float64), dim=-1)
    rows = (p.exp() * (p - q)).sum(-1)
    return max(0.0, float(rows.mean()))


@torch.no_grad()
def mean_squared_error(reference: Tensor, test: Tensor) -> float:
    """Mean of `(reference - test)^2` over everything; infinite where `test` is not finite.

    Args:
        reference: Output of the float network, any shape.
        test: Output of the quantized network, same shape.

    Raises:
        InternalError: The shapes differ or are empty.
        ModelError: The reference is not finite.
    """
    if not _comparable(reference, test):
        return math.inf
    return float((reference.to(torch.float64) - test.to(torch.float64)).square().mean())


def rank_correlation(first: Mapping[Key, float], second: Mapping[Key, float]) -> float:
    """Spearman's rank correlation, -1 to 1, of two scores of the same things; only common keys count.

    Raises:
        UsageError: Fewer than three common keys, a score that is not finite, or one that never changes.
    """
    from scipy.stats import spearmanr  # type: ignore[import-untyped] # slow to import

    common = [key for key in first if key in second]
    columns = [[scores[key] for key in common] for scores in (first, second)]
    usable = all(len(set(column)) > 1 and all(map(math.isfinite, column)) for column in columns)
    if len(common) < 3 or not usable:
        raise UsageError(
            f"scores of {len(common)} common things, some constant or not finite, have no rank correlation"
            if len(common) >= 3
            else f"a rank correlation needs three things or more, not {len(common)}",
            code="EQ-U246",
            hint="score more tensors",
        )
    return float(spearmanr(*columns).statistic)


def _comparable(reference: Tensor, test: Tensor) -> bool:
    """Whether `test` is finite; raises when the reference cannot be compared with."""
    if reference.shape != test.shape or reference.numel() == 0:
        shapes = f"{tuple(reference.shape)} and {tuple(test.shape)}"
        raise InternalError(f"cannot compare outputs of shapes {shapes}", code="EQ-Z240")
    if not bool(torch.isfinite(reference).all()):
        raise ModelError(
            "the float network's output holds NaN or infinity",
            code="EQ-M241",
            hint="check the model and its preprocessing with the float runtime",
        )
    return bool(torch.isfinite(test).all())
