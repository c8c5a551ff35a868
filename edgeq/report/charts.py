"""Small charts as SVG: no scripts, colours from the page's style, text that scales with it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 320, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 12, 30
FLAT = 110
TICKS = 4


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        name: For the legend and the description.
        style: Class of the style sheet.
        points: `(x, y)`, by x.
        band: `(x, low, high)`, by x: where the value may be; empty for none.
    """

    name: str
    style: str
    points: tuple[tuple[float, float], ...]
    band: tuple[tuple[float, float, float], ...] = ()


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
    values += [end for line in lines for _, *ends in line.band for end in ends]
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
        edge = [(x, low) for x, low, _ in line.band] + [(x, high) for x, _, high in reversed(line.band)]
        if edge:
            corners = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in edge)
            parts.append(f'<polygon class="{line.style}" points="{corners}"/>')
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


def histogram(title: str, low: float, high: float, counts: Sequence[int], grid: tuple[float, float]) -> Markup:
    """Bars of the logarithm of counts, with the part that a grid covers shaded behind them.

    Args:
        title: Name of the chart, read by screen readers.
        low: Where the first bar begins.
        high: Where the last one ends.
        counts: One a bar.
        grid: Smallest and largest value of the grid.

    Returns:
        An `svg` element with a title and a description in words.
    """
    left, right = min(low, grid[0]), max(high, grid[1])
    span, inner, floor = max(right - left, 1e-30), WIDTH - 2 * RIGHT, FLAT - BOTTOM
    most = math.log1p(max(counts, default=0)) or 1.0

    def x_of(value: float) -> float:
        return RIGHT + inner * (value - left) / span

    shaded = x_of(grid[1]) - x_of(grid[0])
    parts = [f'<rect class="covered" x="{x_of(grid[0]):.1f}" y="{TOP}" width="{shaded:.1f}" height="{floor - TOP}"/>']
    step = (high - low) / max(1, len(counts))
    for position, count in enumerate(counts):
        height, x = (floor - TOP) * math.log1p(count) / most, x_of(low + position * step)
        width = max(0.5, inner * step / span - 0.5)
        if count:
            parts.append(
                f'<rect class="count" x="{x:.1f}" y="{floor - height:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
            )
    for value, anchor in ((left, "start"), (right, "end")):
        parts.append(
            f'<text class="tick" x="{x_of(value):.1f}" y="{FLAT - 10}" text-anchor="{anchor}">{value:.3g}</text>'
        )
    words = f"values from {low:.4g} to {high:.4g}; the grid covers {grid[0]:.4g} to {grid[1]:.4g}"
    return Markup(
        f'<svg class="chart" role="img" viewBox="0 0 {WIDTH} {FLAT}"><title>{escape(title)}</title>'
        f"<desc>{escape(words)}</desc>{''.join(parts)}</svg>"
    )


@dataclass(frozen=True)
class Dot:
    """A named point of a plane.

    Args:
        name: Written beside it.
        style: Class of the style sheet.
        x: Where.
        y: Where.
    """

    name: str
    style: str
    x: float
    y: float


PLANE_WIDTH, PLANE_HEIGHT = 640, 380
PLANE_BOTTOM = 46


def plane_chart(
    title: str, axes: tuple[str, str], lines: Sequence[Line], dots: Sequence[Dot], limit: float | None
) -> Markup:
    """Lines and named points over two axes of numbers.

    Args:
        title: Name of the chart, read by screen readers.
        axes: Names of the horizontal and the vertical axis.
        lines: What to draw first.
        dots: What to draw upon them, with names; at least one, or a line.
        limit: Where a vertical line stands; None for nowhere.

    Returns:
        An `svg` element with a title and a description in words.
    """
    points = [*(p for line in lines for p in line.points), *((d.x, d.y) for d in dots)]
    across = nice_ticks(*_ends([x for x, _ in points] + ([] if limit is None else [limit])))
    up = nice_ticks(*_ends([y for _, y in points]))
    right, bottom = PLANE_WIDTH - 2 * RIGHT, PLANE_HEIGHT - PLANE_BOTTOM

    def x_of(x: float) -> float:
        return LEFT + (right - LEFT) * (x - across[0]) / (across[-1] - across[0])

    def y_of(y: float) -> float:
        return bottom - (bottom - TOP) * (y - up[0]) / (up[-1] - up[0])

    parts = []
    for tick in up:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y_of(tick):.1f}" y2="{y_of(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y_of(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts += [
        f'<text class="tick" x="{x_of(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>'
        for tick in across
    ]
    middle = (LEFT + right) / 2
    parts.append(
        f'<text class="tick" x="{middle}" y="{PLANE_HEIGHT - 8}" text-anchor="middle">{escape(axes[0])}</text>'
    )
    parts.append(f'<text class="tick" x="{LEFT}" y="{TOP - 2}">{escape(axes[1])}</text>')
    if limit is not None:
        x = x_of(limit)
        parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
    for line in lines:
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in line.points)
        parts.append(f'<polyline class="{line.style}" points="{path}"/>')
    for dot, y in zip(dots, _apart([y_of(d.y) for d in dots]), strict=True):
        late = x_of(dot.x) > 0.75 * PLANE_WIDTH
        side = f'x="{x_of(dot.x) + (-8 if late else 8):.1f}" text-anchor="{"end" if late else "start"}"'
        parts.append(f'<circle class="{dot.style}" cx="{x_of(dot.x):.1f}" cy="{y_of(dot.y):.1f}" r="5"/>')
        parts.append(f'<text class="name" {side} y="{y + 4:.1f}">{escape(dot.name)}</text>')
    words = "; ".join(f"{d.name}: {d.x:.4g}, {d.y:.4g}" for d in dots)
    return Markup(
        f'<svg class="chart" role="img" viewBox="0 0 {PLANE_WIDTH} {PLANE_HEIGHT}"><title>{escape(title)}</title>'
        f"<desc>{escape(words)}</desc>{''.join(parts)}</svg>"
    )


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _apart(heights: Sequence[float], least: float = 13.0) -> list[float]:
    """Heights of names, moved down where one would lie upon another."""
    moved = list(heights)
    order = sorted(range(len(moved)), key=lambda i: moved[i])
    for before, after in itertools.pairwise(order):
        moved[after] = max(moved[after], moved[before] + least)
    return moved


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
