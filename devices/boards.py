"""Microcontrollers that run generated C, in QEMU or on a serial line; and what their artifacts say of themselves."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.artifact import Artifact
from edgeq.devices.base import LayerCost
from edgeq.devices.cortex_m import COMPILER, INSTALL, MACHINES, missing_tools, run_emulated
from edgeq.devices.frames import Report
from edgeq.devices.link import Limits
from edgeq.devices.measured import Profile, Verification
from edgeq.devices.program import Outcome, command, prefix_of
from edgeq.devices.serial_line import Address, SerialLine
from edgeq.devices.timing import Runs
from edgeq.errors import DeviceError, EdgeqError, MissingError, UsageError
from edgeq.graph.intgraph.file import load
from edgeq.graph.intgraph.graph import IntGraph

C_FOLDER, C_SUFFIX = "c", ".intgraph"
REPORTS = 5
"""Of a board on a serial line, measured where nobody says how many."""
NOTE = "edgeq has met serial lines of emulated boards only, never a real one"


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
        return exactly(self.name, run_emulated(required_project(artifact, self.name), self._core).outcome)

    def profile(self, artifact: Artifact, runs: Runs, against: Artifact | None = None) -> Profile:
        """See `Device`; one run, whatever `runs` says. Raises as `verify`."""
        other = None if against is None else self.profile(against, runs)
        run = run_emulated(required_project(artifact, self.name), self._core)
        memory = {**shipped_memory(artifact), "code": run.code, "stack": run.stack}
        layers = layer_costs(load(artifact.model_file), run.layers)
        note = "instructions, not cycles: no wait states of flash, no dual issue, no beats of vectors"
        found = Profile(self.name, "instructions", run.total, run.total, run.total, 1, layers, memory, (note,))
        return beside(found, other)

    def abort(self) -> None:
        """See `Device`; the emulator ends by itself."""

    def describe(self) -> dict[str, Any]:
        """Board and compiler. Raises MissingError as `verify`."""
        if lacking := missing_tools():
            raise MissingError(lacking, code="EQ-P500", hint=INSTALL)
        return {"board": MACHINES[self._core].board, "compiler": command([COMPILER, "--version"], 30).splitlines()[0]}


class SerialDevice:
    """A board whose firmware reports on a serial line: cycles, where its core counts them.

    Args:
        address: Of the line.
        seconds: Longest measurement; a report that has begun is waited for.
        limits: Of the conversation.
    """

    def __init__(self, address: Address, seconds: float, limits: Limits | None = None) -> None:
        self.name = str(address)
        self._address, self._seconds, self._limits = address, seconds, limits or Limits()
        self._line: SerialLine | None = None

    def verify(self, artifact: Artifact) -> Verification:
        """See `Device`.

        Raises:
            UsageError: EQ-U603, the artifact is no C project.
            MissingError: EQ-P920, pyserial is not installed.
            DeviceError: EQ-X920 to EQ-X929, there is no port, or no sound report of this artifact's network.
        """
        (report,), error = self._receive(artifact, 1)
        del error
        found = exactly(self.name, Outcome(report.begin.vectors, report.different, report.largest))
        return replace(found, details={**found.details, "notes": [NOTE]})

    def profile(self, artifact: Artifact, runs: Runs, against: Artifact | None = None) -> Profile:
        """See `Device`. Raises as `verify`; what is cut off keeps its reports until then, with a `Profile.error`.

        Raises:
            UsageError: EQ-U921, `against` is another firmware.
            DeviceError: EQ-X930, the board's counter stands still.
        """
        if against is not None:
            message = f"{self.name} runs the one network that was flashed; two cannot be measured in alternation"
            hint = "profile the other one with --json after flashing it, and give that file to --against"
            raise UsageError(message, code="EQ-U921", place="--against", hint=hint)
        reports, error = self._receive(artifact, REPORTS if runs == "auto" else runs)
        unit = reports[0].begin.unit
        if unit == "none":
            message = "the board's cycle counter stands still"
            hint = "give it one: -DEDGEQ_TICKS=FUNCTION, see docs/microcontrollers.md; edgeq verify needs none"
            raise DeviceError(message, code="EQ-X930", place=self.name, hint=hint)
        p50, p90, p99 = (float(v) for v in np.percentile([r.ticks[0] for r in reports], (50, 90, 99)))
        ticks = np.median([r.layers for r in reports], axis=0)
        layers = layer_costs(load(artifact.model_file), ticks.tolist()) if ticks.any() else []
        notes = [f"{unit} of the board, with the interrupts of its firmware"]
        notes += [] if layers else ["the layers are not told apart: compile with -DEDGEQ_LAYER=NAME_layer_done"]
        notes.append(NOTE)
        found = Profile(self.name, unit, p50, p90, p99, len(reports), layers, shipped_memory(artifact), tuple(notes))
        return replace(found, error=error)

    def abort(self) -> None:
        """See `Device`."""
        if self._line is not None:
            self._line.close()

    def _receive(self, artifact: Artifact, count: int) -> tuple[list[Report], EdgeqError | None]:
        """Reports, at least one, and why there are fewer than wanted."""
        project = required_project(artifact, self.name)
        digest = re.search(r'_HASH "(\w+)"', (project / f"{prefix_of(project)}.h").read_text(encoding="ascii"))
        found: list[Report] = []
        end = time.monotonic() + self._seconds
        with SerialLine(self._address, self._limits) as self._line, closing(self._line.reports(_word(digest))) as heard:
            try:
                while len(found) < count and (not found or time.monotonic() < end):
                    found.append(next(heard))
            except DeviceError as error:
                if not found:
                    raise
                return found, error
        return found, None


def _word(found: re.Match[str] | None) -> str:
    return "" if found is None else found[1]


def project_of(artifact: Artifact) -> Path | None:
    """The C project of an artifact, if it is one for microcontrollers."""
    return artifact.folder / C_FOLDER if artifact.model_file.suffix == C_SUFFIX else None


def required_project(artifact: Artifact, device: str) -> Path:
    """The C project of an artifact.

    Raises:
        UsageError: EQ-U603, it has none.
    """
    project = project_of(artifact)
    if project is None:
        message = f"{device} runs C, and the artifact holds {artifact.manifest.entry}"
        hint = "--on local, or export for a microcontroller: --device cortex-m4"
        raise UsageError(message, code="EQ-U603", place="--on", hint=hint)
    return project


def shipped_memory(artifact: Artifact) -> dict[str, int]:
    """What the exporter found the program to take."""
    shipped: dict[str, Any] = artifact.evidence()["candidates"][0]["file"]["memory"]
    return {name: int(shipped[name]) for name in ("flash", "ram", "arena")}


def layer_costs(graph: IntGraph, values: Sequence[float]) -> list[LayerCost]:
    """The operations of a network with what each costs."""
    return [LayerCost(op.name, type(op).__name__, value) for op, value in zip(graph.ops, values, strict=True)]


def beside(found: Profile, other: Profile | None) -> Profile:
    """The same with another artifact's median, measured in runs of its own."""
    if other is None or found.p50 is None or other.p50 is None:
        return found
    ratio = {"baseline": other.p50, "this": found.p50, "ratio": found.p50 / other.p50}
    return replace(found, details={**found.details, "against": {"paired": False, "unit": found.unit, **ratio}})


def exactly(device: str, outcome: Outcome) -> Verification:
    """Golden vectors that every integer must equal."""
    exact = outcome.different == 0
    return Verification(device, outcome.vectors, exact, outcome.largest, exact, {"different": outcome.different})
