"""What a degradation is, and how it is drawn for an item of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image

from edgeq.errors import DataError, InternalError

SEVERITIES = (1, 2, 3, 4, 5)

Kind = Literal["image", "recording", "cloud"]
Level: TypeAlias = "float | tuple[float, float]"
"""A physical figure, or the range that each item draws its own from, evenly."""


@dataclass(frozen=True)
class Degradation:
    """One way in which samples get worse.

    Args:
        name: On the command line.
        kind: Of the samples it takes.
        unit: Of `levels`.
        levels: One for each severity 1 to 5; a single one where a paper names just that.
        apply: `(sample, figure, random) -> sample` of the same kind and size.
        summary: One line.
        source: Paper, where the levels are not ours.
    """

    name: str
    kind: Kind
    unit: str
    levels: tuple[Level, ...]
    apply: Callable[[Any, float, np.random.Generator], Any]
    summary: str
    source: str = ""

    @property
    def severities(self) -> tuple[int, ...]:
        """What `--severity` may be."""
        return SEVERITIES[: len(self.levels)]

    def __call__(self, sample: Any, severity: int, *, seed: int, index: int) -> Any:
        """The sample as it arrives; the same for the same `(seed, index)`, whatever was degraded before.

        Args:
            sample: 8-bit RGB image; recording `(n,)` float32 in -1 to 1 at 16 kHz; or point cloud `(n, columns)`
                float32.
            severity: 1 (mild) to 5.
            seed: Of the whole data set.
            index: Of the item.

        Raises:
            InternalError: EQ-Z750 for a severity it does not have.
        """
        if severity not in self.severities:
            raise InternalError(f"{self.name} has no severity {severity}", code="EQ-Z750")
        # the name is part of the seed: degradations do not share their noise; severities do, so that more is worse
        random = np.random.default_rng([seed, index, *self.name.encode()])
        level = self.levels[severity - 1]
        figure = float(random.uniform(*level)) if isinstance(level, tuple) else level
        return self.apply(sample, figure, random)


@dataclass(frozen=True)
class Condition:
    """A degradation at one severity.

    Args:
        degradation: What happens.
        severity: How much.
    """

    degradation: Degradation
    severity: int

    @property
    def name(self) -> str:
        """Spelling on the command line, `jpeg:3`."""
        return f"{self.degradation.name}:{self.severity}"

    def of(self, sample: Any, seed: int, index: int) -> Any:
        """Item `index` under this condition."""
        return self.degradation(sample, self.severity, seed=seed, index=index)


def kind_of(sample: Any, place: str) -> Kind:
    """What kind of degradations a sample takes.

    Raises:
        DataError: EQ-D750 for samples that none is defined for.
    """
    if isinstance(sample, Image.Image):
        return "image"
    if isinstance(sample, np.ndarray) and sample.ndim == 1:
        return "recording"
    if isinstance(sample, np.ndarray) and sample.ndim == 2 and sample.shape[1] >= 3:
        return "cloud"
    raise DataError(
        "edgeq degrades images, recordings and point clouds only",
        code="EQ-D750",
        place=place,
        hint="leave --degrade out",
    )
