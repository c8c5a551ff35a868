"""The table of methods: what each is, whose, where in the source, how ours differs, and what was measured.

`methods.toml` is written by hand; summaries of options come from `edgeq.config_keys`; figures come from
`measured.json`, which `tools/bench/tables.py` writes from the benchmarks' results.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

from edgeq.config_keys import KEEP_FLOAT, METHODS, ROUNDINGS, SCHEMES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONCEPTS = ("scheme", "calibration", "grid", "transform", "rounder", "allocator", "repair")
OPTIONS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {"--scheme": SCHEMES, "--method": METHODS, "--rounding": ROUNDINGS, "--bits": {}, "--keep-float": KEEP_FLOAT}
)
"""Options that take a method, with the summaries that `edgeq.config_keys` has."""

_OURS = "ours"


@dataclass(frozen=True)
class Method:
    """A method, as people and tables need it.

    Args:
        name: What the option takes, or a name of its own for library code.
        concept: One of `CONCEPTS`.
        summary: One line.
        source: Paper, or `ours`.
        code: `file:function`.
        option: Option that takes it; empty for library code.
        within: Option that includes it, where it has none of its own.
        part: Equation or section of the paper.
        deviation: Where we do other than the paper.
        figure: Key of what was measured, see `tools/bench/figures.py`.
        measured: The figures; empty where nothing was measured.
    """

    name: str
    concept: str
    summary: str
    source: str
    code: str
    option: str = ""
    within: str = ""
    part: str = ""
    deviation: str = ""
    figure: str = ""
    measured: str = ""

    @property
    def spelled(self) -> str:
        """The name with its parameter."""
        return "percentile:P" if (self.option, self.name) == ("--method", "percentile") else self.name

    def to_dict(self) -> dict[str, str]:
        """JSON form, an entry of `edgeq.methods/1`."""
        fields = {**asdict(self), "name": self.spelled}
        del fields["figure"]
        return fields


@functools.cache
def methods() -> tuple[Method, ...]:
    """All methods: first those of options, in the order of `OPTIONS` and as the table has them, then the library's."""
    folder = Path(__file__).parent
    with (folder / "methods.toml").open("rb") as file:
        rows = tomllib.load(file)["method"]
    figures: dict[str, str] = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    found = []
    for row in rows:
        option = row.get("option", "")
        summary = row.get("summary") or OPTIONS[option][row["name"]]
        measured = figures.get(row.get("figure", ""), "")
        found.append(Method(**{"source": _OURS, **row, "summary": summary, "measured": measured}))
    order = [*OPTIONS, ""]
    return tuple(sorted(found, key=lambda m: order.index(m.option)))
