"""Fidelity and accuracy figures: SQNR of one sample, summaries over samples, top-1 and paired intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeq.errors import InternalError, ModelError

RESAMPLES = 10_000
_DRAWS_AT_ONCE = 1 << 22


def sqnr_db(reference: ArrayLike, test: ArrayLike) -> float:
    """Signal-to-quantization-noise ratio of one sample in dB: `10 log10(var(reference) / mean((reference - test)^2))`.

    The signal is centred, because a constant offset carries no information and would flatter every quantizer.
    Exactly equal arrays give `inf`, also constant ones. An error on a constant reference, and a NaN or an infinity in
    `test`, give `-inf`: the worst that can be.

    Args:
        reference: Output of the float model, any shape.
        test: Output of the quantized model, same shape.

    Raises:
        ModelError: The reference is not finite.
        InternalError: The shapes differ, or are empty.
    """
    wanted, got = np.asarray(reference, dtype=np.float64), np.asarray(test, dtype=np.float64)
    if wanted.shape != got.shape or wanted.size == 0:
        raise InternalError(f"cannot compare outputs of shapes {wanted.shape} and {got.shape}", code="EQ-Z021")
    if not np.isfinite(wanted).all():
        raise ModelError(
            "the float model's output holds NaN or infinity",
            code="EQ-M033",
            hint="check the model and its preprocessing with the float runtime",
        )
    if not np.isfinite(got).all():
        return -math.inf
    if np.array_equal(wanted, got):
        return math.inf
    # both in units of the largest value, so that squares neither overflow nor vanish
    unit = max(float(np.abs(wanted).max()), float(np.abs(got).max()))
    noise = float(np.mean((wanted / unit - got / unit) ** 2))
    # var() of equal values is not exactly 0 when their mean rounds
    signal = 0.0 if wanted.min() == wanted.max() else float((wanted / unit).var())
    if signal == 0:
        return -math.inf
    return 10 * math.log10(signal / noise) if noise > 0 else math.inf


@dataclass(frozen=True)
class Summary:
    """A figure over samples, higher is better.

    Args:
        median: Of all samples.
        worst: Smallest.
        worst_index: Sample that has it (the first of equals).
        n: Number of samples.
    """

    median: float
    worst: float
    worst_index: int
    n: int

    def to_dict(self) -> dict[str, Any]:
        """JSON form; null where a figure is infinite, since JSON has no infinity."""

        def number(value: float) -> float | None:
            return value if math.isfinite(value) else None

        return {
            "median": number(self.median),
            "worst": number(self.worst),
            "worst_index": self.worst_index,
            "n": self.n,
        }


def summarize(values: Sequence[float]) -> Summary:
    """Median and worst of per-sample figures; NaN counts as `-inf`.

    Raises:
        InternalError: There are no values.
    """
    figures = np.asarray(values, dtype=np.float64)
    if figures.size == 0:
        raise InternalError("nothing to summarize", code="EQ-Z021")
    figures = np.where(np.isnan(figures), -np.inf, figures)
    ordered = np.sort(figures)
    lower, upper = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    # the mean of -inf and inf is no number: take the lower, which never flatters
    median = (lower + upper) / 2 if np.isfinite(lower) and np.isfinite(upper) else lower
    worst = int(np.argmin(figures))
    return Summary(float(median), float(figures[worst]), worst, len(figures))


def top1(logits: ArrayLike, labels: ArrayLike) -> float:
    """Share, 0 to 1, of samples whose largest logit is at the label; rows with NaN are wrong, ties go to the first.

    Args:
        logits: `(n, classes)`.
        labels: `(n,)` integers.

    Raises:
        InternalError: The shapes do not fit.
    """
    winners, wanted = _winners(logits), np.asarray(labels)
    if wanted.shape != winners.shape:
        raise InternalError(f"{winners.size} rows of logits but {wanted.size} labels", code="EQ-Z021")
    return float(np.mean((winners == wanted) & (winners >= 0)))


def agreement(reference: ArrayLike, test: ArrayLike) -> float:
    """Share, 0 to 1, of samples on which two models name the same class; rows with NaN never agree.

    Args:
        reference: Logits `(n, classes)` of the float model.
        test: Logits `(n, classes)` of the quantized model.

    Raises:
        InternalError: The shapes do not fit.
    """
    first, second = _winners(reference), _winners(test)
    if np.shape(reference) != np.shape(test):
        raise InternalError(f"logits of shapes {np.shape(reference)} and {np.shape(test)}", code="EQ-Z021")
    return float(np.mean((first == second) & (first >= 0)))


def bootstrap_difference(
    test: ArrayLike, reference: ArrayLike, *, seed: int, level: float = 0.95, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Percentile bootstrap interval of `mean(test - reference)` over paired samples.

    Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13. Samples are drawn in pairs, so what is
    common to both models cancels. Equal differences are pooled and drawn as one multinomial, which is the same
    distribution and makes 0/1 scores of any number of samples cheap.

    Args:
        test: Scores `(n,)`.
        reference: Scores `(n,)` of the same samples.
        seed: Of the draws; the same seed gives the same interval.
        level: Coverage, 0 to 1.
        resamples: Number of draws.

    Raises:
        InternalError: The shapes differ or are empty, a score is not finite, or an option is out of bounds.
    """
    scores, base = np.asarray(test, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if scores.shape != base.shape or scores.ndim != 1 or scores.size == 0 or not 0 < level < 1 or resamples < 1:
        raise InternalError(f"no paired scores: shapes {scores.shape} and {base.shape}", code="EQ-Z021")
    values, counts = np.unique(scores - base, return_counts=True)
    if not np.isfinite(values).all():
        raise InternalError("a score is not finite", code="EQ-Z021")
    generator = np.random.default_rng(seed)
    share, piece = counts / scores.size, max(1, _DRAWS_AT_ONCE // len(values))
    means = np.concatenate(
        [
            generator.multinomial(scores.size, share, size=min(piece, resamples - done)) @ values
            for done in range(0, resamples, piece)
        ]
    )
    low, high = np.quantile(means / scores.size, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_score(scores: Sequence[float]) -> float:
    """The score of a data set whose metric is a mean over its samples."""
    return float(np.mean(scores))


def bootstrap_totals(
    test: Sequence[Any],
    reference: Sequence[Any],
    total: Callable[[Sequence[Any]], float],
    *,
    seed: int,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `total(test) - total(reference)` over paired samples, as `bootstrap_difference`.

    Args:
        test: One record a sample.
        reference: Records of the same samples.
        total: The score of a data set from its records; not a number where a draw has none (such draws are left out).
        seed: Of the draws.
        level: Coverage, 0 to 1.
        resamples: Number of draws.

    Raises:
        InternalError: The numbers of records differ, are 0, or no draw has a score.
    """
    if total is mean_score:
        return bootstrap_difference(test, reference, seed=seed, level=level, resamples=resamples)
    if len(test) != len(reference):
        raise InternalError(f"no paired records: {len(test)} and {len(reference)}", code="EQ-Z021")
    scores = [bootstrap_scores(records, total, seed=seed, resamples=resamples) for records in (test, reference)]
    return percentile_interval(scores[0] - scores[1], level)


def points_lost(reference: float, found: float, *, higher_is_better: bool) -> float:
    """How much worse `found` is than `reference`, in the score's unit; negative where it is better."""
    return reference - found if higher_is_better else found - reference


def bootstrap_scores(
    records: Sequence[Any], total: Callable[[Sequence[Any]], float], *, seed: int, resamples: int = RESAMPLES
) -> NDArray[np.float64]:
    """Scores `(resamples,)` of data sets drawn from the records with replacement.

    The same seed draws the same places, so that the scores of paired records may be subtracted.

    Raises:
        InternalError: There are no records.
    """
    count = len(records)
    if not count:
        raise InternalError("no records to draw from", code="EQ-Z021")
    generator = np.random.default_rng(seed)
    draws = (generator.integers(count, size=count) for _ in range(resamples))
    if total is mean_score:
        values = np.asarray(records, dtype=np.float64)
        return np.fromiter((values[d].mean() for d in draws), dtype=np.float64)
    return np.fromiter((total([records[i] for i in d]) for d in draws), dtype=np.float64)


def percentile_interval(values: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Bounds of the middle share `level` of bootstrapped values; those that are not finite are left out.

    Raises:
        InternalError: None is finite.
    """
    found = values[np.isfinite(values)]
    if found.size == 0:
        raise InternalError("no draw has a score", code="EQ-Z021")
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _winners(logits: ArrayLike) -> NDArray[np.int64]:
    """Index of the largest logit per row, -1 where a row holds NaN."""
    rows = np.asarray(logits, dtype=np.float64)
    if rows.ndim != 2 or rows.size == 0:
        raise InternalError(f"logits must be (n, classes), not {rows.shape}", code="EQ-Z021")
    return np.where(np.isnan(rows).any(axis=1), -1, rows.argmax(axis=1)).astype(np.int64)
