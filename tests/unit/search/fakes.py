"""A device and a builder that exist in arithmetic only: plumbing of the search, nothing about quality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeq.progress import Silent
from edgeq.search.engine import Search
from edgeq.search.problem import FLOAT, FLOAT_FILE, Budgets, Layer, Measured, Variant
from edgeq.search.store import CostStore
from edgeq.search.table import Cell

SHAPES = {"stem": 3, "fc1": 8, "fc2": 8, "qkv": 6, "head": 1}


@dataclass
class FakeBench:
    """Five layers whose true costs are known.

    Args:
        exact: Count every layer, as a microcontroller does.
        narrow: Offer 4 bits.
        bias: Factor of the cost of every file with layers of several widths: what no table knows.
        fail_at: Raise this at the n-th measurement, counted from 1.
        missed: By kind of variant, why it may not ship.
    """

    exact: bool = False
    narrow: bool = False
    bias: float = 1.0
    fail_at: int = 0
    error: BaseException = field(default_factory=KeyboardInterrupt)
    missed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tie: tuple[str, ...] = ()
    measured: list[str] = field(default_factory=list)
    published: list[Variant] = field(default_factory=list)
    lost: int = 0

    def uniforms(self) -> Sequence[Variant]:
        found = [] if self.exact else [Variant("float", FLOAT_FILE)]
        return [*found, Variant("static w8a8", "static", dict.fromkeys(SHAPES, 8))]

    def layers(self, scheme: str) -> Sequence[Layer]:
        assert scheme == "static"
        bits = (*(() if self.exact else (FLOAT,)), 8, *((4,) if self.narrow else ()))
        tied = dict.fromkeys(self.tie, "shared")
        return [
            Layer(n, "linear", f"linear {w}", 1000 * w, bits, {b: 100 * w * b // 8 for b in bits}, tied.get(n, ""))
            for n, w in SHAPES.items()
        ]

    def losses(self, scheme: str) -> Mapping[Cell, float]:
        self.lost += 1
        return {
            (n, b): (0.02 if n in ("stem", "head") else 0.001) * (16 if b == 4 else 1) for n in SHAPES for b in (8, 4)
        }

    def measure(self, variant: Variant, judged: bool) -> Measured:
        if len(self.measured) + 1 == self.fail_at:
            self.fail_at = 0
            raise self.error
        self.measured.append(variant.label)
        layers = {n: self.cost(n, variant.bits.get(n, FLOAT)) for n in SHAPES}
        cost = (5 + sum(layers.values())) * (self.bias if variant.kind == "mixed" else 1)
        size = 50 + sum(100 * w * variant.bits.get(n, FLOAT) // 8 for n, w in SHAPES.items())
        loss = sum(self.losses("")[n, b] for n, b in variant.bits.items() if b != FLOAT)
        return Measured(
            cost,
            cost,
            cost,
            "instructions" if self.exact else "ms",
            size,
            layers if self.exact else {},
            (50 - 100 * loss) if judged and variant.bits else (float("inf") if judged else None),
            missed=self.missed.get(variant.kind, ()),
            paired=None
            if self.exact or not variant.bits
            else (cost / self.float_cost, cost / self.float_cost, cost / self.float_cost),
        )

    @staticmethod
    def cost(name: str, bits: int) -> float:
        return SHAPES[name] * {FLOAT: 4.0, 8: 1.0, 4: 1.3}[bits]

    @property
    def float_cost(self) -> float:
        return 5 + 4.0 * sum(SHAPES.values())

    def publish(self, variant: Variant) -> None:
        self.published.append(variant)


def searching(
    bench: FakeBench,
    budgets: Budgets,
    folder: Path,
    *,
    builds: int = 4,
    minutes: float | None = None,
    published: Callable[[], object] = lambda: None,
    key: str = "key",
) -> Search:
    """A search whose journal and costs lie in `folder`."""
    folder.mkdir(exist_ok=True)
    store = CostStore(folder / "costs.json", "fake")
    return Search(bench, budgets, folder / "journal.jsonl", key, store, Silent(), builds, minutes, published)
