"""The data of an export: calibration items, held-out items for fidelity, labelled items for the task metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.candidate import Arrays
from edgeq.config import ExportConfig
from edgeq.data import Item, Source, split
from edgeq.degrade import MIX_SEVERITIES, Condition, kind_of, parse_conditions
from edgeq.devices import open_model
from edgeq.errors import DataError, UsageError
from edgeq.metrics import bootstrap_totals
from edgeq.models.base import Metric, ModelAdapter

HELD_OUT = 32


@dataclass(frozen=True)
class Samples:
    """Calibration items and held-out network inputs; no item is in both.

    Args:
        source: Where the items come from.
        adapter: Turns them into inputs.
        calibration_index: Chosen items of the source.
        held_out_index: Items of the source kept for fidelity.
        held_out: Their network inputs.
        conditions: What about half of the calibration items are degraded by, one drawn for each, where that is asked
            for.
        seed: Of the degradations.
    """

    source: Source[Any]
    adapter: ModelAdapter
    calibration_index: tuple[int, ...]
    held_out_index: tuple[int, ...]
    held_out: list[Arrays]
    conditions: tuple[Condition, ...] = ()
    seed: int = 0

    @property
    def calibration_items(self) -> list[Item]:
        """The calibration items."""
        return [self.source.items[i] for i in self.calibration_index]

    @property
    def held_out_items(self) -> list[Item]:
        """The items that fidelity is measured on."""
        return [self.source.items[i] for i in self.held_out_index]

    def condition(self, index: int) -> Condition | None:
        """What calibration item `index` of the source is degraded by, if it is."""
        random = np.random.default_rng([self.seed, index])  # of the item, so that a part of them is mixed alike
        if not self.conditions or random.random() < 0.5:
            return None
        return self.conditions[int(random.integers(len(self.conditions)))]

    def calibration(self, *, degraded: bool = False) -> Iterator[Arrays]:
        """Network inputs of the calibration items, one at a time.

        Args:
            degraded: Half of them as their `condition` leaves them.
        """
        for index in self.calibration_index:
            sample = self.source.read(index)
            condition = self.condition(index) if degraded else None
            yield self.adapter.inputs(sample if condition is None else condition.of(sample, self.seed, index))


@dataclass(frozen=True)
class Evaluation:
    """A task metric of float and artifact on the same labelled items.

    Args:
        metric: Its name.
        higher_is_better: False for errors.
        float_score: Score of the float file.
        quantized_score: Score of the artifact.
        interval: 95 % paired bootstrap interval of quantized minus float.
        agreement: How far both agree on an item, 0 to 1, on average.
        n: Items.
    """

    metric: str
    higher_is_better: bool
    float_score: float
    quantized_score: float
    interval: tuple[float, float]
    agreement: float
    n: int

    @property
    def drop(self) -> float:
        """Points lost; negative where the artifact is better."""
        lost = self.float_score - self.quantized_score
        return lost if self.higher_is_better else -lost

    def to_dict(self) -> dict[str, Any]:
        """JSON form; the first four fields are those of `edgeq.export/1`."""
        return {
            "name": self.metric,
            "float": round(self.float_score, 4),
            "quantized": round(self.quantized_score, 4),
            "n": self.n,
            "difference_interval": [round(v, 4) for v in self.interval],
            "agreement": round(self.agreement, 4),
        }


def collect_samples(config: ExportConfig, adapter: ModelAdapter) -> Samples:
    """Calibration and held-out samples of `--calib`, or those that ship with the model.

    Raises:
        UsageError: The model ships none and `--calib` is missing.
        DataError: The folder cannot be used.
    """
    path = config.calib or adapter.sample_file
    if path is None:
        raise UsageError(
            f"{adapter.loaded.name} ships no calibration data",
            code="EQ-U017",
            hint="add --calib FOLDER with some 100 samples like those the device will meet",
        )
    source = adapter.open(path, "calibration")
    held_out = min(HELD_OUT, max(1, len(source) // 4))
    chosen, kept = split(source, calibration=config.samples, holdout=held_out, seed=config.seed)
    inputs = [adapter.inputs(source.read(i)) for i in kept]
    conditions: tuple[Condition, ...] = ()
    if config.degrade != "none":
        kind = kind_of(source.read(chosen[0]), source.place)
        conditions = parse_conditions(config.degrade, MIX_SEVERITIES, kind)
    return Samples(source, adapter, chosen, kept, inputs, conditions, config.seed)


def open_labelled(config: ExportConfig, adapter: ModelAdapter, samples: Samples) -> Source[Any] | None:
    """The labelled items of `--data`, None without it; checked before any long work begins.

    Raises:
        DataError: It cannot be read, has no labels, or holds items that calibration uses.
    """
    if config.data is None:
        return None
    source = adapter.open(config.data, "evaluation").for_classes(adapter.loaded.classes)
    if any(item.label is None for item in source.items):
        raise DataError(
            f"{config.data} carries no labels",
            code="EQ-D020",
            place=str(config.data),
            hint="one folder a class, or the packed .npz; without labels leave --data out",
        )
    seen = {item.sha256 for item in samples.calibration_items}
    leaked = [item.id for item in source.items if item.sha256 in seen]
    if leaked:
        raise DataError(
            f"{len(leaked)} evaluation items were used for calibration, first {leaked[0]}",
            code="EQ-D021",
            place=str(config.data),
            hint="give --calib other items than --data",
        )
    return source


def evaluate(
    config: ExportConfig,
    adapter: ModelAdapter,
    source: Source[Any],
    float_path: Path,
    path: Path,
    threads: int,
    advance: Callable[[int], None],
) -> Evaluation:
    """Score the float file and the artifact on the items of `open_labelled`."""
    count = min(len(source), config.limit) if config.limit else len(source)
    reference, quantized = open_model(float_path, threads=threads), open_model(path, threads=threads)
    records: tuple[list[Any], list[Any]] = [], []
    for index in range(count):
        sample, label = source.read(index), source.items[index].label
        inputs = adapter.inputs(sample)
        for model, noted in zip((reference, quantized), records, strict=True):
            noted.append(adapter.judge(model.run(*inputs), sample, label))
        advance(1)
    return score(adapter.metric, *records, seed=config.seed)


def score(metric: Metric, reference: Sequence[Any], quantized: Sequence[Any], *, seed: int) -> Evaluation:
    """The metric of two models from the records of the same samples.

    Args:
        metric: The task's.
        reference: Records of the float model.
        quantized: Records of the artifact.
        seed: Of the interval's draws.
    """
    return Evaluation(
        metric=metric.name,
        higher_is_better=metric.higher_is_better,
        float_score=metric.total(reference),
        quantized_score=metric.total(quantized),
        interval=bootstrap_totals(quantized, reference, metric.total, seed=seed, resamples=metric.resamples),
        agreement=float(np.mean([metric.alike(a, b) for a, b in zip(reference, quantized, strict=True)])),
        n=len(reference),
    )
