"""Computers that run model files: this machine, boards over ssh, ARM64 in an emulator. One program measures on all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from edgeq.artifact import Artifact, model_bytes
from edgeq.config_keys import SUFFIXES
from edgeq.devices.base import LayerCost
from edgeq.devices.link import Link, Transport
from edgeq.devices.measured import Profile, Verification
from edgeq.devices.timing import Runs, describe
from edgeq.errors import DeviceError, EdgeqError, MissingError, UsageError

WAIT_SECONDS = 60.0
MEASURE_SECONDS = 10.0
LOST = "EQ-X873"
DRIFTED = 0.03
NOISY = 1.2
WRONG_DB = 10.0
_PACKAGES = {"tflite": "ai-edge-litert", "openvino": "openvino", "onnx": "onnxruntime"}
_WHEELS = {"x86_64", "amd64", "aarch64", "arm64"}
_C_SUFFIX = ".intgraph"


class Computer:
    """A machine with Python and a runtime; a `edgeq.devices.attached.Device`.

    Args:
        transport: The way to it.
        threads: Threads of the runtime.
        wait: Seconds to wait for another profiler to end.
        seconds: Longest measurement.
        timed: Whether its time means anything; an emulator's does not.
        waiting: Told who is waited for.
        notes: What is to be said of every result.
    """

    def __init__(
        self,
        transport: Transport,
        threads: int = 1,
        wait: float = WAIT_SECONDS,
        seconds: float = MEASURE_SECONDS,
        timed: bool = True,
        waiting: Callable[[str], None] = lambda holder: None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.name = transport.name
        self._notes, self._aborted = notes, False
        self._waiting = waiting
        self._transport, self._threads = transport, threads
        self._wait, self._seconds, self._timed = wait, seconds, timed

    def verify(self, artifact: Artifact) -> Verification:
        """See `Device`.

        Raises:
            UsageError: EQ-U871, the artifact is a C project.
            MissingError: EQ-P871 or EQ-P872, Python or the runtime is absent there.
            DeviceError: EQ-X870 to EQ-X879, there is no connection, no room, no answer.
        """
        with self._open(artifact) as (link, notes):
            found = link.ask("verify", artifact=link.place(artifact), threads=self._threads)
        limits, labelled = artifact.manifest.golden, artifact.manifest.labels is not None
        details = {
            "sqnr_db": _decibels(found),
            "agreement": found["agreement"],
            "limits": {"min_sqnr_db": limits.min_sqnr_db, "min_agreement": limits.min_agreement if labelled else None},
            "max_difference": found["max_difference"],
            "notes": notes,
        }
        return Verification(self.name, found["vectors"], found["exact"], None, found["passed"], details)

    def profile(self, artifact: Artifact, runs: Runs, against: Artifact | None = None) -> Profile:
        """See `Device`. Raises as `verify`; what is cut off keeps its runs until then, with a `Profile.error`."""
        times: list[float] = []

        def seen(event: Mapping[str, Any]) -> None:
            times.extend(event.get("ms", []) if event["event"] == "times" else [])

        with self._open(artifact) as (link, notes):
            environment = {**link.hello["environment"], "board": link.hello["board"]}
            request: dict[str, Any] = {
                "artifact": link.place(artifact),
                "against": None if against is None else link.place(against),
                "threads": self._threads,
                "runs": runs,
                "seconds": self._seconds,
            }
            if not self._timed:
                found = link.ask("look", **request)
                return self._untimed(artifact, found, environment)
            try:
                # Beside the runs themselves: loading, and twice as many seconds for `against`.
                limit = self._transport.limits.answer + 3 * self._seconds
                found = link.ask("profile", seen, limit=limit, **request)
            except DeviceError as error:
                traced = self._traced(error, link.hello)
                if not times:
                    raise traced from error
                return self._partial(artifact, times, environment, traced)
        return self._whole(artifact, found, environment, notes)

    def describe(self) -> dict[str, Any]:
        """What the device says about itself, with its present `state`. Raises as `verify`."""
        try:
            with Link(self._transport) as link:
                return {**link.hello, "state": link.ask("state")}
        finally:
            self._transport.close()

    def abort(self) -> None:
        """End what runs there, from another thread."""
        self._aborted = True
        self._transport.close()

    def clean(self) -> dict[str, int]:
        """Remove every artifact that was stored there; returns how many, and their bytes. Raises as `verify`."""
        try:
            with Link(self._transport) as link:
                link.lock(self._wait, self._waiting)
                removed: dict[str, int] = link.ask("clean")
                return removed
        finally:
            self._transport.close()

    @contextmanager
    def _open(self, artifact: Artifact) -> Iterator[tuple[Link, list[str]]]:
        """A conversation with a device that can run the artifact and runs nothing else; with notes about it."""
        suffix = artifact.model_file.suffix
        if suffix == _C_SUFFIX:
            message, hint = (
                f"{self.name} runs model files, and the artifact is C",
                "--on local, or --on qemu://mps2-an386",
            )
            raise UsageError(message, code="EQ-U871", place="--on", hint=hint)
        try:
            with Link(self._transport) as link:
                _check_runtime(link.hello, SUFFIXES[suffix], self.name)
                why = link.lock(self._wait, self._waiting) if self._timed else None
                yield link, [*self._notes, *([why] if why else [])]
        finally:
            self._transport.close()

    def _traced(self, error: DeviceError, hello: Mapping[str, Any]) -> DeviceError:
        """A lost connection with its cause, as far as a new one tells: a restart, or only the way between."""
        if error.code != LOST or self._aborted or not hello.get("boot_id"):
            return error
        self._transport.close()
        try:
            with Link(self._transport) as link:
                again = link.hello.get("boot_id")
        except EdgeqError:
            cause, hint = "it does not answer now", error.hint
        else:
            if again == hello["boot_id"]:
                cause, hint = "it kept running, so the way between was cut", "see whether its network or cable holds"
            else:
                cause, hint = "it was restarted meanwhile", "look at its supply, its temperature and its memory"
        finally:
            self._transport.close()
        return DeviceError(f"{error.message}; {cause}", code=LOST, place=error.place, hint=hint)

    def _whole(
        self, artifact: Artifact, found: Mapping[str, Any], environment: Mapping[str, Any], notes: list[str]
    ) -> Profile:
        latency = found["latency"]
        if not found["layers"]:
            notes.append("the layers are not timed: the runtime does not tell")
        notes += [*findings(latency, found["state"], found["output"]), *_elsewhere(artifact, environment)]
        details = {**_of(latency), **{key: found[key] for key in _KEPT}}
        profile = self._profile(artifact, latency, environment, notes, details, found["memory"])
        return replace(profile, layers=[LayerCost(**layer) for layer in found["layers"]])

    def _partial(
        self, artifact: Artifact, times: list[float], environment: Mapping[str, Any], error: EdgeqError
    ) -> Profile:
        latency = describe(np.asarray(times)).to_dict()
        note = f"incomplete: only the {len(times)} runs before the measurement was cut off"
        notes = (note, *_elsewhere(artifact, environment))
        return replace(self._profile(artifact, latency, environment, notes, _of(latency)), error=error)

    def _untimed(self, artifact: Artifact, found: Mapping[str, Any], environment: Mapping[str, Any]) -> Profile:
        notes = ("no milliseconds: an emulator's time says nothing about a board", "instructions are not counted")
        details = {"output": found["output"], "census": found["census"]}
        nothing = {"p50": None, "p90": None, "p99": None, "runs": 0}
        profile = self._profile(artifact, nothing, environment, notes, details, found["memory"])
        return replace(profile, unit="instructions")

    def _profile(
        self,
        artifact: Artifact,
        latency: Mapping[str, Any],
        environment: Mapping[str, Any],
        notes: Sequence[str],
        details: Mapping[str, Any],
        memory: Mapping[str, int | None] = MappingProxyType({}),
    ) -> Profile:
        return Profile(
            self.name,
            "ms",
            latency["p50"],
            latency["p90"],
            latency["p99"],
            latency["runs"],
            (),
            {"flash": model_bytes(artifact.model_file), **{k: v for k, v in memory.items() if v is not None}},
            tuple(notes),
            environment,
            {**details, "threads": self._threads, "board": environment["board"]},
        )


_KEPT = ("load_ms", "first_ms", "state", "energy", "output", "census", "against")


def _decibels(found: Mapping[str, Any]) -> dict[str, float]:
    """Median and worst SQNR of golden vectors; `run.py` writes null for what JSON lacks, equal and worthless alike."""
    median, worst = found["sqnr_db"]["median"], found["sqnr_db"]["worst"]
    same = found["exact"] or worst is not None or found["passed"]
    return {
        "median": median if median is not None else math.inf if same else -math.inf,
        "worst": worst if worst is not None else math.inf if found["exact"] else -math.inf,
    }


def _of(latency: Mapping[str, Any]) -> dict[str, Any]:
    """Of a latency, what the contract names otherwise."""
    interval = {"low": latency["low"], "high": latency["high"]}
    return {"min": latency["least"], "interval": interval, "settled": latency["settled"], "drift": latency["drift"]}


def findings(latency: Mapping[str, Any], state: Mapping[str, Any], output: Mapping[str, Any]) -> list[str]:
    """What a reader of the figures should know, in words.

    Args:
        latency: `edgeq.devices.timing.Latency` as JSON.
        state: `before` and `after` the runs, as `edgeq.devices.sensors.state` gives them.
        output: Fidelity of what was timed.
    """
    said = []
    if not latency["settled"]:
        spread = 100 * (latency["high"] - latency["low"]) / (2 * latency["p50"])
        said.append(f"not settled: the median is known to ±{spread:.0f} % only, after {latency['runs']} runs")
    if latency["p90"] > NOISY * latency["p50"]:
        ratio = latency["p90"] / latency["p50"]
        said.append(f"noisy: one run in ten takes {ratio:.1f} times the median or more; other programs may run")
    drift = latency["drift"]
    if drift is not None and abs(drift) > DRIFTED:
        way = (
            "slower: it gets warm, or something else began"
            if drift > 0
            else "faster: the clock rose, or something else ended"
        )
        said.append(f"drifting: the last third of the runs is {abs(100 * drift):.0f} % {way}")
    throttled = {moment: state[moment]["throttled"] for moment in ("before", "after")}
    said += [f"throttled {moment} the runs: {', '.join(held)}" for moment, held in throttled.items() if held]
    before, after = state["before"], state["after"]
    if before["governor"] not in (None, "performance"):
        said.append(f"the clock is governed by {before['governor']!r}: short runs may see a low clock")
    if before["celsius"] is not None and after["celsius"] is not None and after["celsius"] - before["celsius"] >= 5:
        said.append(f"it warmed from {before['celsius']:.0f} to {after['celsius']:.0f} °C")
    if not output["exact"] and (output["sqnr_db"] or -1) < WRONG_DB:
        said.append("what was timed gives other results than the golden vectors: run `edgeq verify` there")
    return said


def _elsewhere(artifact: Artifact, environment: Mapping[str, Any]) -> tuple[str, ...]:
    machine = environment["board"] or environment["cpu"]["model"]
    return (f"milliseconds of {machine}; the artifact was made for {artifact.manifest.target}",)


def _check_runtime(hello: Mapping[str, Any], format_: str, device: str) -> None:
    """Refuse a device that has no runtime for a format, before anything is sent.

    Raises:
        MissingError: EQ-P872, with the command that installs it.
        DeviceError: EQ-X879, there is none for such a machine.
    """
    package, environment = _PACKAGES[format_], hello["environment"]
    lacking = [] if hello["numpy"] else ["numpy"]
    if all(name != format_ for name, _ in hello["runtimes"]):
        lacking.append(package)
    if not lacking:
        return
    machine, python = environment["machine"], Path(hello["executable"]).as_posix()
    if package in lacking and (machine.lower() not in _WHEELS or hello["bits"] != 64):
        what = f"{machine}, {hello['bits']} bit" if hello["bits"] != 64 else machine
        message = f"{device} has no {package}, and there is none for {what}"
        hint = "install a 64-bit system on the board, where it has a 64-bit CPU"
        raise DeviceError(message, code="EQ-X879", place=device, hint=hint)
    verb = "is" if len(lacking) == 1 else "are"
    message = f"{' and '.join(lacking)} {verb} absent from Python {environment['python']} there"
    hint = f"on the device: {python} -m pip install {' '.join(lacking)}; or name another Python: --python PATH"
    raise MissingError(message, code="EQ-P872", place=device, hint=hint)
