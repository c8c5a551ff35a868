"""How much the loss grows when one tensor loses precision: measured, or estimated from curvature and gradients.

`measured` is the truth for one tensor at a time; the estimates are cheaper, and `rank_correlation` says how well any
of them orders what really happens.
"""

from edgeq.quant.sensitivity.hessian import Trace, hessian_trace, perturbation
from edgeq.quant.sensitivity.importance import fisher_diagonal, relevance
from edgeq.quant.sensitivity.measured import kl_divergence, mean_squared_error, measured, rank_correlation

__all__ = [
    "Trace",
    "fisher_diagonal",
    "hessian_trace",
    "kl_divergence",
    "mean_squared_error",
    "measured",
    "perturbation",
    "rank_correlation",
    "relevance",
]
