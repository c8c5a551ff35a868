"""What a search is about: layers with the widths they are offered, files that can be made of them, budgets."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from edgeq.errors import UsageError

FLOAT = 32
"""Width that stands for a layer in float."""

FLOAT_FILE = "float"
"""Scheme of the file that is not quantized."""


@dataclass(frozen=True)
class Layer:
    """A matrix product or convolution whose width is to be decided.

    Args:
        name: In the graph.
        kind: `linear`, `conv2d` or `matmul`.
        shape: Kind, shapes and settings in words; layers that say the same cost the same.
        macs: Multiply-accumulates of an inference.
        bits: Widths it is offered, widest first; `FLOAT` for float.
        bytes: Of its weight at each of these widths.
        tie: What layers of the same weight have in common; empty for a weight of its own.
    """

    name: str
    kind: str
    shape: str
    macs: int
    bits: tuple[int, ...]
    bytes: Mapping[int, int]
    tie: str = ""


@dataclass(frozen=True)
class Variant:
    """A file that can be built: a scheme, and the width of each layer.

    Args:
        label: For people.
        scheme: `FLOAT_FILE`, or a scheme of the exporter.
        bits: Width by layer; empty for the float file.
        kind: `uniform` where nothing is chosen layer by layer, `probe` for what is built to learn costs, `mixed`.
    """

    label: str
    scheme: str
    bits: Mapping[str, int] = field(default_factory=dict)
    kind: Literal["uniform", "probe", "mixed"] = "uniform"

    @property
    def key(self) -> str:
        """What tells it from all others of the same model, 16 hex digits; the label does not matter."""
        text = json.dumps([self.scheme, sorted(self.bits.items())])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def census(self) -> dict[str, int]:
        """Number of layers by width."""
        return {str(bits): count for bits, count in sorted(Counter(self.bits.values()).items())}


@dataclass(frozen=True)
class Measured:
    """What was measured on a variant.

    Args:
        cost: Of an inference on the device.
        low: Lower end of its 95 % interval.
        high: Upper end.
        unit: Of the cost: `ms`, `instructions`.
        bytes: Of the model file; of a program for a microcontroller, its constants.
        layers: Cost by layer, where the device counts every layer exactly; empty elsewhere.
        sqnr_db: Median fidelity to float on held-out samples; None where only the cost was measured.
        worst_db: That of the worst sample.
        metric: Task metric on labelled data, None without.
        missed: Why it may not ship.
        paired: Ratio to the reference, measured in alternation with it, and its 95 % interval; None where it was not.
    """

    cost: float
    low: float
    high: float
    unit: str
    bytes: int
    layers: Mapping[str, float] = field(default_factory=dict)
    sqnr_db: float | None = None
    worst_db: float | None = None
    metric: float | None = None
    missed: tuple[str, ...] = ()
    paired: tuple[float, float, float] | None = None

    def beside(self, reference: float) -> Measured:
        """The same with the paired ratio times the reference's cost, where there is one: times move with the machine.

        Args:
            reference: Cost of the reference when that was measured.
        """
        if self.paired is None:
            return self
        ratio, low, high = self.paired
        return replace(self, cost=ratio * reference, low=low * reference, high=high * reference)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; infinities, as a file without any error has them, as text."""
        values = asdict(self)
        return {k: str(v) if isinstance(v, float) and math.isinf(v) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measured:
        """Inverse of `to_dict`."""
        pair = data["paired"]
        tuples = {"missed": tuple(data["missed"]), "paired": None if pair is None else tuple(pair)}
        figures = {k: float(data[k]) for k in ("sqnr_db", "worst_db") if data[k] is not None}
        return cls(**{**data, **tuples, **figures})


@dataclass(frozen=True)
class Budgets:
    """The limits of a search; at least one.

    Args:
        cost: Largest cost of an inference, in `unit`.
        unit: `ms`, `instructions`, or `ratio`: of what the reference costs.
        kb: Largest size in kB (1000 bytes) of the file, or of the constants of a program.

    Raises:
        UsageError: EQ-U882, there is none, or one is not positive.
    """

    cost: float | None = None
    unit: str = "ms"
    kb: float | None = None

    def __post_init__(self) -> None:
        given = [limit for limit in (self.cost, self.kb) if limit is not None]
        if not given or not all(math.isfinite(limit) and limit > 0 for limit in given):
            raise UsageError(
                "a search needs a budget, and every budget is positive" if given else "a search needs a budget",
                code="EQ-U882",
                hint="--budget-ratio 0.6, --budget-ms N, --budget-instructions N or --budget-kb N",
            )

    def limit(self, reference: float) -> float | None:
        """Largest cost in the unit of the device.

        Args:
            reference: Cost of the reference.
        """
        return self.cost * reference if self.cost is not None and self.unit == "ratio" else self.cost

    @property
    def bytes(self) -> float | None:
        """Largest size in bytes."""
        return None if self.kb is None else 1000 * self.kb

    def kept(self, found: Measured, reference: float) -> bool:
        """Whether what was measured keeps all of them."""
        cost, size = self.limit(reference), self.bytes
        return (cost is None or found.cost <= cost) and (size is None or found.bytes <= size)

    def to_dict(self) -> dict[str, Any]:
        """JSON form: the first budget as `unit` and `value`, and the kB beside a cost."""
        if self.cost is None:
            return {"unit": "kb", "value": self.kb, "kb": self.kb}
        return {"unit": self.unit, "value": self.cost, "kb": self.kb}
