"""What could be a device, by looking only: hosts that ssh's configuration names, serial ports, what is on USB.

Nothing is connected to.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgeq.devices.arm64 import BOARDS, missing_board
from edgeq.devices.cortex_m import MACHINES, missing_tools
from edgeq.devices.ssh import CONFIG

_SETTING = re.compile(r"(\w*)[\s=]*(.*)")
MAX_DEPTH = 8  # of files that a configuration includes, as ssh has no more
# Makers of boards and of debug probes, by their USB number.
_MAKERS: Mapping[str, str] = MappingProxyType(
    {
        "0483": "STMicroelectronics",
        "0d28": "Arm DAPLink",
        "1366": "SEGGER J-Link",
        "1915": "Nordic Semiconductor",
        "1fc9": "NXP",
        "2341": "Arduino",
        "2e8a": "Raspberry Pi",
        "303a": "Espressif",
        "18d1": "Google",
    }
)


@dataclass(frozen=True)
class Sighting:
    """Something that could be a device.

    Args:
        kind: `ssh`, `serial`, `adb`, `usb` or `emulator`.
        address: For `--on` where it is one, else where it was seen.
        description: What is known of it.
        usable: Whether `--on` takes the address.
    """

    kind: str
    address: str
    description: str
    usable: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def scan(root: Path = Path("/"), config: Path | None = None) -> list[Sighting]:
    """Everything in sight.

    Args:
        root: Where `/dev` and `/sys` lie.
        config: Of ssh; `EDGEQ_SSH_CONFIG`, else `~/.ssh/config`, when None.
    """
    config = config or Path(os.environ.get(CONFIG) or "~/.ssh/config").expanduser()
    hosts = dict.fromkeys(_hosts(config, MAX_DEPTH))
    found = [Sighting("ssh", f"ssh://{host}", f"named in {config}", True) for host in hosts]
    return [*found, *_serial(root), *_adb(root), *_usb(root), *_emulators()]


def _hosts(config: Path, depth: int) -> Iterator[str]:
    """Names in a configuration that stand for one host each."""
    try:
        lines = config.read_text(encoding="utf-8", errors="replace").splitlines() if depth else []
    except OSError:
        return
    for line in lines:
        key, rest = _SETTING.findall(line.strip())[0]
        words = rest.replace('"', "").split()
        if key.lower() == "host":
            yield from (w for w in words if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", w))
        elif key.lower() == "include":
            for word in words:
                pattern = Path(word).expanduser()
                base = pattern if pattern.is_absolute() else config.parent / pattern
                for file in sorted(glob.glob(str(base))):  # noqa: PTH207 (patterns of any shape)
                    yield from _hosts(Path(file), depth - 1)


def _serial(root: Path) -> Iterator[Sighting]:
    named = {p.resolve().name: p.name for p in sorted(root.glob("dev/serial/by-id/*"))}
    for port in sorted([*root.glob("dev/ttyACM*"), *root.glob("dev/ttyUSB*")]):
        what = named.get(port.name, "serial port on USB")
        yield Sighting("serial", f"serial:///dev/{port.name}", f"{what}; for firmware with NAME_report", True)


def _adb(root: Path) -> Iterator[Sighting]:
    """Devices on USB with an interface for adb, which has a class of its own."""
    for interface in sorted(root.glob("sys/bus/usb/devices/*:*")):
        kinds = [_line(interface / f"bInterface{part}").lower() for part in ("Class", "SubClass", "Protocol")]
        device = interface.with_name(interface.name.partition(":")[0])
        serial = _line(device / "serial")
        if kinds == ["ff", "42", "01"] and serial:
            yield Sighting("adb", f"adb://{serial}", _line(device / "product") or "USB debugging is on", True)


def _usb(root: Path) -> Iterator[Sighting]:
    for device in sorted(root.glob("sys/bus/usb/devices/*/idVendor")):
        maker = _MAKERS.get(_line(device))
        if maker:
            product = _line(device.with_name("product")) or f"product {_line(device.with_name('idProduct'))}"
            yield Sighting("usb", device.parent.name, f"{maker}: {product}", False)


def _emulators() -> Iterator[Sighting]:
    for board, core in BOARDS.items():
        lacking = missing_board(board)
        yield Sighting("emulator", f"qemu://{board}", lacking or f"{core.board}, ARM64: results, no times", not lacking)
    lacking = missing_tools()
    for name, machine in MACHINES.items():
        yield Sighting("emulator", f"qemu://{machine.board}", lacking or f"{name}: instructions", not lacking)


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
