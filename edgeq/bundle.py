"""Fill a bundle folder: model, plan, golden vectors, evidence, runner, manifest; and the JSON summary of an export."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeq import firmware
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
from edgeq.devices import open_model
from edgeq.devices.environment import environment
from edgeq.devices.timing import PairedLatency
from edgeq.exporters.base import integer_mac_share
from edgeq.metrics import Summary
from edgeq.models.base import Composite
from edgeq.samples import Evaluation, Samples
from edgeq.session import Job, Session

GOLDEN = 4
GOLDEN_BYTES = 16e6
"""Golden vectors stop here, though there is always one: what is copied to a device should be small."""

INPUTS = ("model", "weights", "calib", "data")  # options that may name a file
PRIVATE = ("out", "exist", "dry_run", "compare")  # options that do not shape the artifact


@dataclass(frozen=True)
class Choice:
    """What ships.

    Args:
        shipped: The candidate of each network, by the network's name; the only one has none.
        judged: All candidates, with the reasons against those that may not ship.
        scored: The task metric of the whole, None without labelled data.
    """

    shipped: Mapping[str, Candidate]
    judged: Mapping[str, Sequence[Candidate]]
    scored: Evaluation | None = None


@dataclass(frozen=True)
class BundleParts:
    """Everything a bundle is written from."""

    job: Job
    choice: Choice
    comparison: Comparison | None = None

    def networks(self) -> Iterator[tuple[str, Session, Candidate]]:
        """Name, session and shipped candidate of each network."""
        for name, session in self.job.sessions.items():
            yield name, session, self.choice.shipped[name]


def write_artifact_files(folder: Path, parts: BundleParts) -> dict[str, Arrays]:
    """The files that the same inputs and seed reproduce byte for byte: model, plan, golden vectors, runner.

    A model of several networks has a folder for each, and beside them its driver and what that reads.

    Returns:
        Each network's outputs for its first golden input.
    """
    outputs = {}
    for name, session, shipped in parts.networks():
        own = folder / name
        own.mkdir(exist_ok=True)
        outputs[name] = _write_network(own, session, shipped)
    model = parts.job.model
    if isinstance(model, Composite):
        shutil.copyfile(model.driver, folder / model.driver.name)
        model.write_settings(folder)
        write_runner(folder)
    return outputs


def _write_network(folder: Path, session: Session, shipped: Candidate) -> Arrays:
    for file in model_files(shipped.path):
        shutil.copyfile(file, folder / file.name)
    write_json(folder / "plan.json", shipped.plan.to_dict())
    model = open_model(folder / shipped.path.name, threads=1)
    inputs = session.samples.held_out[:GOLDEN]
    expected = [model.run(*inputs[0])]
    size = sum(a.nbytes for a in (*inputs[0], *expected[0]))
    inputs = inputs[: max(1, int(GOLDEN_BYTES // size))]
    expected += [model.run(*sample) for sample in inputs[1:]]
    write_golden(folder, inputs, expected)
    if shipped.read_back.memory is None:
        loaded = session.adapter.loaded
        write_runner(folder, loaded.postprocess, clouds=loaded.cloud is not None)
    else:
        firmware.write_firmware(folder, session.adapter.loaded.name, shipped.path, inputs)
    return expected[0]


def write_bundle(
    folder: Path, out: Path, parts: BundleParts, command: Sequence[str], seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Write the bundle into `folder` (which becomes `out`) and return the summary `edgeq.export/1`."""
    outputs = write_artifact_files(folder, parts)
    reproducible = describe_files(folder)
    programs: dict[str, Mapping[str, Any]] = {}
    for name, session, shipped in parts.networks():
        own = folder / name
        if shipped.read_back.memory is not None:
            programs[name] = firmware.measured(own, session.target)
        prefix = f"{name}/" if name else ""
        listed = [{**f, "path": f["path"][len(prefix) :]} for f in reproducible if f["path"].startswith(prefix)]
        write_json(own / "evidence.json", evidence(parts, name, seconds, programs.get(name)))
        manifest = manifest_of(parts.job, session, shipped, command, listed, outputs[name])
        write_json(own / "manifest.json", manifest.to_dict())
    if isinstance(parts.job.model, Composite):
        write_json(folder / "evidence.json", whole_evidence(parts, seconds))
        whole = whole_manifest(parts, command, reproducible, outputs)
        write_json(folder / "manifest.json", whole.to_dict())
    return summary(folder, out, parts, programs.get(""))


def whole_evidence(parts: BundleParts, seconds: Mapping[str, float]) -> dict[str, Any]:
    """What was measured on the networks together; what was measured on each stands in its folder."""
    scored = parts.choice.scored
    return {
        "schema": "edgeq.evidence/1",
        "networks": {name: shipped.scheme for name, _, shipped in parts.networks()},
        "metric": scored.to_dict() if scored else None,
        "seconds": dict(seconds),
        "environment": environment(),
        "not_measured": _not_measured(parts),
    }


def whole_manifest(
    parts: BundleParts, command: Sequence[str], files: Sequence[Mapping[str, Any]], outputs: Mapping[str, Arrays]
) -> Manifest:
    """The manifest of a model of several networks: that of the first, with the files and schemes of all."""
    name, session, shipped = next(parts.networks())
    first = manifest_of(parts.job, session, shipped, command, files, outputs[name])
    model = parts.job.model
    assert isinstance(model, Composite)
    return replace(
        first,
        config={**first.config, "scheme": parts.job.config.scheme},
        model={key: value for key, value in first.model.items() if key != "network"} | {"name": model.name},
        inputs=(),
        outputs=(),
        scheme="+".join(dict.fromkeys(c.scheme for c in parts.choice.shipped.values())),
        networks=tuple(model.parts),
        driver=model.driver.stem,
        runtime={},
    )


def _not_measured(parts: BundleParts, program: Mapping[str, Any] | None = None) -> list[str]:
    target = parts.job.first.target.name
    lines = [f"latency on {target}: the ratio is of this machine's CPU"]
    if program is not None:
        lines = [*program["not_measured"], f"time on {target}"]
    return lines if parts.choice.scored else [*lines, "a task metric: no labelled --data was given"]


def evidence(
    parts: BundleParts, network: str, seconds: Mapping[str, float], program: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What was measured on a network, for every candidate; the shipped one is named, `program` is what its C gave."""
    session, scored = parts.job.sessions[network], None if network else parts.choice.scored
    return {
        "schema": "edgeq.evidence/1",
        "shipped": parts.choice.shipped[network].scheme,
        "float_bytes": model_bytes(session.float_path),
        "import_max_rel_error": session.adapter.loaded.import_error,
        "candidates": [c.to_dict() for c in parts.choice.judged[network]],
        "fidelity_items": [{"id": i.id, "sha256": i.sha256} for i in session.samples.held_out_items],
        "metric": scored.to_dict() if scored else None,
        "comparison": parts.comparison.to_dict() if parts.comparison else None,
        "seconds": dict(seconds),
        "environment": environment(),
        "microcontroller": program,
        "not_measured": _not_measured(parts, program),
    }


def manifest_of(
    job: Job,
    session: Session,
    shipped: Candidate,
    command: Sequence[str],
    files: Sequence[Mapping[str, Any]],
    outputs: Arrays,
) -> Manifest:
    """The manifest of a network; names of files, never paths of this machine."""
    loaded, items = session.adapter.loaded, session.samples.calibration_items
    config = {k: v for k, v in job.config.to_dict().items() if k not in PRIVATE}
    inputs = {n: Path(config[n]).name for n in INPUTS if config[n] and Path(config[n]).exists()}
    config.update(inputs, scheme=shipped.scheme, samples=min(job.config.samples, len(items)))
    if shipped.learned is not None:  # minutes cannot be repeated, steps can
        config.update(budget_minutes=None, learn_steps=shipped.learned.steps)
    origin = {"name": loaded.name, "family": loaded.family, "source": loaded.source}
    return Manifest(
        command=tuple(command),
        config=config,
        seed=job.config.seed,
        versions=environment()["packages"],
        model={**origin, "network": session.part} if session.part else origin,
        weights_sha256=loaded.weights_sha256,
        calibration=calibration_of(session.samples),
        files=tuple(files),
        preprocess=asdict(loaded.preprocess) if loaded.preprocess else None,
        inputs=tuple(
            {"name": n, "shape": list(s)} for n, s in zip(loaded.input_names, loaded.input_shapes, strict=True)
        ),
        outputs=tuple({"name": n, "shape": list(a.shape)} for n, a in zip(loaded.output_names, outputs, strict=True)),
        labels=loaded.classes,
        target=session.target.name,
        scheme=shipped.scheme,
        input_files=inputs,
        postprocess=loaded.postprocess,
        cloud=loaded.cloud,
        runtime=dict(shipped.execution.settings) if shipped.execution else {},
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


def summary(folder: Path, out: Path, parts: BundleParts, program: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The JSON contract `edgeq.export/1`; stage seconds and peak memory are added by the caller.

    Of several networks: bytes, latencies of one run each and numbers of weights are sums, the fidelity is that of the
    worst, the share of integers is of all multiply-accumulates of one run each.
    """
    shipped, sessions = list(parts.choice.shipped.values()), parts.job.sessions
    schemes = dict.fromkeys(c.scheme for c in shipped)
    missed = [reason for c in shipped for reason in c.rejected]
    return {
        "schema": "edgeq.export/1",
        "ok": True,
        "artifact": str(out),
        "model": parts.job.name,
        "target": parts.job.first.target.name,
        "scheme": "+".join(schemes),
        "networks": {n: c.scheme for n, c in parts.choice.shipped.items() if n},
        "files": describe_files(folder),
        "float_bytes": sum(model_bytes(s.float_path) for s in sessions.values()),
        "bytes": sum(c.bytes for c in shipped),
        "bits": parts.job.config.bits,
        "fidelity": _fidelity([c.worst_output for c in shipped]),
        "metric": parts.choice.scored.to_dict() if parts.choice.scored else None,
        "integer_mac_share": round(integer_mac_share([op for c in shipped for op in c.read_back.ops]), 4),
        "quantized_weights": sum(len(c.read_back.weights) for c in shipped),
        "latency": _latency([c.latency for c in shipped]),
        "microcontroller": None if program is None else microcontroller_summary(shipped[0], program),
        "gates": {"passed": not missed, "missed": missed},
    }


def microcontroller_summary(shipped: Candidate, program: Mapping[str, Any]) -> dict[str, Any]:
    """Memory of the program, and what running it gave; null where a tool was missing."""
    memory, host, emulated = shipped.read_back.memory, program["host"], program["emulated"]
    assert memory is not None
    return {
        "flash_bytes": memory.flash,
        "ram_bytes": memory.ram,
        "arena_bytes": memory.arena,
        "patches": None if memory.patches is None else asdict(memory.patches),
        "code_bytes": emulated and emulated["code_bytes"],
        "stack_bytes": emulated and emulated["stack_bytes"],
        "machine": emulated and emulated["machine"],
        "instructions": emulated and emulated["total"],
        "share": emulated and emulated["share"],
        "exact": None if not (host or emulated) else all(run["different"] == 0 for run in (host, emulated) if run),
        "not_measured": list(program["not_measured"]),
    }


def _latency(latencies: Sequence[PairedLatency | None]) -> dict[str, Any] | None:
    timed = [latency for latency in latencies if latency is not None]
    if len(timed) < len(latencies):
        return None
    exact, quantized = sum(t.float_ms for t in timed), sum(t.quantized_ms for t in timed)
    ratio = timed[0].ratio if len(timed) == 1 else quantized / exact
    return {
        "unit": "ms",
        "float": round(exact, 4),
        "quantized": round(quantized, 4),
        "ratio": round(ratio, 4),
    }


def _fidelity(found: Sequence[Summary | None]) -> dict[str, Any]:
    figures = [f for f in found if f is not None]
    if len(figures) < len(found):
        return {"sqnr_db": {"median": None, "worst": None}, "samples": 0}
    median, worst = min(f.median for f in figures), min(f.worst for f in figures)
    return {"sqnr_db": {"median": _number(median), "worst": _number(worst)}, "samples": min(f.n for f in figures)}


def _number(value: float) -> float | None:
    return round(value, 2) if np.isfinite(value) else None
