"""Several devices at once, baselines and their gate, the history; with devices that are made up."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeq.artifact import Artifact
from edgeq.devices.measured import Profile, Verification
from edgeq.devices.timing import Runs
from edgeq.errors import DeviceError, EdgeqError, InputError, InternalError
from edgeq.history import entry, remember, variant
from edgeq.profiling import Baseline, conditions, profile_all

NAMES = ("ssh://a", "local", "ssh://b", "qemu://mps2-an386", "serial:///dev/ttyACM0")


def profile(device: str = "ssh://a", p50: float | None = 10.0, **details: Any) -> Profile:
    return Profile(device, "ms", p50, 11.0, 12.0, 50, (), {"flash": 1}, (), {"packages": {}}, details)


class Fake:
    """A device that answers once all those which should run beside it are running."""

    def __init__(self, name: str, error: EdgeqError | None = None, beside: threading.Barrier | None = None) -> None:
        self.name = name
        self.error = error
        self.beside = beside
        self.span = (0, 0)

    def verify(self, artifact: Artifact) -> Verification:
        raise NotImplementedError

    def profile(self, artifact: Artifact, runs: Runs, against: Artifact | None = None) -> Profile:
        begun = time.perf_counter_ns()
        if self.beside is not None:
            self.beside.wait(60)
        self.span = (begun, time.perf_counter_ns())
        if self.error is not None:
            raise self.error
        return profile(self.name)

    def abort(self) -> None:
        pass


def test_devices_run_at_once_but_not_on_one_machine() -> None:
    lost = DeviceError("gone", code="EQ-X873")
    beside = threading.Barrier(4)  # three elsewhere, and the first of those on this machine
    devices = [
        Fake(name, lost if name == "ssh://b" else None, None if name.startswith("qemu") else beside) for name in NAMES
    ]
    done: list[int] = []
    found = profile_all(devices, None, "auto", None, done.append)  # type: ignore[arg-type]
    assert [f.device if isinstance(f, Profile) else f.code for f in found] == [*NAMES[:2], "EQ-X873", *NAMES[3:]]
    assert sum(done) == 5
    local, emulated = (next(d for d in devices if d.name.startswith(name)) for name in ("local", "qemu"))
    assert local.span[1] <= emulated.span[0]


def test_a_bug_in_one_thread_is_not_lost() -> None:
    bug = Fake("ssh://a", ValueError("x"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="x"):
        profile_all([bug, Fake("ssh://b")], None, "auto", None, lambda n: None)  # type: ignore[arg-type, list-item]
    assert threading.active_count() < 10


def saved(path: Path, *profiles: Profile) -> Baseline:
    rows = [p.to_dict() for p in profiles]
    data = rows[0] if len(rows) == 1 else {"schema": "edgeq.profiles/1", "profiles": rows}
    path.write_text(json.dumps(data))
    return Baseline.open(path)


def test_a_gate_against_saved_profiles(tmp_path: Path) -> None:
    base = saved(tmp_path / "b.json", profile(p50=10.0), profile("local", 5.0))
    for now, limit, passed in ((10.4, 5.0, True), (10.6, 5.0, False), (9.0, 0.0, True), (99.0, None, True)):
        gate = base.gate(profile(p50=now), limit)
        assert gate["passed"] is passed and gate["slowdown"] == pytest.approx(10 * now - 100)
        assert gate["interval"] is None and not gate["paired"]
    assert base.gate(profile("local", 10.0), 50)["slowdown"] == pytest.approx(100)


def state(**after: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(("mhz", "celsius", "load", "governor", "throttled"))
    return {"before": nothing, "after": {**nothing, **after}}


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ({"mhz": 1500}, {"mhz": 600}, "the clock was 1500 MHz, and is 600 now"),
        ({"celsius": 45.0}, {"celsius": 82.5}, "it had 45 °C, and has 82 now"),
        ({"load": 0.1}, {"load": 3.0}, "the load was 0.1, and is 3.0 now"),
        ({"governor": "performance"}, {"governor": "powersave"}, "governed by 'performance'"),
        ({}, {"throttled": ["under-voltage"]}, "throttled now: under-voltage"),
        ({"mhz": 1500, "load": 1.0}, {"mhz": 1480, "load": 1.2}, "nothing that was measured"),
    ],
)
def test_two_profiles_that_disagree_say_why(
    tmp_path: Path, then: dict[str, Any], now: dict[str, Any], said: str
) -> None:
    base = saved(tmp_path / "b.json", profile(p50=10.0, state=state(**then)))
    (why,) = base.gate(profile(p50=10.5, state=state(**now)), None)["why"]
    assert said in why
    assert base.gate(profile(p50=10.2, state=state(**now)), None)["why"] == []


def test_doubtful_medians_are_reasons(tmp_path: Path) -> None:
    base = saved(tmp_path / "b.json", profile(p50=10.0, settled=False))
    why = base.gate(profile(p50=9.0, drift=-0.08), None)["why"]
    assert why == ["the median then had not settled", "drifting now, by -8 %", "noisy now: p90 is 1.2 times the median"]


@pytest.mark.parametrize("state", [3, {"after": 3}, {"after": {"mhz": "fast", "throttled": 1, "load": True}}])
def test_conditions_of_profiles_that_somebody_wrote(state: Any) -> None:
    assert set(conditions({"state": state, "p50": "x", "settled": 1, "drift": None}).values()) == {None}


def test_a_pair_in_alternation_counts_more_than_two_medians(tmp_path: Path) -> None:
    pair = {"paired": True, "baseline": 10.0, "this": 12.0, "ratio": 1.1, "low": 1.05, "high": 1.2}
    for fastest, passed in ((1.2, False), (1.08, True)):  # a neighbour moves the median, and hardly these
        against = {**pair, "fastest": fastest}
        gate = Baseline(tmp_path, None, {}).gate(profile(p50=30.0, against=against), 9)
        assert gate["slowdown"] == pytest.approx(10) and gate["passed"] is passed
        assert gate["fastest"] == pytest.approx(100 * (fastest - 1))
        assert gate["interval"] == [pytest.approx(5), pytest.approx(20)]


def test_a_baseline_of_something_else_is_refused(tmp_path: Path) -> None:
    base = saved(tmp_path / "b.json", profile())
    for other in (profile("ssh://c"), replace(profile(), unit="instructions"), profile(p50=None)):
        with pytest.raises(InputError) as refused:
            base.gate(other, 5)
        assert refused.value.code == "EQ-I870"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "\x00",
        '{"schema": "edgeq.profile/2"}',
        '{"schema": "edgeq.profile/1"}',
        '{"schema": "edgeq.profile/1", "device": "a", "p50": "fast"}',
        '{"schema": "edgeq.profile/1", "device": "a", "p50": -1}',
        '{"schema": "edgeq.profiles/1", "profiles": [1]}',
    ],
)
def test_damaged_baselines_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "b.json").write_text(text)
    for path in (tmp_path / "b.json", tmp_path / "absent.json"):
        with pytest.raises(InputError) as refused:
            Baseline.open(path)
        assert refused.value.code == "EQ-I870"


def test_a_profile_has_only_known_details() -> None:
    assert profile().to_dict()["against"] is None
    with pytest.raises(InternalError):
        profile(fastest=1)


def test_incomplete_profiles_say_so() -> None:
    cut = replace(profile(), error=DeviceError("gone", code="EQ-X873")).to_dict()
    assert (cut["ok"], cut["complete"], cut["error"]["code"]) == (False, False, "EQ-X873")
    assert entry("ab" * 32, cut, "x 1") is None


def test_history_remembers_profiles_of_one_kind(tmp_path: Path) -> None:
    file = tmp_path / "state" / "h.sqlite"

    def add(p50: float, device: str = "ssh://a", model: str = "vit") -> list[float]:
        new = entry("ab" * 32, profile(device, p50, threads=1).to_dict(), "ai-edge-litert 2.3.0")
        assert new is not None and new.artifact == "ab" * 6
        return [e.p50 for e in remember(model, new, file)]

    assert add(10.0) == []
    assert add(11.0) == [10.0]
    assert add(5.0, device="local") == [] and add(5.0, model="yolo") == []
    assert add(12.0) == [11.0, 10.0]
    for n in range(10):
        add(20.0 + n)
    assert len(add(1.0)) == 8


def test_variants_of_a_model_have_their_own_history() -> None:
    manifest = {"model": {"name": "vit"}, "scheme": "static", "config": {"bits": "w8a8"}}
    other = {**manifest, "config": {"bits": "w4a8"}}
    names = {variant(manifest, "tflite"), variant(manifest, "openvino"), variant(other, "tflite")}
    names.add(variant({**manifest, "scheme": "dynamic"}, "tflite"))
    assert len(names) == 4
    assert variant(manifest, "tflite") == "vit tflite static w8a8"


def test_a_history_of_before_is_read_on(tmp_path: Path) -> None:
    file = tmp_path / "h.sqlite"
    columns = "at, artifact, device, board, runtime, threads, unit, p50, runs"
    with sqlite3.connect(file) as store:
        store.execute(f"CREATE TABLE profiles (id INTEGER PRIMARY KEY, model TEXT NOT NULL, {columns})")
        row = ("vit", "2026", "ab", "ssh://a", "", "x 1", 1, "ms", 9.0, 5)
        store.execute(f"INSERT INTO profiles (model, {columns}) VALUES ({', '.join('?' * 10)})", row)
    now = profile(threads=1, state=state(mhz=600)).to_dict()
    new = entry("ab" * 32, now, "x 1", conditions(now))
    assert new is not None
    assert [(e.p50, e.conditions) for e in remember("vit", new, file)] == [(9.0, {})]
    assert remember("vit", new, file)[0].conditions["mhz"] == 600


@pytest.mark.parametrize("damage", ["file", "folder"])
def test_a_damaged_history_is_an_error_with_its_place(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "h.sqlite"
    file.write_bytes(b"no database at all" * 100) if damage == "file" else file.mkdir()
    new = entry("ab" * 32, profile(threads=1).to_dict(), "x")
    assert new is not None
    with pytest.raises(InputError) as refused:
        remember("vit", new, file)
    assert refused.value.code == "EQ-I871" and refused.value.place == str(file)
