"""Rounding of one layer's weight onto a grid: the rounders, what they share, and their differentiable forms."""

from edgeq.quant.rounding.moments import LayerMoments, Moments
from edgeq.quant.rounding.problem import Effort, LayerProblem, Rounded
from edgeq.quant.rounding.second_order import Retargeted, excess_error, gptq, mean_bias, retarget
from edgeq.quant.rounding.soft import SOFT_ROUNDINGS, Descent, SoftRounding
from edgeq.quant.rounding.table import ROUNDERS, Rounder, get_rounder

__all__ = [
    "ROUNDERS",
    "SOFT_ROUNDINGS",
    "Descent",
    "Effort",
    "LayerMoments",
    "LayerProblem",
    "Moments",
    "Retargeted",
    "Rounded",
    "Rounder",
    "SoftRounding",
    "excess_error",
    "get_rounder",
    "gptq",
    "mean_bias",
    "retarget",
]
