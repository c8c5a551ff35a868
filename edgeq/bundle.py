"""Fill a bundle folder: model, plan, golden vectors, evidence, runner, manifest; and the JSON summary of an export."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.artifact import (
    Manifest,
    describe_files,
    model_bytes,
    model_files,
    write_golden,
    write_json,
    write_runner,
)
from edgeq.candidate import Arrays, Candidate
from edgeq.compare import Comparison
from edgeq.config import ExportConfig
from edgeq.devices import open_model
from edgeq.devices.base import Target
from edgeq.devices.environment import environment
from edgeq.metrics import Summary
from edgeq.models.base import ModelAdapter
from edgeq.samples import Evaluation, Samples

GOLDEN = 4
INPUTS = ("model", "weights", "calib", "data")  # options that may name a file
PRIVATE = ("out", "exist", "dry_run", "compare")  # options that do not shape the artifact


@dataclass(frozen=True)
class BundleParts:
    """Everything a bundle is written from."""

    config: ExportConfig
    adapter: ModelAdapter
    target: Target
    samples: Samples
    shipped: Candidate
    judged: Sequence[Candidate]
    scored: Evaluation | None
    comparison: Comparison | None = None


def write_artifact_files(folder: Path, parts: BundleParts) -> list[Arrays]:
    """The files that the same inputs and seed reproduce byte for byte: model, plan, golden vectors, runner.

    Returns:
        The artifact's outputs for the golden inputs.
    """
    for file in model_files(parts.shipped.path):
        shutil.copyfile(file, folder / file.name)
    write_json(folder / "plan.json", parts.shipped.plan.to_dict())
    model = open_model(folder / parts.shipped.path.name, threads=1)
    inputs = parts.samples.held_out[:GOLDEN]
    expected = [model.run(*sample) for sample in inputs]
    write_golden(folder, inputs, expected)
    write_runner(folder, detector=parts.adapter.loaded.postprocess is not None)
    return expected


def write_bundle(
    folder: Path,
    out: Path,
    parts: BundleParts,
    float_path: Path,
    command: Sequence[str],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Write the bundle into `folder` (which becomes `out`) and return the summary `edgeq.export/1`."""
    expected = write_artifact_files(folder, parts)
    reproducible = describe_files(folder)
    write_json(folder / "evidence.json", evidence(parts, float_path, seconds))
    manifest = manifest_of(parts, command, reproducible, expected[0])
    write_json(folder / "manifest.json", manifest.to_dict())
    return summary(folder, out, parts, float_path)


def evidence(parts: BundleParts, float_path: Path, seconds: Mapping[str, float]) -> dict[str, Any]:
    """What was measured, for every candidate; the shipped one is named."""
    loaded = parts.adapter.loaded
    held_out = parts.samples.held_out_items
    return {
        "schema": "edgeq.evidence/1",
        "shipped": parts.shipped.scheme,
        "float_bytes": model_bytes(float_path),
        "import_max_rel_error": loaded.import_error,
        "candidates": [c.to_dict() for c in parts.judged],
        "fidelity_items": [{"id": i.id, "sha256": i.sha256} for i in held_out],
        "metric": parts.scored.to_dict() if parts.scored else None,
        "comparison": parts.comparison.to_dict() if parts.comparison else None,
        "seconds": dict(seconds),
        "environment": environment(),
        "not_measured": [f"latency on {parts.target.name}: the ratio is of this machine's CPU"]
        + ([] if parts.scored else ["a task metric: no labelled --data was given"]),
    }


def manifest_of(
    parts: BundleParts, command: Sequence[str], files: Sequence[Mapping[str, Any]], outputs: Arrays
) -> Manifest:
    """The manifest; names of files, never paths of this machine."""
    loaded = parts.adapter.loaded
    config = {k: v for k, v in parts.config.to_dict().items() if k not in PRIVATE}
    inputs = {n: Path(config[n]).name for n in INPUTS if config[n] and Path(config[n]).exists()}
    config.update(inputs, scheme=parts.shipped.scheme)
    if parts.shipped.learned is not None:  # minutes cannot be repeated, steps can
        config.update(budget_minutes=None, learn_steps=parts.shipped.learned.steps)
    return Manifest(
        command=tuple(command),
        config=config,
        seed=parts.config.seed,
        versions=environment()["packages"],
        model={"name": loaded.name, "family": loaded.family, "source": loaded.source},
        weights_sha256=loaded.weights_sha256,
        calibration=calibration_of(parts.samples),
        files=tuple(files),
        preprocess=asdict(loaded.preprocess),
        inputs=tuple(
            {"name": n, "shape": list(s)} for n, s in zip(loaded.input_names, loaded.input_shapes, strict=True)
        ),
        outputs=tuple({"name": n, "shape": list(a.shape)} for n, a in zip(loaded.output_names, outputs, strict=True)),
        labels=loaded.classes,
        target=parts.target.name,
        scheme=parts.shipped.scheme,
        input_files=inputs,
        postprocess=loaded.postprocess,
        runtime=dict(parts.shipped.execution.settings) if parts.shipped.execution else {},
    )


def calibration_of(samples: Samples) -> tuple[Mapping[str, str], ...]:
    """The calibration items for the manifest, with what they were degraded by where they were."""
    entries = []
    for index, item in zip(samples.calibration_index, samples.calibration_items, strict=True):
        condition = samples.condition(index)
        entries.append(
            {"id": item.id, "sha256": item.sha256} | ({} if condition is None else {"condition": condition.name})
        )
    return tuple(entries)


def summary(folder: Path, out: Path, parts: BundleParts, float_path: Path) -> dict[str, Any]:
    """The JSON contract `edgeq.export/1`; stage seconds and peak memory are added by the caller."""
    shipped, config = parts.shipped, parts.config
    worst = shipped.worst_output
    latency = shipped.latency
    files = describe_files(folder)
    return {
        "schema": "edgeq.export/1",
        "ok": True,
        "artifact": str(out),
        "model": parts.adapter.loaded.name,
        "target": parts.target.name,
        "scheme": shipped.scheme,
        "files": files,
        "float_bytes": model_bytes(float_path),
        "bytes": shipped.bytes,
        "bits": config.bits,
        "fidelity": _fidelity(worst),
        "metric": parts.scored.to_dict() if parts.scored else None,
        "integer_mac_share": round(shipped.read_back.integer_mac_share, 4),
        "quantized_weights": len(shipped.read_back.weights),
        "latency": None
        if latency is None
        else {
            "unit": "ms",
            "float": round(latency.float_ms, 4),
            "quantized": round(latency.quantized_ms, 4),
            "ratio": round(latency.ratio, 4),
        },
        "gates": {"passed": not shipped.rejected, "missed": list(shipped.rejected)},
    }


def _fidelity(worst: Summary | None) -> dict[str, Any]:
    if worst is None:
        return {"sqnr_db": {"median": None, "worst": None}, "samples": 0}
    return {"sqnr_db": {"median": _number(worst.median), "worst": _number(worst.worst)}, "samples": worst.n}


def _number(value: float) -> float | None:
    return round(value, 2) if np.isfinite(value) else None
