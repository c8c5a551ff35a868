"""From a bundle's manifest, evidence and plan, and from validations, to one page."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from edgeq.artifact import Artifact
from edgeq.diagnosis import diagnose, first_lowered
from edgeq.errors import InputError
from edgeq.report.charts import Line, histogram, line_chart

WORST_LAYERS = 12
CHARTED = 6
VALIDATION = "edgeq.validate/1"
_EMBEDDED = re.compile(r"data:image/jpeg;base64,[A-Za-z0-9+/]+=*")
_FIELDS = ("metric", "unit", "n", "clean", "degraded", "gate", "worst", "higher_is_better")


def open_validation(path: Path) -> dict[str, Any]:
    """A file that `edgeq validate --json` printed.

    Raises:
        InputError: EQ-I770 when it is none.
    """
    try:
        data = json.loads(path.read_bytes())
        if not isinstance(data, dict) or data.get("schema") != VALIDATION:
            raise ValueError(f"its schema is not {VALIDATION}")
        absent = [f for f in _FIELDS if f not in data]
        if absent:
            raise ValueError(f"it lacks {', '.join(absent)}")
        outcomes = [data["clean"], *data["degraded"]]
        if not all(isinstance(o["quantized"], (int, float)) and isinstance(o["name"], str) for o in outcomes):
            raise ValueError("a condition has no score")
        for sample in data.get("samples", ()):
            _check_sample(sample)
        if data.get("rebuild") is not None:
            _check_rebuild(data["rebuild"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        cause = getattr(error, "strerror", None) or error
        raise InputError(
            f"{path.name} is no validation: {cause}",
            code="EQ-I770",
            place=str(path),
            hint="write one: edgeq validate BUNDLE --data PATH --json > validation.json",
        ) from error
    return data


def _check_sample(sample: Mapping[str, Any]) -> None:
    """Nothing but texts, numbers and embedded JPEGs: a page fetches nothing from elsewhere."""
    numbers = all(isinstance(sample[k], (int, float, type(None))) for k in ("agreement", "sqnr_db"))
    texts = all(isinstance(sample[k], str) for k in ("condition", "item"))
    for side in (sample["float"], sample["artifact"]):
        picture = side["picture"]
        texts = texts and isinstance(side["text"], str)
        if picture is not None and not (isinstance(picture, str) and _EMBEDDED.fullmatch(picture)):
            raise ValueError("a picture is no embedded JPEG")
    if not (numbers and texts):
        raise ValueError("a sample is damaged")


def _check_rebuild(found: Mapping[str, Any]) -> None:
    """Every figure that the page shows is one."""
    figures = [found["shipped"], found["luck"], found["deviation"], found["n"], *found["interval"]]
    figures += [part for build in found["rebuilds"] for part in (build["seed"], build["score"])]
    if not all(isinstance(figure, (int, float)) for figure in figures):
        raise ValueError("a rebuild has no score")


def write_report(bundle: Path, validations: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write the page.

    Args:
        bundle: The bundle.
        validations: Results of `edgeq validate`, see `open_validation`.
        out: The HTML file; replaced when it is complete.

    Raises:
        InputError: The bundle cannot be read.
        OSError: The page cannot be written.
    """
    page = render(Artifact.open(bundle), validations)
    aside = out.with_name(f".{out.name}.part")
    try:
        aside.write_text(page, encoding="utf-8")
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)


def render(artifact: Artifact, validations: Sequence[Mapping[str, Any]]) -> str:
    """The page as text.

    Raises:
        InputError: The bundle is damaged.
    """
    artifact.verify_files()
    manifest, evidence, plan = artifact.manifest, artifact.evidence(), artifact.plan()
    shipped = next(c for c in evidence["candidates"] if c["scheme"] == evidence["shipped"])
    layers = [d.to_dict() for d in diagnose(evidence, manifest.config) if math.isfinite(d.own_db)]
    environment = Environment(
        loader=PackageLoader("edgeq.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        manifest=manifest,
        evidence=evidence,
        shipped=shipped,
        rejected=[c for c in evidence["candidates"] if c["rejected"]],
        fidelity=_worst_output(shipped),
        layers=layers[:WORST_LAYERS],
        layer_count=len(layers),
        lowered=first_lowered((r["layer"] for r in layers if r["lowered"]), plan.ops),
        best_db=max((float(r["own_db"]) for r in layers[:WORST_LAYERS]), default=1.0),
        ranges=_ranges(shipped.get("ranges", ())),
        weights=[{"name": t.name, "bits": t.bits, "values": t.provenance} for t in plan.weights()],
        validations=[_validation(v) for v in validations],
        candidates=[{**c, "worst": _worst_output(c)} for c in evidence["candidates"]],
    )


def _ranges(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Charts of the tensors whose grids serve the fewest values: most of them lie in a small part."""
    ranked = sorted(found, key=_used)[:CHARTED]
    return [
        {
            "name": r["tensor"],
            "used": 100 * _used(r),
            "svg": histogram(f"values of {r['tensor']}", r["low"], r["high"], r["counts"], tuple(r["grid"])),
        }
        for r in ranked
    ]


def _used(outline: Mapping[str, Any]) -> float:
    """The share of a grid in which the middle 99 % of the values lie."""
    counts = outline["counts"]
    total, step = sum(counts), (outline["high"] - outline["low"]) / len(counts)
    below, first, last = 0, 0, len(counts)
    for position, count in enumerate(counts):
        if below < 0.005 * total:
            first = position
        below += count
        if below >= 0.995 * total:
            last = position + 1
            break
    return float((last - first) * step / max(outline["grid"][1] - outline["grid"][0], 1e-30))


def _worst_output(candidate: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Fidelity of the least faithful output."""
    outputs = candidate["fidelity_sqnr_db"].values()
    return min(outputs, key=lambda o: -1e9 if o["median"] is None else o["median"], default=None)


def _validation(data: Mapping[str, Any]) -> dict[str, Any]:
    """A validation with its curves: one chart for each degradation of several severities."""
    clean, charts = data["clean"], []
    for name, group in groupby(sorted(data["degraded"], key=lambda o: str(o["name"])), key=lambda o: o["name"]):
        outcomes = sorted(group, key=lambda o: int(o["severity"]))
        if len(outcomes) > 1:
            charts.append({"name": name, "svg": _curve(str(name), data, [clean, *outcomes])})
    gate = data["gate"]
    gated = any(gate.get(name) is not None for name in ("max_drop", "max_extra_drop", "min_sqnr_db"))
    return {
        "samples": [],
        "rebuild": None,
        **data,
        "charts": charts,
        "outcomes": [clean, *data["degraded"]],
        "gated": gated,
    }


def _band(outcomes: Sequence[Mapping[str, Any]]) -> tuple[tuple[float, float, float], ...]:
    """Where the artifact's score lies beside float's: the 95 % interval of the paired difference."""
    return tuple(
        (float(i), *(float(o["float"]) + float(end) for end in o["difference_interval"]))  # type: ignore[misc]
        for i, o in enumerate(outcomes)
        if o["float"] is not None and o.get("difference_interval")
    )


def _curve(name: str, data: Mapping[str, Any], outcomes: Sequence[Mapping[str, Any]]) -> str:
    labels = ["clean" if not o["severity"] else str(o["severity"]) for o in outcomes]
    lines = []
    for who, style in (("float", "float"), ("quantized", "artifact")):
        points = tuple((float(i), float(o[who])) for i, o in enumerate(outcomes) if o[who] is not None)
        if points:
            band = _band(outcomes) if who == "quantized" else ()
            lines.append(Line("artifact" if who == "quantized" else who, style, points, band))
    return line_chart(f"{data['metric']} under {name} by severity", data["unit"], labels, lines)
