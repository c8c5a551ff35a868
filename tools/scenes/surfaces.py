"""Procedural colours of surfaces: plain, boards, tiles, stripes, checks, clouds; functions of a point in metres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from scenes.geometry import Array

Pattern = Literal["plain", "boards", "tiles", "stripes", "checks", "clouds"]
PATTERNS: tuple[Pattern, ...] = ("plain", "boards", "tiles", "stripes", "checks", "clouds")

_WAVES = 5


@dataclass(frozen=True)
class Surface:
    """Colours of a body.

    Args:
        pattern: What kind.
        first: Reflectance of red, green and blue, 0 to 1.
        second: Of the pattern's other parts.
        period: Of the pattern, in metres.
        waves: Random plane waves `(5, 4)`: three frequencies in cycles per metre and a phase, for irregularity.
        roughness: Amplitude of the irregularity, 0 to 1.
    """

    pattern: Pattern
    first: Array
    second: Array
    period: float
    waves: Array
    roughness: float

    def colours(self, point: Array, normal: Array) -> Array:
        """Reflectances `(3, n)` at points `(3, n)` whose normals tell along which two axes the pattern runs."""
        u, v = _flat(point, normal)
        grain = self._grain(point)
        share = self._share(u / np.float32(self.period), v / np.float32(self.period), grain)
        mixed = self.first[:, None] * (1 - share) + self.second[:, None] * share
        return np.asarray(mixed * (1 + np.float32(self.roughness) * grain), np.float32)

    def _share(self, u: Array, v: Array, grain: Array) -> Array:
        """How much of the second colour, 0 to 1."""
        if self.pattern == "plain":
            return np.zeros_like(u)
        if self.pattern == "clouds":
            return np.asarray(0.5 + 0.5 * grain, np.float32)
        if self.pattern == "stripes":
            return _soft(np.sin(2 * np.pi * u))
        if self.pattern == "checks":
            return _soft(np.sin(2 * np.pi * u) * np.sin(2 * np.pi * v))
        rows = np.floor(v)
        offset = u / np.float32(4 if self.pattern == "boards" else 1) + np.float32(0.37) * rows
        joint = np.maximum(np.abs(v - rows - 0.5), np.abs(offset - np.floor(offset) - 0.5))
        line = np.clip((joint - np.float32(0.46)) * 30, 0, 1)
        tone = np.modf(np.sin(rows * 12.9898 + np.floor(offset) * 78.233) * 43758.5453)[0].astype(np.float32)
        return np.asarray(np.clip(np.abs(tone) * np.float32(0.5) * (1 - line) + line, 0, 1), np.float32)

    def _grain(self, point: Array) -> Array:
        """A smooth random field of zero mean, -1 to 1."""
        waves = np.sin(2 * np.pi * (self.waves[:, :3] @ point + self.waves[:, 3:]))
        return np.asarray(waves.mean(axis=0), np.float32)


def random_surface(random: np.random.Generator) -> Surface:
    """A surface; greyish and light ones are the more frequent, as in rooms."""
    vivid = random.uniform(0, 0.9) ** 2
    grey = random.uniform(0.15, 0.9)

    def colour(brightness: float) -> Array:
        return (brightness * (1 - vivid + vivid * 2 * random.uniform(0, 1, 3))).clip(0.02, 0.95).astype(np.float32)

    waves = np.concatenate([random.normal(0, 1.5, (_WAVES, 3)), random.uniform(0, 1, (_WAVES, 1))], axis=1)
    return Surface(
        PATTERNS[int(random.choice(len(PATTERNS), p=(0.35, 0.15, 0.12, 0.1, 0.1, 0.18)))],
        colour(grey),
        colour(grey * random.uniform(0.4, 1.3)),
        float(np.exp(random.uniform(np.log(0.12), np.log(0.8)))),
        waves.astype(np.float32),
        float(random.uniform(0.02, 0.3)),
    )


def _flat(point: Array, normal: Array) -> tuple[Array, Array]:
    """Coordinates along a surface: the two axes that its normal does not point to; of round ones angle and height."""
    towards = np.abs(normal).argmax(axis=0)
    u = np.where(towards == 0, point[2], point[0])
    v = np.where(towards == 1, point[2], point[1])
    return u, v


def _soft(wave: Array) -> Array:
    """A wave with steep but not hard edges, from 0 to 1."""
    return np.asarray(np.clip(np.float32(0.5) + 4 * wave, 0, 1), np.float32)
