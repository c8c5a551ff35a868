"""What `edgeq doctor` says, line by line, of this machine or of a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "missing", "broken", "info"]
MISSING = 4
"""Exit code when something is missing that is needed."""


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis.

    Args:
        name: What was looked at.
        status: `missing` and `broken` want action, `info` states a fact.
        detail: Version or reason.
        action: Command that mends it, empty when nothing is wrong.
        needed: Whether edgeq, or the asked device, does not work without it.
    """

    name: str
    status: Status
    detail: str
    action: str = ""
    needed: bool = False
