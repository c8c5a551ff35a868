"""What a machine tells about itself, from made-up /sys and /proc trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeq.devices import sensors


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


CPU = "sys/devices/system/cpu"


def test_a_raspberry_pi(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            f"{CPU}/cpu0/cpufreq/scaling_governor": "ondemand\n",
            f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "1800000\n",
            f"{CPU}/cpu1/cpufreq/scaling_cur_freq": "600000\n",
            "sys/class/thermal/thermal_zone0/temp": "61322\n",
            "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
            "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
            "proc/loadavg": "0.25 0.1 0.0 1/100 42\n",
            "proc/meminfo": "MemTotal: 3884376 kB\nMemAvailable:    3072000 kB\n",
        },
    )
    found = sensors.state(root)
    assert (found["governor"], found["mhz"], found["celsius"], found["load"]) == ("ondemand", 1200, 61.3, 0.25)
    assert found["throttled"] == [
        "under-voltage",
        "throttled",
        "under-voltage since the start",
        "throttled since the start",
    ]
    assert found["absent"] == {}
    assert sensors.board(root) == "Raspberry Pi 4 Model B Rev 1.4"
    assert sensors.available_mb(root) == 3000


def test_a_pc(tmp_path: Path) -> None:
    counts = {f"{CPU}/cpu{n}/thermal_throttle/core_throttle_count": "2\n" for n in range(2)}
    files = {"sys/class/dmi/id/sys_vendor": "Intel\n", "sys/class/dmi/id/product_name": "NUC13ANKi7\n"}
    root = tree(tmp_path, {**counts, **files})
    assert sensors.state(root)["throttled"] == ["4 times since the start"]
    assert sensors.board(root) == "Intel NUC13ANKi7"


def test_what_is_absent_is_none_with_the_reason(tmp_path: Path) -> None:
    found = sensors.state(tmp_path)
    names = ("governor", "mhz", "celsius", "throttled", "load")
    assert [found[name] for name in names] == [None] * 5
    assert set(found["absent"]) == set(names) and all(found["absent"].values())
    assert sensors.energy(tmp_path) == {}
    assert sensors.board(tmp_path) is None and sensors.available_mb(tmp_path) is None


@pytest.mark.parametrize("junk", ["", "no number", "\xff\xfe", "-", "1e9"])
def test_junk_in_sys_is_absent(tmp_path: Path, junk: str) -> None:
    root = tree(
        tmp_path,
        {
            f"{CPU}/cpu0/cpufreq/scaling_cur_freq": junk,
            "sys/class/thermal/thermal_zone0/temp": junk,
            "sys/devices/platform/soc/soc:firmware/get_throttled": junk if junk != "1e9" else "zz",
            "sys/class/powercap/intel-rapl:0/energy_uj": junk,
        },
    )
    found = sensors.state(root)
    assert (found["mhz"], found["celsius"], found["throttled"]) == (None, None, None)
    assert sensors.energy(root) == {}


def test_energy_of_packages_and_sensors(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "sys/class/powercap/intel-rapl:0/energy_uj": "1000000\n",
            "sys/class/powercap/intel-rapl:0/name": "package-0\n",
            "sys/class/powercap/intel-rapl:0:0/energy_uj": "1\n",  # a part of the package
            "sys/class/hwmon/hwmon3/energy1_input": "500\n",
            "sys/class/hwmon/hwmon3/name": "ina2xx\n",
        },
    )
    before = sensors.energy(root)
    assert before == {"intel-rapl:0 package-0": 1_000_000, "ina2xx energy1": 500}
    after = {name: value + 2_000_000 for name, value in before.items()}
    spent = sensors.spent(before, after, runs=4)
    assert spent["joules"] == pytest.approx(1.0) and len(spent["sensors"]) == 2 and spent["reason"] is None
    assert sensors.spent(after, before, 4)["reason"] == "a counter wrapped around"
    assert sensors.spent({}, {}, 4)["joules"] is None


def test_memory_of_this_process() -> None:
    now, peak = sensors.resident(), sensors.resident(peak=True)
    assert now is not None and peak is not None and 1e6 < now <= peak
