from __future__ import annotations

from pathlib import Path

import pytest

from edgeq.devices.scan import scan


def test_hosts_of_the_configuration_and_what_it_includes(tmp_path: Path) -> None:
    config = tmp_path / "config"
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.conf").write_text('Host=cam "nuc-1"\nInclude ../config\n')
    config.write_text(
        "# Host no\nInclude more/*.conf\nInclude\nInclude [\nhost pi pi4 !bad *.lan ?x -oProxyCommand=x\n  HostName h\n"
    )
    found = [s.address for s in scan(tmp_path, config) if s.kind == "ssh"]
    assert found == ["ssh://cam", "ssh://nuc-1", "ssh://pi", "ssh://pi4"]
    assert [s for s in scan(tmp_path, tmp_path / "absent") if s.kind == "ssh"] == []


def test_serial_ports_and_boards_on_usb(tmp_path: Path) -> None:
    for name in ("ttyACM0", "ttyUSB1", "ttyS0"):
        (tmp_path / "dev").mkdir(exist_ok=True)
        (tmp_path / "dev" / name).touch()
    (tmp_path / "dev/serial/by-id").mkdir(parents=True)
    (tmp_path / "dev/serial/by-id/usb-STM_STLINK-if02").symlink_to(tmp_path / "dev/ttyACM0")
    for port, vendor, product in (("1-1", "0483", "STM32 STLink"), ("1-2", "1d6b", "root hub"), ("1-3", "2e8a", None)):
        folder = tmp_path / "sys/bus/usb/devices" / port
        folder.mkdir(parents=True)
        (folder / "idVendor").write_text(f"{vendor}\n")
        (folder / "idProduct").write_text("0003\n")
        if product:
            (folder / "product").write_text(f"{product}\n")
    found = [(s.kind, s.address, s.description, s.usable) for s in scan(tmp_path, tmp_path / "none")]
    assert found[:4] == [
        ("serial", "serial:///dev/ttyACM0", "usb-STM_STLINK-if02; for firmware with NAME_report", True),
        ("serial", "serial:///dev/ttyUSB1", "serial port on USB; for firmware with NAME_report", True),
        ("usb", "1-1", "STMicroelectronics: STM32 STLink", False),
        ("usb", "1-3", "Raspberry Pi: product 0003", False),
    ]
    assert all(kind == "emulator" for kind, *_ in found[4:])


def test_devices_with_usb_debugging(tmp_path: Path) -> None:
    device = tmp_path / "sys/bus/usb/devices"
    for interface, protocol in (("2-1:1.0", "01"), ("2-2:1.0", "50")):
        for folder in (device / interface, device / interface.partition(":")[0]):
            folder.mkdir(parents=True, exist_ok=True)
        for part, value in (("Class", "ff"), ("SubClass", "42"), ("Protocol", protocol)):
            (device / interface / f"bInterface{part}").write_text(f"{value}\n")
        (device / interface.partition(":")[0] / "serial").write_text(f"SERIAL{protocol}\n")
    (device / "2-1" / "product").write_text("Pixel 6\n")
    found = [(s.address, s.description) for s in scan(tmp_path, tmp_path / "none") if s.kind == "adb"]
    assert found == [("adb://SERIAL01", "Pixel 6")]


def test_emulators_say_what_they_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = {s.address: s for s in scan(tmp_path, tmp_path / "none")}
    assert not found["qemu://rpi4"].usable and "qemu-user" in found["qemu://rpi4"].description
    assert not found["qemu://mps2-an386"].usable
