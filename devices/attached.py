"""Devices that run artifacts, named as `--on` names them: computers, this one too, and emulated microcontrollers.

Another kind of device (over a serial line, say) is a class with the members of `Device` and a line in `open_device`; a
computer that is reached in another way is a `edgeq.devices.link.Transport`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from edgeq.artifact import Artifact
from edgeq.devices import ssh
from edgeq.devices.arm64 import BOARDS, arm64_transport
from edgeq.devices.base import LayerCost
from edgeq.devices.computer import MEASURE_SECONDS, WAIT_SECONDS, Computer
from edgeq.devices.cortex_m import COMPILER, INSTALL, MACHINES, machine_named, missing_tools, run_emulated
from edgeq.devices.host import run_on_host
from edgeq.devices.link import ProcessTransport
from edgeq.devices.measured import Profile, Verification
from edgeq.devices.program import Outcome, command
from edgeq.devices.timing import Runs
from edgeq.errors import MissingError, UsageError
from edgeq.graph.intgraph.file import load

C_FOLDER, C_SUFFIX = "c", ".intgraph"
FORMS = (
    "local",
    ssh.FORM,
    *(f"qemu://{board}" for board in BOARDS),
    *(f"qemu://{machine.board}" for machine in MACHINES.values()),
)
"""What `--on` takes."""

HOST_RUNS = 50


class Device(Protocol):
    """Something that runs artifacts."""

    name: str

    def verify(self, artifact: Artifact) -> Verification:
        """Compare what it computes for the golden vectors with what is expected."""

    def profile(self, artifact: Artifact, runs: Runs, against: Artifact | None = None) -> Profile:
        """Measure an inference of the first golden vector; `against` another one, alternating where that can be."""


@runtime_checkable
class Described(Protocol):
    """A device that says what it is."""

    def describe(self) -> dict[str, Any]:
        """What it says about itself: its `board`, and its `environment` or `compiler`, which decide its figures."""


def open_device(
    address: str,
    threads: int = 1,
    *,
    python: str = "python3",
    wait: float = WAIT_SECONDS,
    seconds: float = MEASURE_SECONDS,
    waiting: Callable[[str], None] = lambda holder: None,
) -> Device:
    """The device that an address means.

    Args:
        address: One of `FORMS`.
        threads: Threads of the runtime.
        python: The interpreter of a device over ssh.
        wait: Seconds to wait for another profiler to end.
        seconds: Longest measurement.
        waiting: Told who is waited for.

    Raises:
        UsageError: EQ-U602 for no such kind of device, EQ-U601 for no such machine, EQ-U870 for a wrong address.
    """
    kind, _, place = address.partition("://")
    if address == "local":
        return LocalDevice(
            Computer(ProcessTransport("local", [sys.executable]), threads, wait, seconds, waiting=waiting)
        )
    if kind == "qemu" and place in BOARDS:
        return Computer(arm64_transport(place), threads, wait, seconds, timed=False)
    if kind == "qemu" and place:
        return EmulatedDevice(machine_named(place))
    if kind == ssh.SCHEME:
        return Computer(ssh.SshTransport(ssh.Address.parse(address), python), threads, wait, seconds, waiting=waiting)
    message = f"no device is called {address!r}"
    raise UsageError(message, code="EQ-U602", place="--on", hint=f"one of: {', '.join(FORMS)}")


class LocalDevice:
    """This machine: model files by their runtime, C by its compiler.

    Args:
        computer: What runs model files.
    """

    name = "local"

    def __init__(self, computer: Computer) -> None:
        self._computer = computer

    def verify(self, artifact: Artifact) -> Verification:
        """See `Device`.

        Raises:
            MissingError: The runtime, or a compiler, is not installed.
            DeviceError: It does not run.
        """
        if project := _project(artifact):
            return _exactly(self.name, run_on_host(project).outcome)
        return self._computer.verify(artifact)

    def describe(self) -> dict[str, Any]:
        """See `Computer.describe`."""
        return self._computer.describe()

    def abort(self) -> None:
        """End what runs, from another thread; C ends by itself."""
        self._computer.abort()

    def profile(self, artifact: Artifact, runs: Runs, against: Artifact | None = None) -> Profile:
        """See `Device`. Raises as `verify`."""
        if project := _project(artifact):
            found = self._profile_c(artifact, project, HOST_RUNS if runs == "auto" else runs)
            return _beside(found, None if against is None else self.profile(against, runs))
        return self._computer.profile(artifact, runs, against)

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

    def profile(self, artifact: Artifact, runs: Runs, against: Artifact | None = None) -> Profile:
        """See `Device`; one run, whatever `runs` says. Raises as `verify`."""
        other = None if against is None else self.profile(against, runs)
        run, graph = run_emulated(self._project(artifact), self._core), load(artifact.model_file)
        names = ((op.name, type(op).__name__) for op in graph.ops)
        layers = [LayerCost(*name, value) for name, value in zip(names, run.layers, strict=True)]
        memory = {**_memory(artifact), "code": run.code, "stack": run.stack}
        note = "instructions, not cycles: no wait states of flash, no dual issue, no beats of vectors"
        found = Profile(self.name, "instructions", run.total, run.total, run.total, 1, layers, memory, (note,))
        return _beside(found, other)

    def describe(self) -> dict[str, Any]:
        """Board and compiler. Raises MissingError as `verify`."""
        if lacking := missing_tools():
            raise MissingError(lacking, code="EQ-P500", hint=INSTALL)
        return {"board": MACHINES[self._core].board, "compiler": command([COMPILER, "--version"], 30).splitlines()[0]}

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


def _memory(artifact: Artifact) -> dict[str, int]:
    """What the exporter found the program to take."""
    shipped = artifact.evidence()["candidates"][0]["file"]["memory"]
    return {name: int(shipped[name]) for name in ("flash", "ram", "arena")}


def _elsewhere(artifact: Artifact) -> tuple[str, ...]:
    return (f"milliseconds of this machine, not of {artifact.manifest.target}",)


def _beside(found: Profile, other: Profile | None) -> Profile:
    """The same with another artifact's median, measured in runs of its own."""
    if other is None or found.p50 is None or other.p50 is None:
        return found
    ratio = {"baseline": other.p50, "this": found.p50, "ratio": found.p50 / other.p50}
    return replace(found, details={**found.details, "against": {"paired": False, "unit": found.unit, **ratio}})


def _exactly(device: str, outcome: Outcome) -> Verification:
    exact = outcome.different == 0
    return Verification(device, outcome.vectors, exact, outcome.largest, exact, {"different": outcome.different})
