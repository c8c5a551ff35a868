"""Codes for attention probabilities, chosen by what they do to the attention's output.

The error that counts is that of `P V`, not that of `P`: many small probabilities that a grid sends to zero hardly
change `P`, but together they are a share of every output. For the same reason the lost mass should be given back,
either by dividing by the sum of the codes (a column of ones appended to V gives it for free) or by adding the missing
share of the mean of V. Which of them helps depends on grid and layer, so that it is chosen on data as well. Both
corrections are ours; selecting a base by the output error is AdaLog's (Wu et al., ECCV 2024, arXiv 2407.12951).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeq.errors import DataError, UsageError, unknown_name
from edgeq.metrics import sqnr_db
from edgeq.quant.grids.adalog import AdaLog
from edgeq.quant.grids.base import Grid, IntegerTable, TableGrid, require_bits, table_params
from edgeq.quant.grids.log import Log2, LogSqrt2
from edgeq.quant.grids.sulq import ShiftLog2, ShiftLog2Table
from edgeq.quant.grids.tangent import TanEnds, TanLevels
from edgeq.quant.grids.twin import TwinUniform
from edgeq.quant.grids.uniform import UniformGrid
from edgeq.spec import TableParams

Renorm = Literal["none", "row_sum", "mean_value"]

RENORMS: tuple[Renorm, ...] = ("none", "row_sum", "mean_value")
"""What makes up for the mass that codes lose: nothing, division by the row's sum, the missing share of V's mean."""

UNNORMALIZED = "unnormalized"
"""Kind that codes `exp(s - rowmax)` evenly, `2^b - 1` steps from 0 to 1, and divides by the sum of the codes."""

_GRIDS: Mapping[str, type[TableGrid]] = {
    grid.kind: grid
    for grid in (UniformGrid, TwinUniform, Log2, LogSqrt2, AdaLog, TanEnds, TanLevels, ShiftLog2, ShiftLog2Table)
}

KINDS: tuple[str, ...] = (*_GRIDS, UNNORMALIZED)
"""Kinds of codes for attention probabilities."""


@dataclass(frozen=True)
class AttentionCode:
    """How the probabilities of one attention layer are stored, and what makes up for the mass that is lost.

    Args:
        kind: One of `KINDS`.
        grids: One for the layer, or one for each head.
        renorm: Correction of the output.
    """

    kind: str
    grids: tuple[Grid, ...]
    renorm: Renorm

    def weights(self, p: Tensor) -> Tensor:
        """What the codes of `p` stand for, float32 of its shape `(samples, heads, T, K)`.

        Probabilities off by quantization; for the unnormalized kind the exponentials, of which each row's largest is 1.

        Raises:
            UsageError: The number of grids is neither 1 nor that of the heads.
        """
        if len(self.grids) not in (1, p.shape[1]):
            raise UsageError(
                f"{len(self.grids)} grids for {p.shape[1]} heads",
                code="EQ-U206",
                hint="fit the code to the layer that it is applied to",
            )
        if self.kind == UNNORMALIZED:
            p = p / p.amax(-1, keepdim=True)
        heads = _heads(p) if len(self.grids) > 1 else [p]
        return torch.cat([g.dequantize(g.quantize(part)) for g, part in zip(self.grids, heads, strict=True)], dim=1)

    def output(self, p: Tensor, v: Tensor) -> Tensor:
        """The attention's output with coded probabilities, float32 `(samples, heads, T, D)`.

        Args:
            p: Probabilities `(samples, heads, T, K)`, rows sum to 1.
            v: Values `(samples, heads, K, D)`.
        """
        return corrected(self.weights(p), v.to(torch.float32))[self.renorm]

    def table_params(self) -> TableParams:
        """The plan's form of the grids; the correction is the product's affair and not in it."""
        return table_params(self.grids)


@dataclass(frozen=True)
class AttentionChoice:
    """The best code of a search.

    Args:
        code: It.
        sqnr_db: Its SQNR at the attention's output, on the data of the search.
        scores: SQNR of the best code of each kind with each correction.
        codes: These codes, for whoever cannot run the winner.
    """

    code: AttentionCode
    sqnr_db: float
    scores: Mapping[str, Mapping[Renorm, float]]
    codes: Mapping[str, Mapping[Renorm, AttentionCode]]


def corrected(weights: Tensor, v: Tensor) -> dict[Renorm, Tensor]:
    """The product of coded weights and values with each correction, all `(samples, heads, T, D)`.

    Rows whose weights sum to zero or less cannot be divided by their sum and stay as they are.

    Args:
        weights: `(samples, heads, T, K)`.
        v: `(samples, heads, K, D)`.
    """
    product, total = weights @ v, weights.sum(-1, keepdim=True)
    return {
        "none": product,
        "row_sum": product / torch.where(total > 0, total, 1.0),
        "mean_value": product + (1 - total) * v.mean(-2, keepdim=True),
    }


@torch.no_grad()
def fit_attention(
    kind: str, p: Tensor, v: Tensor, bits: int, *, renorm: Renorm = "none", per_head: bool = False, queries: int = 64
) -> AttentionCode:
    """The grid of one kind, and its parameters, with the least squared error of the corrected output.

    Args:
        kind: One of `KINDS`.
        p: Probabilities `(samples, heads, T, K)`, rows sum to 1.
        v: Values `(samples, heads, K, D)`.
        bits: Width of a code, 2 to 8.
        renorm: One of `RENORMS`; the unnormalized kind takes `row_sum` only.
        per_head: Parameters for each head instead of the layer.
        queries: Rows of each map that the search looks at, evenly spaced.

    Raises:
        DataError: Maps or values are empty, not finite, no probabilities, or do not fit each other.
        UsageError: Unknown kind or correction, or a width or a pair that does not exist.
    """
    require_maps(p, v)
    return _fit(kind, p, v, bits, (renorm,), per_head, queries)[renorm]


@torch.no_grad()
def choose_attention(
    p: Tensor,
    v: Tensor,
    bits: int,
    kinds: Sequence[str] = ("uniform", "log2", "adalog", "tan", "sulq_table", UNNORMALIZED),
    *,
    renorms: Sequence[Renorm] = RENORMS,
    per_head: bool = False,
    queries: int = 64,
) -> AttentionChoice:
    """The best kind, parameters and correction for one attention layer, by the SQNR of its output.

    Args:
        p: Probabilities `(samples, heads, T, K)`, rows sum to 1.
        v: Values `(samples, heads, K, D)`.
        bits: Width of a code, 2 to 8.
        kinds: Kinds to compare.
        renorms: Corrections to compare.
        per_head: Parameters for each head instead of the layer.
        queries: Rows of each map that the search of parameters looks at; kinds are compared on all rows.

    Raises:
        DataError: Maps or values are empty, not finite, no probabilities, or do not fit each other.
        UsageError: Unknown kind or correction, no pair of them that exists, or impossible bits.
    """
    require_maps(p, v)
    reference = (p.double() @ v.double()).numpy()
    codes: dict[str, dict[Renorm, AttentionCode]] = {}
    for kind in dict.fromkeys(kinds):
        possible = [r for r in dict.fromkeys(renorms) if kind != UNNORMALIZED or r == "row_sum"]
        if possible:
            codes[kind] = _fit(kind, p, v, bits, possible, per_head, queries)
    scores = {
        kind: {renorm: sqnr_db(reference, code.output(p, v).numpy()) for renorm, code in row.items()}
        for kind, row in codes.items()
    }
    if not scores:
        raise UsageError(
            f"no code among {', '.join(kinds) or 'no kinds'} with {', '.join(renorms) or 'no correction'}",
            code="EQ-U207",
            hint="name at least one kind and one correction; unnormalized codes need row_sum",
        )
    best, kind, renorm = max(
        ((db, kind, renorm) for kind, row in scores.items() for renorm, db in row.items()), key=lambda entry: entry[0]
    )
    return AttentionChoice(codes[kind][renorm], best, scores, codes)


def integer_product(codes: Tensor, v_codes: Tensor, table: IntegerTable) -> tuple[Tensor, Tensor]:
    """What an integer kernel accumulates: products and row sums, int64 `(..., T, D)` and `(..., T)`.

    The sum is what a column of ones in V gives. With symmetric values of scale `s`, whose codes have the column sums
    `c`, the output is `s * (table.scale * products + table.offset * c)`; where it is divided by the row sum, that is
    `table.scale * sums + table.offset * K`.

    Args:
        codes: Codes of the probabilities, integers `(..., T, K)`.
        v_codes: Codes of the values, integers `(..., K, D)`.
        table: Integer levels of the probabilities' grid.

    Raises:
        UsageError: A code lies outside the table, or a sum does not fit 32 bits.
    """
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < len(table.values):
        raise UsageError(
            f"codes {int(codes.min())} to {int(codes.max())} do not index {len(table.values)} levels",
            code="EQ-U204",
            hint="multiply with the table of the grid that made the codes",
        )
    weights = torch.from_numpy(table.values.astype(np.int64))[codes.long()]
    products, sums = weights @ v_codes.long(), weights.sum(-1)
    largest = max((int(t.abs().max()) for t in (products, sums) if t.numel()), default=0)
    if largest >= 1 << 31:
        raise UsageError(
            f"an accumulator reaches {largest}, beyond 32 bits", code="EQ-U208", hint="ask for a narrower integer_table"
        )
    return products, sums


def require_maps(p: Tensor, v: Tensor) -> None:
    """Check attention probabilities and values.

    Raises:
        DataError: Empty, not finite, negative, rows that do not sum to 1, or shapes that do not fit.
    """
    fits = p.ndim == v.ndim == 4 and p.shape[:2] == v.shape[:2] and p.shape[3] == v.shape[2]
    if not fits or p.numel() == 0 or v.numel() == 0:
        what = f"shapes {tuple(p.shape)} and {tuple(v.shape)}"
    elif not (bool(torch.isfinite(p).all()) and bool(torch.isfinite(v).all())):
        what = "NaN or infinity"
    elif bool((p < 0).any()) or float((p.sum(-1) - 1).abs().max()) > 0.01:
        what = "rows that are no probabilities"
    else:
        return
    raise DataError(
        f"cannot choose codes for this attention layer: {what}",
        code="EQ-D201",
        hint="give softmax outputs (samples, heads, T, K) and values (samples, heads, K, D)",
    )


def _heads(x: Tensor) -> list[Tensor]:
    """`(samples, heads, ...)` cut in heads, `(samples, 1, ...)` each."""
    return [x[:, head : head + 1] for head in range(x.shape[1])]


def _fit(
    kind: str, p: Tensor, v: Tensor, bits: int, renorms: Sequence[Renorm], per_head: bool, queries: int
) -> dict[Renorm, AttentionCode]:
    """The best code of one kind for each correction; maps have been checked."""
    if kind not in KINDS:
        raise unknown_name("kind of attention code", kind, KINDS, code="EQ-U202")
    for renorm in renorms:
        if renorm not in RENORMS:
            raise unknown_name("correction", renorm, RENORMS, code="EQ-U202")
        if kind == UNNORMALIZED and renorm != "row_sum":
            message = f"unnormalized codes cannot do with {renorm!r}"
            raise UsageError(message, code="EQ-U207", hint="exponentials must be divided by their sum: use row_sum")
    require_bits(kind, bits)
    if queries < 1:
        raise UsageError(f"a search cannot look at {queries} queries", code="EQ-U209", hint="64 are plenty")
    if kind == UNNORMALIZED:
        return {r: AttentionCode(kind, (UniformGrid.from_range(0.0, 1.0, bits),), r) for r in renorms}
    p, v = p.to(torch.float32)[:, :, :: -(-p.shape[2] // queries)], v.to(torch.float32)
    heads = list(zip(_heads(p), _heads(v), strict=True)) if per_head else [(p, v)]
    found = [_search(_GRIDS[kind].candidates(part, bits), part, values, renorms) for part, values in heads]
    return {r: AttentionCode(kind, tuple(best[r] for best in found), r) for r in renorms}


def _search(grids: Sequence[Grid], p: Tensor, v: Tensor, renorms: Sequence[Renorm]) -> dict[Renorm, Grid]:
    """The candidate with the least squared output error for each correction, the first of equals."""
    exact = p @ v
    errors: NDArray[np.float64] = np.empty((len(grids), len(renorms)))
    for row, grid in enumerate(grids):
        outputs = corrected(grid.dequantize(grid.quantize(p)), v)
        errors[row] = [float((outputs[r] - exact).square_().sum(dtype=torch.float64)) for r in renorms]
    return {renorm: grids[int(errors[:, column].argmin())] for column, renorm in enumerate(renorms)}
