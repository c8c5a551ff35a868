"""`edgeq doctor`: what this machine has, what is missing, and the command that fixes it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata

import click

from edgeq.cli.checks import MISSING, Check
from edgeq.cli.console import Console
from edgeq.cli.devices import complete_device
from edgeq.cli.examine import examine
from edgeq.cli.options import command
from edgeq.devices import cortex_m, get_target, host
from edgeq.devices.base import Target
from edgeq.devices.cortex_m import missing_tools
from edgeq.devices.environment import environment, runtimes
from edgeq.devices.host import missing_compiler
from edgeq.places import state_dir

# Extra of the package -> distributions it brings, with the module that must import.
EXTRAS = {
    "tflite": {"ai-edge-litert": "ai_edge_litert.interpreter", "litert-torch": "litert_torch"},
    "openvino": {"openvino": "openvino"},
    "onnx": {"onnx": "onnx", "onnxruntime": "onnxruntime", "onnxscript": "onnxscript"},
    "mcu": {"pyserial": "serial"},
    "ply": {"plyfile": "plyfile"},
    "vit": {"timm": "timm"},
    "whisper": {"openai-whisper": "whisper", "jiwer": "jiwer", "soundfile": "soundfile"},
    "yolo": {"pycocotools": "pycocotools", "ultralytics": "ultralytics"},
}
FLOAT_FILES = {"c": "onnx"}
"""Extra that writes the float file which exports of a format without a float form are compared with."""
BASE = {"torch": "torch", "torchvision": "torchvision", "safetensors": "safetensors", "pillow": "PIL"}
IMPORT_SECONDS = 180


@command(
    "doctor", examples="edgeq doctor --quick\nedgeq doctor --device rpi\nedgeq doctor --device ssh://pi@raspberrypi"
)
@click.option(
    "--device",
    metavar="NAME",
    shell_complete=complete_device,
    help="Check what exports to NAME need; or look at the device behind an address such as ssh://pi.",
)
@click.option("--quick", is_flag=True, help="Look only; do not import the heavy packages.")
@click.option("--python", metavar="PATH", default="python3", help="Interpreter of a device over ssh or adb.")
def doctor(console: Console, device: str | None, quick: bool, python: str) -> int:
    """Show what this machine, or an attached device, has and lacks.

    Each lack comes with the command that mends it. The exit code is 4 when something is missing that edgeq, or the
    device asked for, cannot do without.

    Raises:
        UsageError: EQ-U046 for an unknown device.
        DeviceError: There is no connection to the device.
    """
    if device is not None and "://" in device:
        return examine(console, device, python)
    target = None if device is None else get_target(device)
    checks = [*_machine(), *_packages(console, target, quick)]
    if target is not None:
        checks += _target(target)
    rows = [(c.name, c.status, c.detail, c.action or None) for c in checks]
    console.result_table(("check", "status", "detail", "try"), rows)
    wanting = [c for c in checks if c.needed and c.status in ("missing", "broken")]
    console.result("\nready" if not wanting else f"\nnot ready: {', '.join(c.name for c in wanting)}")
    console.emit_json(
        {
            "schema": "edgeq.doctor/1",
            "ok": not wanting,
            "device": None if target is None else target.name,
            "checks": [asdict(c) for c in checks],
            "environment": environment(),
        }
    )
    return MISSING if wanting else 0


def _machine() -> Iterator[Check]:
    """Facts about the machine, for reading and for pasting into a report."""
    machine = environment()
    yield Check("python", "info", f"{machine['python']} on {machine['platform']}")
    cpu = machine["cpu"]
    yield Check("cpu", "info", f"{cpu['model']}, {machine['cores']} cores usable; {' '.join(cpu['isa']) or 'no flags'}")
    memory = machine["ram_mb"]
    yield Check("memory", "info", "unknown" if memory is None else f"{memory / 1024:.1f} GiB")
    yield Check("crash reports", "info", str(state_dir()))


def _packages(console: Console, target: Target | None, quick: bool) -> Iterator[Check]:
    """The base packages and the extras; an extra is needed only by the target whose format it writes."""
    wanted = "" if target is None else FLOAT_FILES.get(target.format, target.format)
    for extra, packages in ({"": BASE} | EXTRAS).items():
        needed = not extra or extra == wanted
        install = f"pip install 'edgeq[{extra}]'" if extra else "pip install --force-reinstall edgeq"
        for package, module in packages.items():
            try:
                version = metadata.version(package)
            except metadata.PackageNotFoundError:
                yield Check(package, "missing", "not installed", install, needed)
                continue
            reason = None if quick else _import_failure(console, module)
            if reason is None:
                yield Check(package, "ok", version, needed=needed)
            else:
                yield Check(package, "broken", f"{version}: {reason}", install, needed)


def _import_failure(console: Console, module: str) -> str | None:
    """Why `module` cannot be imported, or None; in its own process, as a broken library may take it down."""
    console.detail(f"importing {module}")
    words = [sys.executable, "-c", f"import {module}"]
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=IMPORT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"the import takes longer than {IMPORT_SECONDS} s"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"the import ends with signal {-done.returncode}"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"the import ends with code {done.returncode}"


def _tools(target: Target) -> Iterator[Check]:
    """What compares generated C with the interpreter and counts its instructions; exports do without."""
    for name, lacking, install in (
        ("C compiler", missing_compiler(), host.INSTALL),
        (f"emulated {target.name}", missing_tools(), cortex_m.INSTALL),
    ):
        yield Check(name, "missing" if lacking else "ok", lacking, install if lacking else "")


def _target(target: Target) -> Iterator[Check]:
    """Whether this machine can run what is built for the target, and stand in for it in a measurement."""
    if target.format == "c":
        yield from _tools(target)
        return
    found = [r for r in runtimes() if r.format == target.format]
    if not any(r.usable for r in found):
        wanted = " or ".join(r.package for r in found) or target.format
        yield Check(f"runtime for {target.name}", "missing", wanted, found[0].install if found else "", needed=True)
    machine = environment()
    lacking = [flag for flag in target.isa if flag not in machine["cpu"]["isa"]]
    if machine["machine"] != target.family:
        text = f"this is {machine['machine']}, {target.name} is {target.family}: measured ratios are of this machine"
        yield Check("stand-in", "info", text)
    elif lacking:
        text = f"this CPU lacks {' '.join(lacking)}: expect other latency ratios"
        yield Check("stand-in", "info", text)
