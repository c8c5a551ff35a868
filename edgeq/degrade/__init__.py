"""What goes wrong between the world and the network: degradations of images, recordings and clouds, by severity."""

from edgeq.degrade.base import SEVERITIES, Condition, Degradation, kind_of
from edgeq.degrade.table import DEGRADATIONS, MIX_SEVERITIES, SETS, parse_conditions

__all__ = [
    "DEGRADATIONS",
    "MIX_SEVERITIES",
    "SETS",
    "SEVERITIES",
    "Condition",
    "Degradation",
    "kind_of",
    "parse_conditions",
]
