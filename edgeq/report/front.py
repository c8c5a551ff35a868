"""The page of a search: cost against fidelity, the budget, every file that was measured, the bits of each layer."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from edgeq.report.charts import Dot, Line, plane_chart


def search_page(result: Mapping[str, Any]) -> str:
    """A page that stands for itself.

    Args:
        result: The contract `edgeq.search/1`, of a finished or unfinished search.
    """
    loader = PackageLoader("edgeq.report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    files = [*result["uniform"], *result["mixed"]]
    layers = result["layers"]
    widths = sorted({int(b) for layer in layers for b in layer["cost"]}, reverse=True)
    return environment.get_template("search.html").render(
        result=result, files=files, layers=layers, widths=widths, chart=_chart(result, files), axis=_axis(result)[0]
    )


def _axis(result: Mapping[str, Any]) -> tuple[str, str, float, float | None]:
    """Name of what is limited, its key in the contract, its divisor and the limit."""
    budget = result["budget"]
    if budget["limit"] is None:
        return "size, kB", "bytes", 1000.0, budget["kb"]
    if result["unit"] == "ms":
        return "ms on the device", "cost", 1.0, budget["limit"]
    return f"million {result['unit']}", "cost", 1e6, budget["limit"] / 1e6


def _better(files: Sequence[Mapping[str, Any]]) -> float:
    """Decibels by which measured files are better than the sum of what their layers lose alone, rounded to nearest."""
    pairs = [(f["fidelity"]["sqnr_db"]["median"], f["loss"]) for f in files]
    known = [db + 10 * math.log10(loss) for db, loss in pairs if db is not None and math.isfinite(db) and loss]
    return statistics.median(known) if known else 0.0


def _chart(result: Mapping[str, Any], files: Sequence[Mapping[str, Any]]) -> Markup:
    axis, key, divisor, limit = _axis(result)
    better = _better(files)
    expected = [
        (float(p[key]) / divisor, -10 * math.log10(p["loss"]) + better) for p in result["front"] if p["loss"] > 0
    ]
    lines = [Line("expected front", "artifact", tuple(expected))] if expected else []
    shipped = None if result["winner"] is None else result["winner"]["label"]
    dots = []
    for trial in files:
        decibels = trial["fidelity"]["sqnr_db"]["median"]
        if decibels is None or not math.isfinite(decibels):
            continue
        mixed = trial["cost"]["predicted"] is not None
        style = "winner" if trial["label"] == shipped else "artifact" if mixed else "uniform"
        where = trial["cost"]["measured"] if key == "cost" else trial["bytes"]
        dots.append(Dot(trial["label"], style, where / divisor, decibels))
    if not dots and not lines:
        return Markup("")
    return plane_chart("cost and fidelity", (axis, "SQNR to float, dB"), lines, dots, limit)
