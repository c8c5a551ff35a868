"""The search itself: uniform files, cost table, losses, then the best allocation built and measured until it holds.

Everything that takes time is behind a `Workbench`, and every measurement is a line in a journal: what was killed goes
on where it was. Whatever keeps the budgets and is better than what was there before is published at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from edgeq.errors import GateError
from edgeq.journal import Journal
from edgeq.progress import Progress
from edgeq.search.front import Point, Tradeoff
from edgeq.search.problem import FLOAT, FLOAT_FILE, Budgets, Layer, Measured, Variant
from edgeq.search.store import CostStore
from edgeq.search.table import Cell, CostTable, counted_table, fitted_table

PROBED = 10
"""Groups of equal layers whose cost is looked at one by one; the largest."""

ALIKE = 1.05
"""Ratio of costs that decides nothing between two schemes."""

EQUAL_DB = 0.5
"""Decibels for which nobody takes a file with layers of several widths."""

TIGHTER = 0.98
"""What the budget is multiplied by, for the allocation alone, when a measured file missed it."""

SLACK = 0.97
"""Share of a budget beyond which nothing better is looked for."""

SCHEMA = "edgeq.search-journal/2"  # until 1 OpenVINO ran float files and probes in bfloat16 where the CPU has it


class Workbench(Protocol):
    """What builds files and measures them."""

    def uniforms(self) -> Sequence[Variant]:
        """What is compared with: the reference (the float file where there is one), then each scheme in 8 bits."""

    def layers(self, scheme: str) -> Sequence[Layer]:
        """What is to be decided in a scheme."""

    def losses(self, scheme: str) -> Mapping[Cell, float]:
        """Loss of the outputs with one layer alone at each width but float."""

    def measure(self, variant: Variant, judged: bool) -> Measured:
        """Build a file and run it on the device; `judged`: in its final form, with fidelity and metric."""

    def publish(self, variant: Variant) -> None:
        """Put a judged file where the user wants it, whole or not at all."""


@dataclass(frozen=True)
class Trial:
    """A variant that was built and judged.

    Args:
        variant: What.
        expected: What the table said before; None for uniform files.
        found: What was measured.
    """

    variant: Variant
    expected: Point | None
    found: Measured

    @property
    def off(self) -> float | None:
        """By which share of the measured cost the expected one differs."""
        return None if self.expected is None else self.expected.cost / self.found.cost - 1


@dataclass
class Findings:
    """All that a search knows; filled step by step.

    Args:
        budgets: The limits.
        unit: Of costs.
        reference: Cost of the reference.
        scheme: Of the layers that are decided about; empty before it is chosen.
        uniform: The reference and the uniform files.
        mixed: Files with widths chosen layer by layer.
        tradeoff: Layers, costs and losses; None before they are known.
        front: The expected front.
        winner: Best so far that keeps the budgets.
        notes: For people.
        complete: Whether the search came to its end.
    """

    budgets: Budgets
    unit: str = "ms"
    reference: float = 0.0
    scheme: str = ""
    uniform: list[Trial] = field(default_factory=list)
    mixed: list[Trial] = field(default_factory=list)
    tradeoff: Tradeoff | None = None
    front: Sequence[Point] = ()
    winner: Trial | None = None
    notes: list[str] = field(default_factory=list)
    complete: bool = False

    @property
    def contenders(self) -> list[Trial]:
        """What may win: everything quantized that passed every gate and keeps the budgets."""
        trials = [t for t in (*self.uniform, *self.mixed) if t.variant.scheme != FLOAT_FILE]
        return [t for t in trials if not t.found.missed and self.budgets.kept(t.found, self.reference)]

    def best(self) -> Trial | None:
        """The most faithful contender; a uniform one unless another is better by `EQUAL_DB`."""
        return max(self.contenders, key=lambda t: _decibels(t) - EQUAL_DB * (t.variant.kind == "mixed"), default=None)


def _decibels(trial: Trial) -> float:
    return -1e9 if trial.found.sqnr_db is None else min(trial.found.sqnr_db, 1e9)


class Search:
    """One search; `run` does all of it, `findings` is what is known meanwhile.

    Args:
        bench: Builds and measures.
        budgets: The limits.
        journal: File of the measurements; None keeps none.
        key: What they depend on.
        store: Costs by shape from earlier searches on the device.
        progress: Where to show the steps.
        builds: Mixed files to build at most.
        minutes: Begins no further build after that; None for no limit.
        published: Called when another file has become the best.
    """

    def __init__(
        self,
        bench: Workbench,
        budgets: Budgets,
        journal: Path | None,
        key: str,
        store: CostStore,
        progress: Progress,
        builds: int = 4,
        minutes: float | None = None,
        published: Callable[[], object] = lambda: None,
    ) -> None:
        self.findings = Findings(budgets)
        self._bench, self._store, self._progress, self._builds = bench, store, progress, builds
        self._journal = Journal(SCHEMA, key, journal)
        self._published = published
        self._fresh = self._due = False
        self._end = None if minutes is None else time.monotonic() + 60 * minutes
        self._files: list[tuple[Variant, Measured]] = []

    def run(self) -> Findings:
        """Search.

        Raises:
            GateError: EQ-G880, nothing that was measured keeps the budgets; the nearest is named.
            EdgeqError: Whatever stops a build or the device; what was measured stays in the journal.
        """
        found = self.findings
        self._measure_uniform()
        reference = self._choose_scheme()
        layers = self._bench.layers(found.scheme)
        self._measure_narrow(reference, layers)
        table = self._measure_costs(reference, layers)
        losses = self._bench.losses(found.scheme)
        overhead = _overhead(reference, layers, self._known(reference))
        found.tradeoff = Tradeoff(layers, table, overhead, losses)
        found.front = found.tradeoff.front(found.budgets.cost, found.budgets.bytes)
        self._allocate(reference)
        self._settle()
        found.complete = True
        if found.winner is None:
            raise self._infeasible()
        return found

    def _measure_uniform(self) -> None:
        for variant in self._bench.uniforms():
            trial = self._judge(variant, None)
            if not self.findings.uniform:
                self.findings.reference, self.findings.unit = trial.found.cost, trial.found.unit
            self.findings.uniform.append(trial)
            self._publish()

    def _choose_scheme(self) -> Variant:
        """The scheme whose uniform file is the cheapest, of those about as cheap the most faithful."""
        quantized = [t for t in self.findings.uniform if t.variant.scheme != FLOAT_FILE]
        sound = [t for t in quantized if not t.found.missed] or quantized
        least = min(t.found.cost for t in sound)
        chosen = max((t for t in sound if t.found.cost <= ALIKE * least), key=_decibels)
        self.findings.scheme = chosen.variant.scheme
        return chosen.variant

    def _measure_narrow(self, reference: Variant, layers: Sequence[Layer]) -> None:
        """The uniform file with the fewest bits, where bits are offered for the sake of bytes."""
        narrow = {layer.name: min(layer.bits) for layer in layers}
        if narrow != dict(reference.bits):
            variant = Variant(f"{reference.scheme} w{min(narrow.values())}a8", reference.scheme, narrow)
            self.findings.uniform.append(self._judge(variant, None))
            self._publish()

    def _measure_costs(self, reference: Variant, layers: Sequence[Layer]) -> CostTable:
        """The table; each group of equal layers is freed at a time, unless a search of another model has done that."""
        if self._known(reference).layers:
            return self._fit(reference, layers)
        groups: dict[str, list[Layer]] = {}
        for layer in layers:
            if FLOAT in layer.bits:
                groups.setdefault(layer.shape, []).append(layer)
        known, probed = self._store.of(reference.scheme), []
        largest = sorted(groups.values(), key=lambda g: -sum(n.macs for n in g))[:PROBED]
        for number, group in enumerate(largest, 1):
            bits = {**reference.bits, **{layer.name: FLOAT for layer in group}}
            label = f"cost of {group[0].kind} {number} of {len(largest)}"
            variant = Variant(label, reference.scheme, bits, "probe")
            if (group[0].shape, FLOAT) in known and _entry(variant, judged=False) not in self._journal:
                continue
            if self._late("the other layers' costs are estimates from their multiplications"):
                break
            self._take(variant, judged=False)
            probed.append(group[0])
        table = self._fit(reference, layers)
        if probed:
            self._store.keep(reference.scheme, {(n.shape, FLOAT): table.layer(n.name, FLOAT) for n in probed})
        return table

    def _fit(self, reference: Variant, layers: Sequence[Layer]) -> CostTable:
        if self._known(reference).layers:
            return counted_table(reference, self._files)
        files = [(v, m) for v, m in self._files if v.scheme in (reference.scheme, FLOAT_FILE)]
        return fitted_table(layers, reference, files, self._store.of(reference.scheme))

    def _allocate(self, reference: Variant) -> None:
        """Allocate, build, measure, correct the table, until the best file is built or the builds are spent."""
        found, margin = self.findings, 1.0
        while len(found.mixed) < self._builds:
            point = self._next(margin)
            if point is None or self._late("the best so far stands"):
                return
            variant = Variant(f"mixed {len(found.mixed) + 1}", reference.scheme, dict(point.bits), "mixed")
            if set(point.bits.values()) == {FLOAT}:
                found.notes.append("the budget leaves every layer in float: nothing needs to be quantized for it")
                return
            known = next((t for t in (*found.mixed, *found.uniform) if t.variant.key == variant.key), None)
            if known is not None:
                if found.budgets.kept(known.found, found.reference) or margin < 0.5:
                    return
                margin *= TIGHTER
                continue
            trial = self._judge(variant, point)
            found.mixed.append(trial)
            if trial.found.sqnr_db is None:  # no file of what was planned, and its cost means nothing
                self._files.pop()
                return
            self._correct(reference, trial)
            self._publish()
            if self._spent(trial):
                return

    def _next(self, margin: float) -> Point | None:
        """The best allocation by the table as it is now."""
        found = self.findings
        assert found.tradeoff is not None
        limit = found.budgets.limit(found.reference)
        return found.tradeoff.best(None if limit is None else margin * limit, found.budgets.bytes)

    def _spent(self, trial: Trial) -> bool:
        """Whether a file uses its budget so fully that nothing better is to be expected."""
        limit = self.findings.budgets.limit(self.findings.reference)
        kept = self.findings.budgets.kept(trial.found, self.findings.reference)
        return kept and (limit is None or trial.found.cost >= SLACK * limit)

    def _correct(self, reference: Variant, trial: Trial) -> None:
        """The trade-off with what a mixed file has taught."""
        found = self.findings
        assert found.tradeoff is not None
        layers = found.tradeoff.layers
        overhead = _overhead(trial.variant, layers, trial.found)
        found.tradeoff = replace(found.tradeoff, table=self._fit(reference, layers), overhead=overhead)
        found.front = found.tradeoff.front(found.budgets.cost, found.budgets.bytes)

    def _judge(self, variant: Variant, expected: Point | None) -> Trial:
        return Trial(variant, expected, self._take(variant, judged=True))

    def _take(self, variant: Variant, judged: bool) -> Measured:
        """What the journal knows of a variant, or else the device."""
        name = _entry(variant, judged)
        self._fresh = name not in self._journal
        if self._fresh:
            self._settle()
            with self._progress.step(f"measure {variant.label}"):
                self._journal[name] = self._bench.measure(variant, judged).to_dict()
        measured = Measured.from_dict(self._journal[name]).beside(self.findings.reference)
        self._files.append((variant, measured))
        return measured

    def _known(self, variant: Variant) -> Measured:
        return next(found for v, found in self._files if v.key == variant.key)

    def _publish(self) -> None:
        """Put the best where the user wants it, when it is another one than before."""
        best = self.findings.best()
        before = self.findings.winner
        if best is not None and (before is None or best.variant.key != before.variant.key):
            self.findings.winner = best
            self._due = True
        if self._fresh:
            self._settle()

    def _settle(self) -> None:
        """Publish what is due: what was measured just now at once, what the journal knows before time is spent next."""
        if self._due and self.findings.winner is not None:
            self._bench.publish(self.findings.winner.variant)
            self._due = False
            self._published()

    def _late(self, consequence: str) -> bool:
        if self._end is None or time.monotonic() < self._end:
            return False
        note = f"the minutes are over: {consequence}"
        if note not in self.findings.notes:
            self.findings.notes.append(note)
            self._progress.say(note)
        return True

    def _infeasible(self) -> GateError:
        """What is wrong with the budgets, and the nearest ones that can be kept."""
        found = self.findings
        assert found.tradeoff is not None
        trials = [t for t in (*found.uniform, *found.mixed) if t.variant.scheme != FLOAT_FILE]
        unsound = [t for t in trials if t.found.missed and found.budgets.kept(t.found, found.reference)]
        if unsound:
            reason = "; ".join(f"{t.variant.label}: {t.found.missed[0]}" for t in unsound)
            message = f"what keeps the budget may not ship: {reason}"
            hint = "raise the budget, lower the floor (--min-sqnr-db), or bring more --calib samples"
            return GateError(message, code="EQ-G881", hint=hint)
        smallest = found.tradeoff.smallest()
        size = found.budgets.bytes
        if size is not None and smallest.bytes > size:
            least = min([smallest.bytes, *(float(t.found.bytes) for t in trials)]) / 1000
            message = f"no file keeps --budget-kb {size / 1000:g}: the smallest has {least:.0f} kB"
            return GateError(message, code="EQ-G880", hint=f"--budget-kb {int(least * 1.01) + 1}")
        fitting = [t.found.cost for t in trials if size is None or t.found.bytes <= size]
        cheapest = found.tradeoff.cheapest(size)
        least = min([*fitting, *([cheapest.cost] if cheapest is not None else [])])
        limit = found.budgets.limit(found.reference)
        if limit is None:
            message = f"no measured file keeps --budget-kb {found.budgets.kb:g}"
            return GateError(message, code="EQ-G880", hint="raise it a little, or allow more --builds")
        value = least / found.reference if found.budgets.unit == "ratio" else least
        shown = f"{1.02 * value:,.0f}".replace(",", "") if value > 1000 else f"{1.02 * value:.3g}"
        message = (
            f"nothing keeps the budget of {figure(limit, found.unit)}: the least is {figure(least, found.unit)}, "
            f"{least / found.reference:.2f} of the reference"
        )
        return GateError(message, code="EQ-G880", hint=f"--budget-{found.budgets.unit} {shown}")


def _entry(variant: Variant, judged: bool) -> tuple[str, int]:
    """Name of a measurement in the journal."""
    return ("judged" if judged else "cost") + f" {variant.key}", 0


def figure(value: float, unit: str) -> str:
    """A cost with its unit, for people."""
    return f"{value:,.0f} {unit}" if unit == "instructions" else f"{value:.4g} {unit}"


def _overhead(variant: Variant, layers: Sequence[Layer], found: Measured) -> float:
    """Bytes of a file that are not weights of the layers."""
    return found.bytes - sum(layer.bytes[variant.bits[layer.name]] for layer in layers)


def summary(found: Findings, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON contract `edgeq.search/1`.

    Args:
        found: What the search knows.
        facts: `model`, `target`, `device`, `table`, `artifact`, `seconds`.
    """
    limit = found.budgets.limit(found.reference)
    tradeoff = found.tradeoff
    layers = [] if tradeoff is None else tradeoff.layers
    chosen: Mapping[str, int] = {} if found.winner is None else found.winner.variant.bits
    winner = None if found.winner is None else trial_dict(found.winner, found)
    return {
        "schema": "edgeq.search/1",
        "ok": found.winner is not None and found.complete,
        "complete": found.complete,
        "model": facts["model"],
        "target": facts["target"],
        "device": facts["device"],
        "unit": found.unit,
        "budget": {**found.budgets.to_dict(), "limit": limit},
        "winner": winner and {**winner, "artifact": facts["artifact"]},
        "uniform": [trial_dict(t, found) for t in found.uniform],
        "mixed": [trial_dict(t, found) for t in found.mixed],
        "front": [
            {"cost": p.cost, "ratio": p.cost / found.reference, "bytes": round(p.bytes), "loss": p.loss}
            for p in found.front
        ],
        "layers": [
            {
                "name": layer.name,
                "kind": layer.kind,
                "shape": layer.shape,
                "bits": chosen.get(layer.name),
                "cost": {str(b): tradeoff.table.layer(layer.name, b) for b in layer.bits},
                "loss": {str(b): tradeoff.loss(layer.name, b) for b in layer.bits},
                "bytes": {str(b): layer.bytes[b] for b in layer.bits},
            }
            for layer in layers
            if tradeoff is not None
        ],
        "table": facts["table"],
        "notes": list(found.notes),
        "seconds": facts["seconds"],
    }


def expected_loss(variant: Variant, found: Findings) -> float | None:
    """Summed loss of the layers alone; None for another scheme, and before the losses are known."""
    if found.tradeoff is None or variant.scheme != found.scheme:
        return None
    return found.tradeoff.point(variant.bits).loss


def trial_dict(trial: Trial, found: Findings) -> dict[str, Any]:
    """A judged file as JSON."""
    measured = trial.found
    return {
        "label": trial.variant.label,
        "scheme": trial.variant.scheme,
        "bits": trial.variant.census(),
        "cost": {
            "predicted": None if trial.expected is None else trial.expected.cost,
            "measured": measured.cost,
            "low": measured.low,
            "high": measured.high,
        },
        "ratio": measured.cost / found.reference,
        "loss": expected_loss(trial.variant, found),
        "bytes": measured.bytes,
        "fidelity": {"sqnr_db": {"median": measured.sqnr_db, "worst": measured.worst_db}},
        "metric": measured.metric,
        "kept": found.budgets.kept(measured, found.reference),
        "missed": list(measured.missed),
    }
