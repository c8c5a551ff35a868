"""A bundle on clean and on degraded data, beside the float model it was made from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.artifact import Artifact
from edgeq.cache import cache_key, work_folder
from edgeq.data import Source
from edgeq.degrade import SEVERITIES, Condition, kind_of, parse_conditions
from edgeq.errors import DataError, UsageError
from edgeq.journal import Journal
from edgeq.metrics import bootstrap_scores, percentile_interval, points_lost
from edgeq.models.base import Metric, parts_of
from edgeq.origin import float_model, open_whole
from edgeq.portraits import Pair, most_different
from edgeq.probe import CLEAN, FIDELITY, Probe, files_of
from edgeq.progress import Progress
from edgeq.rebuild import Variance, measure_variance

RESAMPLES_AT_MOST = 1000
"""Draws for the intervals: there are two scores of each condition."""


@dataclass(frozen=True)
class ValidationRequest:
    """What to validate on and what to insist on.

    Args:
        data: Samples; with labels the task metric is measured, without them the fidelity to float.
        degrade: Degradations, see `edgeq.degrade.parse_conditions`; `none` for clean data only.
        severities: For degradations that are named without one.
        limit: Items at most.
        max_drop: Largest loss against float, in units of the metric, on clean data and under every condition.
        max_extra_drop: Largest relative loss through a degradation beyond float's own, in points.
        min_sqnr_db: Smallest median fidelity, without labels.
        seed: Of degradations and intervals.
        threads: Of the runtime.
        show: Samples to draw, those on which float and artifact differ most.
        rebuild: Exports with other calibration draws to compare with; 0 for none, 1 tells little.
    """

    data: Path
    degrade: str = "all"
    severities: tuple[int, ...] = (1, 3, 5)
    limit: int | None = None
    max_drop: float | None = None
    max_extra_drop: float | None = None
    min_sqnr_db: float | None = None
    seed: int = 0
    threads: int = 1
    show: int = 0
    rebuild: int = 0

    def __post_init__(self) -> None:
        if not self.severities or not set(self.severities) <= set(SEVERITIES):
            raise UsageError(
                f"severities {', '.join(map(str, self.severities)) or 'none'}: they are 1 to 5",
                code="EQ-U750",
                place="--severity",
                hint="--severity 1,3,5",
            )


@dataclass(frozen=True)
class Outcome:
    """What one condition does.

    Args:
        name: `clean`, or the degradation.
        severity: 0 on clean data.
        float_score: Metric of the float model; None for fidelity.
        quantized_score: Metric of the artifact, or median fidelity in dB.
        worst_item: Item on which both differ most, or the least faithful one; empty where both agree on all.
        worst_fidelity: Its fidelity in dB, without labels.
        agreement: How far both agree on an item, on average; None without labels.
        interval: 95 % paired bootstrap interval of artifact minus float.
        relative_drop: Loss against clean data in percent, of float and of the artifact.
        extra_drop: Difference of these two: what quantization adds.
        extra_interval: Its 95 % paired bootstrap interval.
    """

    name: str
    severity: int
    float_score: float | None
    quantized_score: float
    worst_item: str
    worst_fidelity: float | None = None
    agreement: float | None = None
    interval: tuple[float, float] | None = None
    relative_drop: tuple[float, float] | None = None
    extra_drop: float | None = None
    extra_interval: tuple[float, float] | None = None

    @property
    def label(self) -> str:
        """`clean` or `name:severity`."""
        return f"{self.name}:{self.severity}" if self.severity else self.name

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        relative = self.relative_drop
        return {
            "name": self.name,
            "severity": self.severity,
            "float": _rounded(self.float_score),
            "quantized": _rounded(self.quantized_score),
            "difference_interval": _pair(self.interval),
            "relative_drop": None if relative is None else {"float": relative[0], "quantized": relative[1]},
            "extra_drop": _rounded(self.extra_drop),
            "extra_drop_interval": _pair(self.extra_interval),
            "agreement": _rounded(self.agreement),
            "worst_item": self.worst_item,
            "worst_sqnr_db": _rounded(self.worst_fidelity),
        }


@dataclass(frozen=True)
class Validation:
    """All conditions, and what missed a gate.

    Args:
        artifact: The bundle.
        metric: Name of the metric.
        unit: Its unit.
        higher_is_better: False for errors.
        n: Items.
        left_out: Items of the data that calibration has seen, which are not among them.
        outcomes: Clean first.
        request: What was asked for.
        missed: Reasons, empty when every gate passed.
        shown: Samples as people see them, the most different first.
        variance: Scores of the same export with other calibration draws, where asked for.
    """

    artifact: Path
    metric: str
    unit: str
    higher_is_better: bool
    n: int
    left_out: int
    outcomes: tuple[Outcome, ...]
    request: ValidationRequest
    missed: tuple[str, ...] = ()
    shown: tuple[Pair, ...] = ()
    variance: Variance | None = None

    def loss(self, outcome: Outcome) -> float | None:
        """What the artifact loses against float under the same condition; positive is worse."""
        if outcome.float_score is None:
            return None
        return points_lost(outcome.float_score, outcome.quantized_score, higher_is_better=self.higher_is_better)

    @property
    def worst(self) -> Outcome:
        """The condition with the largest loss, or with the least fidelity."""
        return max(self.outcomes, key=lambda o: -o.quantized_score if (lost := self.loss(o)) is None else lost)

    def to_dict(self) -> dict[str, Any]:
        """The contract `edgeq.validate/1`."""
        clean, *degraded = self.outcomes
        request = self.request
        return {
            "schema": "edgeq.validate/1",
            "ok": not self.missed,
            "artifact": str(self.artifact),
            "metric": self.metric,
            "unit": self.unit,
            "higher_is_better": self.higher_is_better,
            "n": self.n,
            "left_out": self.left_out,
            "seed": request.seed,
            "clean": clean.to_dict(),
            "degraded": [o.to_dict() for o in degraded],
            "worst": {**self.worst.to_dict(), "drop": _rounded(self.loss(self.worst))},
            "gate": {
                "max_drop": request.max_drop,
                "max_extra_drop": request.max_extra_drop,
                "min_sqnr_db": request.min_sqnr_db,
                "passed": not self.missed,
                "missed": list(self.missed),
            },
            "samples": [pair.to_dict() for pair in self.shown],
            "rebuild": None if self.variance is None else self.variance.to_dict(),
        }


def validate(
    folder: Path, inputs: Mapping[str, Path | None], request: ValidationRequest, progress: Progress
) -> Validation:
    """Run a bundle and its float model on clean and degraded data.

    Every item is kept as soon as it is measured, so that the same call after an interruption continues.

    Args:
        folder: The bundle.
        inputs: Where to find `model`, `weights` and, for rebuilds, `calib` now, see `edgeq.origin.recorded_config`.
        request: Data, conditions and gates.
        progress: Where to show the stages.

    Raises:
        EdgeqError: The bundle, its model or the data cannot be used.
    """
    artifact = open_whole(folder, "edgeq validate {} --data PATH")
    artifact.verify_files()
    with progress.step("load"):
        model = float_model(artifact.manifest, artifact.folder, {k: v for k, v in inputs.items() if k != "calib"})
        first = next(iter(parts_of(model).values()))
        whole = first.open(request.data, "evaluation").for_classes(first.loaded.classes)
        source = _unseen(whole, artifact, progress)
        count = min(len(source), request.limit or len(source))
        conditions = _conditions(request, source)
        probe = Probe(model, source, files_of(artifact), request.seed, request.threads)
        _require_judgeable(request, probe.labelled)
    journal = _journal(artifact, source, count, request)
    named: dict[str, Condition | None] = {CLEAN: None, **{c.name: c for c in conditions}}
    with progress.step("validate", count * len(named)) as advance:
        for name, condition in named.items():
            for index in range(count):
                if (name, index) not in journal:
                    journal[name, index] = probe.records(index, condition)
                advance(1)
    records = {name: [probe.restored(journal[name, i]) for i in range(count)] for name in named}
    outcomes: list[Outcome] = []
    clean: Scored | None = None
    with progress.step("intervals", len(named)) as advance:
        for name, condition in named.items():
            if probe.labelled:
                scored = _scored(model.metric, records[name], request.seed)
                outcomes.append(_outcome(model.metric, source, condition, scored, clean))
                clean = clean or scored
            else:
                outcomes.append(_fidelity(source, condition, records[name]))
            advance(1)
    metric = model.metric if probe.labelled else Metric(FIDELITY, "dB")
    shown = _shown(probe, request.show, named, records, progress)
    facts = (metric.name, metric.unit, metric.higher_is_better, count, len(whole) - len(source))
    variance = None
    if request.rebuild:
        few = source.subset(range(count))
        variance = measure_variance(artifact, model, few, inputs, request.rebuild, request.threads, progress)
    return _gated(Validation(folder, *facts, tuple(outcomes), request, shown=shown, variance=variance))


def _shown(
    probe: Probe,
    count: int,
    conditions: Mapping[str, Condition | None],
    records: Mapping[str, Sequence[Sequence[Any]]],
    progress: Progress,
) -> tuple[Pair, ...]:
    """The samples on which both differ most, drawn."""
    if not count:
        return ()
    alike = {name: [probe.likeness(kept) for kept in of_items] for name, of_items in records.items()}
    chosen = most_different(alike, count)
    pairs = []
    with progress.step("draw", len(chosen)) as advance:
        for name, index in chosen:
            value = alike[name][index]
            agreement, fidelity = (value, None) if probe.labelled else (None, value)
            exact, found = probe.portraits(index, conditions[name])
            pairs.append(Pair(name, probe.source.items[index].id, agreement, _rounded(fidelity), exact, found))
            advance(1)
    return tuple(pairs)


def _unseen(source: Source[Any], artifact: Artifact, progress: Progress) -> Source[Any]:
    """The items that calibration has not seen: on the others every artifact looks better than it is.

    Raises:
        DataError: EQ-D021 when it has seen all of them.
    """
    seen = {item["sha256"] for item in artifact.manifest.calibration}
    kept = [i for i, item in enumerate(source.items) if item.sha256 not in seen]
    if not kept:
        raise DataError(
            "calibration has used every item",
            code="EQ-D021",
            place=source.place,
            hint="give --data other items than the export was given with --calib",
        )
    if len(kept) < len(source):
        progress.say(f"{len(source) - len(kept)} items that calibration used are left out")
    return source.subset(kept) if len(kept) < len(source) else source


def _require_judgeable(request: ValidationRequest, labelled: bool) -> None:
    asked = {"max_drop": request.max_drop, "max_extra_drop": request.max_extra_drop}
    if labelled:
        asked = {"min_sqnr_db": request.min_sqnr_db}
    for name, value in asked.items():
        if value is not None:
            needs = "no labels, with which the metric counts" if labelled else "labels"
            raise UsageError(
                f"--{name.replace('_', '-')} needs data with {needs}",
                code="EQ-U753",
                place=str(request.data),
                hint="use --max-drop for labelled and --min-sqnr-db for unlabelled data",
            )


def _conditions(request: ValidationRequest, source: Source[Any]) -> tuple[Condition, ...]:
    if request.degrade == "none":
        return ()
    kind = kind_of(source.read(0), source.place)
    return parse_conditions(request.degrade, request.severities, kind)


def _journal(artifact: Artifact, source: Source[Any], count: int, request: ValidationRequest) -> Journal:
    items = [[item.sha256, repr(item.label)] for item in source.items[:count]]
    files = sorted((f["path"], f["sha256"]) for f in artifact.manifest.files)
    key = cache_key("validate", [list(f) for f in files], artifact.manifest.weights_sha256, items, request.seed)
    folder = work_folder("validate")
    return Journal("edgeq.validate/1", key, None if folder is None else folder / f"{key}.jsonl")


@dataclass(frozen=True)
class Scored:
    """Records of one condition with what the metric makes of them.

    Args:
        records: `(float, artifact)` of each item.
        totals: Score of float and of the artifact.
        draws: Bootstrapped scores of both, the same items drawn under every condition.
    """

    records: Sequence[Sequence[Any]]
    totals: tuple[float, float]
    draws: tuple[NDArray[np.float64], NDArray[np.float64]]


def _scored(metric: Metric, records: Sequence[Sequence[Any]], seed: int) -> Scored:
    sides = [[r[side] for r in records] for side in (0, 1)]
    count = min(RESAMPLES_AT_MOST, metric.resamples)
    first, second = (bootstrap_scores(side, metric.total, seed=seed, resamples=count) for side in sides)
    return Scored(records, (metric.total(sides[0]), metric.total(sides[1])), (first, second))


def _fidelity(source: Source[Any], condition: Condition | None, records: Sequence[Sequence[Any]]) -> Outcome:
    found = [r[1] for r in records]
    worst = int(np.argmin(found))
    return Outcome(*_name_of(condition), None, float(np.median(found)), source.items[worst].id, found[worst])


def _outcome(
    metric: Metric, source: Source[Any], condition: Condition | None, scored: Scored, clean: Scored | None
) -> Outcome:
    alike = [float(metric.alike(a, b)) for a, b in scored.records]
    outcome = Outcome(
        *_name_of(condition),
        *scored.totals,
        source.items[int(np.argmin(alike))].id if min(alike) < 1 else "",
        agreement=float(np.mean(alike)),
        interval=percentile_interval(scored.draws[1] - scored.draws[0]),
    )
    return outcome if clean is None else _with_extra(outcome, metric, scored, clean)


def _with_extra(outcome: Outcome, metric: Metric, scored: Scored, clean: Scored) -> Outcome:
    """The outcome with relative losses, where clean scores allow them."""
    sign = 100 if metric.higher_is_better else -100
    with np.errstate(divide="ignore", invalid="ignore"):
        of_float, of_artifact = (
            float(sign * np.float64(before - after) / np.float64(before))
            for before, after in zip(clean.totals, scored.totals, strict=True)
        )
        drawn = [sign * (before - after) / before for before, after in zip(clean.draws, scored.draws, strict=True)]
        extra = drawn[1] - drawn[0]
    if not (math.isfinite(of_float) and math.isfinite(of_artifact)):
        return outcome
    return replace(
        outcome,
        relative_drop=(round(of_float, 4), round(of_artifact, 4)),
        extra_drop=of_artifact - of_float,
        extra_interval=percentile_interval(extra) if np.isfinite(extra).any() else None,
    )


def _name_of(condition: Condition | None) -> tuple[str, int]:
    return (CLEAN, 0) if condition is None else (condition.degradation.name, condition.severity)


def _gated(result: Validation) -> Validation:
    request, missed = result.request, []
    for outcome in result.outcomes:
        where = outcome.label
        lost = result.loss(outcome)
        if request.max_drop is not None and lost is not None and lost > request.max_drop:
            missed.append(f"{where}: {result.metric} falls by {lost:.2f}, more than --max-drop {request.max_drop:g}")
        extra, limit = outcome.extra_drop, request.max_extra_drop
        if limit is not None and extra is not None and extra > limit:
            missed.append(f"{where}: {extra:.2f} points beyond float's own loss, more than --max-extra-drop {limit:g}")
        floor = request.min_sqnr_db
        if floor is not None and outcome.float_score is None and outcome.quantized_score < floor:
            missed.append(f"{where}: {outcome.quantized_score:.1f} dB, less than --min-sqnr-db {floor:g}")
    return replace(result, missed=tuple(missed))


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), 4)


def _pair(values: tuple[float, float] | None) -> list[float] | None:
    return None if values is None else [round(v, 4) for v in values]
