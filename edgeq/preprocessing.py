"""How an image becomes the input of a network, in the words of `--preprocess`."""

from __future__ import annotations

import re
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeq.spec import Preprocess

RANGES = MappingProxyType(
    {
        "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "half": ((0.5,) * 3, (0.5,) * 3),
        "unit": ((0.0,) * 3, (1.0,) * 3),
        "bytes": ((0.0,) * 3, (1 / 255,) * 3),
    }
)
"""Mean and standard deviation of three channels by name: of ImageNet, to -1..1, to 0..1, to 0..255."""

WORDS = "imagenet, half (-1 to 1), unit (0 to 1), bytes (0 to 255), mean=R/G/B, std=R/G/B (shares of 255), "
WORDS += "rgb, bgr, crop=SHARE, squash, bilinear, bicubic"

_LEAST_STD, _MOST_STD = 1e-4, 10.0  # 1/255 keeps bytes; beyond these somebody mistook the unit
_NUMBER = r"[0-9]*\.?[0-9]+(?:e-?[0-9]+)?"


def stated(prepared: Preprocess, words: str) -> Preprocess:
    """`prepared`, what is known or assumed of a network, changed as the user says. Raises as `changes_of`."""
    return replace(prepared, **changes_of(words))


def changes_of(words: str) -> dict[str, Any]:
    """Fields of `Preprocess` that words change; of words that contradict each other the later ones count.

    Args:
        words: Of `WORDS`, separated by commas; means and deviations in the order of the network's channels.

    Raises:
        ValueError: A word that is none of these, or a number that cannot be.
    """
    changes: dict[str, Any] = {}
    for word in words.lower().replace(" ", "").split(","):
        changes |= _change(word)
    if not all(0 <= n <= 1 for n in changes.get("mean", ())):
        raise ValueError(words)
    if not all(_LEAST_STD <= n <= _MOST_STD for n in changes.get("std", ())):
        raise ValueError(words)
    return changes


def _change(word: str) -> dict[str, Any]:
    name, given, value = word.partition("=")
    if word in RANGES:
        return dict(zip(("mean", "std"), RANGES[word], strict=True))
    if word in ("rgb", "bgr"):
        return {"channels": word}
    if word in ("bilinear", "bicubic"):
        return {"interpolation": word}
    if word == "squash":
        return {"resize": word, "crop_fraction": 1.0}
    if name in ("mean", "std") and re.fullmatch(rf"{_NUMBER}(?:/{_NUMBER}/{_NUMBER})?", value):
        numbers = tuple(map(float, value.split("/")))
        return {name: numbers * (3 // len(numbers))}
    if name == "crop" and given and re.fullmatch(_NUMBER, value) and 0 < float(value) <= 1:
        return {"resize": "crop", "crop_fraction": float(value)}
    raise ValueError(word)
