"""64-bit Arm boards without the board: their instructions in QEMU, with the runtimes' own wheels for Arm.

Says whether a model runs and what it computes there, nothing about time. Two things are decisive and were found by
experiment: runtimes choose kernels by `/proc/cpuinfo` and `/sys`, so that these must describe the emulated core, and
the core must be a real one: `-cpu max` of QEMU 7.2 gives wrong int8 results without a word.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from edgeq.devices.link import Limits, ProcessTransport
from edgeq.errors import MissingError
from edgeq.places import cache_dir

FOLDER = "EDGEQ_ARM64_DIR"
EMULATOR = "qemu-aarch64"
INSTALL = "apt-get install qemu-user"
CORES = 2


@dataclass(frozen=True)
class Core:
    """An emulated board's CPU.

    Args:
        board: Its name, as the board itself gives it.
        cpu: QEMU's name of the core.
        part: Arm's number of the core, as in `/proc/cpuinfo`.
        variant: Major revision, likewise.
        revision: Minor revision, likewise.
        features: What the core can do, likewise; no more than QEMU's core does.
    """

    board: str
    cpu: str
    part: int
    variant: int
    revision: int
    features: str

    @property
    def cpuinfo(self) -> str:
        """`/proc/cpuinfo`."""
        lines = (
            "BogoMIPS\t: 108.00",
            f"Features\t: {self.features}",
            "CPU implementer\t: 0x41",
            "CPU architecture: 8",
            f"CPU variant\t: {self.variant:#x}",
            f"CPU part\t: {self.part:#x}",
            f"CPU revision\t: {self.revision}",
        )
        return "".join(f"processor\t: {n}\n" + "\n".join(lines) + "\n\n" for n in range(CORES))

    @property
    def midr(self) -> str:
        """The identification register, as `/sys` shows it."""
        return f"{0x41 << 24 | self.variant << 20 | 0xF << 16 | self.part << 4 | self.revision:#018x}\n"


_V8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32"
BOARDS: Mapping[str, Core] = MappingProxyType(
    {
        "rpi4": Core("Raspberry Pi 4 Model B", "cortex-a72", 0xD08, 0, 3, f"{_V8} cpuid"),
        "rpi5": Core(
            "Raspberry Pi 5 Model B",
            "cortex-a76",
            0xD0B,
            4,
            1,
            f"{_V8} atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
        ),
    }
)
"""Emulated boards, by the names of `targets.toml`."""


def arm64_dir() -> Path:
    """Where the parts of a board lie: `EDGEQ_ARM64_DIR`, else `arm64` in the cache folder."""
    return Path(os.environ.get(FOLDER) or cache_dir() / "arm64")


def root_of(board: str) -> Path:
    """The root folder that a board's programs see."""
    return arm64_dir() / board


def python_of(root: Path) -> Path | None:
    """The board's Python, None before it is set up."""
    return next(iter(sorted((root / "usr/bin").glob("python3.[0-9]*[0-9]"))), None)


def missing_board(board: str) -> str:
    """What an emulated board lacks on this machine; empty when it lacks nothing."""
    if shutil.which(EMULATOR) is None:
        return f"{EMULATOR} not found; {INSTALL}"
    if python_of(root_of(board)) is None or not (arm64_dir() / "site").is_dir():
        return f"qemu://{board} is not set up; edgeq devices --setup qemu://{board}"
    return ""


def arm64_transport(board: str) -> ProcessTransport:
    """Python on an emulated board.

    Args:
        board: Key of `BOARDS`.

    Raises:
        MissingError: EQ-P873, there is no emulator, or the board was not set up.
    """
    if lacking := missing_board(board):
        what, _, hint = lacking.partition("; ")
        raise MissingError(what, code="EQ-P873", hint=hint)
    root = root_of(board)
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": os.environ.get("HOME", "/"),
        "PYTHONHOME": str(root / "usr"),
        "PYTHONPATH": str(arm64_dir() / "site"),
        "PYTHONNOUSERSITE": "1",
    }
    words = [EMULATOR, "-cpu", BOARDS[board].cpu, "-L", str(root), str(python_of(root))]
    return ProcessTransport(f"qemu://{board}", words, environment, Limits(hello=180, silence=120, answer=3600))
