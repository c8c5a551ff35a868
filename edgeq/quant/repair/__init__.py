"""Repairs after rounding: what can still be won without touching the codes, or with a small branch beside them.

All are in closed form, none changes anything unless it lowers the output error on data, and those that work on
second moments judge themselves on held-out rows where there are any.
"""

from edgeq.quant.repair.batch_norm import BatchNormRepair, reestimate_batch_norm
from edgeq.quant.repair.eora import MAX_COMPENSATED, LowRank, compensate, eora
from edgeq.quant.repair.linear import BiasRepair, ScaleRepair, correct_bias, output_errors, tune_scales

__all__ = [
    "MAX_COMPENSATED",
    "BatchNormRepair",
    "BiasRepair",
    "LowRank",
    "ScaleRepair",
    "compensate",
    "correct_bias",
    "eora",
    "output_errors",
    "reestimate_batch_norm",
    "tune_scales",
]
