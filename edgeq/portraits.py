"""The samples on which float and artifact differ most, as people see them: what each says, and a picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from edgeq.models.base import Composite, ModelAdapter, Networks, Portrait, Portrayed

SIDE = 360
"""Longest side of a picture in pixels."""


@dataclass(frozen=True)
class Pair:
    """One sample, seen by both.

    Args:
        condition: `clean` or `name:severity`.
        item: Its name.
        agreement: How far both agree, 0 to 1; None without labels.
        sqnr_db: Fidelity in dB; None with labels.
        exact: What the float model makes of it.
        found: What the artifact makes of it.
    """

    condition: str
    item: str
    agreement: float | None
    sqnr_db: float | None
    exact: Portrait
    found: Portrait

    def to_dict(self) -> dict[str, Any]:
        """JSON form; pictures as data URIs."""
        return {
            "condition": self.condition,
            "item": self.item,
            "agreement": self.agreement,
            "sqnr_db": self.sqnr_db,
            "float": _plain(self.exact),
            "artifact": _plain(self.found),
        }


def most_different(alike: Mapping[str, Sequence[float]], count: int) -> list[tuple[str, int]]:
    """Condition and index of the samples that agree least, each sample once, the worst first.

    Args:
        alike: Agreement or fidelity of each sample, by condition.
        count: Samples at most.
    """
    ranked = sorted((value, place, name, i) for place, name in enumerate(alike) for i, value in enumerate(alike[name]))
    chosen: dict[int, str] = {}
    for _, _, name, index in ranked:
        chosen.setdefault(index, name)
    return [(name, index) for index, name in list(chosen.items())[:count]]


def portray(model: ModelAdapter | Composite, networks: Networks, sample: Any, label: Any) -> Portrait:
    """What the networks make of a sample; nothing where the family has no way to show it."""
    return model.portray(networks, sample, label) if isinstance(model, Portrayed) else Portrait("")


def _plain(portrait: Portrait) -> dict[str, Any]:
    return {"text": portrait.text, "picture": None if portrait.picture is None else data_uri(portrait.picture)}


def data_uri(picture: Image.Image) -> str:
    """A small JPEG of a picture, for pages that need nothing else."""
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    if max(small.size) < SIDE // 2:  # pixels of a tiny image stay visible
        factor = SIDE // 2 // max(small.size)
        small = small.resize((small.width * factor, small.height * factor), Image.Resampling.NEAREST)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
