"""Generated C on this machine: golden vectors compared, runs timed. Says nothing about a microcontroller's speed."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.devices.program import LAYER_HOOK, SOURCES, Outcome, command, fill, numbers, outcome, prefix_of
from edgeq.errors import MissingError

COMPILERS = ("cc", "gcc", "clang")
INSTALL = "apt-get install gcc"


@dataclass(frozen=True)
class HostRun:
    """What a run gave.

    Args:
        outcome: The golden vectors.
        compiler: Its first line about itself.
        runs: Milliseconds of each timed run of the first vector.
        layers: Milliseconds of each layer, the mean over these runs.
    """

    outcome: Outcome
    compiler: str
    runs: tuple[float, ...]
    layers: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON form for `evidence.json`."""
        return {"compiler": self.compiler, "vectors": self.outcome.vectors, "different": self.outcome.different}


def missing_compiler() -> str:
    """What a run lacks on this machine; empty when it lacks nothing."""
    return "" if _compiler() else f"no C compiler ({', '.join(COMPILERS)}); {INSTALL}"


def _compiler() -> str | None:
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)


def run_on_host(project: Path, runs: int = 1, seconds: float = 120) -> HostRun:
    """Build a generated project here, compare its golden vectors and time the first.

    Args:
        project: Folder that the C exporter wrote.
        runs: Timed runs, at least 1.
        seconds: When to give up.

    Raises:
        MissingError: EQ-P600, no compiler.
        DeviceError: EQ-X500, it does not build, run or answer.
    """
    compiler = _compiler()
    if compiler is None:
        raise MissingError(missing_compiler(), code="EQ-P600", hint=INSTALL)
    prefix = prefix_of(project)
    with tempfile.TemporaryDirectory(prefix="edgeq-") as scratch:
        harness = fill("host.c", prefix, {"runs": runs}, Path(scratch))
        program = str(Path(scratch) / "program")
        sources = [str(project / f"{prefix}{part}.c") for part in SOURCES]
        flags = ["-std=c99", "-O2", LAYER_HOOK, "-I", str(project)]
        command([compiler, *flags, *sources, str(harness), "-o", program], seconds)
        said = command([program], seconds)
    version = command([compiler, "--version"], seconds).splitlines()[0]
    times = tuple(n / 1e6 for n in numbers(said, "RUN"))
    layers = tuple(n / 1e6 / runs for n in numbers(said, "LAYER"))
    return HostRun(outcome(project, prefix, said), version, times, layers)
