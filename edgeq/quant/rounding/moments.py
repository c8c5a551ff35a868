"""Second moments of the inputs of one linear-like layer: all that the second-order rounders need to know of the data.

The rows themselves are never kept, so that any number of calibration samples fits in `O(width^2)` memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgeq.errors import DataError, InternalError, UsageError

_ROWS_AT_ONCE = 4096  # bounds the memory of the copies


@dataclass(frozen=True, eq=False)
class Moments:
    """Weighted sums over rows of quantized inputs `xq` and of their drift `d = x - xq` from the float inputs.

    The drift is summed rather than `x` itself: it is small, and a difference of two large sums would lose it. Sums
    are float64. Do not change the tensors in place.

    Args:
        gram: `sum w xq^T xq`, `(I, I)`, symmetric positive semidefinite.
        drift: `sum w xq^T d`, `(I, I)`.
        sum_q: `sum w xq`, `(I,)`.
        sum_drift: `sum w d`, `(I,)`.
        rows: Number of rows seen.
        mass: Sum of the row weights; `rows` when there are none.
    """

    gram: Tensor
    drift: Tensor
    sum_q: Tensor
    sum_drift: Tensor
    rows: int
    mass: float

    @classmethod
    def empty(cls, width: int) -> Moments:
        """The moments of no rows, for layers with `width` inputs.

        Raises:
            UsageError: `width` is not positive.
        """
        if width < 1:
            raise UsageError(f"a layer needs at least one input, not {width}", code="EQ-U220")
        square = torch.zeros(width, width, dtype=torch.float64)
        line = torch.zeros(width, dtype=torch.float64)
        return cls(square, square, line, line, 0, 0.0)

    @classmethod
    def of(cls, xq: Tensor, x: Tensor | None = None, weights: Tensor | None = None) -> Moments:
        """The moments of some rows.

        Args:
            xq: Inputs that the quantized layer will see, `(N, I)`.
            x: Inputs of the float layer for the same rows, `(N, I)`; `xq` itself when None.
            weights: Importance of each row, `(N,)`, at least 0; all 1 when None.

        Raises:
            UsageError: The shapes do not fit.
            DataError: An input is NaN or infinite, or a weight is negative.
        """
        _check_rows(xq, x, weights)
        total = cls.empty(xq.shape[1])
        for start in range(0, xq.shape[0], _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            q = xq[part].detach().to(torch.float32)
            d = None if x is None else x[part].detach().to(torch.float32) - q
            w = None if weights is None else weights[part].detach().to(torch.float32)
            total = total.merge(_sums(q, d, w))
        return total

    @property
    def width(self) -> int:
        """Number of inputs `I`."""
        return self.gram.shape[0]

    @property
    def mean_q(self) -> Tensor:
        """Mean quantized input, `(I,)`; zero without rows."""
        return self.sum_q / self.mass if self.mass > 0 else self.sum_q

    @property
    def mean_x(self) -> Tensor:
        """Mean float input, `(I,)`; zero without rows."""
        return self.mean_q + (self.sum_drift / self.mass if self.mass > 0 else self.sum_drift)

    def covariance(self, *, centred: bool = True) -> Tensor:
        """`E[xq^T xq]`, `(I, I)`, about the mean if `centred`; zero without rows.

        A layer whose bias may change should use the centred form: a matched bias removes the error of the mean.
        """
        if self.mass <= 0:
            return torch.zeros_like(self.gram)
        if not centred:
            return self.gram / self.mass
        result = self.gram / self.mass - torch.outer(self.mean_q, self.mean_q)
        # What cancellation leaves of a constant input is noise, also where it is not negative.
        noise = result.diagonal() <= 1e-12 * self.gram.diagonal() / self.mass
        result[noise] = 0.0
        result[:, noise] = 0.0
        return result

    def drift_covariance(self, *, centred: bool = True) -> Tensor:
        """`E[xq^T d]`, `(I, I)`, about the means if `centred`; zero without rows."""
        if self.mass <= 0:
            return torch.zeros_like(self.drift)
        result = self.drift / self.mass
        return result - torch.outer(self.mean_q, self.sum_drift / self.mass) if centred else result

    def merge(self, other: Moments) -> Moments:
        """The moments of the rows of both.

        Raises:
            InternalError: They belong to layers of different widths.
        """
        if self.width != other.width:
            raise InternalError(f"cannot merge moments of widths {self.width} and {other.width}", code="EQ-Z220")
        return Moments(
            self.gram + other.gram,
            self.drift + other.drift,
            self.sum_q + other.sum_q,
            self.sum_drift + other.sum_drift,
            self.rows + other.rows,
            self.mass + other.mass,
        )


class LayerMoments:
    """Accumulates the moments of one layer batch by batch; every few batches are held out.

    Held-out rows choose what training rows cannot: how strongly to shrink a fit. Whole batches are held out, because
    rows of one image resemble each other too much to test a fit.

    Convolutions come unfolded, `(N, I * kh * kw)`, and every group of a grouped layer has moments of its own.

    Args:
        width: Number of inputs `I`.
        holdout_every: Every so many calls of `update` are held out, starting with the last of the first run; 0 never.

    Raises:
        UsageError: `width` is not positive, or `holdout_every` is 1 or negative.
    """

    def __init__(self, width: int, *, holdout_every: int = 4) -> None:
        if holdout_every == 1 or holdout_every < 0:
            raise UsageError(
                f"holdout_every={holdout_every} leaves no rows to fit",
                code="EQ-U220",
                hint="0 holds nothing out, 4 every fourth batch",
            )
        self.train = Moments.empty(width)
        self.holdout = Moments.empty(width)
        self._every = holdout_every
        self._updates = 0

    @property
    def width(self) -> int:
        """Number of inputs `I`."""
        return self.train.width

    @property
    def rows(self) -> int:
        """Number of rows seen, held out or not."""
        return self.train.rows + self.holdout.rows

    @property
    def total(self) -> Moments:
        """Moments of all rows, for what needs no choice."""
        return self.train.merge(self.holdout) if self.holdout.rows else self.train

    @property
    def judge(self) -> Moments:
        """Moments to judge a fit by: the held-out rows, the training rows when none are held out."""
        return self.holdout if self.holdout.mass > 0 else self.train

    def update(
        self, xq: Tensor, x: Tensor | None = None, weights: Tensor | None = None, *, holdout: bool | None = None
    ) -> None:
        """Add a batch of rows.

        Args:
            xq: Inputs that the quantized layer will see, `(N, I)`.
            x: Inputs of the float layer for the same rows, `(N, I)`; `xq` itself when None.
            weights: Importance of each row, `(N,)`, at least 0; all 1 when None.
            holdout: Hold this batch out or not; None follows `holdout_every`.

        Raises:
            UsageError: The shapes do not fit.
            DataError: An input is NaN or infinite, or a weight is negative.
        """
        batch = Moments.of(xq, x, weights)
        if batch.width != self.width:
            raise _misfit(f"inputs of shape {tuple(xq.shape)} do not fit a layer with {self.width} inputs")
        self._updates += 1
        if holdout is None:
            holdout = self._every > 0 and self._updates % self._every == 0
        if holdout:
            self.holdout = self.holdout.merge(batch)
        else:
            self.train = self.train.merge(batch)

    def merge(self, other: LayerMoments) -> None:
        """Add what another accumulator of the same layer has seen; training to training, held-out to held-out.

        Raises:
            InternalError: It belongs to a layer of another width.
        """
        self.train = self.train.merge(other.train)
        self.holdout = self.holdout.merge(other.holdout)
        self._updates += other._updates


def all_rows(moments: Moments | LayerMoments) -> Moments:
    """The moments of all rows, held out or not."""
    return moments.total if isinstance(moments, LayerMoments) else moments


def fit_and_judge(moments: Moments | LayerMoments) -> tuple[Moments, Moments]:
    """Rows to fit to and rows to judge by; the same where none are held out."""
    return (moments.train, moments.judge) if isinstance(moments, LayerMoments) else (moments, moments)


def _sums(q: Tensor, d: Tensor | None, w: Tensor | None) -> Moments:
    """The moments of a block of float32 rows.

    Products run in float32, about the mean of the block, so that no precision is lost to an offset; the blocks are
    summed in float64.
    """
    mass = float(q.shape[0]) if w is None else float(w.sum(dtype=torch.float64))
    weighted = q if w is None else q * w[:, None]
    middle = (weighted.sum(0, dtype=torch.float64) / mass if mass > 0 else torch.zeros(q.shape[1])).float()
    centred = q - middle
    weighted = centred if w is None else centred * w[:, None]
    mean, rest = middle.double(), weighted.sum(0, dtype=torch.float64)
    gram = (weighted.T @ centred).double()
    gram = (gram + gram.T) / 2 + mass * torch.outer(mean, mean) + torch.outer(mean, rest) + torch.outer(rest, mean)
    if d is None:
        drift, sum_drift = torch.zeros_like(gram), torch.zeros_like(mean)
    else:
        sum_drift = (d if w is None else d * w[:, None]).sum(0, dtype=torch.float64)
        drift = (weighted.T @ d).double() + torch.outer(mean, sum_drift)
    return Moments(gram, drift, rest + mass * mean, sum_drift, q.shape[0], mass)


def _check_rows(xq: Tensor, x: Tensor | None, weights: Tensor | None) -> None:
    if xq.ndim != 2 or xq.shape[1] == 0 or (x is not None and x.shape != xq.shape):
        other = "" if x is None else f" and {tuple(x.shape)}"
        raise _misfit(f"inputs of shapes {tuple(xq.shape)}{other} are not equal matrices of rows")
    if weights is not None and weights.shape != xq.shape[:1]:
        raise _misfit(f"{tuple(weights.shape)} weights for {xq.shape[0]} rows")
    for name, values in (("quantized input", xq), ("float input", x), ("row weight", weights)):
        if values is not None and not bool(torch.isfinite(values).all()):
            raise DataError(
                f"a {name} is NaN or infinite",
                code="EQ-D220",
                hint="look for a damaged calibration sample or an overflow in an earlier layer",
            )
    if weights is not None and bool((weights < 0).any()):
        raise DataError("a row weight is negative", code="EQ-D220", hint="weights are importances, at least 0")


def _misfit(message: str) -> UsageError:
    return UsageError(message, code="EQ-U221", hint="rows are (N, inputs); unfold convolutions, split groups")
