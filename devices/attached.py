"""Devices that run artifacts: this machine and emulated microcontrollers, named as `--on` names them.

Another kind of device (over ssh or a serial line) is a class with the members of `Device` and a line in `open_device`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgeq.artifact import Artifact, model_bytes
from edgeq.devices import open_model
from edgeq.devices.base import Array, LayerCost, RuntimeModel
from edgeq.devices.cortex_m import MACHINES, machine_named, run_emulated
from edgeq.devices.environment import environment
from edgeq.devices.host import run_on_host
from edgeq.devices.openvino import OpenVinoModel
from edgeq.devices.program import Outcome
from edgeq.devices.timing import Runs, measure
from edgeq.errors import UsageError
from edgeq.graph.intgraph.file import load
from edgeq.metrics import sqnr_db

C_FOLDER, C_SUFFIX = "c", ".intgraph"
FORMS = ("local", *(f"qemu://{machine.board}" for machine in MACHINES.values()))
"""What `--on` takes."""

HOST_RUNS = 50


@dataclass(frozen=True)
class Verification:
    """The golden vectors of an artifact on a device.

    Args:
        device: Its name.
        vectors: How many.
        exact: Whether every value is the expected one.
        max_lsb: Largest difference in steps of the output's grid; None for model files, whose outputs are reals.
        passed: Whether that is good enough: bit for bit for C, within the manifest's limits for model files.
        details: What else was compared.
    """

    device: str
    vectors: int
    exact: bool
    max_lsb: int | None
    passed: bool
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract `edgeq.verify/1`."""
        return {
            "schema": "edgeq.verify/1",
            "ok": self.passed,
            "device": self.device,
            "vectors": self.vectors,
            "exact": self.exact,
            "max_lsb": self.max_lsb,
            "layers": [],
            "passed": self.passed,
            **self.details,
        }


@dataclass(frozen=True)
class Profile:
    """What an inference costs on a device.

    Args:
        device: Its name.
        unit: `ms` or `instructions`.
        p50: Median.
        p90: 90th percentile.
        p99: 99th percentile.
        runs: How many were measured; one where every run is the same.
        layers: In execution order; empty where the runtime does not tell.
        memory: Bytes.
        notes: What the figures do not mean, and what was not measured.
    """

    device: str
    unit: str
    p50: float
    p90: float
    p99: float
    runs: int
    layers: Sequence[LayerCost]
    memory: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract `edgeq.profile/1`."""
        total = sum(layer.value for layer in self.layers)
        return {
            "schema": "edgeq.profile/1",
            "ok": True,
            "device": self.device,
            "unit": self.unit,
            "p50": self.p50,
            "p90": self.p90,
            "p99": self.p99,
            "runs": self.runs,
            "layers": [
                {"name": c.name, "op": c.op, "value": c.value, "share": round(c.value / total, 4) if total else 0.0}
                for c in self.layers
            ],
            "memory": dict(self.memory),
            "environment": environment(),
            "notes": list(self.notes),
        }


class Device(Protocol):
    """Something that runs artifacts."""

    name: str

    def verify(self, artifact: Artifact) -> Verification:
        """Compare what it computes for the golden vectors with what is expected."""

    def profile(self, artifact: Artifact, runs: Runs) -> Profile:
        """Measure an inference of the first golden vector."""


def open_device(address: str, threads: int = 1) -> Device:
    """The device that an address means.

    Args:
        address: One of `FORMS`.
        threads: Threads of the runtime, on this machine.

    Raises:
        UsageError: EQ-U602 for no such kind of device, EQ-U601 for no such machine.
    """
    kind, _, place = address.partition("://")
    if address == "local":
        return LocalDevice(threads)
    if kind == "qemu" and place:
        return EmulatedDevice(machine_named(place))
    message = f"no device is called {address!r}"
    raise UsageError(message, code="EQ-U602", place="--on", hint=f"one of: {', '.join(FORMS)}")


class LocalDevice:
    """This machine: model files by their runtime, C by its compiler."""

    name = "local"

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads

    def verify(self, artifact: Artifact) -> Verification:
        """See `Device`.

        Raises:
            MissingError: The runtime, or a compiler, is not installed.
            DeviceError: It does not run.
        """
        if project := _project(artifact):
            return _exactly(self.name, run_on_host(project).outcome)
        return _nearly(self.name, artifact, open_model(artifact.model_file, threads=self._threads))

    def profile(self, artifact: Artifact, runs: Runs) -> Profile:
        """See `Device`. Raises as `verify`."""
        if project := _project(artifact):
            return self._profile_c(artifact, project, HOST_RUNS if runs == "auto" else runs)
        model, inputs = open_model(artifact.model_file, threads=self._threads), _first(artifact)
        model.prepare(*inputs)
        latency = measure(model.invoke, runs=runs)
        layers: Sequence[LayerCost] = ()
        notes = ["the layers are not timed: the runtime does not tell"]
        if isinstance(model, OpenVinoModel):
            # Counting costs time: what is counted is not what was timed above.
            layers, notes = OpenVinoModel(artifact.model_file, self._threads, counting=True).costs(*inputs), []
        times = (latency.p50, latency.p90, latency.p99, latency.runs)
        memory = {"flash": model_bytes(artifact.model_file)}
        return Profile(self.name, "ms", *times, layers, memory, (*notes, *_elsewhere(artifact)))

    def _profile_c(self, artifact: Artifact, project: Path, runs: int) -> Profile:
        run, graph = run_on_host(project, runs), load(artifact.model_file)
        names = ((op.name, type(op).__name__) for op in graph.ops)
        layers = [LayerCost(*name, value) for name, value in zip(names, run.layers, strict=True)]
        p50, p90, p99 = (float(v) for v in np.percentile(run.runs, (50, 90, 99)))
        return Profile(self.name, "ms", p50, p90, p99, runs, layers, _memory(artifact), _elsewhere(artifact))


class EmulatedDevice:
    """A microcontroller in QEMU: instructions, which are the same in every run, not cycles.

    Args:
        core: Key of `edgeq.devices.cortex_m.MACHINES`.
    """

    def __init__(self, core: str) -> None:
        self._core = core
        self.name = f"qemu://{MACHINES[core].board}"

    def verify(self, artifact: Artifact) -> Verification:
        """See `Device`.

        Raises:
            UsageError: EQ-U603, the artifact is no C project.
            MissingError: EQ-P500, a tool is not installed.
            DeviceError: EQ-X500, it does not build or run.
        """
        return _exactly(self.name, run_emulated(self._project(artifact), self._core).outcome)

    def profile(self, artifact: Artifact, runs: Runs) -> Profile:
        """See `Device`; one run, whatever `runs` says. Raises as `verify`."""
        del runs
        run, graph = run_emulated(self._project(artifact), self._core), load(artifact.model_file)
        names = ((op.name, type(op).__name__) for op in graph.ops)
        layers = [LayerCost(*name, value) for name, value in zip(names, run.layers, strict=True)]
        memory = {**_memory(artifact), "code": run.code, "stack": run.stack}
        note = "instructions, not cycles: no wait states of flash, no dual issue, no beats of vectors"
        return Profile(self.name, "instructions", run.total, run.total, run.total, 1, layers, memory, (note,))

    def _project(self, artifact: Artifact) -> Path:
        project = _project(artifact)
        if project is None:
            raise UsageError(
                f"{self.name} runs C, and the artifact holds {artifact.manifest.entry}",
                code="EQ-U603",
                place="--on",
                hint="--on local, or export for a microcontroller: --device cortex-m4",
            )
        return project


def _project(artifact: Artifact) -> Path | None:
    """The C project of an artifact, if it is one for microcontrollers."""
    return artifact.folder / C_FOLDER if artifact.model_file.suffix == C_SUFFIX else None


def _first(artifact: Artifact) -> list[Array]:
    """Inputs of the first golden vector."""
    return [array[0] for array in artifact.golden().inputs]


def _memory(artifact: Artifact) -> dict[str, int]:
    """What the exporter found the program to take."""
    shipped = artifact.evidence()["candidates"][0]["file"]["memory"]
    return {name: int(shipped[name]) for name in ("flash", "ram", "arena")}


def _elsewhere(artifact: Artifact) -> tuple[str, ...]:
    return (f"milliseconds of this machine, not of {artifact.manifest.target}",)


def _exactly(device: str, outcome: Outcome) -> Verification:
    exact = outcome.different == 0
    return Verification(device, outcome.vectors, exact, outcome.largest, exact, {"different": outcome.different})


def _nearly(device: str, artifact: Artifact, model: RuntimeModel) -> Verification:
    """Real outputs against the golden ones, within the limits of the manifest; as `run.py` of the bundle does it."""
    golden, limits = artifact.golden(), artifact.manifest.golden
    vectors = len(golden.inputs[0])
    found = [model.run(*(array[v] for array in golden.inputs)) for v in range(vectors)]
    wanted = [[array[v] for array in golden.expected] for v in range(vectors)]
    pairs = [list(zip(w, f, strict=True)) for w, f in zip(wanted, found, strict=True)]
    quality = [min(sqnr_db(w, f) for w, f in pair) for pair in pairs]
    exact = all(np.array_equal(w, f) for pair in pairs for w, f in pair)
    alike = float(np.mean([np.argmax(pair[0][0]) == np.argmax(pair[0][1]) for pair in pairs]))
    labelled = artifact.manifest.labels is not None
    median = float(np.median(quality))
    passed = median >= limits.min_sqnr_db and (not labelled or alike >= limits.min_agreement)
    details = {
        "sqnr_db": {"median": median, "worst": min(quality)},
        "agreement": alike if labelled else None,
        "limits": {"min_sqnr_db": limits.min_sqnr_db, "min_agreement": limits.min_agreement if labelled else None},
    }
    return Verification(device, vectors, exact, None, passed, details)
