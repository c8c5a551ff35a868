"""What a Linux machine tells about itself while it is measured: clock, temperature, throttling, energy, memory.

Standard library only: this file also runs on the devices. What a machine does not tell is None, with the reason.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path("/")
_CPU = "sys/devices/system/cpu/cpu0/cpufreq"
# Bits of the Raspberry Pi's `vcgencmd get_throttled`: now, and since the board started.
_THROTTLED = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
_SINCE = 16


def state(root: Path = ROOT) -> dict[str, Any]:
    """Governor, clock, temperature and throttling at this moment.

    Args:
        root: Where `/sys` and `/proc` lie.

    Returns:
        `governor`, `mhz` (mean of the cores), `celsius` (hottest zone), `throttled` (words; empty when nothing holds
        the clock back), `load` (of the last minute), each None where the machine does not tell, and `absent`: name of
        each such value to the reason.
    """
    clocks = [n for p in _glob(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq") if (n := _number(p))]
    zones = [n for p in _glob(root, "sys/class/thermal/thermal_zone*/temp") if (n := _number(p)) is not None]
    throttled, why = _throttling(root)
    load = _text(root / "proc/loadavg").split()
    values = {
        "governor": _text(root / _CPU / "scaling_governor") or None,
        "mhz": round(sum(clocks) / len(clocks) / 1e3) if clocks else None,
        "celsius": round(max(zones) / 1e3, 1) if zones else None,
        "throttled": throttled,
        "load": float(load[0]) if load else None,
    }
    reasons = {
        "governor": "no cpufreq in /sys",
        "mhz": "no cpufreq in /sys",
        "celsius": "no thermal zone in /sys",
        "throttled": why,
        "load": "no /proc/loadavg",
    }
    return {**values, "absent": {name: reasons[name] for name, value in values.items() if value is None}}


def _throttling(root: Path) -> tuple[list[str] | None, str]:
    """What holds the clock back, or None with the reason."""
    firmware = _text(root / "sys/devices/platform/soc/soc:firmware/get_throttled")
    tool = shutil.which("vcgencmd") if root == ROOT else None
    if not firmware and tool:
        try:
            said = subprocess.run([tool, "get_throttled"], capture_output=True, text=True, timeout=5, check=False)
        except (OSError, subprocess.SubprocessError):
            return None, "vcgencmd fails"
        firmware = said.stdout.strip().rpartition("=")[2]
    if firmware:
        try:
            bits = int(firmware, 16)
        except ValueError:
            return None, "the firmware's answer is no number"
        now = [name for bit, name in _THROTTLED.items() if bits >> bit & 1]
        before = [f"{name} since the start" for bit, name in _THROTTLED.items() if bits >> (bit + _SINCE) & 1]
        return [*now, *before], ""
    counts = [p for p in _glob(root, "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count")]
    if counts:
        total = sum(_number(p) or 0 for p in counts)
        return ([f"{total} times since the start"] if total else []), ""
    return None, "neither vcgencmd nor thermal_throttle in /sys"


def energy(root: Path = ROOT) -> dict[str, int]:
    """Counters of energy in microjoules by name: RAPL packages and hwmon sensors; empty where none can be read."""
    found = {}
    for folder in _glob(root, "sys/class/powercap/intel-rapl:[0-9]*"):
        value = _number(folder / "energy_uj")
        if value is not None and folder.name.count(":") == 1:  # packages, not the domains inside them
            found[f"{folder.name} {_text(folder / 'name')}".strip()] = value
    for counter in _glob(root, "sys/class/hwmon/hwmon*/energy*_input"):
        if (value := _number(counter)) is not None:
            found[f"{_text(counter.parent / 'name') or counter.parent.name} {counter.name[:-6]}"] = value
    return found


def spent(before: dict[str, int], after: dict[str, int], runs: int) -> dict[str, Any]:
    """Energy of one run: what the counters moved between two readings, over the runs between.

    Returns:
        `joules` and `sensors`, or None with `reason`. It is all that the package used, idle power included.
    """
    moved = {name: after[name] - value for name, value in before.items() if name in after}
    if not moved:
        return {"joules": None, "sensors": [], "reason": "no counter of energy that this user may read"}
    if min(moved.values()) < 0:
        return {"joules": None, "sensors": sorted(moved), "reason": "a counter wrapped around"}
    return {"joules": sum(moved.values()) / 1e6 / runs, "sensors": sorted(moved), "reason": None}


def resident(peak: bool = False) -> int | None:
    """Bytes of memory that this process holds, or held at most; None where `/proc` does not tell."""
    key = "VmHWM" if peak else "VmRSS"
    found = re.search(rf"^{key}:\s+(\d+) kB", _text(Path("/proc/self/status")), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def board(root: Path = ROOT) -> str | None:
    """The board's own name, such as `Raspberry Pi 4 Model B Rev 1.4`, or a PC's maker's; None where there is none."""
    tree = _text(root / "proc/device-tree/model").rstrip("\0")
    maker = [_text(root / "sys/class/dmi/id" / part) for part in ("sys_vendor", "product_name")]
    return tree or " ".join(part for part in maker if part) or None


def boot_id(root: Path = ROOT) -> str | None:
    """A name that the system draws when it starts; None where it has none."""
    return _text(root / "proc/sys/kernel/random/boot_id") or None


def available_mb(root: Path = ROOT) -> int | None:
    """MiB of memory that programs can still take; None where the system does not tell."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    return int(found[1]) // 1024 if found else None


def _glob(root: Path, pattern: str) -> list[Path]:
    try:
        return sorted(root.glob(pattern))
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(65536).strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.lstrip("-").isdigit() else None
