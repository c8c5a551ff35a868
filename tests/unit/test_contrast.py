"""Colours of the pages are told apart from what is behind them, in light and dark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import edgeq.report

STYLE = Path(edgeq.report.__file__).parent / "templates" / "style.html"
TEXT = ("ink", "soft", "good", "bad", "artifact")
SHAPES = ("float", "artifact", "bad", "good")


def palettes() -> list[dict[str, str]]:
    """The variables of the light and of the dark scheme."""
    found = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]+)", block))
        for block in re.findall(r":root \{(.*?)\}", STYLE.read_text(), re.S)
    ]
    assert [len(p) > 8 for p in found] == [True, True]
    return found


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    """Contrast ratio, 1 to 21."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", palettes(), ids=["light", "dark"])
def test_text_and_shapes_have_enough_contrast(palette: dict[str, str]) -> None:
    for ground in ("bg", "card"):
        text = {name: round(contrast(palette[name], palette[ground]), 2) for name in TEXT}
        assert min(text.values()) >= 4.5, f"on {ground}: {text}"
        shapes = {name: round(contrast(palette[name], palette[ground]), 2) for name in SHAPES}
        assert min(shapes.values()) >= 3, f"on {ground}: {shapes}"
