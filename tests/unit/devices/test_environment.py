"""The description of the machine."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeq.devices.environment import cpu_info, environment, ram_mb, runtimes, usable_cores

PI5 = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b

processor\t: 1
CPU part\t: 0xd0b

Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""
PC = "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu sse4_1 avx2 fma avx512_vnni\n"


def test_boards_and_pcs_are_recognized(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(PI5)
    board = cpu_info(file)
    assert board.model == "Cortex-A76 (Raspberry Pi 5 Model B Rev 1.0)"
    assert {"asimd", "asimddp"} <= set(board.isa)
    assert "aes" not in board.isa
    file.write_text(PC)
    pc = cpu_info(file)
    assert pc.model == "Some CPU @ 2 GHz"
    assert pc.isa == ("avx2", "avx512_vnni", "fma", "sse4_1")


@pytest.mark.parametrize("content", ["", "nonsense", "CPU part : 0xfff\n", ":\n:::\n", "\0\xff"])
def test_odd_cpuinfo_is_survived(tmp_path: Path, content: str) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(content)
    assert cpu_info(file).model
    assert cpu_info(tmp_path / "absent").model


def test_environment_is_json_and_true() -> None:
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert found["packages"]["numpy"] == np.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert 1 <= found["cores"] <= (os.cpu_count() or 1)
    assert found["ram_mb"] is None or found["ram_mb"] > 100


def test_unknown_memory_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.delattr(os, "sched_getaffinity")
    assert ram_mb() is None
    assert usable_cores() >= 1


def test_runtimes_are_listed_with_their_install_line() -> None:
    first = runtimes()[0]
    assert first.package == "ai-edge-litert"
    assert first.usable == (first.version is not None)
    assert first.install == "pip install ai-edge-litert"


def test_blocked_runtime_is_not_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tflite_runtime", None)
    assert not runtimes()[1].usable
