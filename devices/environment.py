"""What this machine is and has: for evidence, profiles and `edgeq doctor`. Imports none of the packages it reports."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Packages whose version can change an artifact's bytes or a measurement.
PACKAGES = (
    "edgeq",
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "safetensors",
    "ai-edge-litert",
    "tflite-runtime",
    "litert-torch",
    "openvino",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "timm",
)

# Flags that integer kernels of the runtimes choose by.
_X86 = ("sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "amx_int8")
_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16")
_ARM = ("neon", "fp", "asimd", "crc32", "atomics", "fphp", "asimdhp", "asimdrdm", "asimddp", "i8mm", "bf16")
_FLAGS = frozenset((*_X86, *_AVX512, *_ARM, "sve", "sve2"))
# Format, distribution, module.
_RUNTIMES = (
    ("tflite", "ai-edge-litert", "ai_edge_litert"),
    ("tflite", "tflite-runtime", "tflite_runtime"),
    ("openvino", "openvino", "openvino"),
    ("onnx", "onnxruntime", "onnxruntime"),
)
# Arm prints part numbers instead of names.
_ARM_PARTS = {"0xd03": "Cortex-A53", "0xd08": "Cortex-A72", "0xd0b": "Cortex-A76", "0xd05": "Cortex-A55"}


@dataclass(frozen=True)
class Runtime:
    """A runtime that can execute artifacts here.

    Args:
        format: File format it runs.
        package: Distribution name.
        version: Installed version, None when absent.
        usable: Whether its module can be found.
        install: Command that installs it.
    """

    format: str
    package: str
    version: str | None
    usable: bool
    install: str


def environment() -> dict[str, Any]:
    """Description of this machine and its packages.

    Returns:
        `edgeq` (version or None), `python`, `platform`, `machine`, `cpu` (`model`, `isa`), `cores` (usable by this
        process), `ram_mb` (None when unknown) and `packages` (name to version, installed ones only).
    """
    cpu = cpu_info()
    packages = versions()
    return {
        "edgeq": packages.get("edgeq"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": {"model": cpu.model, "isa": list(cpu.isa)},
        "cores": usable_cores(),
        "ram_mb": ram_mb(),
        "packages": packages,
    }


def versions() -> dict[str, str]:
    """Installed packages among those that matter, name to version; read from metadata, nothing is imported."""
    found = {}
    for name in PACKAGES:
        version = _version(name)
        if version is not None:
            found[name] = version
    return found


def runtimes() -> tuple[Runtime, ...]:
    """The runtimes that edgeq knows, present or not, in order of preference."""
    return tuple(
        Runtime(name, package, _version(package), _findable(module), f"pip install {package}")
        for name, package, module in _RUNTIMES
    )


def runtime_version(format_: str, packages: Mapping[str, str]) -> str:
    """Package and version of the runtime of a format among installed packages; empty where there is none."""
    return next((f"{p} {packages[p]}" for name, p, _ in _RUNTIMES if name == format_ and p in packages), "")


@dataclass(frozen=True)
class CpuInfo:
    """Name of the CPU and those of its features that integer kernels use."""

    model: str
    isa: tuple[str, ...]


def cpu_info(path: Path = Path("/proc/cpuinfo")) -> CpuInfo:
    """The first CPU listed in `path`; falls back to Python's own idea where that file is absent."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return CpuInfo(platform.processor() or platform.machine() or "unknown", ())
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip().lower(), value.strip())
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    part = fields.get("cpu part", "")
    model = fields.get("model name") or _ARM_PARTS.get(part) or (f"Arm part {part}" if part else "")
    board = fields.get("model", "")
    if board and not board.isdigit():  # boards put their own name here, PCs a number
        model = f"{model} ({board})" if model else board
    return CpuInfo(model or platform.machine() or "unknown", tuple(sorted(flags & _FLAGS)))


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ram_mb() -> int | None:
    """Installed memory in MiB, None when the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1 << 20)
    except (AttributeError, ValueError, OSError):
        return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _findable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # blocked, or half installed
        return False
