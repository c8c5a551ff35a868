"""The data of an export: calibration items, held-out items for fidelity, labelled items for the task metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeq.candidate import Arrays
from edgeq.config import ExportConfig
from edgeq.data import Copy, Item, Known, Picked, Source, describe, pick, split
from edgeq.degrade import MIX_SEVERITIES, Condition, kind_of, parse_conditions
from edgeq.devices import open_model
from edgeq.errors import DataError, UsageError
from edgeq.metrics import bootstrap_totals, points_lost
from edgeq.models.base import Composite, Metric, ModelAdapter, inputs_of, judge_sample

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
        copies: Items that were passed over, with what they are copies of.
    """

    source: Source[Any]
    adapter: ModelAdapter
    calibration_index: tuple[int, ...]
    held_out_index: tuple[int, ...]
    held_out: list[Arrays]
    conditions: tuple[Condition, ...] = ()
    seed: int = 0
    copies: tuple[Copy, ...] = ()

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
        """Network inputs of the calibration items, one at a time; of every run where a network runs more than once.

        Args:
            degraded: Half of them as their `condition` leaves them.
        """
        for index in self.calibration_index:
            sample = self.source.read(index)
            condition = self.condition(index) if degraded else None
            yield from inputs_of(self.adapter, sample if condition is None else condition.of(sample, self.seed, index))


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
        also: Other scores, of float and artifact, by name.
    """

    metric: str
    higher_is_better: bool
    float_score: float
    quantized_score: float
    interval: tuple[float, float]
    agreement: float
    n: int
    also: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def drop(self) -> float:
        """Points lost; negative where the artifact is better."""
        return points_lost(self.float_score, self.quantized_score, higher_is_better=self.higher_is_better)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; the first four fields are those of `edgeq.export/1`."""
        return {
            "name": self.metric,
            "float": round(self.float_score, 4),
            "quantized": round(self.quantized_score, 4),
            "n": self.n,
            "difference_interval": [round(v, 4) for v in self.interval],
            "agreement": round(self.agreement, 4),
            "also": {n: {"float": round(f, 4), "quantized": round(q, 4)} for n, (f, q) in self.also.items()},
        }


def collect_samples(
    config: ExportConfig, networks: Sequence[ModelAdapter], recorded: Sequence[str] | None = None
) -> list[Samples]:
    """Calibration and held-out samples of `--calib`, or those that ship with the model, as each network reads them.

    Where `--data` names the same place, calibration takes a quarter of it at most: the rest is there to be judged on.
    Copies of samples that are measured on, here or in `--data`, do not calibrate.

    Args:
        config: Places, number, seed and rule of the choice.
        networks: Of the model.
        recorded: SHA-256 of the calibration items where they are known, from a manifest; nothing is chosen then.

    Raises:
        UsageError: The model ships none and `--calib` is missing.
        DataError: The folder cannot be used; EQ-D022 when recorded items are not there.
    """
    first = networks[0]
    path = config.calib or first.sample_file
    if path is None:
        raise UsageError(
            f"{first.loaded.name} ships no calibration data",
            code="EQ-U017",
            hint="add --calib FOLDER with some 100 samples like those the device will meet",
        )
    source = first.open(path, "calibration")
    quarter = max(1, len(source) // 4)
    most = min(config.samples, quarter) if serves_both(config) else config.samples
    holdout = min(HELD_OUT, quarter)
    if recorded is None:
        view = partial(output_profile, first)
        picked = pick(source, most, holdout, config.seed, config.select, _judged(config, first), view)
    else:
        picked = Picked(_recorded(source, recorded), split(source, 1, holdout, config.seed)[1], ())
    chosen, kept = picked.calibration, picked.held_out
    conditions: tuple[Condition, ...] = ()
    if config.degrade != "none":
        kind = kind_of(source.read(chosen[0]), source.place)
        conditions = parse_conditions(config.degrade, MIX_SEVERITIES, kind)
    return [
        Samples(
            source,
            network,
            chosen,
            kept,
            [network.inputs(source.read(i)) for i in kept],
            conditions,
            config.seed,
            picked.copies,
        )
        for network in networks
    ]


@torch.no_grad()
def output_profile(adapter: ModelAdapter, sample: Any) -> NDArray[np.float32]:
    """What a network makes of a sample: mean and deviation of each output along all axes but the last.

    Samples that differ in it differ in what the network computes, which what they look like does not tell.
    """
    outputs = adapter.loaded.graph(*map(torch.from_numpy, adapter.inputs(sample)))
    rows = [o.reshape(-1, o.shape[-1]).float() for o in outputs]
    return np.concatenate([np.concatenate([r.mean(0), r.std(0, unbiased=False)]) for r in rows])


def _judged(config: ExportConfig, adapter: ModelAdapter) -> Known | None:
    """What the metric will be measured on, where that is another place."""
    if config.data is None or serves_both(config):
        return None
    source = adapter.open(config.data, "evaluation")
    return Known.of(source, range(min(len(source), config.limit or len(source))))


def _recorded(source: Source[Any], hashes: Sequence[str]) -> tuple[int, ...]:
    """Indices of recorded items."""
    places = {item.sha256: index for index, item in reversed(list(enumerate(source.items)))}
    if missing := [value for value in hashes if value not in places]:
        raise DataError(
            f"{len(missing)} of the {len(hashes)} calibration items that the manifest lists are not in {source.place}",
            code="EQ-D022",
            place=source.place,
            hint="give the same folder with --calib, unchanged",
        )
    return tuple(places[value] for value in hashes)


def serves_both(config: ExportConfig) -> bool:
    """Whether one folder holds the calibration samples and the labelled ones."""
    return (
        None not in (config.calib, config.data)
        and Path(config.calib or "").resolve() == Path(config.data or "").resolve()
    )


def open_labelled(config: ExportConfig, samples: Samples) -> Source[Any] | None:
    """The labelled items of `--data`, None without it; checked before any long work begins.

    Where `--calib` names the same place, what calibration uses is left out.

    Raises:
        DataError: It cannot be read, has no labels, or holds items that calibration uses.
    """
    if config.data is None:
        return None
    source = samples.adapter.open(config.data, "evaluation").for_classes(samples.adapter.loaded.classes)
    seen = {item.sha256 for item in samples.calibration_items}
    if serves_both(config):
        used = Known.of(samples.source, samples.calibration_index)
        kept = [i for i, item in enumerate(source.items) if item.sha256 not in seen]
        source = source.subset([i for i in kept if used.copied_by(describe(source.read(i))) is None])
    if any(item.label is None for item in source.items):
        raise DataError(
            f"{config.data} carries no labels",
            code="EQ-D020",
            place=str(config.data),
            hint="one folder a class, or the packed .npz; without labels leave --data out",
        )
    leaked = [item.id for item in source.items if item.sha256 in seen]
    if leaked:
        raise DataError(
            f"{len(leaked)} evaluation items were used for calibration, first {leaked[0]}",
            code="EQ-D021",
            place=str(config.data),
            hint="give --calib other items than --data, or the same folder, which is then shared out",
        )
    return source


def records_of(
    config: ExportConfig,
    model: ModelAdapter | Composite,
    source: Source[Any],
    paths: Mapping[str, Path],
    threads: int,
    advance: Callable[[int], None],
) -> list[Any]:
    """What the metric needs to know of the items of `open_labelled`, from the files of the model's networks."""
    networks = {name: open_model(path, threads=threads).run for name, path in paths.items()}
    records = []
    for index in range(min(len(source), config.limit or len(source))):
        records.append(judge_sample(model, networks, source.read(index), source.items[index].label))
        advance(1)
    return records


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
        also={name: (total(reference), total(quantized)) for name, total in metric.also.items()},
    )
