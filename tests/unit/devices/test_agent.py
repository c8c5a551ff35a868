"""The program on the device: its store, its figures, and the kit it comes in."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgeq.devices import agent
from edgeq.devices.computer import findings
from edgeq.devices.kit import kit
from edgeq.errors import DeviceError

KEY = "ab" * 32


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return agent.cache()


def port(payload: bytes = b"") -> agent.Port:
    return agent.Port("word", io.BytesIO(payload), os.open(os.devnull, os.O_WRONLY))


def listed(path: str, content: bytes) -> dict[str, Any]:
    return {"path": path, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_files_arrive_whole_or_not_at_all(home: Path) -> None:
    files = [listed("a.bin", b"x" * 100_000), listed("golden/b.npz", b"")]
    assert agent.store(port(b"x" * 100_000), KEY, files) == 100_000
    assert (home / KEY / "a.bin").read_bytes() == b"x" * 100_000 and (home / KEY / "golden/b.npz").is_file()
    assert agent.have(KEY) and not agent.have("cd" * 32)
    for payload in (b"x" * 99_999, b"y" * 100_000):
        with pytest.raises(DeviceError) as cut:
            agent.store(port(payload), "cd" * 32, files)
        assert cut.value.code == "EQ-X873"
        assert sorted(p.name for p in home.iterdir()) == [KEY]


@pytest.mark.parametrize("path", ["../x", "/etc/x", "", "a/../../x"])
def test_no_file_leaves_the_folder(home: Path, path: str) -> None:
    with pytest.raises(ValueError, match="leaves"):
        agent.store(port(b"x"), KEY, [listed(path, b"x")])
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("key", ["", "x", "../" + "ab" * 31, "AB" * 32])
def test_keys_are_hashes(home: Path, key: str) -> None:
    with pytest.raises(ValueError, match="no key"):
        agent.have(key)


def test_what_is_old_or_too_much_is_removed(home: Path) -> None:
    for name, days, size in (("0" * 64, 40, 10), ("1" * 64, 3, 700), ("2" * 64, 2, 200), ("3" * 64, 1, 200)):
        (home / name).mkdir(parents=True)
        (home / name / "model").write_bytes(bytes(size))
        os.utime(home / name, (time.time() - days * 86400,) * 2)
    (home / ".partial-x").mkdir()
    (home / "mine").mkdir()
    agent.tidy(500)
    assert sorted(p.name[0] for p in home.iterdir()) == ["2", "3", "m"]
    assert agent.clean() == {"artifacts": 2, "bytes": 400}
    assert [p.name for p in home.iterdir()] == ["mine"]


def test_layers_leave_out_the_first_runs() -> None:
    # Three runs of 40, 1 and 1 ms, then seven of 1 ms: OpenVINO's means are 14 and 4.9.
    (layer,) = agent.between([("conv", "Convolution", 14.0)], 3, [("conv", "Convolution", 4.9)], 10)
    assert layer == {"name": "conv", "op": "Convolution", "value": pytest.approx(1.0)}
    (tiny,) = agent.between([("add", "Add", 0.002)], 3, [("add", "Add", 0.0)], 10)
    assert tiny["value"] == 0


def talk(requests: bytes, word: str = "w0rd") -> list[dict[str, Any]]:
    """What the kit answers in a process of its own."""
    program = kit(word)
    done = subprocess.run(
        [sys.executable, "-c", program.boot], input=program.content + requests, stdout=subprocess.PIPE, timeout=60
    )
    lines = [line for line in done.stdout.decode().splitlines() if line.startswith(f"{word} ")]
    return [json.loads(line.partition(" ")[2]) for line in lines]


def test_the_kit_needs_nothing_but_python(tmp_path: Path) -> None:
    hello, state, unknown = talk(b'{"do": "state"}\n{"do": "nonsense"}\n')
    assert hello["event"] == "hello" and hello["bits"] in (32, 64)
    assert state["event"] == "done" and "governor" in state["result"]
    assert unknown["event"] == "error" and unknown["code"] == "EQ-X878"


def test_an_agent_ends_with_its_connection() -> None:
    assert [e["event"] for e in talk(b"")] == ["hello"]


def test_what_the_kit_sends_fits_python_3_9() -> None:
    import ast
    import zlib

    source = zlib.decompress(kit("w").content).decode()
    sources = ast.literal_eval(source[len("SOURCES = ") : source.index("\n")])
    for name, text in sources.items():
        tree = ast.parse(text, name, feature_version=(3, 9))
        assert not text or "from __future__ import annotations" in text, name
        assert not [n for n in ast.walk(tree) if isinstance(n, ast.Match)]
        assert all(k.arg != "strict" for n in ast.walk(tree) if isinstance(n, ast.Call) for k in n.keywords), name


LATENCY = {"settled": True, "p50": 10.0, "p90": 10.5, "low": 9.9, "high": 10.1, "runs": 100, "drift": None}
STATE = {"governor": None, "mhz": None, "celsius": None, "throttled": None, "load": None, "absent": {}}
GOOD = {"exact": True, "sqnr_db": None}


@pytest.mark.parametrize(
    ("latency", "before", "after", "output", "word"),
    [
        ({}, {}, {}, GOOD, ""),
        ({"settled": False, "low": 8.0, "high": 12.0}, {}, {}, GOOD, "±20 %"),
        ({"p90": 20.0}, {}, {}, GOOD, "2.0 times"),
        ({"drift": 0.25}, {}, {}, GOOD, "25 % slower"),
        ({"drift": -0.25}, {}, {}, GOOD, "25 % faster"),
        ({"drift": 0.01}, {}, {}, GOOD, ""),
        ({}, {}, {"throttled": ["under-voltage"]}, GOOD, "throttled after the runs: under-voltage"),
        ({}, {"throttled": []}, {"throttled": []}, GOOD, ""),
        ({}, {"governor": "ondemand"}, {}, GOOD, "ondemand"),
        ({}, {"governor": "performance"}, {}, GOOD, ""),
        ({}, {"celsius": 50.0}, {"celsius": 71.0}, GOOD, "from 50 to 71"),
        ({}, {}, {}, {"exact": False, "sqnr_db": 3.0}, "other results"),
        ({}, {}, {}, {"exact": False, "sqnr_db": None}, "other results"),
        ({}, {}, {}, {"exact": False, "sqnr_db": 40.0}, ""),
    ],
)
def test_findings_are_said_in_words(
    latency: dict[str, Any], before: dict[str, Any], after: dict[str, Any], output: dict[str, Any], word: str
) -> None:
    said = findings(LATENCY | latency, {"before": STATE | before, "after": STATE | after}, output)
    assert (len(said) == 1 and word in said[0]) if word else not said
