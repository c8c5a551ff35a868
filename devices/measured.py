"""What devices answer: `Verification` of the golden vectors, and `Profile`, the cost of an inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeq.devices.base import LayerCost
from edgeq.devices.environment import environment
from edgeq.errors import EdgeqError, InternalError

DETAILS = (
    "min",
    "interval",
    "settled",
    "drift",
    "threads",
    "load_ms",
    "first_ms",
    "state",
    "energy",
    "output",
    "census",
    "against",
    "board",
)
"""Of a profile, beyond what every one has: fastest run, 95 % interval of the median, whether that is within 2 %, change
over the runs, threads of the runtime, milliseconds of loading and of the first run, clock and temperature before and
after, joules a run, hash and fidelity of the output, operations of the file, another artifact, name of the board."""


@dataclass(frozen=True)
class Verification:
    """The golden vectors of an artifact on a device.

    Args:
        device: Its name.
        vectors: How many.
        exact: Whether every value is the expected one.
        max_lsb: Largest difference in steps of the output's grid; None for model files, whose outputs are reals.
        passed: Whether that is good enough: bit for bit for C, within the manifest's limits for model files.
        details: What else was compared.
    """

    device: str
    vectors: int
    exact: bool
    max_lsb: int | None
    passed: bool
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract `edgeq.verify/1`."""
        return {
            "schema": "edgeq.verify/1",
            "ok": self.passed,
            "device": self.device,
            "vectors": self.vectors,
            "exact": self.exact,
            "max_lsb": self.max_lsb,
            "layers": [],
            "passed": self.passed,
            **self.details,
        }


@dataclass(frozen=True)
class Profile:
    """What an inference costs on a device.

    Args:
        device: Its name.
        unit: `ms`, `instructions`, or what a board counts: `cycles`, `ticks`.
        p50: Median; None where only the output was looked at.
        p90: 90th percentile, likewise.
        p99: 99th percentile, likewise.
        runs: How many were measured; one where every run is the same.
        layers: In execution order; empty where the runtime does not tell.
        memory: Bytes.
        notes: What the figures do not mean, and what was not measured.
        environment: Of the device; this machine's when None.
        details: What else was measured, by the names of `DETAILS`; None there stands for not measured.
        error: Why the measurement ended early, None when it did not: the figures are of the runs until then.
    """

    device: str
    unit: str
    p50: float | None
    p90: float | None
    p99: float | None
    runs: int
    layers: Sequence[LayerCost]
    memory: Mapping[str, int]
    notes: tuple[str, ...] = ()
    environment: Mapping[str, Any] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    error: EdgeqError | None = None

    def __post_init__(self) -> None:
        if unknown := set(self.details) - set(DETAILS):
            raise InternalError(f"a profile has no {', '.join(sorted(unknown))}", code="EQ-Z870")

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract `edgeq.profile/1`."""
        total = sum(layer.value for layer in self.layers)
        return {
            "schema": "edgeq.profile/1",
            "ok": self.error is None,
            "device": self.device,
            "unit": self.unit,
            "p50": self.p50,
            "p90": self.p90,
            "p99": self.p99,
            "runs": self.runs,
            "layers": [
                {"name": c.name, "op": c.op, "value": c.value, "share": round(c.value / total, 4) if total else 0.0}
                for c in self.layers
            ],
            "memory": dict(self.memory),
            "environment": dict(self.environment) if self.environment is not None else environment(),
            "notes": list(self.notes),
            **{name: self.details.get(name) for name in DETAILS},
            "complete": self.error is None,
            "error": None if self.error is None else self.error.to_dict(),
        }
