"""Small charts as SVG: no scripts, colours from the page's style, text that scales with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 320, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 12, 30
TICKS = 4


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        name: For the legend and the description.
        style: Class of the style sheet.
        points: `(x, y)`, by x.
    """

    name: str
    style: str
    points: tuple[tuple[float, float], ...]


def line_chart(title: str, unit: str, labels: Sequence[str], lines: Sequence[Line]) -> Markup:
    """Lines over named positions 0, 1, ...

    Args:
        title: Name of the chart, read by screen readers.
        unit: Of the values.
        labels: Names of the positions.
        lines: What to draw, the last one on top.

    Returns:
        An `svg` element with a title and a description in words.
    """
    values = [y for line in lines for _, y in line.points]
    ticks = nice_ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]
    inner = WIDTH - LEFT - RIGHT

    def x_of(x: float) -> float:
        return LEFT + inner * (x / max(1, len(labels) - 1) if len(labels) > 1 else 0.5)

    def y_of(y: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (y - low) / (high - low))

    parts = []
    for tick in ticks:
        y = y_of(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for position, label in enumerate(labels):
        parts.append(
            f'<text class="tick" x="{x_of(position):.1f}" y="{HEIGHT - 10}" text-anchor="middle">{escape(label)}</text>'
        )
    for line in lines:
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in line.points)
        parts.append(f'<polyline class="{line.style}" points="{path}"/>')
        parts += [f'<circle class="{line.style}" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3"/>' for x, y in line.points]
    words = "; ".join(
        f"{line.name}: " + ", ".join(f"{labels[int(x)]} {y:.4g}" for x, y in line.points) for line in lines
    )
    return Markup(
        f'<svg class="chart" role="img" viewBox="0 0 {WIDTH} {HEIGHT}"><title>{escape(title)}, {escape(unit)}</title>'
        f"<desc>{escape(words)}</desc>{''.join(parts)}</svg>"
    )


def nice_ticks(low: float, high: float) -> list[float]:
    """Round values, evenly spaced, the first at or below `low` and the last at or above `high`."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return [0.0, 1.0]
    span = max(high - low, 1e-9 * max(abs(low), abs(high)), 1e-12)
    raw = span / TICKS
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(s * unit for s in (1, 2, 2.5, 5, 10) if s * unit >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]
