"""A float model and the artifact made from it, asked about the same samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeq.artifact import Artifact
from edgeq.candidate import Arrays
from edgeq.data import Source
from edgeq.degrade import Condition
from edgeq.devices import open_model
from edgeq.errors import ModelError, UsageError
from edgeq.metrics import sqnr_db
from edgeq.models.base import Composite, ModelAdapter, Networks, Portrait, judge_sample, parts_of
from edgeq.portraits import portray

CLEAN = "clean"
FIDELITY = "SQNR"
FLOAT, ARTIFACT = "float model", "artifact"


def files_of(artifact: Artifact) -> dict[str, Path]:
    """Model files of a bundle by network; the only one has no name."""
    names = artifact.manifest.networks or ("",)
    return {name: Artifact.open(artifact.folder / name).model_file for name in names}


@dataclass
class Probe:
    """Float model and artifact, asked about one item under one condition.

    Args:
        model: The family, with the float graphs.
        source: Samples.
        files: Model files of the artifact, by network.
        seed: Of degradations.
        threads: Of the runtime.

    Raises:
        UsageError: EQ-U753 for several networks and data without labels: only the metric judges them together.
    """

    model: ModelAdapter | Composite
    source: Source[Any]
    files: Mapping[str, Path]
    seed: int = 0
    threads: int = 1
    labelled: bool = field(init=False)
    _sides: Mapping[str, Networks] = field(init=False)

    def __post_init__(self) -> None:
        self.labelled = all(item.label is not None for item in self.source.items)
        if isinstance(self.model, Composite) and not self.labelled:
            raise UsageError(
                f"{self.source.place} has no labels, and several networks are judged by the metric only",
                code="EQ-U753",
                place=self.source.place,
                hint="give --data with labels",
            )
        parts = parts_of(self.model)
        self._sides = {
            FLOAT: {name: partial(_float, part) for name, part in parts.items()},
            ARTIFACT: {name: open_model(file, threads=self.threads).run for name, file in self.files.items()},
        }

    def records(self, index: int, condition: Condition | None) -> list[Any]:
        """What is noted of float and artifact, as plain data; without labels their distance in dB is all there is.

        Raises:
            ModelError: EQ-M750 when an output is not finite.
        """
        if self.labelled:
            return [self.record(who, index, condition) for who in self._sides]
        assert not isinstance(self.model, Composite)
        arrays = self.model.inputs(self.sample(index, condition))
        reference, found = (self._networks(who, index, condition)[""](*arrays) for who in self._sides)
        return [None, min(sqnr_db(a, b) for a, b in zip(reference, found, strict=True))]

    def record(self, who: str, index: int, condition: Condition | None = None) -> Any:
        """What is noted of `FLOAT` or `ARTIFACT` on a labelled item. Raises as `records`."""
        networks = self._networks(who, index, condition)
        judged = judge_sample(self.model, networks, self.sample(index, condition), self.source.items[index].label)
        return self.model.metric.to_plain(judged)

    def _networks(self, who: str, index: int, condition: Condition | None) -> Networks:
        where = f"{self.source.items[index].id} ({CLEAN if condition is None else condition.name})"
        return {name: partial(_finite, run, who, where) for name, run in self._sides[who].items()}

    def sample(self, index: int, condition: Condition | None) -> Any:
        """A sample as the condition leaves it."""
        sample = self.source.read(index)
        return sample if condition is None else condition.of(sample, self.seed, index)

    def portraits(self, index: int, condition: Condition | None) -> tuple[Portrait, Portrait]:
        """What float and artifact make of a sample, as people see it."""
        sample, label = self.sample(index, condition), self.source.items[index].label
        exact, found = (portray(self.model, networks, sample, label) for networks in self._sides.values())
        return exact, found

    def likeness(self, records: Sequence[Any]) -> float:
        """Agreement of float and artifact on one sample; without labels the fidelity in dB."""
        return float(self.model.metric.alike(*records)) if self.labelled else float(records[1])

    def restored(self, kept: Sequence[Any]) -> list[Any]:
        """Records of float and artifact as the metric takes them, from what `records` gave."""
        return [self.model.metric.from_plain(record) for record in kept] if self.labelled else list(kept)


@torch.no_grad()
def _float(part: ModelAdapter, *arrays: Any) -> Arrays:
    return tuple(o.numpy() for o in part.loaded.graph(*map(torch.from_numpy, arrays)))


def _finite(run: Callable[..., Sequence[Any]], who: str, where: str, *arrays: Any) -> Sequence[Any]:
    outputs = run(*arrays)
    if not all(np.isfinite(o).all() for o in outputs):
        raise ModelError(
            f"the {who} answers NaN or infinity on {where}",
            code="EQ-M750",
            place=where,
            hint="look at the item; if it is sound, export again with another --scheme",
        )
    return outputs
