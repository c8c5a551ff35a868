"""Block reconstruction: learn roundings and scales so that a quantized block gives what the float block gave."""

from edgeq.quant.reconstruct.activation import LearnedScale
from edgeq.quant.reconstruct.block import BlockData, BlockSettings, reconstruct_block
from edgeq.quant.reconstruct.fitting import FitResult, FitSettings, ParameterGroup, fit
from edgeq.quant.reconstruct.straight import StraightThrough

__all__ = [
    "BlockData",
    "BlockSettings",
    "FitResult",
    "FitSettings",
    "LearnedScale",
    "ParameterGroup",
    "StraightThrough",
    "fit",
    "reconstruct_block",
]
