"""Where a quantized network loses: its layers in order of their own error, what causes it, and what would help."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

INHERITED_DB = 6.0
"""A layer that is so much worse in the network than alone mostly passes on what it reads."""

LOWERED_DB = 6.0
"""A layer that is so much worse in the file than in its simulation was written as something else than planned."""

_NOT_WIDTHS = "another --format or --scheme; the file is not what was planned"
_PARTS = {"weights": "weights_db", "inputs": "inputs_db", "output": "output_db"}


@dataclass(frozen=True)
class Diagnosis:
    """One layer of an artifact against float. Figures are SQNR in dB, infinite where nothing is lost.

    Args:
        layer: Its name, as `--keep-float` takes it.
        op: Kind.
        mode: How it runs.
        weight_bits: Width of its weight; None without one.
        own_db: Quantized alone, on exact inputs.
        network_db: In the quantized network.
        cause: What most of its own error comes from: `weights`, `inputs`, `output`, or nothing (``).
        inherited: Whether most of the error in the network comes from layers before.
        advice: The option that would help most; empty where nothing is needed.
        file_db: As `network_db`, of the file run by its runtime; None where its tensor could not be told.
    """

    layer: str
    op: str
    mode: str
    weight_bits: int | None
    own_db: float
    network_db: float
    cause: str
    inherited: bool
    advice: str
    file_db: float | None = None

    @property
    def lowered(self) -> bool:
        """Whether the file is far below its simulation."""
        return is_lowered(self.network_db, self.file_db)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; null for infinite."""
        return {
            "layer": self.layer,
            "op": self.op,
            "mode": self.mode,
            "weight_bits": self.weight_bits,
            "own_db": _finite(self.own_db),
            "network_db": _finite(self.network_db),
            "cause": self.cause or None,
            "inherited": self.inherited,
            "advice": self.advice or None,
            "file_db": None if self.file_db is None else _finite(self.file_db),
            "lowered": self.lowered,
        }


def diagnose(evidence: Mapping[str, Any], config: Mapping[str, Any]) -> list[Diagnosis]:
    """Every quantized layer of the shipped candidate, the largest own error first.

    Args:
        evidence: `evidence.json` of a bundle, or of one network of it.
        config: The recorded configuration of the export.
    """
    shipped = next(c for c in evidence["candidates"] if c["scheme"] == evidence["shipped"])
    others = {c["scheme"] for c in evidence["candidates"]} - {evidence["shipped"]}
    found = []
    for row in shipped["layers"]:
        parts = {part: _number(row.get(key)) for part, key in _PARTS.items()}
        own, network = _number(row["own_db"]), _number(row["total_db"])
        cause = min(parts, key=lambda part: parts[part]) if math.isfinite(min(parts.values())) else ""
        bits = row.get("weight_bits")
        in_file = row.get("file_db")
        advice = _advice(cause, row, bits, shipped["rounding"], "dynamic" in others, config)
        if is_lowered(network, in_file):
            advice = _NOT_WIDTHS
        inherited = math.isfinite(network) and own - network > INHERITED_DB
        facts = (row["name"], row["op"], row["mode"], bits, own, network, cause, inherited, advice, in_file)
        found.append(Diagnosis(*facts))
    return sorted(found, key=lambda d: d.own_db)


def is_lowered(network_db: float, file_db: float | None) -> bool:
    """Whether a layer is so much worse in the file than in its simulation that rounding cannot be the reason."""
    return file_db is not None and network_db - file_db > LOWERED_DB


def first_lowered(layers: Iterable[str], order: Iterable[str]) -> str | None:
    """Of lowered layers the one that runs first: those behind it may only pass its error on.

    Args:
        layers: Their names.
        order: All layers, in execution order.
    """
    known = set(layers)
    return next((name for name in order if name in known), None)


def _advice(
    cause: str, row: Mapping[str, Any], bits: int | None, rounding: str, dynamic: bool, config: Mapping[str, Any]
) -> str:
    """What to try against `cause`, the cheapest first."""
    float_layer = f"--keep-float {row['name']}"
    if not cause:
        return ""
    if cause == "weights" and rounding == "nearest":
        return "--rounding gptq"
    if cause == "weights" and bits is not None and bits < 8:
        return "a larger --budget-kb" if config.get("bits") == "mixed" else "--bits mixed --budget-kb N, or --bits w8a8"
    if cause == "weights":
        return float_layer
    if config.get("method", "auto") not in ("auto", "transformer" if row["mode"] == "static" else "rotate"):
        return "--method auto"
    if row["mode"] == "static" and dynamic:
        return "--scheme dynamic"
    return float_layer


def _number(value: Any) -> float:
    """A figure of the evidence, where infinity is null."""
    return math.inf if value is None else float(value)


def _finite(value: float) -> float | None:
    return round(value, 2) if math.isfinite(value) else None
