"""`edgeq doctor --device ADDRESS`: what an attached device is, has and lacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from edgeq.cli.checks import MISSING, Check
from edgeq.cli.console import Console
from edgeq.errors import UsageError

_INSTALL = {"tflite": "ai-edge-litert", "openvino": "openvino", "onnx": "onnxruntime"}


def examine(console: Console, address: str, python: str) -> int:
    """Connect to a device and show what it says; exit code 4 when it can run nothing.

    Raises:
        UsageError: EQ-U602 for no such device, EQ-U873 for one that is no computer.
        DeviceError: There is no connection.
    """
    from edgeq.devices.attached import open_device
    from edgeq.devices.computer import Computer

    device = open_device(address, python=python)
    if not isinstance(device, Computer):
        message, hint = f"{address} is no computer that could be asked", "edgeq doctor --device cortex-m4"
        raise UsageError(message, code="EQ-U873", place="--device", hint=hint)
    with console.step(f"look at {device.name}"):
        found = device.describe()
    checks = [*_facts(found), *_runtimes(found)]
    ready = found["numpy"] and bool(found["runtimes"])
    rows = [(c.name, c.status, c.detail, c.action or None) for c in checks]
    console.result_table(("check", "status", "detail", "try"), rows)
    console.result("\nready" if ready else "\nnot ready: no runtime")
    console.emit_json(
        {
            "schema": "edgeq.doctor/1",
            "ok": ready,
            "device": device.name,
            "checks": [asdict(c) for c in checks],
            "environment": found["environment"],
            "board": found["board"],
            "state": found["state"],
        }
    )
    return 0 if ready else MISSING


def _facts(found: Mapping[str, Any]) -> Iterator[Check]:
    machine, state = found["environment"], found["state"]
    cpu = machine["cpu"]
    yield Check("board", "info", found["board"] or "it has no name")
    yield Check("system", "info", f"{machine['platform']}, {machine['machine']}, {found['bits']} bit")
    yield Check("cpu", "info", f"{cpu['model']}, {machine['cores']} cores; {' '.join(cpu['isa']) or 'no flags'}")
    memory = "unknown" if machine["ram_mb"] is None else f"{machine['ram_mb']} MiB"
    free = "" if found["available_mb"] is None else f", {found['available_mb']} MiB available"
    yield Check("memory", "info", memory + free)
    yield Check("disk", "info", f"{found['disk_free'] / 1e6:,.0f} MB free for {found['cache']}")
    yield Check("python", "ok", f"{machine['python']}, {found['executable']}")
    for name, form in (("governor", "{}"), ("mhz", "{} MHz"), ("celsius", "{} °C"), ("load", "{}")):
        value = state[name]
        yield Check(name, "info", state["absent"][name] if value is None else form.format(value))
    held = state["throttled"]
    detail = state["absent"]["throttled"] if held is None else ", ".join(held) or "no"
    yield Check("throttled", "broken" if held else "info", detail, "cool it, or use a stronger supply" if held else "")


def _runtimes(found: Mapping[str, Any]) -> Iterator[Check]:
    packages, pip = found["environment"]["packages"], f"{found['executable']} -m pip install"
    if found["numpy"]:
        yield Check("numpy", "ok", packages.get("numpy", "version unknown"))
    else:
        yield Check("numpy", "missing", "not installed", f"{pip} numpy")
    usable = dict(found["runtimes"])
    for format_, package in _INSTALL.items():
        have = usable.get(format_)
        if have is None:
            yield Check(package, "missing", f"{format_} files do not run", f"{pip} {package}")
        else:
            yield Check(have, "ok", packages.get(have, "version unknown"))
