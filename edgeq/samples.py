"""The data of an export: calibration items, held-out items for fidelity, labelled items for the task metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgeq.candidate import Arrays
from edgeq.config import ExportConfig
from edgeq.data import ImageSource, Item, open_images, split
from edgeq.devices import open_model
from edgeq.errors import DataError, UsageError
from edgeq.metrics import bootstrap_difference
from edgeq.models.base import ModelAdapter

HELD_OUT = 32


@dataclass(frozen=True)
class Samples:
    """Calibration items and held-out network inputs; no item is in both.

    Args:
        source: Where the images come from.
        adapter: Turns images into inputs.
        calibration_index: Chosen items of the source.
        held_out_index: Items of the source kept for fidelity.
        held_out: Their network inputs.
    """

    source: ImageSource
    adapter: ModelAdapter
    calibration_index: tuple[int, ...]
    held_out_index: tuple[int, ...]
    held_out: list[Arrays]

    @property
    def calibration_items(self) -> list[Item]:
        """The calibration items."""
        return [self.source.items[i] for i in self.calibration_index]

    @property
    def held_out_items(self) -> list[Item]:
        """The items that fidelity is measured on."""
        return [self.source.items[i] for i in self.held_out_index]

    def calibration(self) -> Iterator[Arrays]:
        """Network inputs of the calibration items, one at a time."""
        for index in self.calibration_index:
            yield self.adapter.inputs(self.source.read(index))


@dataclass(frozen=True)
class Evaluation:
    """A task metric of float and artifact on the same labelled items, in points of 100.

    Args:
        metric: Its name.
        float_score: Score of the float file.
        quantized_score: Score of the artifact.
        interval: 95 % paired bootstrap interval of quantized minus float.
        agreement: Share of items on which both score alike.
        n: Items.
        per_item: Scores (float, artifact) of each item.
    """

    metric: str
    float_score: float
    quantized_score: float
    interval: tuple[float, float]
    agreement: float
    n: int

    @property
    def drop(self) -> float:
        """Points lost."""
        return self.float_score - self.quantized_score

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
            f"{adapter.loaded.name} ships no calibration images",
            code="EQ-U017",
            hint="add --calib FOLDER with some 100 photos like those the device will see",
        )
    source = open_images(path, role="calibration")
    held_out = min(HELD_OUT, max(1, len(source) // 4))
    chosen, kept = split(source, calibration=config.samples, holdout=held_out, seed=config.seed)
    inputs = [adapter.inputs(source.read(i)) for i in kept]
    return Samples(source, adapter, chosen, kept, inputs)


def open_labelled(config: ExportConfig, samples: Samples) -> ImageSource | None:
    """The labelled items of `--data`, None without it; checked before any long work begins.

    Raises:
        DataError: It cannot be read, has no labels, or holds items that calibration uses.
    """
    if config.data is None:
        return None
    source = open_images(config.data, role="evaluation")
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
            f"{len(leaked)} evaluation images were used for calibration, first {leaked[0]}",
            code="EQ-D021",
            place=str(config.data),
            hint="give --calib other images than --data",
        )
    return source


def evaluate(
    config: ExportConfig,
    adapter: ModelAdapter,
    source: ImageSource,
    float_path: Path,
    path: Path,
    threads: int,
    advance: Callable[[int], None],
) -> Evaluation:
    """Score the float file and the artifact on the items of `open_labelled`."""
    labels = [item.label for item in source.items if item.label is not None]
    count = min(len(source), config.limit) if config.limit else len(source)
    reference, quantized = open_model(float_path, threads=threads), open_model(path, threads=threads)
    scores = np.zeros((count, 2))
    for index in range(count):
        image: Image.Image = source.read(index)
        inputs = adapter.inputs(image)
        scores[index] = [adapter.score(m.run(*inputs), labels[index]) for m in (reference, quantized)]
        advance(1)
    low, high = bootstrap_difference(scores[:, 1], scores[:, 0], seed=config.seed)
    return Evaluation(
        metric=adapter.metric.name,
        float_score=float(scores[:, 0].mean()),
        quantized_score=float(scores[:, 1].mean()),
        interval=(low, high),
        agreement=float((scores[:, 0] == scores[:, 1]).mean()),
        n=count,
    )
