"""Which samples calibrate: no copies, none that is measured on, and if asked for as different ones as possible."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import signal  # type: ignore[import-untyped]

from edgeq.data.source import Source, shuffled
from edgeq.errors import DataError

Descriptor: TypeAlias = NDArray[np.float32]

SIDE = 16
"""Blocks along a side of an image, along time and frequency of a recording; quantiles of a column of a cloud."""

NEAR: MappingProxyType[str, float] = MappingProxyType({"image": 0.385, "recording": 0.12, "cloud": 0.025})
"""Samples whose descriptors differ by less are copies of each other, by kind.

Measured: photos re-encoded, halved or blurred differ by 0.01 to 0.05, small pictures by up to 0.18; what CIFAR-10 holds
twice, cut otherwise, by 0.28 to 0.38; different pictures there by 0.4 and more, photos by 0.6. Recordings of one voice
differ by 0.21 and more, re-encoded by 0.03 to 0.1; clouds of furniture by 0.03 and more, jittered by up to 0.014.
"""

POOL = 8
"""Candidates that are looked at for each sample that a rule chooses."""

_QUIET_DB = 80.0


@dataclass(frozen=True)
class Copy:
    """A sample that was not taken.

    Args:
        item: Its id.
        of: Id of the sample that it is a copy of.
        leak: Whether that one is labelled data, which the metric is measured on.
    """

    item: str
    of: str
    leak: bool


@dataclass(frozen=True)
class Picked:
    """Samples of a source by their indices.

    Args:
        calibration: To calibrate with, sorted.
        held_out: To measure fidelity on, sorted.
        copies: Candidates that were passed over.
    """

    calibration: tuple[int, ...]
    held_out: tuple[int, ...]
    copies: tuple[Copy, ...]


@dataclass
class Known:
    """Descriptors of samples with their ids, against which others are held.

    Args:
        near: Distance below which others are copies.
        ids: Ids of the samples.
        rows: Their descriptors.
    """

    near: float
    ids: list[str] = field(default_factory=list)
    rows: list[Descriptor] = field(default_factory=list)
    _stacked: NDArray[np.float32] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, source: Source[Any], indices: Iterable[int]) -> Known:
        """The samples of `source` at `indices` that can be described."""
        known = cls(NEAR.get(source.kind, 0.0))
        for index in indices:
            known.add(source.items[index].id, describe(source.read(index)))
        return known

    def add(self, item: str, row: Descriptor | None) -> None:
        """Remember a sample."""
        if row is not None:
            self.ids.append(item)
            self.rows.append(row)
            self._stacked = None

    def copied_by(self, row: Descriptor | None) -> str | None:
        """Id of the first known sample that `row` is a copy of."""
        if row is None or not self.rows:
            return None
        if self._stacked is None:
            self._stacked = np.stack(self.rows)
        near = np.flatnonzero(distances(row, self._stacked) < self.near)
        return self.ids[int(near[0])] if near.size else None


def describe(sample: Any) -> Descriptor | None:
    """What a sample looks like from afar: `(features,)`, alike for re-encoded, rescaled or slightly noisy copies.

    Images: colours of 16 x 16 blocks. Recordings `(n,)`: log power in 16 bands and 16 stretches of time, and the
    length. Clouds `(points, columns)`: 16 quantiles of each coordinate, for points have no order. None for anything
    else, and for less than that.
    """
    if isinstance(sample, Image.Image):
        small = sample.resize((SIDE, SIDE), Image.Resampling.BOX)
        return np.asarray(small, np.float32).reshape(-1)
    if isinstance(sample, np.ndarray) and sample.ndim == 1 and len(sample) >= SIDE * SIDE:
        return _of_recording(sample)
    if isinstance(sample, np.ndarray) and sample.ndim == 2 and len(sample) >= SIDE and sample.shape[1] >= 3:
        return np.quantile(sample[:, :3], np.linspace(0, 1, SIDE), axis=0).astype(np.float32).reshape(-1)
    return None


def _of_recording(sound: NDArray[Any]) -> Descriptor:
    size = min(512, len(sound) // SIDE)
    power = signal.spectrogram(np.asarray(sound, np.float64), nperseg=size, noverlap=size // 2)[2]
    edges = np.unique(np.geomspace(1, len(power), SIDE + 1).astype(int))
    bands = np.stack([power[a:b].mean(0) for a, b in itertools.pairwise(edges)])
    blocks = np.stack([part.mean(1) for part in np.array_split(bands, min(SIDE, bands.shape[1]), axis=1)])
    level = 10 * np.log10(blocks / max(float(blocks.max()), 1e-20) + 10 ** (-_QUIET_DB / 10)) + _QUIET_DB
    level = np.pad(level, [(0, SIDE - n) for n in level.shape])
    return np.append(level.reshape(-1), len(sound) / 16_000).astype(np.float32)


def distances(row: Descriptor, others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Differences `(n,)` of a descriptor `(d,)` to others `(n, d)`: RMS of the difference over the larger deviation."""
    spread = np.maximum(row.std(), others.std(axis=1)) + 1e-6
    gaps: NDArray[np.float32] = np.sqrt(np.square(others - row).mean(axis=1)) / spread
    return gaps


View: TypeAlias = Callable[[Any], Descriptor]
Rule: TypeAlias = Callable[[NDArray[np.float32], int], Sequence[int]]


def farthest(rows: NDArray[np.float32], count: int) -> list[int]:
    """Indices of `count` rows that cover the others: each as far as possible from those before (Gonzalez, 1985).

    The first is the one nearest to the mean, so that the choice depends on the rows alone.
    """
    scaled = rows / (rows.std() + 1e-6)
    chosen = [int(np.argmin(np.square(scaled - scaled.mean(0)).sum(1)))]
    gap = np.square(scaled - scaled[chosen[0]]).sum(1)
    while len(chosen) < min(count, len(rows)):
        chosen.append(int(np.argmax(gap)))
        gap = np.minimum(gap, np.square(scaled - scaled[chosen[-1]]).sum(1))
    return chosen


RULES: MappingProxyType[str, Rule | None] = MappingProxyType({"random": None, "diverse": farthest})
"""How calibration samples are chosen among candidates; None takes them as they were drawn."""


def pick(
    source: Source[Any],
    calibration: int,
    holdout: int,
    seed: int,
    rule: str = "random",
    judged: Known | None = None,
    view: View | None = None,
) -> Picked:
    """Samples to calibrate with and samples to measure fidelity on.

    Candidates come in an order drawn by `seed` (see `split`); copies of what is taken, held out or judged are passed
    over. `diverse` chooses among the first `POOL` times as many.

    Args:
        source: The samples.
        calibration: Most items for calibration, at least 1.
        holdout: Items to hold out, at least 0.
        seed: Of the order.
        rule: A key of `RULES`.
        judged: Labelled samples, from elsewhere, on which the metric is measured.
        view: What a rule tells samples apart by; what they look like when None.

    Raises:
        DataError: Too few different items; EQ-D950 when all are copies of labelled ones.
    """
    candidates, held = shuffled(source, holdout, seed)
    known, judged = Known.of(source, held), judged or Known(0.0)
    chooser = RULES[rule]
    wanted = max(1, calibration) * (1 if chooser is None else POOL)
    taken: list[int] = []
    rows: list[Descriptor] = []
    copies: list[Copy] = []
    for index in candidates:
        if len(taken) == wanted:
            break
        sample, item = source.read(index), source.items[index].id
        row = describe(sample)
        leak = judged.copied_by(row)
        if (copied := leak or known.copied_by(row)) is not None:
            copies.append(Copy(item, copied, leak is not None))
            continue
        known.add(item, row)
        taken.append(index)
        if chooser is not None and view is not None:
            rows.append(view(sample))
        elif row is not None:
            rows.append(row)
    if not taken:
        raise DataError(
            f"every one of the {len(candidates)} {source.kind}s is a copy of one that is measured on, first "
            f"{copies[0].item} of {copies[0].of}",
            code="EQ-D950",
            place=source.place,
            hint="give --calib other samples than --data",
        )
    if chooser is not None and len(rows) == len(taken):
        taken = [taken[i] for i in chooser(np.stack(rows), calibration)]
    return Picked(tuple(sorted(taken)), tuple(sorted(held)), tuple(copies))
