"""Scale searches on the output error of one layer."""

from edgeq.quant.search.fpcs import FpcsBudget, PairChoice, fpcs
from edgeq.quant.search.layer import Layer, Operand, OutputErrors, gram_errors, sample_rows
from edgeq.quant.search.scales import (
    SEARCHES,
    LayerChoice,
    ScaleChoice,
    get_search,
    search_alternating,
    search_clip_ends,
    search_fpcs,
    search_grid,
    search_percentile,
)

__all__ = [
    "SEARCHES",
    "FpcsBudget",
    "Layer",
    "LayerChoice",
    "Operand",
    "OutputErrors",
    "PairChoice",
    "ScaleChoice",
    "fpcs",
    "get_search",
    "gram_errors",
    "sample_rows",
    "search_alternating",
    "search_clip_ends",
    "search_fpcs",
    "search_grid",
    "search_percentile",
]
