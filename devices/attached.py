"""Devices that run artifacts, named as `--on` names them: computers, this one too, and microcontrollers.

Another kind of device is a class with the members of `Device` and a line in `open_device`; a computer that is reached
in another way is a `edgeq.devices.link.Transport`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from edgeq.artifact import Artifact
from edgeq.devices import adb, serial_line, ssh
from edgeq.devices.arm64 import BOARDS, arm64_transport
from edgeq.devices.boards import (
    EmulatedDevice,
    SerialDevice,
    beside,
    exactly,
    layer_costs,
    project_of,
    shipped_memory,
)
from edgeq.devices.computer import MEASURE_SECONDS, WAIT_SECONDS, Computer
from edgeq.devices.cortex_m import MACHINES, machine_named
from edgeq.devices.host import run_on_host
from edgeq.devices.link import ProcessTransport
from edgeq.devices.measured import Profile, Verification
from edgeq.devices.timing import Runs
from edgeq.errors import UsageError
from edgeq.graph.intgraph.file import load

FORMS = (
    "local",
    ssh.FORM,
    adb.FORM,
    serial_line.FORM,
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

    def abort(self) -> None:
        """End what runs, from another thread."""


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
        python: The interpreter of a device over ssh or adb.
        wait: Seconds to wait for another profiler to end.
        seconds: Longest measurement.
        waiting: Told who is waited for.

    Raises:
        UsageError: EQ-U602 for no such kind of device, EQ-U601 for no such machine, EQ-U870, EQ-U920 and EQ-U922 for a
            wrong address.
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
    if kind == serial_line.SCHEME:
        return SerialDevice(serial_line.Address.parse(address), seconds)
    if kind == ssh.SCHEME:
        return Computer(ssh.SshTransport(ssh.Address.parse(address), python), threads, wait, seconds, waiting=waiting)
    if kind == adb.SCHEME:
        way = adb.AdbTransport(adb.Address.parse(address), python)
        return Computer(way, threads, wait, seconds, waiting=waiting, notes=(adb.NOTE,))
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
        if project := project_of(artifact):
            return exactly(self.name, run_on_host(project).outcome)
        return self._computer.verify(artifact)

    def describe(self) -> dict[str, Any]:
        """See `Computer.describe`."""
        return self._computer.describe()

    def abort(self) -> None:
        """End what runs, from another thread; C ends by itself."""
        self._computer.abort()

    def profile(self, artifact: Artifact, runs: Runs, against: Artifact | None = None) -> Profile:
        """See `Device`. Raises as `verify`."""
        if project := project_of(artifact):
            found = self._profile_c(artifact, project, HOST_RUNS if runs == "auto" else runs)
            return beside(found, None if against is None else self.profile(against, runs))
        return self._computer.profile(artifact, runs, against)

    def _profile_c(self, artifact: Artifact, project: Path, runs: int) -> Profile:
        run = run_on_host(project, runs)
        layers = layer_costs(load(artifact.model_file), run.layers)
        p50, p90, p99 = (float(v) for v in np.percentile(run.runs, (50, 90, 99)))
        return Profile(self.name, "ms", p50, p90, p99, runs, layers, shipped_memory(artifact), _elsewhere(artifact))


def _elsewhere(artifact: Artifact) -> tuple[str, ...]:
    return (f"milliseconds of this machine, not of {artifact.manifest.target}",)
