"""An int8 .tflite file becomes C: nothing is calibrated or rounded, its integers are taken as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq import firmware
from edgeq.artifact import Manifest, check_out, describe_files, staged, write_golden, write_json
from edgeq.bundle import GOLDEN, INPUTS, PRIVATE, Choice, microcontroller_summary
from edgeq.candidate import Candidate
from edgeq.config import ExportConfig
from edgeq.devices import get_target, open_model
from edgeq.devices.base import Target
from edgeq.devices.environment import environment
from edgeq.devices.integers import IntegerModel
from edgeq.devices.litert import LiteRtModel
from edgeq.errors import GateError, ModelError, UsageError
from edgeq.exporters.c.exporter import CExporter
from edgeq.exporters.tflite.integers import read_integers
from edgeq.graph.intgraph.file import load, save
from edgeq.graph.intgraph.graph import IntGraph
from edgeq.hashing import file_sha256
from edgeq.recipe import Recipe
from edgeq.session import Stages
from edgeq.spec import Precision, QuantPlan

SUFFIX = ".tflite"
COMPARED = 20
"""Inputs on which the C is compared with the file's own runtime."""

_DECIDED = (
    "family",
    "weights",
    "shape",
    "bits",
    "budget_minutes",
    "learn_steps",
    "calib",
    "data",
    "degrade",
    "compare",
)

Arrays = tuple[NDArray[np.float32], ...]


def is_ported(config: ExportConfig) -> bool:
    """Whether the model is a file of integers."""
    return config.model.lower().endswith(SUFFIX)


def resolve_ported(config: ExportConfig) -> Target:
    """The microcontroller that a file of integers is for.

    Raises:
        ModelError: EQ-M002, there is no such file.
        UsageError: EQ-U924, the target is none, or an option asks for what the file has decided.
    """
    if not Path(config.model).is_file():
        message, hint = f"there is no file {config.model}", "give the path of an int8 .tflite file"
        raise ModelError(message, code="EQ-M002", place=config.model, hint=hint)
    target, defaults = get_target(config.device), {f.name: f.default for f in fields(ExportConfig)}
    if target.format != "c" or config.format not in ("auto", "c"):
        message = f"{Path(config.model).name} holds integers already, which become C for microcontrollers only"
        hint = "--device cortex-m4, or export the float model"
        raise UsageError(message, code="EQ-U924", place="--device", hint=hint)
    for name in _DECIDED:
        if getattr(config, name) != defaults[name]:
            option = f"--{name.replace('_', '-')}"
            message = f"{Path(config.model).name} is quantized already: {option} changes nothing in it"
            raise UsageError(message, code="EQ-U924", place=option, hint=f"leave {option} out")
    return target


def export_ported(
    config: ExportConfig, command: Sequence[str], out: Path, stages: Stages
) -> tuple[dict[str, Any], Choice, Target]:
    """Write the bundle of a file of integers; the summary `edgeq.export/1`, what ships, and where.

    Raises:
        UsageError: EQ-U924, as `resolve_ported`.
        ModelError: The file holds something that has no integer kernel.
        GateError: EQ-G001, it does not fit the target.
    """
    target = resolve_ported(config)
    check_out(out, config.exist)
    with staged(out, config.exist) as folder:
        with stages.step("read"):
            candidate = write_ported(config, target, folder)
        if candidate.rejected and not config.force:
            reasons = "; ".join(candidate.rejected)
            hint = "choose a board with more memory, or insist with --force"
            raise GateError(f"it does not fit: {reasons}", code="EQ-G001", place=config.model, hint=hint)
        with stages.step("compare"):
            beside = beside_litert(Path(config.model), candidate.path, config.seed)
        with stages.step("run C"):
            program = firmware.measured(folder, target)
        _write_account(folder, config, target, command, candidate, {"program": program, "litert": beside})
        summary = _summary(folder, out, target, candidate, program)
    return {**summary, "ported": beside}, Choice({"": candidate}, {"": (candidate,)}), target


def write_ported(config: ExportConfig, target: Target, folder: Path) -> Candidate:
    """The files that the same input gives again: network, plan, golden vectors, C project."""
    source, exporter = Path(config.model), CExporter()
    path = folder / exporter.file_name
    save(read_integers(source), path)
    firmware.run_in_patches(path, target, config.patches)
    graph, plan = load(path), QuantPlan("integer", {}, {})
    read_back = replace(exporter.read_back(path, None), extra=())  # all integers are the file's, none was planned
    assert read_back.memory is not None
    write_json(folder / "plan.json", plan.to_dict())
    inputs = random_inputs(graph, GOLDEN, config.seed)
    model = open_model(path)
    write_golden(folder, inputs, [model.run(*sample) for sample in inputs])
    firmware.write_firmware(folder, source.stem, path, inputs)
    rejected = firmware.misfits(target, read_back.memory)
    recipe = Recipe("none", "nearest", Precision())
    return Candidate("integer", path, read_back.memory.flash, plan, read_back, recipe, rejected=rejected)


def random_inputs(graph: IntGraph, count: int, seed: int) -> list[Arrays]:
    """Reals on the grids of the inputs: what an input means, a file of integers does not say."""
    chance = np.random.default_rng(seed)
    tensors = [(graph.tensors[port.tensor], port.shape) for port in graph.inputs]
    return [
        tuple(
            ((chance.integers(t.low, t.high + 1, shape) - t.zero_point) * t.scale).astype(np.float32)
            for t, shape in tensors
        )
        for _ in range(count)
    ]


def beside_litert(source: Path, network: Path, seed: int) -> dict[str, Any]:
    """The network beside the file in LiteRT's reference kernels, on random inputs.

    Returns:
        `codes` compared, `different`, `largest` difference in steps, and `agreement`: share of inputs for which the
        largest output is the same one.
    """
    theirs, graph = LiteRtModel(source, kernels="reference"), load(network)
    steps = [graph.tensors[port.tensor].scale for port in graph.outputs]
    ours = IntegerModel(network)
    gaps, same = [], 0
    for sample in random_inputs(graph, COMPARED, seed + 1):
        found, wanted = ours.run(*sample), theirs.run(*sample)
        gaps += [np.abs(np.rint((f - w) / s)).ravel() for f, w, s in zip(found, wanted, steps, strict=True)]
        same += int(found[0].argmax() == wanted[0].argmax())
    gap = np.concatenate(gaps)
    return {
        "codes": int(gap.size),
        "different": int((gap > 0).sum()),
        "largest": int(gap.max()),
        "inputs": COMPARED,
        "agreement": same / COMPARED,
    }


def _write_account(
    folder: Path,
    config: ExportConfig,
    target: Target,
    command: Sequence[str],
    candidate: Candidate,
    found: Mapping[str, Any],
) -> None:
    """Evidence and manifest."""
    source, graph = Path(config.model), load(candidate.path)
    listed = describe_files(folder)
    evidence = {
        "schema": "edgeq.evidence/1",
        "shipped": candidate.scheme,
        "float_bytes": None,
        "candidates": [candidate.to_dict()],
        "metric": None,
        "comparison": None,
        "environment": environment(),
        "microcontroller": found["program"],
        "litert": found["litert"],
        "not_measured": [*found["program"]["not_measured"], f"time on {target.name}", "a task metric"],
    }
    write_json(folder / "evidence.json", evidence)
    settings = {k: v for k, v in config.to_dict().items() if k not in PRIVATE}
    names = {n: source.name for n in INPUTS if n == "model"}
    manifest = Manifest(
        command=tuple(command),
        config={**settings, **names, "scheme": candidate.scheme},
        seed=config.seed,
        versions=environment()["packages"],
        weights_sha256=file_sha256(source),
        model={"name": source.stem, "family": "tflite", "source": source.name},
        calibration=(),
        files=tuple(listed),
        preprocess=None,
        inputs=tuple({"name": port.tensor, "shape": list(port.shape)} for port in graph.inputs),
        outputs=tuple({"name": port.tensor, "shape": list(port.shape)} for port in graph.outputs),
        labels=None,
        target=target.name,
        scheme=candidate.scheme,
        input_files=names,
    )
    write_json(folder / "manifest.json", manifest.to_dict())


def _summary(
    folder: Path, out: Path, target: Target, candidate: Candidate, program: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "schema": "edgeq.export/1",
        "ok": True,
        "artifact": str(out),
        "model": candidate.path.stem,
        "target": target.name,
        "scheme": candidate.scheme,
        "networks": {},
        "files": describe_files(folder),
        "float_bytes": None,
        "bytes": candidate.bytes,
        "bits": "w8a8",
        "fidelity": {"sqnr_db": {"median": None, "worst": None}, "samples": 0},
        "metric": None,
        "integer_mac_share": round(candidate.read_back.integer_mac_share, 4),
        "quantized_weights": len(candidate.read_back.ops),
        "latency": None,
        "microcontroller": microcontroller_summary(candidate, program),
        "gates": {"passed": not candidate.rejected, "missed": list(candidate.rejected)},
    }
