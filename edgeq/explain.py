"""The long text behind each error code: what it means, why it happens, what to try. `edgeq explain CODE` prints it.

The table lives in `explain.toml`, sorted by code; a test holds it against every code in the source.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

from edgeq.errors import UsageError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CODE = re.compile(r"EQ-[A-Z]\d{3}")


@dataclass(frozen=True)
class Explanation:
    """What a code means.

    Args:
        title: The error in a few words.
        text: Cause and background.
        action: A command or an action that gets further.
    """

    title: str
    text: str
    action: str

    def to_dict(self) -> dict[str, str]:
        """JSON form."""
        return asdict(self)


@functools.cache
def explanations() -> Mapping[str, Explanation]:
    """All codes in order."""
    with Path(__file__).with_name("explain.toml").open("rb") as file:
        table = tomllib.load(file)
    return MappingProxyType({code: Explanation(**entry) for code, entry in sorted(table.items())})


def get_explanation(code: str) -> tuple[str, Explanation]:
    """The code in its canonical spelling, and what it means.

    Args:
        code: `EQ-U001`; small letters and a missing `EQ-` are accepted.

    Raises:
        UsageError: EQ-U008 for an unknown code.
    """
    wanted = code.strip().upper()
    wanted = wanted if wanted.startswith("EQ-") else f"EQ-{wanted}"
    known = explanations()
    if wanted not in known:
        close = nearest(wanted.lower(), [name.lower() for name in known])
        hint = f"did you mean {close.upper()}? " if close else ""
        raise UsageError(f"unknown code {code!r}", code="EQ-U008", hint=f"{hint}`edgeq explain` lists all codes")
    return wanted, known[wanted]
