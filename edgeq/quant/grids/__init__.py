"""Quantizers whose levels are not evenly spaced, and the search for the one that suits attention probabilities."""

from collections.abc import Mapping

from edgeq.errors import unknown_name
from edgeq.quant.grids.adalog import AdaLog, ShiftedAdaLog
from edgeq.quant.grids.attention import (
    AttentionChoice,
    AttentionCode,
    choose_attention,
    fit_attention,
    integer_product,
)
from edgeq.quant.grids.base import Grid, IntegerTable, TableGrid, table_params
from edgeq.quant.grids.log import Log2, LogSqrt2
from edgeq.quant.grids.minifloat import FORMATS, Minifloat
from edgeq.quant.grids.noisy import NoisyGrid, fit_noisy
from edgeq.quant.grids.sign_log import SignLog
from edgeq.quant.grids.sulq import ShiftLog2, ShiftLog2Table
from edgeq.quant.grids.tangent import TanEnds, TanLevels, TanQ
from edgeq.quant.grids.twin import TwinGelu, TwinUniform
from edgeq.quant.grids.uniform import UniformGrid
from edgeq.spec import TableParams

GRIDS: Mapping[str, type[TableGrid]] = {
    grid.kind: grid
    for grid in (
        UniformGrid,
        TwinUniform,
        TwinGelu,
        Log2,
        LogSqrt2,
        AdaLog,
        ShiftedAdaLog,
        TanEnds,
        TanLevels,
        SignLog,
        ShiftLog2,
        ShiftLog2Table,
        Minifloat,
    )
}
"""Grids by kind."""


def grids_of(params: TableParams) -> tuple[TableGrid, ...]:
    """The grid that a plan stores, or one for each head.

    Raises:
        UsageError: Unknown kind, or parameters that the kind does not take.
    """
    if params.kind not in GRIDS:
        raise unknown_name("grid", params.kind, GRIDS, code="EQ-U202")
    heads = len(params.levels) if params.levels.ndim == 2 else 1
    rows = [{k: v[h] if isinstance(v, tuple) else v for k, v in params.parameters.items()} for h in range(heads)]
    return tuple(GRIDS[params.kind].from_parameters(params.bits, row) for row in rows)


__all__ = [
    "FORMATS",
    "GRIDS",
    "AdaLog",
    "AttentionChoice",
    "AttentionCode",
    "Grid",
    "IntegerTable",
    "Log2",
    "LogSqrt2",
    "Minifloat",
    "NoisyGrid",
    "ShiftLog2",
    "ShiftLog2Table",
    "ShiftedAdaLog",
    "SignLog",
    "TanEnds",
    "TanLevels",
    "TanQ",
    "TwinGelu",
    "TwinUniform",
    "UniformGrid",
    "choose_attention",
    "fit_attention",
    "fit_noisy",
    "grids_of",
    "integer_product",
    "table_params",
]
