"""Bits under a budget: which tensor gets which width so that the summed score is least and the summed cost fits.

Costs are whatever adds up over tensors: bytes (`weight_bytes`), bit operations (`bit_operations`) or measured time.
Scores are expected increases of the loss (see `edgeq.quant.sensitivity`); they are assumed to add up too, which only
`bisect` checks against the network itself.
"""

from edgeq.quant.allocation.bisection import bisect
from edgeq.quant.allocation.knapsack import greedy, ilp
from edgeq.quant.allocation.problem import Allocation, Choice, Group, bit_operations, weight_bytes

__all__ = ["Allocation", "Choice", "Group", "bisect", "bit_operations", "greedy", "ilp", "weight_bytes"]
