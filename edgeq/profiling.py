"""Profiles of an artifact on several devices at once, held against a baseline."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.artifact import Artifact
from edgeq.devices.attached import Device
from edgeq.devices.computer import DRIFTED, NOISY
from edgeq.devices.measured import Profile
from edgeq.devices.timing import Runs
from edgeq.errors import EdgeqError, InputError

_APART = ("ssh://", "adb://", "serial://")  # machines of their own
DISAGREE = 0.03
"""Two medians further apart than this part are explained, as far as what was measured beside them can."""

_WARMER, _BUSIER, _FASTER = 5.0, 0.5, 0.03  # degrees, programs that run, part of the clock
_SCHEMAS = ("edgeq.profile/1", "edgeq.profiles/1")


@dataclass(frozen=True)
class Baseline:
    """What a profile is held against: another artifact, or profiles that were saved.

    Args:
        path: Where it lies.
        artifact: Measured in alternation where that can be.
        profiles: Saved profiles (`edgeq.profile/1`) by device.
    """

    path: Path
    artifact: Artifact | None
    profiles: Mapping[str, Mapping[str, Any]]

    @classmethod
    def open(cls, path: Path) -> Baseline:
        """A bundle, or a file that `edgeq profile --json` wrote.

        Raises:
            InputError: EQ-I870, it is neither; as `Artifact.open`.
        """
        if path.is_dir() or path.name == "manifest.json":
            artifact = Artifact.open(path)
            artifact.verify_files()
            return cls(path, artifact, {})
        try:
            data = json.loads(path.read_bytes())
            if data["schema"] not in _SCHEMAS:
                raise ValueError(f"its schema is {data['schema']!r}")
            saved = data.get("profiles", [data])
            profiles = {p["device"]: p for p in saved if p["schema"] == _SCHEMAS[0] and p["p50"] is not None}
            if any(not isinstance(p["p50"], (int, float)) or p["p50"] <= 0 for p in profiles.values()):
                raise ValueError("a median is no positive number")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            message, hint = f"no baseline: {error}", "give a bundle, or what `edgeq profile --json` wrote"
            raise InputError(message, code="EQ-I870", place=str(path), hint=hint) from error
        return cls(path, None, profiles)

    def gate(self, profile: Profile, max_slowdown: float | None) -> dict[str, Any]:
        """How much slower a profile is than the baseline, in percent, and whether that is allowed.

        Where both were measured in alternation, the fastest tenths of the runs must agree that it is not: a program
        beside them moves the median of a quick file anywhere (`timing`).

        Returns:
            `baseline`, `this`, `unit`, `slowdown`, `interval` (95 %, of the slowdown) and `fastest` (slowdown of the
            10th percentiles; both None unless measured in alternation), `paired`, `max_slowdown`, `passed` and `why`
            (of two saved medians: `reasons`).

        Raises:
            InputError: EQ-I870, the baseline has no such device or another unit.
        """
        row = profile.to_dict()
        found, why = row["against"], []
        if found is None:
            saved = self.profiles.get(profile.device)
            if saved is None or saved["unit"] != profile.unit or profile.p50 is None:
                have = ", ".join(self.profiles) or "none"
                message = f"the baseline has no {profile.unit} of {profile.device}; it has: {have}"
                hint = "make one with `edgeq profile --json` there"
                raise InputError(message, code="EQ-I870", place=str(self.path), hint=hint)
            found = {"paired": False, "baseline": saved["p50"], "this": profile.p50}
            found["ratio"] = found["this"] / found["baseline"]
            why = reasons(found["ratio"], conditions(saved), conditions(row))
        slowdown = 100 * (found["ratio"] - 1)
        paired = found["paired"]
        ends = [100 * (found[end] - 1) for end in ("low", "high")] if paired else None
        fastest = 100 * (found["fastest"] - 1) if paired else None
        surely = slowdown if fastest is None else min(slowdown, fastest)
        return {
            "baseline": found["baseline"],
            "this": found["this"],
            "unit": profile.unit,
            "slowdown": slowdown,
            "interval": ends,
            "fastest": fastest,
            "paired": paired,
            "max_slowdown": max_slowdown,
            "passed": max_slowdown is None or surely <= max_slowdown,
            "why": why,
        }


def conditions(row: Mapping[str, Any]) -> dict[str, Any]:
    """Under which a profile (`edgeq.profile/1`) was measured.

    Returns:
        `mhz`, `celsius`, `load`, `governor`, `throttled` after the runs, `settled`, `drift`, and `tail`, the 90th
        percentile over the median; None for what is not known, whoever wrote the profile.
    """
    state = row.get("state")
    after = state.get("after") if isinstance(state, Mapping) else None
    after = after if isinstance(after, Mapping) else {}
    throttled, governor, settled = after.get("throttled"), after.get("governor"), row.get("settled")
    p50, p90 = _number(row.get("p50")), _number(row.get("p90"))
    return {
        **{name: _number(after.get(name)) for name in ("mhz", "celsius", "load")},
        "governor": governor if isinstance(governor, str) else None,
        "throttled": ", ".join(map(str, throttled)) if isinstance(throttled, list) else None,
        "settled": settled if isinstance(settled, bool) else None,
        "drift": _number(row.get("drift")),
        "tail": p90 / p50 if p50 and p90 else None,
    }


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def reasons(ratio: float, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differed, or made a figure doubtful, between two measurements that disagree.

    Args:
        ratio: Of their medians.
        then: `conditions` of the earlier one.
        now: Of the later one.

    Returns:
        Sentences; none where the medians lie within `DISAGREE`.
    """
    if abs(ratio - 1) <= DISAGREE:
        return []
    said = []
    for name, least, form in (
        ("mhz", _FASTER * (then["mhz"] or 0), "the clock was {:.0f} MHz, and is {:.0f} now"),
        ("celsius", _WARMER, "it had {:.0f} °C, and has {:.0f} now"),
        ("load", _BUSIER, "the load was {:.1f}, and is {:.1f} now: other programs"),
    ):
        if None not in (then[name], now[name]) and abs(then[name] - now[name]) > least:
            said.append(form.format(then[name], now[name]))
    if then["governor"] != now["governor"] and None not in (then["governor"], now["governor"]):
        said.append(f"the clock was governed by {then['governor']!r}, and is by {now['governor']!r} now")
    for when, one in (("then", then), ("now", now)):
        said += [f"throttled {when}: {one['throttled']}"] if one["throttled"] else []
        said += [f"the median {when} had not settled"] if one["settled"] is False else []
        said += [f"drifting {when}, by {100 * one['drift']:+.0f} %"] if abs(one["drift"] or 0) > DRIFTED else []
        said += [f"noisy {when}: p90 is {one['tail']:.1f} times the median"] if (one["tail"] or 0) > NOISY else []
    unknown = "nothing that was measured beside them tells why"
    return said or [f"{unknown}: measure both in alternation, --against BUNDLE"]


def profile_all(
    devices: Sequence[Device], artifact: Artifact, runs: Runs, against: Artifact | None, done: Callable[[int], None]
) -> list[Profile | EdgeqError]:
    """Profile an artifact on every device; those that share this machine one after the other, the others at once.

    Args:
        devices: Where.
        artifact: What.
        runs: As for `Device.profile`.
        against: Likewise.
        done: Told of each device that has ended.

    Returns:
        In the order of `devices`; an error in place of a profile where there is none.
    """
    here = [i for i, device in enumerate(devices) if not device.name.startswith(_APART)]
    groups = [here, *([i] for i in range(len(devices)) if i not in here)]
    found: dict[int, Profile | EdgeqError] = {}
    stopped = threading.Event()

    def work(group: Sequence[int]) -> None:
        for i in group:
            if stopped.is_set():
                return
            try:
                found[i] = devices[i].profile(artifact, runs, against)
            except EdgeqError as error:
                found[i] = error
            done(1)

    with ThreadPoolExecutor(len(groups)) as pool:
        waiting = [pool.submit(work, group) for group in groups]
        try:
            for task in as_completed(waiting):
                task.result()
        except BaseException:  # interrupted: end what runs, so that the pool can end
            stopped.set()
            for device in devices:
                device.abort()
            raise
    return [found[i] for i in range(len(devices))]
